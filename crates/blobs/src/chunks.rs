//! The list of a blob's chunks: for each MiB the hash of its subtree in the BLAKE3 tree over the whole.
//!
//! The list merges to the root, which is the blob's name. So it can be had from anybody, and with it any chunk can be
//! checked by itself, at full hash speed, in any order. It does not prove the size: a list of parents merges to the same
//! root as the list of their children, and the last chunk's length is nowhere in it. The last chunk does: its hash
//! covers its place and its length, so a list *with* its last chunk proves both.

use std::fmt;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use types::BlobHash;

/// A power of two, as subtrees are.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The largest blob. Its list has 32 MiB.
pub const SIZE_MAX: u64 = 1 << 40;

/// How many chunks a blob of this size has. One of a single chunk has no list: its hash is the root.
pub(crate) fn count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(CHUNK_BYTES as u64).max(1)).unwrap_or(u32::MAX)
}

/// How many hashes stand in the list.
pub(crate) fn listed(size: u64) -> u32 {
    match count(size) {
        1 => 0,
        more => more,
    }
}

pub(crate) fn offset(index: u32) -> u64 {
    u64::from(index) * CHUNK_BYTES as u64
}

/// 0 for a chunk that is not there.
pub(crate) fn length(size: u64, index: u32) -> usize {
    size.saturating_sub(offset(index)).min(CHUNK_BYTES as u64) as usize
}

/// A list that is known to be that of its blob.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Chunks {
    root: BlobHash,
    size: u64,
    hashes: Vec<ChainingValue>,
}

impl Chunks {
    /// Of bytes from anywhere. The size is as stated, not as proven.
    pub(crate) fn checked(root: BlobHash, size: u64, hashes: Vec<ChainingValue>) -> Option<Self> {
        let fits = size <= SIZE_MAX && hashes.len() == listed(size) as usize;
        (fits && (hashes.is_empty() || merged(&hashes) == root)).then_some(Self { root, size, hashes })
    }

    /// The same with its last chunk, which proves the size.
    pub(crate) fn proven(root: BlobHash, size: u64, hashes: Vec<ChainingValue>, last: &[u8]) -> Option<Self> {
        Self::checked(root, size, hashes).filter(|chunks| chunks.verify(chunks.count() - 1, last))
    }

    pub(crate) fn root(&self) -> BlobHash {
        self.root
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn count(&self) -> u32 {
        count(self.size)
    }

    pub(crate) fn length(&self, index: u32) -> usize {
        length(self.size, index)
    }

    pub(crate) fn verify(&self, index: u32, bytes: &[u8]) -> bool {
        if index >= self.count() || bytes.len() != self.length(index) {
            return false;
        }
        match self.hashes.get(index as usize) {
            Some(hash) => subtree(index, bytes) == *hash,
            None => BlobHash::of(bytes) == self.root,
        }
    }

    pub(crate) fn to_bytes(&self) -> &[u8] {
        self.hashes.as_flattened()
    }

    pub(crate) fn hashes_from(bytes: &[u8]) -> Option<Vec<ChainingValue>> {
        let (hashes, rest) = bytes.as_chunks();
        rest.is_empty().then(|| hashes.to_vec())
    }
}

/// Makes the list of a blob whose chunks come in order.
#[derive(Default)]
pub(crate) struct Builder {
    hashes: Vec<ChainingValue>,
    /// While there is one chunk only: it may be all there is.
    single: Option<BlobHash>,
    size: u64,
}

impl Builder {
    /// Each but the last has `CHUNK_BYTES`. An empty blob has no chunk at all here.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        let index = self.hashes.len() as u32;
        self.single = (index == 0).then(|| BlobHash::of(chunk));
        self.hashes.push(subtree(index, chunk));
        self.size += chunk.len() as u64;
    }

    pub(crate) fn finish(self) -> Chunks {
        match self.hashes.len() {
            0 => Chunks { root: BlobHash::of(&[]), size: 0, hashes: Vec::new() },
            1 => Chunks { root: self.single.expect("set by the only push"), size: self.size, hashes: Vec::new() },
            _ => Chunks { root: merged(&self.hashes), size: self.size, hashes: self.hashes },
        }
    }
}

fn subtree(index: u32, chunk: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(offset(index)).update(chunk).finalize_non_root()
}

