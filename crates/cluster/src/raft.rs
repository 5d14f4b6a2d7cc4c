//! The consensus library, fenced in: its types end at this module.

pub(crate) mod feed;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod service;
#[cfg(test)]
mod suite;
pub(crate) mod wire;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::impls::leader_id_adv;
use openraft::{RaftTypeConfig, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use types::NodeId;

use crate::registry::Outcome;
use crate::runtime::Runtime;

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Sealed, u64, Seat>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, Seat>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, Seat>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Seat>;
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, u64, Seat, Bytes>;
pub(crate) type Raft<R> = openraft::Raft<Types<R>, machine::Machine<R>>;

/// Our choice of the library's open types, on one runtime.
pub(crate) struct Types<R>(PhantomData<fn() -> R>);

impl<R: Runtime> RaftTypeConfig for Types<R> {
    type D = Sealed;
    type R = Outcome;
    type NodeId = u64;
    type Node = Seat;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R::Async;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A command as it stands in the log: encoded once at the leader, decoded only when it is applied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sealed(pub(crate) Bytes);

/// The node behind a number: part of the consensus membership, so that a node that restarts can reach the others
/// before it has read its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat(pub(crate) NodeId);

/// Timers and sizes. Heartbeats leave room for an fsync on a busy disk, which takes milliseconds, sometimes many.
#[derive(Debug, Clone)]
pub struct Timing {
    pub heartbeat: Duration,
    /// A follower grants its leader `election_max` of silence, and then waits for a random time between these two
    /// before it calls an election.
    pub election_min: Duration,
    pub election_max: Duration,
    /// A snapshot is made after so many entries, and the log before it dropped. Under load the snapshot holds a minute's
    /// finished requests and is several times as large as five thousand entries.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for those who lag a little.
    pub keep_behind_snapshot: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            // Together an election between 1.4 and 1.8 s after the last sign of the leader.
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
            snapshot_every: 20_000,
            keep_behind_snapshot: 1_000,
        }
    }
}

impl Timing {
    /// After so long without a word from it, others may have made another leader.
    pub fn silence_max(&self) -> Duration {
        self.election_max * 2
    }

    pub(crate) fn consensus(&self) -> Arc<openraft::Config> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "omx".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: 30_000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_behind_snapshot,
            replication_lag_threshold: self.snapshot_every.saturating_mul(2),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        };
        Arc::new(config.validate().expect("the defaults are in order and tests use sane ones"))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The library's test suite wants a default; a real seat always names its node.
impl Default for Seat {
    fn default() -> Self {
        Self(NodeId::from_public_key([0; 32]))
    }
}

// The library asks these of a type that is never a value. Derives would ask them of `R` too.
impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for Types<R> {}
impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<R> Eq for Types<R> {}
impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}
