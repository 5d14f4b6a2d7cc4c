//! What nodes say to each other about the registry, beside the consensus itself.

use bytes::Bytes;
use net::{Allowed, Keypair, Protocol, RequestSpec, Roles, Signature, StreamSpec};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::{MeshId, NodeId, RequestId};

use crate::raft::feed::APPENDS;
use crate::raft::network::{CALLS, MESSAGE_MAX, SNAPSHOTS};
use crate::registry::{Actor, Outcome, Registry, StateHash, Verb};
use crate::verbatim::Verbatim;
use crate::view::Step;

pub(crate) const ASK: Protocol = Protocol::new("/omx/registry/1");
pub(crate) const FOLLOW: Protocol = Protocol::new("/omx/follow/1");
pub(crate) const JOIN: Protocol = Protocol::new("omx-join/1");

/// Longer than the consensus takes for anything it answers at all.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) const ASK_SPEC: RequestSpec = RequestSpec {
    protocol: ASK,
    // Workers too: they report their addresses and leave. What else they ask, the registry refuses.
    roles: Roles::ALL,
    request_bytes_max: 512 << 10,
    response_bytes_max: 64 << 10,
    deadline: ASK_DEADLINE,
    concurrency_per_peer: 1_024,
};

pub(crate) const CALLS_SPEC: RequestSpec = RequestSpec {
    protocol: CALLS,
    roles: Roles::NODES,
    request_bytes_max: MESSAGE_MAX,
    response_bytes_max: 64 << 10,
    deadline: ASK_DEADLINE,
    concurrency_per_peer: 64,
};

pub(crate) const APPENDS_SPEC: StreamSpec = StreamSpec {
    protocol: APPENDS,
    allowed: Allowed::Members(Roles::NODES),
    // One is in use; the others may be what a leader that lost its power has left, until their silence is noticed.
    concurrency_per_peer: 4,
    concurrency_total: 64,
};

pub(crate) const SNAPSHOTS_SPEC: StreamSpec = StreamSpec {
    protocol: SNAPSHOTS,
    allowed: Allowed::Members(Roles::NODES),
    concurrency_per_peer: 2,
    concurrency_total: 4,
};

pub(crate) const FOLLOW_SPEC: StreamSpec = StreamSpec {
    protocol: FOLLOW,
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 2,
    // One more is refused and looks for another peer to follow.
    concurrency_total: 64,
};

pub(crate) const JOIN_SPEC: StreamSpec =
    StreamSpec { protocol: JOIN, allowed: Allowed::Strangers, concurrency_per_peer: 1, concurrency_total: 8 };

/// A write, as the node that took it sends it to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) mesh: MeshId,
    pub(crate) id: RequestId,
    pub(crate) by: Actor,
    pub(crate) verb: Verb,
}

/// What a node wants of whoever leads, before it is known whether that is the node itself.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    /// And its bytes, which were measured.
    Write(Box<Proposal>, Bytes),
    ReadIndex,
    GiveUpSeat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// A proposal's bytes, signed by the node its actor names.
    Write { proposal: Verbatim, signature: Signature },
    /// From which index on the registry is no older than now?
    ReadIndex,
    /// The sender is going down and wants others to vote in its place.
    GiveUpSeat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    Outcome(Outcome),
    ReadIndex(u64),
    /// Nothing was done. Perhaps this one leads.
    NotLeader {
        leader: Option<NodeId>,
    },
    /// Nothing was done: no room on the leader's disk.
    NoSpace,
    /// It may have been done.
    Unknown,
    /// The seat is somebody else's now, or there is nobody to take it.
    Seat {
        given_up: bool,
    },
}

/// A voter's word that the registry at `index` has this hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    pub(crate) index: u64,
    pub(crate) hash: StateHash,
    pub(crate) voter: NodeId,
    pub(crate) signature: Signature,
}

/// The first thing a follower says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) index: u64,
    pub(crate) hash: StateHash,
}

/// What it hears, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bulletin {
    /// How long ago the sender, or whom it follows, was sure to be up to date. Two who follow each other grow old
    /// together and notice.
    pub(crate) age_ms: u64,
    pub(crate) news: News,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// Nothing new.
    Still,
    /// These steps lead from what was sent before to the word.
    Steps {
        steps: Vec<(u64, Step)>,
        word: Word,
    },
    Whole {
        registry: Box<Registry>,
        word: Word,
    },
    /// The sender has nothing a voter has signed.
    Nothing,
}

/// The bytes a voter signs.
pub(crate) fn word_statement(mesh: MeshId, index: u64, hash: &StateHash) -> Vec<u8> {
    crate::statement(&("omx word 1", mesh, index, hash))
}

impl Wish {
    /// As another node is asked: with the proof of who wants it.
    pub(crate) fn sign(&self, keypair: &Keypair) -> Ask {
        match self {
            Self::Write(_, proposal) => {
                let signature = keypair.sign(&proposal_statement(proposal));
                Ask::Write { proposal: Verbatim(proposal.clone()), signature }
            }
            Self::ReadIndex => Ask::ReadIndex,
            Self::GiveUpSeat => Ask::GiveUpSeat,
        }
    }
}

/// The bytes a proposal's origin signs.
pub(crate) fn proposal_statement(proposal: &[u8]) -> Vec<u8> {
    [b"omx proposal 1", proposal].concat()
}

impl codec::Record for Proposal {
    const VERSION: u8 = 1;
    /// What a node may have the registry remember with one change: the longest is a version with its manifest.
    const LIMIT: usize = 48 << 10;
}

impl codec::Record for Ask {
    const VERSION: u8 = 1;
    const LIMIT: usize = <Proposal as codec::Record>::LIMIT + (4 << 10);
}

impl codec::Record for Told {
    const VERSION: u8 = 1;
    const LIMIT: usize = 64 << 10;
}

impl codec::Record for Hold {
    const VERSION: u8 = 1;
    const LIMIT: usize = 1 << 10;
}

impl codec::Record for Bulletin {
    const VERSION: u8 = 1;
    const LIMIT: usize = 80 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack;

    /// Other versions of this program send these bytes. If this fails, the version must rise and the old form be read.
    #[test]
    fn a_proposal_and_what_is_asked_have_the_bytes_they_always_had() {
        let by = Actor::User { node: NodeId::from_public_key([1; 32]), uid: 7 };
        let verb = Verb::ResetConfig { key: "k".into() };
        let proposal = Proposal { mesh: MeshId::from_bytes([2; 16]), id: RequestId::from_bytes([3; 16]), by, verb };
        let golden = [&[1][..], &[2; 16], &[3; 16], &[1], &[1; 32], &[7], &[9, 1, b'k']].concat();
        assert_eq!(pack(&proposal), golden);
        assert_eq!(pack(&Ask::ReadIndex)[..], [1, 1]);
        assert_eq!(pack(&Ask::GiveUpSeat)[..], [1, 2]);
        assert_eq!(pack(&Told::ReadIndex(5))[..], [1, 1, 5]);
        assert_eq!(pack(&Told::NotLeader { leader: None })[..], [1, 2, 0]);
    }
}
