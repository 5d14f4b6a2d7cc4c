//! One segment: a file whose blocks are all written and synced before it is used, so that a later sync moves data only.
//!
//! It begins with a page that says which segment it is, how long, and which batch comes first. The last tells, whatever
//! happened to the segment before, whether that one is all there.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::frame::{self, Body, PAGE_BYTES};
use crate::{
    Error,
    disk::{Disk, sync_dir},
};

const MAGIC: &[u8; 8] = b"omx-segm";

/// The head of a segment is a batch of its own under a number that no other has.
const HEAD: u64 = 0;

/// A segment until it has its name.
const DRAFT: &str = "next";

/// Bytes of zeros written in one go.
const FILL_BYTES: usize = 1 << 20;

/// The segment being written.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    file: File,
    len: u64,
    /// Where the next batch goes.
    at: u64,
}

impl Segment {
    /// Makes a segment with room for `room` bytes of batches, the first of which has the number `batch`. Durable on
    /// return; a power cut before leaves a draft that the next making overwrites.
    pub(super) fn create(dir: &Path, number: u64, batch: u64, room: u64, disk: &dyn Disk) -> Result<Segment, Error> {
        let (draft, path) = (dir.join(DRAFT), path(dir, number));
        let len = PAGE_BYTES as u64 + room.next_multiple_of(PAGE_BYTES as u64);
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(&head(number, batch, len).seal(HEAD))?;
            fill(&mut file, len - PAGE_BYTES as u64)?;
            disk.sync(&file, &draft)?;
            fs::rename(&draft, &path)?;
            sync_dir(dir)?;
            Ok(file)
        };
        let file = write().map_err(|cause| Error::io("create", &path, cause))?;
        Ok(Segment { number, path, file, len, at: PAGE_BYTES as u64 })
    }

    /// Opens a segment to write behind what was found in it.
    pub(super) fn resume(dir: &Path, number: u64, len: u64, at: u64) -> Result<Segment, Error> {
        let path = path(dir, number);
        let file = fs::OpenOptions::new().write(true).open(&path).map_err(|cause| Error::io("open", &path, cause))?;
        Ok(Segment { number, path, file, len, at })
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.len - self.at >= bytes as u64
    }

    /// Returns where the bytes were put. Nothing is durable yet.
    pub(super) fn write(&mut self, pages: &[u8]) -> Result<u64, Error> {
        let at = self.at;
        self.put(at, pages)?;
        self.at += pages.len() as u64;
        Ok(at)
    }

    /// Writes once more what was found. Not durable yet.
    pub(super) fn write_again(&mut self, found: &Newest) -> Result<(), Error> {
        self.put(found.at, &found.pages)
    }

    fn put(&mut self, at: u64, pages: &[u8]) -> Result<(), Error> {
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(pages))
            .map_err(|cause| Error::io("write", &self.path, cause))
    }

    /// Blanks what lies behind the last batch. Not durable yet.
    pub(super) fn wipe(&mut self) -> Result<(), Error> {
        self.file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| fill(&mut self.file, self.len - self.at))
            .map_err(|cause| Error::io("wipe the end of", &self.path, cause))
    }

    pub(super) fn sync(&self, disk: &dyn Disk) -> Result<(), Error> {
        disk.sync(&self.file, &self.path).map_err(|cause| Error::io("sync", &self.path, cause))
    }
}

/// What was found in a segment.
pub(super) struct Found {
    bytes: Vec<u8>,
    at: usize,
    /// Where the batch before that begins; the head is one too.
    newest: usize,
    /// The number of the batch that comes next.
    pub(super) batch: u64,
}

/// The last whole batch of a segment as it was found, or the head of one that holds none.
pub(super) struct Newest {
    at: u64,
    pages: Vec<u8>,
}

/// What follows the last whole batch of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Blank,
    /// A batch that a power cut kept from being whole.
    Torn,
}

