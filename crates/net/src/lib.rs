//! Peers: who they are, how they find and reach each other, and how much of us they may use.
//!
//! Offers named requests, byte streams and gossip between members of a mesh, and never interprets their bytes. Who is a
//! member is told to it (`Net::admit`); everybody else meets a closed door, except on streams declared for strangers.
//!
//! [`new`](fn@new) gives the real network (libp2p and a TLS listener), [`mem::Fabric`] one in memory with faults to
//! switch on. Both share the rules: `admission`, `score` and `reception` decide, transports carry out.

mod admission;
mod bulk;
mod clock;
mod config;
mod error;
mod frames;
mod greeting;
mod handle;
pub mod identity;
pub mod mem;
mod protocol;
mod random;
mod real;
mod reception;
mod score;
mod services;
mod stream;
mod swarm;

pub use admission::Member;
pub use clock::Clock;
pub use config::{Config, Limits};
pub use error::{Error, Fault};
pub use frames::{Frames, read_framed, write_framed};
pub use handle::{Addresses, Net, PeerStatus, Stranger, Task};
pub use identity::{Keypair, Signature, verify};
pub use protocol::{Allowed, Protocol, Refusal, RequestSpec, Roles, StreamSpec, TopicSpec};
pub use real::new;
pub use services::{Caller, Services, Verdict};
pub use stream::ByteStream;
