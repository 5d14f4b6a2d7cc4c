//! Entries and values in sled, made durable by ourselves.
//!
//! Four habits of sled 0.34 decide the shape. Its flush ends in `sync_file_range`, which promises nothing after a power
//! cut, so a descriptor of our own on its file is synced behind each flush. An item past an eighth of a segment goes into
//! a file of its own that is never synced, and up to some twenty neighbours share an item, so entries are stored in
//! parts small enough that it cannot come to that. It takes a damaged place for the end of its log and forgets what lies
//! behind, which the ledger notices. And it panics where it might return an error.

use std::{
    fs::{File, OpenOptions},
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{Change, Key, KvLog};
use crate::{
    Error,
    disk::{self, Disk},
    record::{Entry, Hash, RECORD_BYTES_MAX, Record},
};

/// Small enough that a full leaf stays far below sled's limit for an item kept in line.
const PART_BYTES: usize = 3 << 10;
const CACHE_BYTES: u64 = 32 << 20;

/// Keys that one batch removes: a purge of a long log should not have to be held in memory at once.
const REMOVE_BATCH: usize = 4096;

const ENTRY: u8 = b'l';
const VALUE: u8 = b'm';

/// In front of an entry's first part: its length, its predecessor's hash, its own.
const HEAD_BYTES: usize = 4 + 32 + 32;

pub(crate) struct SledLog {
    db: sled::Db,
    /// sled's file, for syncing.
    file: File,
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

impl SledLog {
    pub(crate) fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<SledLog, Error> {
        let path = dir.join("db");
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .use_compression(false);
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
        Ok(SledLog { db, file, path, disk })
    }

    fn apply(&self, change: Change) -> Result<(), Error> {
        match change {
            Change::Append(entries) => {
                let mut batch = sled::Batch::default();
                for entry in &entries {
                    for (part, value) in parts(entry).into_iter().enumerate() {
                        let part = u16::try_from(part).expect("the longest record has fewer parts");
                        batch.insert(&entry_key(entry.record.index, part), value);
                    }
                }
                guarded(&self.path, || self.db.apply_batch(batch))
            }
            Change::CutAfter(last) => match last.map_or(Some(0), |last| last.checked_add(1)) {
                Some(first) => self.remove(self.db.range(entry_key(first, 0)..=entry_key(u64::MAX, u16::MAX)).rev()),
                None => Ok(()),
            },
            Change::DropTo(purged) => self.remove(self.db.range(entry_key(0, 0)..=entry_key(purged, u16::MAX))),
            Change::Put(key, value) => guarded(&self.path, || self.db.insert(value_key(key), value)).map(drop),
        }
    }

    fn remove(&self, found: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>) -> Result<(), Error> {
        let mut keys = found.map(|row| row.map(|(key, _)| key));
        loop {
            let some: Vec<_> = guarded(&self.path, || keys.by_ref().take(REMOVE_BATCH).collect())?;
            if some.is_empty() {
                return Ok(());
            }
            let mut batch = sled::Batch::default();
            some.into_iter().for_each(|key| batch.remove(key));
            guarded(&self.path, || self.db.apply_batch(batch))?;
        }
    }
}

impl KvLog for SledLog {
    fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        let mut last = None;
        for change in changes {
            if let Change::Append(entries) = &change {
                last = entries.last().map(|entry| entry.record.index);
            }
            self.apply(change)?;
        }
        guarded(&self.path, || self.db.flush())?;
        if let Some(last) = last {
            self.disk.wrote(last);
        }
        self.disk.sync(&self.file, &self.path).map_err(|cause| Error::io("sync", &self.path, cause))
    }

    fn scan(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let (first, last) = range.into_inner();
        let mut rows = self.db.range(entry_key(first, 0)..=entry_key(last, u16::MAX));
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut open: Option<Assembly> = None;
        while bytes < bytes_max {
            let row = guarded(&self.path, || rows.next().transpose())?;
            let row = row.as_ref().and_then(|(key, value)| Some((parse_entry_key(key)?, value)));
            let Some(((index, part), value)) = row else { break };
            if part == 0 {
                open = Assembly::begin(index, value);
            } else if let Some(assembly) = &mut open {
                assembly.add(index, part, value);
            }
            if let Some(entry) = open.take_if(|assembly| assembly.is_whole()).map(Assembly::finish) {
                bytes += entry.record.bytes.len().max(1);
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn last_index(&self) -> Result<Option<u64>, Error> {
        let last = guarded(&self.path, || self.db.scan_prefix([ENTRY]).next_back().transpose())?;
        Ok(last.and_then(|(key, _)| parse_entry_key(&key)).map(|(index, _)| index))
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        Ok(guarded(&self.path, || self.db.get(value_key(key)))?.map(|value| value.to_vec()))
    }
}

/// Big-endian, so that sled's order is the log's.
fn entry_key(index: u64, part: u16) -> [u8; 11] {
    let mut key = [ENTRY; 11];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

fn parse_entry_key(key: &[u8]) -> Option<(u64, u16)> {
    let (index, part) = key.strip_prefix(&[ENTRY])?.split_at_checked(8)?;
    Some((u64::from_be_bytes(index.try_into().ok()?), u16::from_be_bytes(part.try_into().ok()?)))
}

fn value_key(key: Key) -> [u8; 2] {
    [VALUE, key as u8]
}

fn parts(entry: &Entry) -> Vec<Vec<u8>> {
    let bytes = &entry.record.bytes;
    let (first, rest) = bytes.split_at(bytes.len().min(PART_BYTES - HEAD_BYTES));
    let len = u32::try_from(bytes.len()).expect("a record's limit is below 4 GiB");
    let head = [&len.to_be_bytes()[..], &entry.prev, &entry.hash, first].concat();
    std::iter::once(head).chain(rest.chunks(PART_BYTES).map(<[u8]>::to_vec)).collect()
}

/// An entry whose parts are being read.
struct Assembly {
    index: u64,
    parts: u16,
    len: usize,
    prev: Hash,
    hash: Hash,
    bytes: Vec<u8>,
}

impl Assembly {
    fn begin(index: u64, head: &[u8]) -> Option<Assembly> {
        let (len, rest) = head.split_first_chunk::<4>()?;
        let (prev, rest) = rest.split_first_chunk::<32>()?;
        let (hash, first) = rest.split_first_chunk::<32>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len <= RECORD_BYTES_MAX)?;
        Some(Assembly { index, parts: 1, len, prev: *prev, hash: *hash, bytes: first.to_vec() })
    }

    /// A part out of turn is passed over; the entry then never becomes whole.
    fn add(&mut self, index: u64, part: u16, bytes: &[u8]) {
        if (index, part) == (self.index, self.parts) {
            self.bytes.extend(bytes);
            self.parts = self.parts.saturating_add(1);
        }
    }

    fn is_whole(&self) -> bool {
        self.bytes.len() == self.len
    }

    fn finish(self) -> Entry {
        let record = Record { index: self.index, bytes: Bytes::from(self.bytes) };
        Entry { prev: self.prev, hash: self.hash, record }
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
