//! Which chunks of a partial blob are there: a file that only grows while the blob is fetched.
//!
//! An entry is written behind its chunk, so what `kill -9` leaves is what the journal says, but for a chunk or two. After a
//! power cut the journal may know of chunks whose bytes never reached the disk; so it also notes up to where the bytes
//! were synced, and whatever stands behind that is hashed again before it counts. Entries are chained: what is torn, and all
//! behind it, is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use types::BlobHash;

use crate::bits::Bits;
use crate::chunks;

const HEADER: &[u8; 14] = b"omx journal 1\n";
const HEAD_BYTES: u64 = HEADER.len() as u64 + 8;
const ENTRY_BYTES: usize = 1 + 8 + 8;
/// Longer than any fetch makes it.
const READ_MAX: u64 = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Wrote(u32),
    /// The chunk is not there after all.
    Lost(u32),
    /// The chunks of all entries before this place in the journal are on the disk.
    Synced(u64),
}

#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    length: u64,
    check: [u8; 8],
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) size: u64,
    /// Synced, and to be trusted as far as the disk is.
    pub(crate) sure: Bits,
    /// Written, and to be hashed again.
    pub(crate) likely: Bits,
}

impl Journal {
    pub(crate) fn create(path: &Path, hash: &BlobHash, size: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all(HEADER)?;
        file.write_all(&size.to_le_bytes())?;
        Ok(Self { file, length: HEAD_BYTES, check: first_check(hash, size) })
    }

    /// `None` where there is none that can be read. Cuts off what was torn.
    pub(crate) fn open(path: &Path, hash: &BlobHash) -> io::Result<Option<(Self, Found)>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let Some((found, length, check)) = parse(&read(&mut file)?, hash) else { return Ok(None) };
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        Ok(Some((Self { file, length, check }, found)))
    }

    /// The same without touching it.
    pub(crate) fn look(path: &Path, hash: &BlobHash) -> Option<Found> {
        let bytes = read(&mut File::open(path).ok()?).ok()?;
        parse(&bytes, hash).map(|(found, _, _)| found)
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn wrote(&mut self, chunk: u32) -> io::Result<()> {
        self.append(Entry::Wrote(chunk))
    }

    pub(crate) fn lost(&mut self, chunk: u32) -> io::Result<()> {
        self.append(Entry::Lost(chunk))
    }

    pub(crate) fn synced(&mut self, up_to: u64) -> io::Result<()> {
        self.append(Entry::Synced(up_to))
    }

    /// For syncing without holding the journal meanwhile.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn append(&mut self, entry: Entry) -> io::Result<()> {
        let (bytes, check) = entry.encode(&self.check);
        if let Err(error) = self.file.write_all(&bytes) {
            // Half an entry would hide those behind it. If this fails too, the next start cuts here.
            let _ = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(error);
        }
        self.length += ENTRY_BYTES as u64;
        self.check = check;
        Ok(())
    }
}

impl Entry {
    fn encode(self, before: &[u8; 8]) -> ([u8; ENTRY_BYTES], [u8; 8]) {
        let (kind, value) = match self {
            Self::Wrote(chunk) => (1, u64::from(chunk)),
            Self::Lost(chunk) => (2, u64::from(chunk)),
            Self::Synced(up_to) => (3, up_to),
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0] = kind;
        bytes[1..9].copy_from_slice(&value.to_le_bytes());
        let check = check(&[before, &bytes[..9]]);
        bytes[9..].copy_from_slice(&check);
        (bytes, check)
    }

    fn decode(bytes: &[u8; ENTRY_BYTES], before: &[u8; 8]) -> Option<(Self, [u8; 8])> {
        let value = u64::from_le_bytes(bytes[1..9].try_into().expect("eight bytes"));
        let entry = match bytes[0] {
            1 => Self::Wrote(u32::try_from(value).ok()?),
            2 => Self::Lost(u32::try_from(value).ok()?),
            3 => Self::Synced(value),
            _ => return None,
        };
        let (same, check) = entry.encode(before);
        (same == *bytes).then_some((entry, check))
    }
}

