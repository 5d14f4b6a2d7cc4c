//! Consensus messages and log entries as bytes. The library promises no stable format for its own types, so these are
//! ours, versioned like everything else that leaves a process.

use std::collections::{BTreeMap, BTreeSet};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};
use types::NodeId;

use super::{Entry, LeaderId, LogId, Membership, Payload, Sealed, Seat, StoredMembership, Types, Vote};
use crate::registry::Registry;
use crate::runtime::Runtime;
use crate::verbatim::Verbatim;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireLogId {
    term: u64,
    node: u64,
    index: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireVote {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireEntry {
    id: WireLogId,
    payload: WirePayload,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WirePayload {
    Blank,
    Command(Verbatim),
    Membership(WireMembership),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireMembership {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, NodeId>,
}

/// A call, and whom it is for.
///
/// A node that lost its disk is let in again under another number. What was meant for the old one, and for the promises
/// that went with the disk, must not reach it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) to: u64,
    pub(crate) call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Append { vote: WireVote, previous: Option<WireLogId>, entries: Vec<WireEntry>, commit: Option<WireLogId> },
    Vote { vote: WireVote, last: Option<WireLogId>, transfer: bool },
    PreVote { vote: WireVote, last: Option<WireLogId>, transfer: bool },
    Transfer { from: WireVote, to: u64, last: Option<WireLogId> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Appended,
    AppendedUpTo(Option<WireLogId>),
    Conflict,
    HigherVote(WireVote),
    Voted {
        vote: WireVote,
        granted: bool,
        last: Option<WireLogId>,
    },
    Transferred,
    /// The consensus of this node has stopped, or refused the hand-over.
    Failed(String),
    /// Its disk is full: it takes entries again when there is room.
    NoSpace,
}

/// What stands before the bytes of a snapshot on their way to another node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) to: u64,
    pub(crate) vote: WireVote,
    pub(crate) length: u64,
}

/// The whole state at one index: what a snapshot file and a snapshot transfer hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) last: Option<WireLogId>,
    pub(crate) seated_at: Option<WireLogId>,
    pub(crate) seats: WireMembership,
    pub(crate) registry: Registry,
}

impl codec::Record for WireEntry {
    const VERSION: u8 = 1;
    const LIMIT: usize = 512 << 10;
}

impl codec::Record for Letter {
    const VERSION: u8 = 2;
    const LIMIT: usize = super::network::MESSAGE_MAX;
}

impl codec::Record for Answer {
    const VERSION: u8 = 1;
    const LIMIT: usize = 64 << 10;
}

impl codec::Record for SnapshotHead {
    const VERSION: u8 = 2;
    const LIMIT: usize = 1 << 10;
}

impl codec::Record for Image {
    const VERSION: u8 = 1;
    const LIMIT: usize = 80 << 20;
}

impl codec::Record for WireVote {
    const VERSION: u8 = 1;
    const LIMIT: usize = 64;
}

impl codec::Record for WireLogId {
    const VERSION: u8 = 1;
    const LIMIT: usize = 64;
}

impl Call {
    /// The number the sender speaks under. It must be the number of the node that sent it.
    pub(crate) fn sender(&self) -> u64 {
        match self {
            Self::Append { vote, .. } | Self::Vote { vote, .. } | Self::PreVote { vote, .. } => vote.node,
            Self::Transfer { from, .. } => from.node,
        }
    }

    pub(crate) fn append<R: Runtime>(request: AppendEntriesRequest<Types<R>>) -> Self {
        Self::Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
            commit: request.leader_commit.map(Into::into),
        }
    }

    pub(crate) fn vote<R: Runtime>(request: VoteRequest<Types<R>>) -> Self {
        let VoteRequest { vote, last_log_id, leadership_transfer: transfer } = request;
        Self::Vote { vote: vote.into(), last: last_log_id.map(Into::into), transfer }
    }

    pub(crate) fn pre_vote<R: Runtime>(request: VoteRequest<Types<R>>) -> Self {
        let VoteRequest { vote, last_log_id, leadership_transfer: transfer } = request;
        Self::PreVote { vote: vote.into(), last: last_log_id.map(Into::into), transfer }
    }

    pub(crate) fn transfer<R: Runtime>(request: &TransferLeaderRequest<Types<R>>) -> Self {
        Self::Transfer {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl Answer {
    pub(crate) fn appended<R: Runtime>(response: AppendEntriesResponse<Types<R>>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Appended,
            AppendEntriesResponse::PartialSuccess(id) => Self::AppendedUpTo(id.map(Into::into)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }

    pub(crate) fn voted<R: Runtime>(response: &VoteResponse<Types<R>>) -> Self {
        Self::Voted {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }

    pub(crate) fn into_append<R: Runtime>(self) -> Result<AppendEntriesResponse<Types<R>>, Self> {
        match self {
            Self::Appended => Ok(AppendEntriesResponse::Success),
            Self::AppendedUpTo(id) => Ok(AppendEntriesResponse::PartialSuccess(id.map(Into::into))),
            Self::Conflict => Ok(AppendEntriesResponse::Conflict),
            Self::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote.into())),
            other => Err(other),
        }
    }

    pub(crate) fn into_vote<R: Runtime>(self) -> Result<VoteResponse<Types<R>>, Self> {
        match self {
            Self::Voted { vote, granted, last } => {
                let last = last.map(LogId::from);
                Ok(VoteResponse::new(Vote::from(vote), last, granted))
            }
            other => Err(other),
        }
    }
}

impl WireMembership {
    pub(crate) fn new(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, seat)| (*id, seat.0)).collect(),
        }
    }

    /// Fails where a peer sent a membership that contradicts itself.
    pub(crate) fn membership(&self) -> Result<Membership, codec::Error> {
        let nodes: BTreeMap<_, _> = self.nodes.iter().map(|(id, node)| (*id, Seat(*node))).collect();
        Membership::new(self.configs.clone(), nodes)
            .map_err(|error| codec::Error::Malformed { reason: error.to_string() })
    }
}

impl Image {
    pub(crate) fn new(last: Option<LogId>, seats: &StoredMembership, registry: Registry) -> Self {
        Self {
            last: last.map(Into::into),
            seated_at: seats.log_id().map(Into::into),
            seats: WireMembership::new(seats.membership()),
            registry,
        }
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.last.map(Into::into)
    }

    pub(crate) fn stored_membership(&self) -> Result<StoredMembership, codec::Error> {
        Ok(StoredMembership::new(self.seated_at.map(Into::into), self.seats.membership()?))
    }
}

impl From<LogId> for WireLogId {
    fn from(id: LogId) -> Self {
        let LeaderId { term, node_id: node } = id.leader_id;
        Self { term, node, index: id.index }
    }
}

impl From<WireLogId> for LogId {
    fn from(WireLogId { term, node, index }: WireLogId) -> Self {
        Self { leader_id: LeaderId { term, node_id: node }, index }
    }
}

impl From<Vote> for WireVote {
    fn from(vote: Vote) -> Self {
        let LeaderId { term, node_id: node } = vote.leader_id;
        Self { term, node, committed: vote.committed }
    }
}

impl From<WireVote> for Vote {
    fn from(WireVote { term, node, committed }: WireVote) -> Self {
        Self { leader_id: LeaderId { term, node_id: node }, committed }
    }
}

impl From<Entry> for WireEntry {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            Payload::Blank => WirePayload::Blank,
            Payload::Normal(Sealed(bytes)) => WirePayload::Command(Verbatim(bytes)),
            Payload::Membership(membership) => WirePayload::Membership(WireMembership::new(&membership)),
        };
        Self { id: entry.log_id.into(), payload }
    }
}

