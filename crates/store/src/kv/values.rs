//! The small values in sled, made durable by ourselves.
//!
//! Three habits of sled 0.34 decide the shape. Its flush ends in `sync_file_range`, which promises nothing after a power
//! cut, so a descriptor of our own on its file is synced behind each flush. It takes a damaged place for the end of its
//! log and forgets what lies behind; hence vote and base stand in the mark too. And it panics where it might return an
//! error.

use std::{
    fs::{File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Key;
use crate::{
    Error,
    disk::{self, Disk},
};

/// A few values of a kilobyte need no more.
const CACHE_BYTES: u64 = 1 << 20;

pub(crate) struct Values {
    db: sled::Db,
    /// sled's file, for syncing.
    file: File,
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Values {
    /// Holds the folder against other processes until dropped.
    pub(crate) fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<Values, Error> {
        let path = dir.join("db");
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .use_compression(false);
        // What a process that was killed has left in the page cache first: in opening, sled makes a snapshot of what it
        // finds, and one that says more than a power cut leaves of the file keeps sled from ever opening it again.
        match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            opened => {
                opened.and_then(|file| disk.sync(&file, &path)).map_err(|cause| Error::io("sync", &path, cause))?
            }
        }
        let db = guarded(dir, || config.open())?;
        guarded(dir, || db.flush())?;
        let sync = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            disk.sync(&file, &path)?;
            for name in ["conf", "blobs", ""] {
                disk::sync_dir(&dir.join(name))?;
            }
            Ok(file)
        };
        let file = sync().map_err(|cause| Error::io("sync", &path, cause))?;
        Ok(Values { db, file, path, disk })
    }

    /// In memory only, until `flush`.
    pub(crate) fn put(&self, key: Key, value: Vec<u8>) -> Result<(), Error> {
        guarded(&self.path, || self.db.insert([key as u8], value)).map(drop)
    }

    /// What was put is durable on return.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        guarded(&self.path, || self.db.flush())?;
        self.disk.sync(&self.file, &self.path).map_err(|cause| Error::io("sync", &self.path, cause))
    }

    pub(crate) fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        Ok(guarded(&self.path, || self.db.get([key as u8]))?.map(|value| value.to_vec()))
    }
}

/// Runs a call into sled, which panics on some of what it finds on a damaged disk.
fn guarded<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|cause| refused(path, cause)),
        Err(_) => Err(Error::damaged(path, "sled could not make sense of its files")),
    }
}

fn refused(path: &Path, cause: sled::Error) -> Error {
    match cause {
        sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock") => {
            Error::InUse { path: path.into() }
        }
        sled::Error::Io(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::damaged(path, "a file of sled's ends too early")
        }
        sled::Error::Io(cause) => Error::io("access", path, cause),
        other => Error::damaged(path, other.to_string()),
    }
}
