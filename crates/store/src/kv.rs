//! Where entries and small values lie. An implementation orders nothing and checks no chain: that is the ledger's work,
//! so that every implementation is held to the same promises.

pub(crate) mod memory;
pub(crate) mod segment;
pub(crate) mod values;

use std::ops::RangeInclusive;

use crate::{Error, record::Entry};

/// One step of a commit.
#[derive(Debug)]
pub(crate) enum Change {
    Append(Vec<Entry>),
    /// Removes what lies behind this index; everything, for `None`.
    CutAfter(Option<u64>),
    /// Removes up to and including this index, from the front.
    DropTo(u64),
    Put(Key, Vec<u8>),
}

/// The small values. The discriminant is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Key {
    Base = 1,
    Vote = 2,
    Committed = 3,
}

pub(crate) trait KvLog: Send + Sync {
    /// Makes the changes in order, durable on return but for `Key::Committed`. A power cut half-way may leave some of them
    /// and not the others, but each in full or not at all.
    fn commit(&self, changes: Vec<Change>) -> Result<(), Error>;

    /// Makes durable what `commit` left for a quiet moment.
    fn settle(&self) -> Result<(), Error>;

    /// Entries of the range in order. Stops behind the one that brings their bytes to `bytes_max`. Entries that are not
    /// what was written are an error, or show as a break of the chain.
    fn scan(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error>;

    /// The highest index under which anything lies, readable or not.
    fn last_index(&self) -> Result<Option<u64>, Error>;

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error>;
}
