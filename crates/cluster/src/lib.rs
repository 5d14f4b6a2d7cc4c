//! What all nodes agree on: who belongs to the mesh, how it is set up, who may use it.
//!
//! [`Registry`] is the pure part, a function of the log. [`Cluster`] is this node's hold on it: writes go through the
//! leader wherever it is, reads say how fresh they must be, and inference reads the local view without asking anyone.
//! The consensus library stays behind `raft`; none of its types leaves this crate.

mod cluster;
mod error;
mod follow;
mod join;
mod keys;
mod leader;
mod protocol;
mod raft;
mod registry;
mod runtime;
mod shelf;
mod task;
mod verbatim;
mod view;
mod voters;

use bytes::Bytes;

pub use cluster::{Belonging, Cluster, Config, Consistency, Outside, Parts, Snapshots, Start, Status};
pub use error::Error;
pub use follow::keep_joined;
pub use join::{Door, JoinError, ParseTokenError, Token, Welcome, join, would_join};
pub use keys::NewKey;
pub use raft::Timing;
pub use registry::{
    Actor, Addresses, ApiKey, Candidate, Change, Command, Definition, DeletedTag, Done, Enrolled, Expect, Grant,
    JoinToken, JournalEntry, KeyHash, KeyId, KeyLimits, LAYERS_MAX, MANIFEST_BYTES_MAX, Member, Mesh, Moved, Outcome,
    Piece, Proof, Refused, Registry, Removed, Replicas, Rule, Seats, Setting, Settings, StateHash, Tag, TokenId,
    TokenPrefix, Verb, Version,
};
#[cfg(feature = "test-util")]
pub use runtime::Sim;
pub use runtime::{Live, Runtime};
pub use shelf::Shelf;
pub use task::{End, Task};
pub use verbatim::Verbatim;
pub use view::Changes;

/// A record of this crate's own making as bytes. What comes from outside is measured before it gets here.
fn pack<T: codec::Record>(record: &T) -> Bytes {
    codec::encode(record).expect("what this crate sends and keeps is bounded below its limit").into()
}

/// The bytes of something that is signed or hashed.
fn statement<T: serde::Serialize>(parts: &T) -> Vec<u8> {
    codec::to_bytes(parts).expect("ids, numbers and addresses have a binary form")
}
