//! The few words the parts of an agent share.

use std::time::Duration;

/// The time since a start of the caller's choice. It means nothing elsewhere, so it is never sent.
pub type Moment = Duration;

/// A request's number at this agent. Later ones are higher.
pub type Ticket = u64;

/// How urgent a request is. The upper goes before the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Realtime,
    Interactive,
    Batch,
    Background,
}

/// Whom the work is for, as a hash of a key's or user's id: an agent shares fairly and need not know who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u64);

/// The manifest's digest, in bare hex as `tags` and `ps` give it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Model(pub std::sync::Arc<str>);

/// The beginning of a prompt up to some block, as a keyed hash that covers all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub hash: u64,
    /// From the start of the prompt to here.
    pub tokens: u32,
}
