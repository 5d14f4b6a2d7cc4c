//! Snapshot files: whole values under a name, each written so that it is there in full or not at all, and read only if
//! it is what was written. The caller purges what a snapshot stands for after `write` has returned, never before.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    disk::{TEMPORARY, sync_dir, write_atomically},
};

const MAGIC: &[u8; 8] = b"omx-snap";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 8 + 1 + 8 + 32;
const NAME_BYTES_MAX: usize = 128;

/// Durable on return. Makes the folder if it is not there; replaces a snapshot of the same name.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = path(dir, name)?;
    let made = || -> io::Result<()> {
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            dir.parent().map_or(Ok(()), sync_dir)?;
        }
        let len = (bytes.len() as u64).to_le_bytes();
        write_atomically(&path, &[MAGIC, &[VERSION], &len, blake3::hash(bytes).as_bytes(), bytes])
    };
    made().map_err(|cause| Error::io("write", &path, cause))
}

/// The bytes, if every one of them is what was written.
pub fn read(dir: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = path(dir, name)?;
    let mut file = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
    let damaged = |what: &str| Error::damaged(&path, what);
    let (head, body) = file.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| damaged("it is shorter than its head"))?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let (version, rest) = rest.split_at(1);
    let (len, hash) = rest.split_at(8);
    if magic != MAGIC {
        return Err(damaged("it is not a snapshot"));
    }
    if version[0] > VERSION {
        return Err(Error::TooNew { path, found: version[0].into(), known: VERSION.into() });
    }
    if version[0] != VERSION || len != (body.len() as u64).to_le_bytes() || hash != blake3::hash(body).as_bytes() {
        return Err(damaged("it does not match its checksum"));
    }
    file.drain(..HEAD_BYTES);
    Ok(file)
}

/// The names of all snapshots, in order. What a power cut left unfinished is not among them.
pub fn list(dir: &Path) -> Result<Vec<String>, Error> {
    let found = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|cause| Error::io("list", dir, cause))?,
    };
    let mut names = Vec::new();
    for entry in found {
        let name = entry.map_err(|cause| Error::io("list", dir, cause))?.file_name();
        names.extend(name.to_str().filter(|name| is_name(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Removes a snapshot; one that is not there is fine.
pub fn remove(dir: &Path, name: &str) -> Result<(), Error> {
    remove_file(&path(dir, name)?)
}

/// Removes every snapshot but one, and what a power cut left unfinished.
pub fn keep_only(dir: &Path, name: &str) -> Result<(), Error> {
    path(dir, name)?;
    for entry in fs::read_dir(dir).map_err(|cause| Error::io("list", dir, cause))? {
        let entry = entry.map_err(|cause| Error::io("list", dir, cause))?;
        let stale = entry.file_name().to_str().is_some_and(|found| {
            let unfinished = found.strip_suffix(TEMPORARY).and_then(|rest| rest.strip_suffix('.')).is_some_and(is_name);
            unfinished || (is_name(found) && found != name)
        });
        if stale {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

fn path(dir: &Path, name: &str) -> Result<PathBuf, Error> {
    if is_name(name) { Ok(dir.join(name)) } else { Err(Error::BadName { name: name.into() }) }
}

/// Letters, digits, `-`, `_` and inner dots: the same file on every system, and never one outside the folder.
fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let unfinished = name.rsplit_once('.').is_some_and(|(_, end)| end == TEMPORARY);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal) && !unfinished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_back_and_the_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("snapshots");
        assert!(list(&dir).unwrap().is_empty());
        write(&dir, "s-1", b"one").unwrap();
        write(&dir, "s-2", b"").unwrap();
        fs::write(dir.join("s-3.tmp"), b"half").unwrap();
        assert_eq!(list(&dir).unwrap(), ["s-1", "s-2"]);
        assert_eq!(read(&dir, "s-1").unwrap(), b"one");
        keep_only(&dir, "s-2").unwrap();
        assert_eq!(list(&dir).unwrap(), ["s-2"]);
        assert!(!dir.join("s-3.tmp").exists());
        assert_eq!(read(&dir, "s-2").unwrap(), b"");
        remove(&dir, "s-2").unwrap();
        assert!(matches!(read(&dir, "s-2"), Err(Error::Io { .. })));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_snapshot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "s", b"what all nodes agreed on").unwrap();
        let file = dir.path().join("s");
        let good = fs::read(&file).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, bad).unwrap();
            assert!(matches!(read(dir.path(), "s"), Err(Error::Damaged { .. } | Error::TooNew { .. })), "bit {bit}");
        }
        for len in 0..good.len() {
            fs::write(&file, &good[..len]).unwrap();
            assert!(matches!(read(dir.path(), "s"), Err(Error::Damaged { .. })), "cut to {len}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "a/b", "../a", "/a", ".hidden", "a.tmp", "a\\b", "ä", &"n".repeat(129)] {
            assert!(matches!(write(dir.path(), name, b""), Err(Error::BadName { .. })), "`{name}`");
            assert!(matches!(read(dir.path(), name), Err(Error::BadName { .. })), "`{name}`");
        }
    }
}
