//! Why something between us and a peer did not happen.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use types::NodeId;

use crate::protocol::{Protocol, Refusal};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to listen on `{address}` ({what})")]
    Bind { address: SocketAddr, what: &'static str, source: io::Error },
    #[error("failed to set up the mesh: {what}")]
    Setup { what: String },
    /// Before `Task::run`, and after its end.
    #[error("the network of this node is not running")]
    NotRunning,
    #[error("protocol `{0}` is not declared on this node")]
    Undeclared(Protocol),
    #[error("topic `{0}` is not declared on this node")]
    UndeclaredTopic(&'static str),
    #[error("`{peer}` is not a member of this mesh")]
    NotAMember { peer: NodeId },
    #[error("`{bytes}` bytes are too many for `{name}`, which takes `{max}`")]
    TooLarge { name: &'static str, bytes: usize, max: usize },
    #[error("the answer of `{peer}` to `{protocol}` is too large")]
    AnswerTooLarge { peer: NodeId, protocol: Protocol },
    /// What was asked may have been done.
    #[error("the answer of `{peer}` to `{protocol}` cannot be read: {what}")]
    Malformed { peer: NodeId, protocol: Protocol, what: String },
    #[error("too much gossip is waiting to be sent")]
    QueueFull,
    /// Too much of ours is waiting for answers.
    #[error("too much is under way to `{peer}`")]
    Busy { peer: NodeId },
    /// Nothing was said to the peer.
    #[error("`{peer}` cannot be reached: {reason}")]
    Unreachable { peer: NodeId, reason: String },
    #[error("`{address}` cannot be reached")]
    NoAnswer { address: SocketAddr, source: io::Error },
    /// What was asked may have been done.
    #[error("the connection to `{peer}` broke: {reason}")]
    Broken { peer: NodeId, reason: String },
    /// What was asked may have been done.
    #[error("`{peer}` did not answer to `{protocol}` within {after:?}")]
    Deadline { peer: NodeId, protocol: Protocol, after: Duration },
    #[error("`{peer}` refused `{protocol}`")]
    Refused {
        peer: NodeId,
        protocol: Protocol,
        #[source]
        refusal: Refusal,
    },
    #[error("at `{address}` is `{found}`, not `{expected}`")]
    WrongPeer { address: SocketAddr, expected: NodeId, found: NodeId },
}

/// Where the cause lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What we asked for was wrong and stays so.
    Caller,
    /// The peer or the way to it; another peer may do.
    Peer,
    /// This node.
    Here,
}

impl Error {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Bind { .. } | Self::Setup { .. } | Self::NotRunning | Self::QueueFull | Self::Busy { .. } => {
                Fault::Here
            }
            Self::Undeclared(_) | Self::UndeclaredTopic(_) | Self::NotAMember { .. } | Self::TooLarge { .. } => {
                Fault::Caller
            }
            Self::AnswerTooLarge { .. }
            | Self::Malformed { .. }
            | Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Broken { .. }
            | Self::Deadline { .. }
            | Self::Refused { .. }
            | Self::WrongPeer { .. } => Fault::Peer,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::QueueFull
            | Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Broken { .. }
            | Self::Deadline { .. } => true,
            Self::Refused { refusal, .. } => {
                matches!(refusal, Refusal::Busy | Refusal::CutOff | Refusal::Late | Refusal::NotAMember)
            }
            _ => false,
        }
    }

    /// Whether the peer may have done what it was asked, for all we know.
    pub fn maybe_done(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Deadline { .. } | Self::AnswerTooLarge { .. } | Self::Malformed { .. } => true,
            Self::Refused { refusal, .. } => *refusal == Refusal::Late,
            _ => false,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("stop what listens there, or choose another port".to_owned())
            }
            Self::Refused { protocol, refusal: Refusal::UnknownProtocol { speaks }, .. } => {
                let ours = Protocol::split(protocol.name()).map_or(0, |(_, major)| major);
                let hint = match speaks {
                    Some(theirs) if *theirs > ours => "upgrade this node",
                    Some(_) => "upgrade the other node",
                    None => "run the same version on both nodes",
                };
                Some(hint.to_owned())
            }
            Self::Refused { refusal: Refusal::NotAMember, .. } => {
                Some("the other node may not have heard of us yet, or has removed us".to_owned())
            }
            Self::WrongPeer { .. } => Some("another node has taken that address; ask for a new token".to_owned()),
            _ => None,
        }
    }
}