impl TryFrom<WireEntry> for Entry {
    type Error = codec::Error;

    fn try_from(entry: WireEntry) -> Result<Self, codec::Error> {
        let payload = match entry.payload {
            WirePayload::Blank => Payload::Blank,
            WirePayload::Command(Verbatim(bytes)) => Payload::Normal(Sealed(bytes)),
            WirePayload::Membership(membership) => Payload::Membership(membership.membership()?),
        };
        Ok(Self { log_id: entry.id.into(), payload })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pack;

    const AT: WireLogId = WireLogId { term: 1, node: 2, index: 3 };

    fn seats() -> WireMembership {
        WireMembership { configs: vec![[5].into()], nodes: [(5, NodeId::from_public_key([9; 32]))].into() }
    }

    /// These bytes are on disks and on wires. If this fails, the version must rise and the old form must still be read.
    #[test]
    fn entries_and_messages_have_the_bytes_they_always_had() {
        let entry = |payload| WireEntry { id: AT, payload };
        assert_eq!(pack(&entry(WirePayload::Blank))[..], [1, 1, 2, 3, 0]);
        let command = WirePayload::Command(Verbatim(Bytes::from_static(b"ab")));
        assert_eq!(pack(&entry(command))[..], [1, 1, 2, 3, 1, 2, b'a', b'b']);
        let membership = [&[1, 1, 2, 3, 2, 1, 1, 5, 1, 5][..], &[9; 32]].concat();
        assert_eq!(pack(&entry(WirePayload::Membership(seats()))), membership);
        let vote = WireVote { term: 1, node: 2, committed: true };
        assert_eq!(pack(&vote)[..], [1, 1, 2, 1]);
        let call = Call::Append { vote, previous: Some(AT), entries: vec![entry(WirePayload::Blank)], commit: None };
        assert_eq!(pack(&Letter { to: 7, call })[..], [2, 7, 0, 1, 2, 1, 1, 1, 2, 3, 1, 1, 2, 3, 0, 0]);
        assert_eq!(pack(&SnapshotHead { to: 7, vote, length: 9 })[..], [2, 7, 1, 2, 1, 9]);
        assert_eq!(pack(&Answer::AppendedUpTo(Some(AT)))[..], [1, 1, 1, 1, 2, 3]);
        let image = Image { last: Some(AT), seated_at: None, seats: seats(), registry: Registry::default() };
        let golden = [&[1, 1, 1, 2, 3, 0, 1, 1, 5, 1, 5][..], &[9; 32], &pack(&Registry::default())[1..]].concat();
        assert_eq!(pack(&image), golden);
    }
}
