//! What nodes tell each other about themselves, how it spreads, and who is there at all.
//!
//! Soft state: each record is its node's own, a hint and never authority. Nothing here does IO, reads a clock or draws
//! random numbers: time is handed in, as the time since some start that a monotonic clock shows, and so is chance.

mod alive;
mod protocol;
mod record;
mod spread;
mod table;

pub use alive::{Alive, BEAT, WATCHERS_MAX};
pub use protocol::{Beat, Entry, Message, Opinion};
pub use record::{
    Backend, BackendKind, BackendState, Facts, Log8, MODELS_MAX, Model, Record, RecordError, Signature, Signed, Stamp,
};
pub use spread::{Effect, Event, Gossip, Keys, Sign, Spread, Verify};
pub use table::{Known, Refused, Table};
