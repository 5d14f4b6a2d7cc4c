//! Why one node did not do it, and why nobody did.

use bytes::Bytes;
use scheduler::{ModelKey, Promise, Seconds};
use types::NodeId;

pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A node did nothing, and says why. Going elsewhere costs nobody anything.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the model is not there")]
    NoModel,
    /// The promise it gave holds no more; this one would.
    #[error("the wait would be `{}`, longer than was asked for", .0.estimate.wait)]
    Wait(Promise),
    #[error("too many wait there, for `{wait}`")]
    Full { wait: Seconds },
    #[error("it could not start there in time")]
    Late,
    #[error("the node is draining")]
    Draining,
    #[error("its backend is down")]
    Down,
    #[error("it does not take the key the request came by")]
    Denied,
}

/// What became of one attempt.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("refused")]
    Refused(#[source] Refusal),
    /// It has not seen the request.
    #[error("it could not be reached")]
    Unreachable(#[source] Cause),
    /// It may have done some of the work, or all.
    #[error("the connection broke")]
    Broken(#[source] Cause),
    /// It answered that it could not. The body is bounded by whoever read it.
    #[error("it answered with status `{status}`")]
    Served { status: u16, body: Bytes },
    #[error("it answers nothing any more")]
    Frozen,
    /// It took much longer than it had promised.
    #[error("it took much longer than promised")]
    Overdue,
    #[error("the deadline has passed")]
    Deadline,
    /// It was to go on with an answer, and says something else than what the client was told of it.
    #[error("it contradicts what was told already")]
    Contradicted,
    /// It was to go on with an answer, and cannot; others might.
    #[error("it cannot go on with the answer")]
    Incapable(#[source] Cause),
    /// The same, and others cannot either: it is the answer's fault.
    #[error("nobody can go on with the answer")]
    Unable(#[source] Cause),
}

/// Before its first byte a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no node has the model `{0}`")]
    NoModel(ModelKey),
    /// They are all too busy.
    #[error("all nodes with the model are busy, for `{retry_after}`")]
    Busy { retry_after: Seconds },
    /// What the last one answered.
    #[error("node `{node}` answered with status `{status}`")]
    Served { node: NodeId, status: u16, body: Bytes },
    #[error("the deadline has passed")]
    Deadline,
    #[error("none of the nodes with the model can be used")]
    NobodyUp,
    #[error("failed on `{sent}` nodes")]
    Failed {
        sent: u32,
        #[source]
        last: Failure,
    },
}

/// The same with the way the request went.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub struct Unanswered {
    #[source]
    pub error: Error,
    /// Whom it was sent to last, if to anybody.
    pub node: Option<NodeId>,
    /// Times it was sent to some node, refusals included.
    pub sends: u32,
}

/// An answer broke off after its client has seen some of it. What was seen is true, but it is not the whole, and the
/// client has to be told: it must not look like an end.
#[derive(Debug, thiserror::Error)]
#[error("the answer of node `{node}` broke off")]
pub struct Cut {
    pub node: NodeId,
    #[source]
    pub why: Failure,
    /// Why nobody else was asked for the rest, where that is not for want of nodes.
    pub bound: Option<Cause>,
}

impl Failure {
    /// Whether it says something about the node's health, and what.
    pub(crate) const fn blame(&self) -> Option<crate::breaker::Failure> {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => Some(crate::breaker::Failure::Transport),
            Self::Served { .. } => Some(crate::breaker::Failure::Served),
            // Slow nodes are believed less, not barred. The frozen are left until they answer a look, and must not use
            // up the places of those that need barring.
            Self::Refused(_)
            | Self::Frozen
            | Self::Overdue
            | Self::Deadline
            | Self::Contradicted
            | Self::Incapable(_)
            | Self::Unable(_) => None,
        }
    }

    /// Whether the node may have begun, so that a further attempt is work done again.
    pub(crate) const fn costs(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unreachable(_))
    }
}
