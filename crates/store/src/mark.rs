//! The high-water mark: a small file that says how far the log was durable when it was last quiet.
//!
//! Without it a log that lost its end looks like a log that never had one. It lies in blocks that were allocated and
//! synced when the store was made, so that syncing it moves no metadata. Two slots are written in turn; a power cut
//! can tear the one being written, and leaves the other.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    disk::Disk,
    record::{Base, Hash, Vote},
};

/// One sector of any disk in use, and one page of memory.
const SLOT_BYTES: usize = 4096;
const SLOTS: u64 = 2;
const CHECKSUM_BYTES: usize = 32;

/// What was durable when the mark was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Of two slots the higher counts.
    pub(crate) seq: u64,
    pub(crate) last: Option<(u64, Hash)>,
    pub(crate) base: Base,
    pub(crate) vote: Option<Vote>,
}

impl codec::Record for Mark {
    const VERSION: u8 = 1;
    const LIMIT: usize = SLOT_BYTES - CHECKSUM_BYTES - 2;
}

/// What a look at the slots shows.
#[derive(Debug)]
pub(crate) enum Found {
    Missing,
    /// Never written: the store's making was not finished.
    Blank,
    Mark(Mark),
    Unreadable,
}

pub(crate) trait Marks: Send {
    fn read(&mut self) -> Result<Found, Error>;

    /// Durable on return.
    fn write(&mut self, mark: &Mark) -> Result<(), Error>;
}

pub(crate) struct MarkFile {
    path: PathBuf,
    file: Option<File>,
    disk: Arc<dyn Disk>,
}

impl MarkFile {
    /// Allocates the slots. The caller syncs the folder.
    pub(crate) fn create(path: &Path) -> Result<(), Error> {
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(&[0; SLOT_BYTES * SLOTS as usize])?;
            file.sync_all()
        };
        write().map_err(|cause| Error::io("create", path, cause))
    }

    pub(crate) fn open(path: &Path, disk: Arc<dyn Disk>) -> Result<MarkFile, Error> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Some(file),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error::io("open", path, cause)),
        };
        Ok(MarkFile { path: path.into(), file, disk })
    }
}

impl Marks for MarkFile {
    fn read(&mut self) -> Result<Found, Error> {
        let Some(file) = &mut self.file else { return Ok(Found::Missing) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.take(SLOTS * SLOT_BYTES as u64).read_to_end(&mut bytes))
            .map_err(|cause| Error::io("read", &self.path, cause))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Found::Blank);
        }
        let newest = bytes.chunks(SLOT_BYTES).filter_map(unseal).max_by_key(|mark| mark.seq);
        Ok(newest.map_or(Found::Unreadable, Found::Mark))
    }

    fn write(&mut self, mark: &Mark) -> Result<(), Error> {
        let Some(file) = &mut self.file else {
            return Err(Error::damaged(&self.path, "the mark file is missing"));
        };
        let slot = seal(mark)?;
        file.seek(SeekFrom::Start(mark.seq % SLOTS * SLOT_BYTES as u64))
            .and_then(|_| file.write_all(&slot))
            .and_then(|()| self.disk.sync(file, &self.path))
            .map_err(|cause| Error::io("write", &self.path, cause))
    }
}

/// Checksum, length, body, zeros.
fn seal(mark: &Mark) -> Result<Vec<u8>, Error> {
    let body = codec::encode(mark).map_err(|_| Error::TooLong {
        what: "mark",
        len: SLOT_BYTES,
        limit: <Mark as codec::Record>::LIMIT,
    })?;
    let len = u16::try_from(body.len()).expect("the record's limit is below a slot's size");
    let mut slot = vec![0; CHECKSUM_BYTES];
    slot.extend(len.to_le_bytes());
    slot.extend(body);
    slot.resize(SLOT_BYTES, 0);
    let checksum = blake3::hash(&slot[CHECKSUM_BYTES..]);
    slot[..CHECKSUM_BYTES].copy_from_slice(checksum.as_bytes());
    Ok(slot)
}

fn unseal(slot: &[u8]) -> Option<Mark> {
    let (checksum, rest) = slot.split_at_checked(CHECKSUM_BYTES)?;
    if slot.len() != SLOT_BYTES || blake3::hash(rest).as_bytes() != checksum {
        return None;
    }
    let (len, body) = rest.split_at(2);
    let len = u16::from_le_bytes([len[0], len[1]]);
    codec::decode(body.get(..usize::from(len))?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_mark_fits_a_slot_even_when_its_values_are_longest() {
        let bytes = vec![7; crate::META_BYTES_MAX];
        let vote = Some(Vote { seq: u64::MAX, bytes: bytes.clone() });
        let base = Base { purged: Some(u64::MAX), meta: bytes, hash: [255; 32] };
        let mark = Mark { seq: u64::MAX, last: Some((u64::MAX, [255; 32])), base, vote };
        assert_eq!(unseal(&seal(&mark).unwrap()), Some(mark));
    }

    #[test]
    fn any_flipped_bit_makes_a_slot_unreadable() {
        let slot = seal(&Mark { seq: 9, ..Mark::default() }).unwrap();
        for bit in 0..slot.len() * 8 {
            let mut flipped = slot.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&flipped), None, "bit {bit}");
        }
    }
}
