//! Files, and what has to be done for them to be there after a power cut.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// What a disk does that a test wants to fail.
pub(crate) trait Disk: Send + Sync {
    /// Bytes that this process may still use.
    fn free(&self, dir: &Path) -> io::Result<u64> {
        fs4::available_space(dir)
    }

    /// Gives the file blocks for as many bytes, or refuses to.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        fs4::FileExt::allocate(file, bytes)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all_at(file, bytes, offset)
    }
}

pub(crate) struct Os;

impl Disk for Os {}

/// What tells that a file is the one that was looked at before: it is not proof of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    /// Nanoseconds since 1970, or before it.
    pub(crate) modified: i128,
    /// 0 where the system has none.
    pub(crate) inode: u64,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().map_or(0, |time| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
        });
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self { size: metadata.len(), modified, inode }
    }
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match read_some_at(file, &mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(unix)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

/// Makes the names in `dir` durable. Only Unix can open a folder for that; elsewhere the file system's own journal has
/// to do.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Writes a whole file so that after a power cut it is there in full or not at all.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = temporary(path);
    let written = File::create(&temporary).and_then(|mut file| {
        parts.iter().try_for_each(|part| io::Write::write_all(&mut file, part))?;
        file.sync_all()
    });
    // Half a file takes room where there may be none; if it cannot be removed, the next one is written over it.
    let renamed = written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    });
    renamed?;
    sync_dir(path.parent().expect("a file stands in a folder"))
}

/// Where a file is written before it takes its name. What is left of one is removed at the next start.
pub(crate) const TEMPORARY: &str = "new";

fn temporary(path: &Path) -> PathBuf {
    path.with_extension(TEMPORARY)
}

/// Whether others may hold on to the same bytes under another name. Where the system does not tell, nobody does.
pub(crate) fn has_other_names(path: &Path) -> bool {
    #[cfg(unix)]
    {
        fs::symlink_metadata(path).is_ok_and(|found| std::os::unix::fs::MetadataExt::nlink(&found) > 1)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Says whether there was one.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
