//! What is kept, and the chain that ties it together.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The longest record. A batch on its way to the disk is held in memory, and so is the tail of the log.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// The longest small value; two of them have to fit into one slot of the mark file.
pub const META_BYTES_MAX: usize = 1 << 10;

/// One entry of the log as its owner sees it. Indexes are contiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub index: u64,
    pub bytes: Bytes,
}

pub(crate) type Hash = [u8; 32];

/// One entry as it is stored. Its hash covers its predecessor's, so that the last hash vouches for the whole log.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) prev: Hash,
    pub(crate) hash: Hash,
    pub(crate) record: Record,
}

impl Entry {
    pub(crate) fn chained(prev: Hash, record: Record) -> Entry {
        Entry { prev, hash: link(&prev, &record), record }
    }

    /// Whether this is what was written, and was written right behind `prev`.
    pub(crate) fn follows(&self, prev: &Hash) -> bool {
        self.prev == *prev && self.is_intact()
    }

    /// Whether this is what was written, wherever it belongs.
    pub(crate) fn is_intact(&self) -> bool {
        self.hash == link(&self.prev, &self.record)
    }
}

fn link(prev: &Hash, record: &Record) -> Hash {
    *blake3::Hasher::new().update(prev).update(&record.index.to_be_bytes()).update(&record.bytes).finalize().as_bytes()
}

/// What the log stands on: all before it was purged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) purged: Option<u64>,
    /// The owner's own note on what was purged last.
    pub(crate) meta: Vec<u8>,
    /// The predecessor's hash of the first record that is kept.
    pub(crate) hash: Hash,
}

/// The newest vote, numbered so that of two copies the newer can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vote {
    pub(crate) seq: u64,
    pub(crate) bytes: Vec<u8>,
}

impl codec::Record for Base {
    const VERSION: u8 = 1;
    const LIMIT: usize = META_BYTES_MAX + 128;
}

impl codec::Record for Vote {
    const VERSION: u8 = 1;
    const LIMIT: usize = META_BYTES_MAX + 128;
}
