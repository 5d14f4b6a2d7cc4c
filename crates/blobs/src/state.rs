//! What is known of the blobs on this node: the pure part. Who calls it keeps the files in step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ollama::Digest;
use types::BlobHash;

use crate::disk::Stamp;
use crate::folder::{Entry, REFERENCES_MAX, Reference};

/// A blob as others name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub hash: BlobHash,
    pub sha256: Digest,
    pub size: u64,
}

/// How a blob stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Absent,
    /// Being fetched, or left by a fetch that was cut off.
    Partial {
        chunks: u32,
        of: u32,
    },
    /// `ours`: in our own folder, and ours to change and remove; else a file we only refer to.
    Whole {
        path: PathBuf,
        ours: bool,
    },
    /// Complete, but these chunks are not what they should be. Nothing of them is served.
    Damaged {
        path: PathBuf,
        chunks: BTreeSet<u32>,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Shelf {
    blobs: BTreeMap<BlobHash, Blob>,
    by_sha256: BTreeMap<Digest, BlobHash>,
    by_path: BTreeMap<PathBuf, BlobHash>,
}

#[derive(Debug, Clone)]
struct Blob {
    entry: Entry,
    /// Where it lies in our own folder.
    own: Option<PathBuf>,
    damaged: BTreeSet<u32>,
}

impl Shelf {
    pub(crate) fn known(&self, hash: &BlobHash) -> Option<Known> {
        let Entry { size, sha256, .. } = self.blobs.get(hash)?.entry;
        Some(Known { hash: *hash, sha256, size })
    }

    pub(crate) fn by_sha256(&self, sha256: &Digest) -> Option<Known> {
        self.known(self.by_sha256.get(sha256)?)
    }

    /// `None` where it is not whole.
    pub(crate) fn state(&self, hash: &BlobHash) -> Option<State> {
        let blob = self.blobs.get(hash)?;
        let (path, ours) = blob.place()?;
        Some(match blob.damaged.is_empty() {
            true => State::Whole { path: path.to_owned(), ours },
            false => State::Damaged { path: path.to_owned(), chunks: blob.damaged.clone() },
        })
    }

    pub(crate) fn entry(&self, hash: &BlobHash) -> Option<&Entry> {
        self.blobs.get(hash).map(|blob| &blob.entry)
    }

    pub(crate) fn own(&self, hash: &BlobHash) -> Option<&Path> {
        self.blobs.get(hash)?.own.as_deref()
    }

    /// Those that are complete and not known to be damaged.
    pub(crate) fn whole(&self) -> Vec<BlobHash> {
        self.blobs.iter().filter(|(_, blob)| blob.damaged.is_empty()).map(|(hash, _)| *hash).collect()
    }

    pub(crate) fn all(&self) -> Vec<BlobHash> {
        self.blobs.keys().copied().collect()
    }

    /// The blob that this very file held when it was last looked at.
    pub(crate) fn at(&self, path: &Path, stamp: &Stamp) -> Option<Known> {
        let hash = self.by_path.get(path)?;
        let references = &self.blobs.get(hash)?.entry.references;
        references.iter().any(|known| known.path == path && known.stamp == *stamp).then(|| self.known(hash)).flatten()
    }

    /// The entry as it would be with one more reference.
    pub(crate) fn with_reference(&self, known: &Known, reference: Reference) -> Entry {
        let mut references = self.entry(&known.hash).map_or_else(Vec::new, |entry| entry.references.clone());
        references.retain(|other| other.path != reference.path);
        references.insert(0, reference);
        references.truncate(REFERENCES_MAX);
        Entry { size: known.size, sha256: known.sha256, references }
    }

    /// The entry as it would be without the references to this file, under whichever name.
    pub(crate) fn without_file(&self, hash: &BlobHash, path: &Path, stamp: Option<Stamp>) -> Option<Entry> {
        let mut entry = self.entry(hash)?.clone();
        let is_it = |other: &Reference| {
            other.path == path || stamp.is_some_and(|stamp| stamp.inode != 0 && other.stamp == stamp)
        };
        entry.references.retain(|reference| !is_it(reference));
        Some(entry)
    }

    /// As it is on the disk now. A blob that is nowhere is not put on the shelf.
    pub(crate) fn put(&mut self, hash: BlobHash, entry: Entry, own: Option<PathBuf>) {
        let damaged = self.remove(&hash);
        if entry.references.is_empty() && own.is_none() {
            return;
        }
        self.by_sha256.insert(entry.sha256, hash);
        // A file that held another blob before holds that one no more.
        self.by_path.extend(entry.references.iter().map(|reference| (reference.path.clone(), hash)));
        self.blobs.insert(hash, Blob { entry, own, damaged });
    }

    /// Returns what was known to be damaged in it.
    pub(crate) fn remove(&mut self, hash: &BlobHash) -> BTreeSet<u32> {
        let Some(blob) = self.blobs.remove(hash) else { return BTreeSet::new() };
        if self.by_sha256.get(&blob.entry.sha256) == Some(hash) {
            self.by_sha256.remove(&blob.entry.sha256);
        }
        self.by_path.retain(|_, other| other != hash);
        blob.damaged
    }

    /// Says whether that is news.
    pub(crate) fn damaged(&mut self, hash: &BlobHash, chunk: u32) -> bool {
        self.blobs.get_mut(hash).is_some_and(|blob| blob.damaged.insert(chunk))
    }

    pub(crate) fn set_damaged(&mut self, hash: &BlobHash, chunks: BTreeSet<u32>) {
        if let Some(blob) = self.blobs.get_mut(hash) {
            blob.damaged = chunks;
        }
    }

    pub(crate) fn all_damaged(&self) -> BTreeSet<BlobHash> {
        self.blobs.iter().filter(|(_, blob)| !blob.damaged.is_empty()).map(|(hash, _)| *hash).collect()
    }
}

impl Blob {
    /// Our own copy before anybody else's.
    fn place(&self) -> Option<(&Path, bool)> {
        let referred = || self.entry.references.first().map(|reference| (reference.path.as_path(), false));
        self.own.as_deref().map(|path| (path, true)).or_else(referred)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(n: u8) -> Known {
        Known { hash: BlobHash::from_bytes([n; 32]), sha256: Digest::of(&[n]), size: 5 }
    }

    fn reference(path: &str, modified: i128) -> Reference {
        Reference { path: path.into(), stamp: Stamp { size: 5, modified, inode: 1 } }
    }

    fn refer(shelf: &mut Shelf, known: Known, reference: Reference) {
        let entry = shelf.with_reference(&known, reference);
        let own = shelf.own(&known.hash).map(Path::to_owned);
        shelf.put(known.hash, entry, own);
    }

    #[test]
    fn our_own_copy_comes_before_one_we_refer_to_and_the_newest_of_those_first() {
        let mut shelf = Shelf::default();
        let blob = known(1);
        assert_eq!(shelf.state(&blob.hash), None);
        refer(&mut shelf, blob, reference("/a", 1));
        refer(&mut shelf, blob, reference("/b", 1));
        assert_eq!(shelf.state(&blob.hash), Some(State::Whole { path: "/b".into(), ours: false }));
        assert_eq!(shelf.by_sha256(&blob.sha256), Some(blob));
        let entry = shelf.entry(&blob.hash).unwrap().clone();
        shelf.put(blob.hash, entry, Some("/ours".into()));
        assert_eq!(shelf.state(&blob.hash), Some(State::Whole { path: "/ours".into(), ours: true }));
        (0..9).for_each(|n| refer(&mut shelf, blob, reference(&format!("/{n}"), 1)));
        assert_eq!(shelf.entry(&blob.hash).unwrap().references.len(), REFERENCES_MAX);
    }

    #[test]
    fn a_file_is_known_by_its_path_while_its_stamp_is_the_same() {
        let mut shelf = Shelf::default();
        refer(&mut shelf, known(1), reference("/a", 1));
        let stamp = reference("/a", 1).stamp;
        assert_eq!(shelf.at(Path::new("/a"), &stamp), Some(known(1)));
        assert_eq!(shelf.at(Path::new("/a"), &Stamp { modified: 2, ..stamp }), None);
        assert_eq!(shelf.at(Path::new("/b"), &stamp), None);
        refer(&mut shelf, known(2), reference("/a", 2));
        assert_eq!(shelf.at(Path::new("/a"), &Stamp { modified: 2, ..stamp }), Some(known(2)));
    }

    #[test]
    fn a_blob_without_a_place_is_off_the_shelf() {
        let mut shelf = Shelf::default();
        refer(&mut shelf, known(1), reference("/a", 1));
        let entry = shelf.without_file(&known(1).hash, Path::new("/a"), None).unwrap();
        shelf.put(known(1).hash, entry, None);
        assert_eq!((shelf.state(&known(1).hash), shelf.by_sha256(&known(1).sha256)), (None, None));
        assert!(shelf.all().is_empty());
    }

    #[test]
    fn what_is_damaged_stays_so_until_it_is_told_otherwise() {
        let mut shelf = Shelf::default();
        let hash = known(1).hash;
        assert!(!shelf.damaged(&hash, 3));
        refer(&mut shelf, known(1), reference("/a", 1));
        assert!(shelf.damaged(&hash, 3) && !shelf.damaged(&hash, 3));
        refer(&mut shelf, known(1), reference("/b", 1));
        assert_eq!(shelf.state(&hash), Some(State::Damaged { path: "/b".into(), chunks: BTreeSet::from([3]) }));
        assert!(shelf.whole().is_empty() && shelf.all_damaged() == BTreeSet::from([hash]));
        shelf.set_damaged(&hash, BTreeSet::new());
        assert_eq!(shelf.whole(), [hash]);
    }
}
