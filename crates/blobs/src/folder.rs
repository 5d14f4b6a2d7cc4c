//! Where things lie in our folder. Every name is made of a hash's digits, never of a text from outside.
//!
//! | | |
//! |---|---|
//! | `whole/` | blobs of our own, complete |
//! | `partial/` | blobs being fetched, with a journal of the chunks that are there |
//! | `lists/` | the hashes of the chunks; a list proves itself by merging to its blob's name |
//! | `known/` | size, SHA-256 and references of each complete blob; it begins with its own hash |

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ollama::Digest;
use serde::{Deserialize, Serialize};
use types::BlobHash;

use crate::chunks::{Chunks, listed};
use crate::disk::{self, Stamp, TEMPORARY};
use crate::error::Error;

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) dir: PathBuf,
}

/// What is kept of a complete blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) size: u64,
    pub(crate) sha256: Digest,
    pub(crate) references: Vec<Reference>,
}

/// A file of somebody else's that held the blob when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) path: PathBuf,
    pub(crate) stamp: Stamp,
}

/// References to one blob. One more pushes the oldest out.
pub(crate) const REFERENCES_MAX: usize = 4;

impl codec::Record for Entry {
    const VERSION: u8 = 1;
    const LIMIT: usize = 1 << 17;
}

const LIST_HEADER: &[u8; 11] = b"omx list 1\n";

impl Folder {
    pub(crate) fn prepare(dir: &Path) -> Result<Self, Error> {
        let folder = Self { dir: dir.to_owned() };
        for part in ["", "whole", "partial", "lists", "known"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(Error::io("make the folder", &path))?;
        }
        disk::sync_dir(dir).map_err(Error::io("sync", dir))?;
        Ok(folder)
    }

    pub(crate) fn whole(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join("whole").join(hash.hex())
    }

    pub(crate) fn partial(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join("partial").join(hash.hex())
    }

    pub(crate) fn journal(&self, hash: &BlobHash) -> PathBuf {
        self.partial(hash).with_extension("journal")
    }

    pub(crate) fn list(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join("lists").join(hash.hex())
    }

    pub(crate) fn known(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join("known").join(hash.hex())
    }

    /// The blobs that have a file in this part. What is no blob's is passed over, and removed where it is the rest of a
    /// write that was cut off.
    pub(crate) fn scan(&self, part: &str) -> Result<Vec<BlobHash>, Error> {
        let path = self.dir.join(part);
        let unreadable = || Error::io("read the folder", &path);
        let mut found = Vec::new();
        for file in fs::read_dir(&path).map_err(unreadable())? {
            let name = file.map_err(unreadable())?.file_name();
            let name = Path::new(&name);
            match (name.extension(), name.to_str().and_then(|name| format!("blake3:{name}").parse().ok())) {
                (None, Some(hash)) => found.push(hash),
                (Some(extension), _) if extension == TEMPORARY => {
                    let rest = path.join(name);
                    disk::remove(&rest).map_err(Error::io("remove", &rest))?;
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// `None` where there is none, or none that can be read.
    pub(crate) fn read_known(&self, hash: &BlobHash) -> Option<Entry> {
        let bytes = fs::read(self.known(hash)).ok()?;
        let (sum, record) = bytes.split_first_chunk()?;
        (blake3::hash(record).as_bytes() == sum).then(|| codec::decode(record).ok()).flatten()
    }

    pub(crate) fn write_known(&self, hash: &BlobHash, entry: &Entry) -> Result<(), Error> {
        let path = self.known(hash);
        let encode = |cause| Error::Io { what: "encode", path: path.clone(), source: io::Error::other(cause) };
        let record = codec::encode(entry).map_err(encode)?;
        let sum = blake3::hash(&record);
        disk::write_atomically(&path, &[sum.as_bytes(), &record]).map_err(Error::io("write", &path))
    }

    /// `None` where there is none, or none that is the blob's. The size is as stated.
    pub(crate) fn read_list(&self, hash: &BlobHash, size: u64) -> Option<Chunks> {
        if listed(size) == 0 {
            return Chunks::checked(*hash, size, Vec::new());
        }
        let bytes = fs::read(self.list(hash)).ok()?;
        let (stated, hashes) = bytes.strip_prefix(LIST_HEADER)?.split_first_chunk()?;
        (u64::from_le_bytes(*stated) == size).then_some(())?;
        Chunks::checked(*hash, size, Chunks::hashes_from(hashes)?)
    }

    pub(crate) fn write_list(&self, chunks: &Chunks) -> Result<(), Error> {
        if listed(chunks.size()) == 0 {
            return Ok(());
        }
        let path = self.list(&chunks.root());
        let parts: [&[u8]; 3] = [LIST_HEADER, &chunks.size().to_le_bytes(), chunks.to_bytes()];
        disk::write_atomically(&path, &parts).map_err(Error::io("write", &path))
    }

    /// Everything of ours about the blob. The record goes first: what is left without one is of no blob.
    pub(crate) fn remove_all(&self, hash: &BlobHash) -> Result<(), Error> {
        for path in [self.known(hash), self.whole(hash), self.journal(hash), self.partial(hash), self.list(hash)] {
            disk::remove(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// A complete file takes its name among the whole ones. The record was written before, so that no whole blob is ever
    /// without one.
    pub(crate) fn publish(&self, from: &Path, hash: &BlobHash) -> Result<PathBuf, Error> {
        let to = self.whole(hash);
        fs::rename(from, &to).map_err(Error::io("publish", &to))?;
        for part in ["whole", "partial"] {
            let dir = self.dir.join(part);
            disk::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        }
        Ok(to)
    }
}

/// Opens what should be the file that was stamped.
pub(crate) fn open_stamped(reference: &Reference) -> Option<File> {
    let file = File::open(&reference.path).ok()?;
    (Stamp::of(&file.metadata().ok()?) == reference.stamp).then_some(file)
}
