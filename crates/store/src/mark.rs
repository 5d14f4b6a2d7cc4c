//! The high-water mark: a small file that says how far the log reaches.
//!
//! Without it a log that lost its end looks like a log that never had one. It is synced at the same time as the batch it
//! speaks of, and both before the acknowledgement; so it names two ends, the one being written and the one that was
//! durable before. It lies in blocks that were allocated and synced when the store was made, so that syncing it moves no
//! metadata. Two slots are written in turn; a power cut can tear the one being written, and leaves the other.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    disk::Disk,
    record::{Base, Hash, Vote},
};

/// One page of memory, and a whole number of sectors of any disk in use.
const SLOT_BYTES: usize = 4096;
const SLOTS: u64 = 2;
const CHECKSUM_BYTES: usize = 32;

/// How far the log reaches, and what stands beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Of two slots the higher counts.
    pub(crate) seq: u64,
    /// The last record, once the batch that was written beside this mark is durable.
    pub(crate) last: Option<(u64, Hash)>,
    /// The last record that was durable when this mark was begun.
    pub(crate) before: Option<(u64, Hash)>,
    pub(crate) base: Base,
    pub(crate) vote: Option<Vote>,
}

impl codec::Record for Mark {
    const VERSION: u8 = 2;
    const LIMIT: usize = SLOT_BYTES - CHECKSUM_BYTES - 2;
}

/// What a look at the slots shows.
#[derive(Debug)]
pub(crate) enum Found {
    Missing,
    /// Never written: the store's making was not finished.
    Blank,
    Mark(Box<Mark>),
    Unreadable,
}

pub(crate) trait Marks: Send {
    fn read(&self) -> Result<Found, Error>;

    /// Begins to write a mark. `finish` has to follow before the next one.
    fn begin(&mut self, mark: Mark) -> Result<(), Error>;

    /// The mark begun last is durable on return.
    fn finish(&mut self) -> Result<(), Error>;
}

/// The file with a thread of its own, so that a mark is written and synced while the log is.
pub(crate) struct MarkFile {
    path: PathBuf,
    /// Holds one mark at most, as `finish` waits for its result.
    marks: SyncSender<Mark>,
    results: Receiver<Result<(), Error>>,
    /// Taken when it ends.
    thread: Option<JoinHandle<()>>,
}

/// What the thread holds.
struct Slots {
    path: PathBuf,
    file: File,
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

    /// What is read from here on is on the disk: a mark is acted upon at once, and until now the newest may have been in the
    /// page cache only, for a process that was killed before its sync. It is written anew because a sync that failed would
    /// have left it there looking clean, and the next sync would pass it over.
    pub(crate) fn open(path: &Path, disk: Arc<dyn Disk>) -> Result<MarkFile, Error> {
        let failed = |cause| Error::io("open", path, cause);
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let mut slots = Slots { path: path.into(), file, disk };
        if let Found::Mark(newest) = look(path)? {
            slots.write(&newest)?;
        }
        let (marks, handed) = sync_channel(1);
        let (done, results) = sync_channel(1);
        let run = move || {
            // Whoever no longer wants the result sends no other mark.
            handed.iter().all(|mark| done.send(slots.write(&mark)).is_ok());
        };
        let thread = thread::Builder::new().name("store-mark".into()).spawn(run).map_err(failed)?;
        Ok(MarkFile { path: path.into(), marks, results, thread: Some(thread) })
    }

    fn gone(&self) -> Error {
        Error::damaged(&self.path, "its writer panicked")
    }
}

/// What the mark file at `path` shows.
pub(crate) fn look(path: &Path) -> Result<Found, Error> {
    let failed = |cause| Error::io("read", path, cause);
    let file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        opened => opened.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(SLOTS * SLOT_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Found::Blank);
    }
    let newest = bytes.chunks(SLOT_BYTES).filter_map(unseal).max_by_key(|mark| mark.seq);
    Ok(newest.map_or(Found::Unreadable, |mark| Found::Mark(mark.into())))
}

impl Marks for MarkFile {
    fn read(&self) -> Result<Found, Error> {
        look(&self.path)
    }

    fn begin(&mut self, mark: Mark) -> Result<(), Error> {
        self.marks.send(mark).map_err(|_| self.gone())
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.results.recv().unwrap_or_else(|_| Err(self.gone()))
    }
}

impl Drop for MarkFile {
    fn drop(&mut self) {
        // Without a sender the thread ends.
        self.marks = sync_channel(0).0;
        // If it panicked, whoever waited for the mark was told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Slots {
    fn write(&mut self, mark: &Mark) -> Result<(), Error> {
        let slot = seal(mark)?;
        self.file
            .seek(SeekFrom::Start(mark.seq % SLOTS * SLOT_BYTES as u64))
            .and_then(|_| self.file.write_all(&slot))
            .and_then(|()| {
                self.disk.wrote(&self.path, mark.last.map(|(index, _)| index));
                self.disk.sync(&self.file, &self.path)
            })
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
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::SystemTime,
    };

    use super::*;

    #[test]
    fn a_sealed_mark_fits_a_slot_even_when_its_values_are_longest() {
        let bytes = vec![7; crate::META_BYTES_MAX];
        let vote = Some(Vote { seq: u64::MAX, bytes: bytes.clone() });
        let base = Base { purged: Some(u64::MAX), meta: bytes, hash: [255; 32] };
        let end = Some((u64::MAX, [255; 32]));
        let mark = Mark { seq: u64::MAX, last: end, before: end, base, vote };
        assert_eq!(unseal(&seal(&mark).unwrap()), Some(mark));
    }

    #[test]
    fn opening_writes_and_syncs_the_newest_mark_before_anyone_can_act_on_it() {
        #[derive(Default)]
        struct Synced(AtomicUsize);
        impl Disk for Synced {
            fn sync(&self, _file: &File, _path: &Path) -> io::Result<()> {
                self.0.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            fn free(&self, _dir: &Path) -> io::Result<u64> {
                unreachable!("a mark takes no room")
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        MarkFile::create(&path).unwrap();
        let disk = Arc::new(Synced::default());
        let mut marks = MarkFile::open(&path, disk.clone()).unwrap();
        for seq in [4, 5] {
            marks.begin(Mark { seq, ..Mark::default() }).unwrap();
            marks.finish().unwrap();
        }
        drop(marks);

        let (before, long_ago) = (std::fs::read(&path).unwrap(), SystemTime::UNIX_EPOCH);
        File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let synced = disk.0.load(Ordering::SeqCst);
        let marks = MarkFile::open(&path, disk.clone()).unwrap();
        assert_eq!(disk.0.load(Ordering::SeqCst), synced + 1);
        assert!(std::fs::metadata(&path).unwrap().modified().unwrap() > long_ago, "nothing was written");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(matches!(marks.read().unwrap(), Found::Mark(mark) if mark.seq == 5));
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
