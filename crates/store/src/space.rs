//! Free space, and the reserve that lets the log end in good order when there is none left.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    Error,
    disk::{Disk, SEGMENT_BYTES, sync_dir},
};

/// What a write may take beyond its own bytes: a new segment, and a step of sled's file.
const SLACK_BYTES: u64 = SEGMENT_BYTES + (1 << 20);

/// What is written of the reserve in one go where it cannot be allocated: making a segment takes as long.
const STEP_BYTES: u64 = SEGMENT_BYTES;

/// The last of it is for what must not wait for an administrator.
const VOTE_SLACK_BYTES: u64 = 1 << 20;

/// Bytes on disk for a byte written: a batch that does not fit any more leaves up to half of the segments unused, and
/// sectors have heads.
const AMPLIFICATION: u64 = 3;

/// With this much free nobody needs to look with every write: it is more than a full queue may take and then some.
const PLENTY_BYTES: u64 = 256 << 20;

/// How long what was seen counts, where there was plenty. Nobody fills up that much meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still use.
    pub free: u64,
    /// The reserve is in use, or there is no room to hold it. Take no new work that has to be written.
    pub low: bool,
}

impl Space {
    pub(crate) const UNLIMITED: Space = Space { free: u64::MAX, low: false };
}

/// What room is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Records,
    /// Small, and without it a node cannot take part in electing who goes on.
    Vote,
    /// Makes room, or ends: never refused.
    Removal,
}

/// A file that takes up room on the disk until the room is needed.
pub(crate) struct Reserve {
    path: PathBuf,
    dir: PathBuf,
    bytes: u64,
    disk: Arc<dyn Disk>,
    /// Bytes of it that are there.
    held: Mutex<u64>,
    /// When there was plenty of room for the last time.
    plenty: Mutex<Option<Instant>>,
}

impl Reserve {
    /// Gives the reserve of an earlier run back if the disk is so full that the store could not even be opened.
    pub(crate) fn open(dir: &Path, bytes: u64, disk: Arc<dyn Disk>) -> Result<Reserve, Error> {
        let path = dir.join("reserve");
        let found = std::fs::metadata(&path).map_or(0, |found| found.len());
        let reserve = Reserve { path, dir: dir.into(), bytes, disk, held: Mutex::new(found), plenty: Mutex::new(None) };
        if reserve.free()? < SLACK_BYTES || found != bytes {
            reserve.release()?;
        }
        Ok(reserve)
    }

    /// Says whether `bytes` more can be written, and gives up the reserve for it if it must.
    pub(crate) fn admit(&self, purpose: Purpose, bytes: u64) -> Result<(), Error> {
        let slack = match purpose {
            Purpose::Records => SLACK_BYTES,
            Purpose::Vote => VOTE_SLACK_BYTES,
            // A cut is a batch too, and may need a segment.
            Purpose::Removal if self.free().is_ok_and(|free| free < SLACK_BYTES) => return self.release(),
            Purpose::Removal => return Ok(()),
        };
        let mut plenty = self.plenty.lock().expect("no holder panics");
        if plenty.is_some_and(|seen| seen.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let needed = bytes.saturating_mul(AMPLIFICATION).saturating_add(slack);
        let free = self.free()?;
        *plenty = (free >= PLENTY_BYTES).then(Instant::now);
        if free >= needed {
            return Ok(());
        }
        self.release()?;
        if self.free()? >= needed { Ok(()) } else { Err(Error::NoSpace { path: self.dir.clone() }) }
    }

    /// Whether there was plenty of room a moment ago, with the reserve untouched.
    pub(crate) fn saw_plenty(&self) -> bool {
        let seen = *self.plenty.lock().expect("no holder panics");
        seen.is_some_and(|seen| seen.elapsed() < LOOK_EVERY)
            && *self.held.lock().expect("no holder panics") == self.bytes
    }

    /// Takes the reserve, or a step of it, if there is room for it and for some work besides. Says whether to go on.
    pub(crate) fn take_some(&self) -> Result<bool, Error> {
        let mut held = self.held.lock().expect("no holder panics");
        if *held == self.bytes || !self.has_room(*held, self.free()?) {
            return Ok(false);
        }
        match self.extend(*held) {
            Ok(len) => *held = len,
            // Somebody else was quicker. It stays low.
            Err(cause) if cause.kind() == io::ErrorKind::StorageFull => {
                *held = 0;
                self.remove()?;
                return Ok(false);
            }
            Err(cause) => return Err(Error::io("allocate", &self.path, cause)),
        }
        Ok(*held < self.bytes)
    }

    pub(crate) fn space(&self) -> Result<Space, Error> {
        let held = *self.held.lock().expect("no holder panics");
        let free = self.free()?;
        Ok(Space { free, low: if self.bytes > 0 { held < self.bytes } else { free < SLACK_BYTES } })
    }

    /// Whether taking the reserve is worth a try.
    pub(crate) fn could_take(&self, space: Space) -> bool {
        space.low && self.bytes > 0 && self.has_room(*self.held.lock().expect("no holder panics"), space.free)
    }

    /// Room for the rest and twice the slack, so that the reserve is not given back with the next write.
    fn has_room(&self, held: u64, free: u64) -> bool {
        free >= (self.bytes - held).saturating_add(2 * SLACK_BYTES)
    }

    /// Blocks, not just a length. File systems that cannot allocate get zeros written, a step at a time. Returns how long
    /// the file is now.
    fn extend(&self, held: u64) -> io::Result<u64> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        let len = match self.disk.allocate(&file, self.bytes) {
            Ok(()) => self.bytes,
            Err(cause) if cause.kind() == io::ErrorKind::StorageFull => return Err(cause),
            Err(_) => {
                let len = self.bytes.min(held + STEP_BYTES);
                file.seek(SeekFrom::Start(held))?;
                fill(&mut file, len - held)?;
                len
            }
        };
        file.set_len(len)?;
        file.sync_all()?;
        sync_dir(&self.dir)?;
        Ok(len)
    }

    fn release(&self) -> Result<(), Error> {
        let mut held = self.held.lock().expect("no holder panics");
        *held = 0;
        self.remove()
    }

    fn remove(&self) -> Result<(), Error> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(Error::io("release", &self.path, cause)),
        }
    }

    fn free(&self) -> Result<u64, Error> {
        self.disk.free(&self.dir).map_err(|cause| Error::io("measure the free space of", &self.dir, cause))
    }
}

fn fill(file: &mut File, mut bytes: u64) -> io::Result<()> {
    let zeros = [0; 1 << 16];
    while bytes > 0 {
        let len = bytes.min(zeros.len() as u64);
        file.write_all(&zeros[..len as usize])?;
        bytes -= len;
    }
    Ok(())
}
