//! Versioned records on disk: a log of opaque records, a few small values beside it, and snapshot files.
//!
//! Three promises, and nothing else matters as much: what was acknowledged survives `kill -9` and a power cut; what is
//! damaged is reported and never served or silently dropped; after the first failed write nothing is acknowledged any
//! more. How they are kept stands in `docs/design/store.md`.
//!
//! The crate knows no consensus, no terms and no time. It needs no runtime: one thread of its own writes, and what
//! waits for it waits on channels that work under any executor, so that simulations on virtual time can use it.

mod archive;
mod disk;
mod error;
mod folder;
mod kv;
mod ledger;
mod log;
mod mark;
mod record;
pub mod snapshot;
mod space;
#[cfg(test)]
mod tests;

pub use archive::import;
pub use error::Error;
pub use kv::memory::MemoryDisk;
pub use log::{Bounds, Config, Log, Meta, Worker};
pub use record::{META_BYTES_MAX, RECORD_BYTES_MAX, Record};
pub use space::Space;