fn parse(bytes: &[u8], hash: &BlobHash) -> Option<(Found, u64, [u8; 8])> {
    let (size, entries) = bytes.strip_prefix(HEADER)?.split_first_chunk()?;
    let size = u64::from_le_bytes(*size);
    if size > chunks::SIZE_MAX {
        return None;
    }
    let count = chunks::count(size);
    let mut check = first_check(hash, size);
    let mut length = HEAD_BYTES;
    let (mut there, mut synced) = (Vec::new(), 0);
    for bytes in entries.as_chunks::<ENTRY_BYTES>().0 {
        let Some((entry, next)) = Entry::decode(bytes, &check) else { break };
        match entry {
            Entry::Wrote(chunk) => there.push((length, chunk, true)),
            Entry::Lost(chunk) => there.push((length, chunk, false)),
            Entry::Synced(up_to) => synced = up_to,
        }
        (check, length) = (next, length + ENTRY_BYTES as u64);
    }
    let (mut sure, mut likely) = (Bits::none(count), Bits::none(count));
    for (at, chunk, is_there) in there {
        sure.take(chunk);
        likely.take(chunk);
        if is_there {
            _ = if at < synced { sure.put(chunk) } else { likely.put(chunk) };
        }
    }
    Some((Found { size, sure, likely }, length, check))
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn first_check(hash: &BlobHash, size: u64) -> [u8; 8] {
    check(&[HEADER, hash.as_bytes(), &size.to_le_bytes()])
}

fn check(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| _ = hasher.update(part));
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HASH: BlobHash = BlobHash::from_bytes([7; 32]);
    const SIZE: u64 = 10 << 20;

    fn ones(bits: &Bits) -> Vec<u32> {
        bits.iter().collect()
    }

    #[test]
    fn what_was_synced_is_sure_and_what_was_written_since_is_likely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &HASH, SIZE).unwrap();
        journal.wrote(3).unwrap();
        journal.wrote(4).unwrap();
        let up_to = journal.length();
        journal.wrote(5).unwrap();
        journal.synced(up_to).unwrap();
        journal.lost(4).unwrap();
        journal.wrote(10).unwrap();
        drop(journal);
        let (mut journal, found) = Journal::open(&path, &HASH).unwrap().unwrap();
        assert_eq!((found.size, ones(&found.sure), ones(&found.likely)), (SIZE, vec![3], vec![5]));
        journal.wrote(4).unwrap();
        let found = Journal::look(&path, &HASH).unwrap();
        assert_eq!((ones(&found.sure), ones(&found.likely)), (vec![3], vec![4, 5]));
        assert_eq!(Journal::look(&path, &BlobHash::from_bytes([8; 32])).unwrap().likely.count(), 0);
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &HASH, SIZE).unwrap();
        (0..4).for_each(|chunk| journal.wrote(chunk).unwrap());
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let entries = length.saturating_sub(HEAD_BYTES as usize) / ENTRY_BYTES;
            match Journal::open(&path, &HASH).unwrap() {
                None => assert!(length < HEAD_BYTES as usize),
                Some((mut journal, found)) => {
                    assert_eq!(found.likely.count() as usize, entries);
                    journal.wrote(9).unwrap();
                    assert!(Journal::look(&path, &HASH).unwrap().likely.has(9));
                }
            }
        }
        for at in HEAD_BYTES as usize..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            fs::write(&path, &bent).unwrap();
            let found = Journal::look(&path, &HASH).unwrap();
            assert_eq!(found.likely.count() as usize, (at - HEAD_BYTES as usize) / ENTRY_BYTES);
        }
    }

    #[test]
    fn bytes_on_disk_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Journal::create(&path, &HASH, 5).unwrap().wrote(0).unwrap();
        let mut golden = b"omx journal 1\n".to_vec();
        golden.extend([5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..golden.len()], golden);
        assert_eq!(bytes.len(), golden.len() + 8);
    }
}
