//! Content-addressed pieces: import, fetch from several peers at once, verify, serve, repair, collect.
//!
//! A blob is named by its BLAKE3 root. A list of its chunks' hashes, which merges to that root, lets each MiB be checked by
//! itself: before it is written, whoever sent it, and again each time it is read for a peer. Files that lie elsewhere are
//! referred to in place, not copied. The crate knows nothing of models or tags: what is to be kept, and who may have what,
//! is told to it.
//!
//! [`new`](fn@new) gives a handle, [`Blobs`], and the [`Task`] that carries fetches. How it works, and what else was thought of,
//! stands in `docs/design/blobs.md`.

mod bits;
mod buffers;
mod chunks;
mod collect;
mod config;
mod disk;
mod drive;
mod error;
mod fetch;
mod folder;
mod handle;
mod import;
mod journal;
mod link;
mod pace;
mod partial;
mod plan;
mod protocol;
mod scrub;
mod serve;
mod shared;
mod space;
mod state;
mod survey;
mod task;
#[cfg(test)]
mod tests;

pub use chunks::{CHUNK_BYTES, SIZE_MAX};
pub use collect::Collected;
pub use config::Config;
pub use error::{Error, FetchError};
pub use fetch::{Fetch, Progress, SourceInfo, Sources, Stage, TransferInfo, Want};
pub use handle::{Blobs, Hold, RepairError, new};
pub use scrub::Report;
pub use shared::Figures;
pub use state::{Known, State};
pub use survey::{Part, Survey};
pub use task::Task;
