//! What the store asks of the operating system beyond plain reads and writes. Tests put themselves in between to count
//! syncs, to fail them, to run out of space, and to take images of what a power cut would leave.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

pub(crate) trait Disk: Send + Sync {
    /// Returns once everything written to `file` so far will survive a power cut.
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;

    /// Bytes this process may still use on the file system of `dir`.
    fn free(&self, dir: &Path) -> io::Result<u64>;

    /// Gives the file blocks for as many bytes, quickly, or refuses to.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        fs4::FileExt::allocate(file, bytes)
    }

    /// How much of the log goes into one file: the less, the sooner a purge gives room back; each new one costs writing
    /// it all once and a few syncs.
    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    /// What `path` says of the log up to the record `last` has been handed to the file system; the file's next sync has
    /// to cover it.
    fn wrote(&self, path: &Path, last: Option<u64>) {
        let _ = (path, last);
    }
}

pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;

pub(crate) struct Os;

impl Disk for Os {
    fn sync(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_data()
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        fs4::available_space(dir)
    }
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
    if let Err(error) = written {
        // Half a file is of no use and takes room where there may be none. If it cannot be removed, the next one will be
        // written over it.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    std::fs::rename(&temporary, path)?;
    sync_dir(path.parent().expect("a file stands in a folder"))
}

/// Where a file is written before it takes its name.
pub(crate) const TEMPORARY: &str = "tmp";

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    name.into()
}