fn merged(hashes: &[ChainingValue]) -> BlobHash {
    let (left, right) = split(hashes);
    let root = merge_subtrees_root(&branch(left), &branch(right), Mode::Hash);
    BlobHash::from_bytes(*root.as_bytes())
}

fn branch(hashes: &[ChainingValue]) -> ChainingValue {
    match hashes {
        [only] => *only,
        _ => {
            let (left, right) = split(hashes);
            merge_subtrees_non_root(&branch(left), &branch(right), Mode::Hash)
        }
    }
}

/// The left side has the largest power of two that leaves something for the right.
fn split(hashes: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    hashes.split_at(hashes.len().next_power_of_two() / 2)
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chunks of {}", self.count(), self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| ((at / 3) ^ (at >> 11)) as u8).collect()
    }

    fn built(bytes: &[u8]) -> Chunks {
        let mut builder = Builder::default();
        bytes.chunks(CHUNK_BYTES).for_each(|chunk| builder.push(chunk));
        builder.finish()
    }

    #[test]
    fn a_list_merges_to_the_hash_of_the_whole_for_every_shape() {
        let around = |chunks: usize| [chunks * CHUNK_BYTES - 1, chunks * CHUNK_BYTES, chunks * CHUNK_BYTES + 1];
        let sizes = [0, 1, 1023, 1024, 1025].into_iter().chain([1, 2, 3, 4, 5, 8, 9].into_iter().flat_map(around));
        for size in sizes {
            let bytes = bytes(size);
            let chunks = built(&bytes);
            assert_eq!(chunks.root(), BlobHash::of(&bytes), "{size}");
            assert_eq!(chunks.count() as usize, size.div_ceil(CHUNK_BYTES).max(1));
            let hashes = Chunks::hashes_from(chunks.to_bytes()).unwrap();
            let last = &bytes[offset(chunks.count() - 1) as usize..];
            assert_eq!(Chunks::proven(chunks.root(), size as u64, hashes, last), Some(chunks.clone()));
            for (index, chunk) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
                assert!(chunks.verify(index, chunk));
                let mut bent = chunk.to_vec();
                bent[chunk.len() / 2] ^= 1;
                assert!(!chunks.verify(index, &bent) && !chunks.verify(index + 1, chunk));
            }
        }
    }

    #[test]
    fn a_size_that_lies_is_refused_with_the_last_chunk() {
        let bytes = bytes(4 * CHUNK_BYTES);
        let chunks = built(&bytes);
        let hashes = Chunks::hashes_from(chunks.to_bytes()).unwrap();
        let last = &bytes[3 * CHUNK_BYTES..];
        let root = chunks.root();
        // The list alone does not tell.
        let shorter = chunks.size() - 5;
        assert!(Chunks::checked(root, shorter, hashes.clone()).is_some());
        assert!(Chunks::proven(root, shorter, hashes.clone(), &last[..CHUNK_BYTES - 5]).is_none());
        assert!(Chunks::proven(root, chunks.size() + 1, hashes.clone(), last).is_none());
        // Nor does a list of parents.
        let parents: Vec<_> =
            hashes.chunks(2).map(|pair| merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)).collect();
        let half = 2 * CHUNK_BYTES as u64;
        assert!(Chunks::checked(root, half, parents.clone()).is_some());
        for last in bytes.chunks(CHUNK_BYTES) {
            assert!(Chunks::proven(root, half, parents.clone(), last).is_none());
        }
    }

    #[test]
    fn a_list_that_is_bent_or_of_another_length_is_refused() {
        let chunks = built(&bytes(3 * CHUNK_BYTES));
        let hashes = Chunks::hashes_from(chunks.to_bytes()).unwrap();
        let checked = |hashes: &[ChainingValue]| Chunks::checked(chunks.root(), chunks.size(), hashes.to_vec());
        assert!(checked(&hashes).is_some() && checked(&hashes[1..]).is_none() && checked(&[]).is_none());
        for index in 0..3 {
            let mut bent = hashes.clone();
            bent[index][31] ^= 1;
            assert!(checked(&bent).is_none());
        }
        assert!(Chunks::checked(chunks.root(), SIZE_MAX + 1, hashes).is_none());
        assert!(Chunks::hashes_from(&[0; 33]).is_none());
    }
}