impl Found {
    pub(super) fn read(dir: &Path, number: u64) -> Result<Found, Error> {
        let path = path(dir, number);
        let bytes = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
        let (body, taken) =
            frame::open(&bytes, HEAD).ok_or_else(|| Error::damaged(&path, "its head cannot be read"))?;
        let batch = parse_head(&body, number, bytes.len() as u64)
            .ok_or_else(|| Error::damaged(&path, "its head is another segment's, or it has another length"))?;
        Ok(Found { bytes, at: taken, newest: 0, batch })
    }

    /// The body of the next batch, where it lies, and the bytes it takes.
    pub(super) fn next(&mut self) -> Option<(Vec<u8>, u64, usize)> {
        let (body, taken) = frame::open(&self.bytes[self.at..], self.batch)?;
        self.newest = self.at;
        self.at += taken;
        self.batch += 1;
        Some((body, self.newest as u64, taken))
    }

    /// To be asked when there is no next batch.
    pub(super) fn end(&self, path: &Path) -> Result<End, Error> {
        let rest = &self.bytes[self.at..];
        if frame::is_blank(rest) {
            Ok(End::Blank)
        } else if frame::may_be_torn(rest, self.batch) {
            Ok(End::Torn)
        } else {
            Err(Error::damaged(path, format!("what follows byte `{}` is not what was written", self.at)))
        }
    }

    pub(super) fn newest(&self) -> Newest {
        Newest { at: self.newest as u64, pages: self.bytes[self.newest..self.at].to_vec() }
    }

    pub(super) fn resume(self, dir: &Path, number: u64) -> Result<Segment, Error> {
        Segment::resume(dir, number, self.bytes.len() as u64, self.at as u64)
    }
}

/// The body of one batch, read anew.
pub(super) fn read_batch(dir: &Path, segment: u64, at: u64, taken: usize, batch: u64) -> Result<Vec<u8>, Error> {
    let path = path(dir, segment);
    let read = || {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(at))?;
        let mut pages = vec![0; taken];
        file.read_exact(&mut pages)?;
        Ok(pages)
    };
    let pages: Vec<u8> = read().map_err(|cause: io::Error| match cause.kind() {
        // Whoever reads what was purged meanwhile finds out by looking again at what there is.
        io::ErrorKind::NotFound => Error::damaged(&path, "it is missing"),
        io::ErrorKind::UnexpectedEof => Error::damaged(&path, "it ends too early"),
        _ => Error::io("read", &path, cause),
    })?;
    let body = frame::open(&pages, batch).map(|(body, _)| body);
    body.ok_or_else(|| Error::damaged(&path, format!("what lies at byte `{at}` is not what was written")))
}

/// The numbers of all segments, in order.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(|cause| Error::io("list", dir, cause))? {
        let name = entry.map_err(|cause| Error::io("list", dir, cause))?.file_name();
        let number = name.to_str().filter(|name| name.len() == NAME_DIGITS);
        numbers.extend(number.and_then(|name| u64::from_str_radix(name, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// One that is not there is fine.
pub(super) fn remove(dir: &Path, number: u64) -> Result<(), Error> {
    let path = path(dir, number);
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, cause)),
        _ => Ok(()),
    }
}

const NAME_DIGITS: usize = 16;

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:0width$x}", width = NAME_DIGITS))
}

fn head(number: u64, batch: u64, len: u64) -> Body {
    let mut body = Body::with_capacity(MAGIC.len() + 3 * 8);
    body.push(MAGIC);
    [number, batch, len].iter().for_each(|value| body.push(&value.to_le_bytes()));
    body
}

/// The number of the first batch, if this is the head of that segment with that length.
fn parse_head(body: &[u8], number: u64, len: u64) -> Option<u64> {
    let rest = body.strip_prefix(MAGIC)?;
    let (found, rest) = rest.split_first_chunk::<8>()?;
    let (batch, rest) = rest.split_first_chunk::<8>()?;
    let expected = u64::from_le_bytes(*found) == number && rest == len.to_le_bytes();
    expected.then_some(u64::from_le_bytes(*batch))
}

fn fill(file: &mut File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES.min(usize::try_from(bytes).unwrap_or(FILL_BYTES))];
    let mut left = bytes;
    while left > 0 {
        let some = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&zeros[..some])?;
        left -= some as u64;
    }
    Ok(())
}
