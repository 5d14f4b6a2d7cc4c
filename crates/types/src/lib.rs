//! The vocabulary every other crate speaks: who a node is, what it is called, what it may do.
//!
//! A value of these types is known to be good: it was parsed once, at the border. Nothing here does IO, reads a clock
//! or knows a file format.

mod access;
mod blob;
mod id;
mod name;
mod secret;
mod time;

pub use access::{Role, Scope, Scopes};
pub use blob::BlobHash;
pub use id::{MeshId, NodeId, RaftId, RequestId};
pub use name::{Label, NodeName, ParseNameError};
pub use secret::Secret;
pub use time::UnixMillis;
