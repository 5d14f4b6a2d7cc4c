//! What can go wrong with the registry, shaped by what the caller does next.

use std::time::Duration;

use types::{NodeId, NodeName};

use crate::registry::Refused;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry was asked and said no. Asking again changes nothing.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody could be asked: nothing was written.
    #[error("the registry is read-only: no leader was found within {waited:?}{}", missing(.absent))]
    NoLeader { waited: Duration, absent: Vec<NodeName> },
    #[error("this node has not heard of index {index} within {waited:?}")]
    Behind { index: u64, waited: Duration },
    /// The write was handed over and no answer came: it may be carried out, now or later.
    #[error("it is not known whether the registry took this: no answer within {waited:?}")]
    Unknown { waited: Duration },
    #[error("the leader's disk is full; settings are read-only until there is room")]
    NoSpace,
    #[error("this node is shutting down")]
    Stopped,
    #[error("this node takes no settings for others: it is a worker")]
    Worker,
    #[error("failed to keep the registry on disk")]
    Store(#[from] store::Error),
    #[error("failed to read the kept registry")]
    Kept(#[source] std::io::Error),
    /// The consensus has stopped for good; so must the node.
    #[error("the consensus of this node has failed: {0}")]
    Consensus(String),
    #[error("node `{0}` is not a member")]
    NotAMember(NodeId),
}

fn missing(absent: &[NodeName]) -> String {
    if absent.is_empty() {
        return String::new();
    }
    let names: Vec<_> = absent.iter().map(NodeName::as_str).collect();
    format!("; not reachable among those who vote: {}", names.join(", "))
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn retry(&self) -> bool {
        matches!(self, Self::NoLeader { .. } | Self::Behind { .. } | Self::Unknown { .. } | Self::NoSpace)
    }

    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoLeader { absent, .. } if !absent.is_empty() => {
                let names: Vec<_> = absent.iter().map(NodeName::as_str).collect();
                format!("start or wake one of: {}", names.join(", "))
            }
            Self::Behind { .. } => "is it connected to the others? `omx status` tells; or ask another node".to_owned(),
            Self::NoLeader { .. } => "an election may be under way; try again in a moment".to_owned(),
            Self::Unknown { .. } => "look whether the change is there before asking again".to_owned(),
            Self::NoSpace => "free some disk space on the leader; it goes on by itself".to_owned(),
            Self::Worker => "give the command at a machine whose role is `node`".to_owned(),
            Self::Refused(refused) => return refused.hint(),
            Self::Stopped | Self::Store(_) | Self::Kept(_) | Self::Consensus(_) | Self::NotAMember(_) => return None,
        })
    }
}

impl Refused {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownSetting { suggestion: Some(key), .. } => format!("did you mean `{key}`?"),
            Self::UnknownSetting { .. } => "`omx config ls` lists the settings".to_owned(),
            Self::UnknownToken | Self::TokenExpired | Self::TokenUsedUp | Self::TokenProof => {
                "make a new one with `omx token create` on a member".to_owned()
            }
            Self::Barred(_) => "start with an empty data folder to join as a new node".to_owned(),
            Self::Conflict { key, .. } => format!("read it again with `omx config get {key}`"),
            Self::NoSuchChange { key, .. } => format!("`omx config history {key}` lists its changes"),
            Self::UnknownMember(_) => "`omx nodes ls` lists the members".to_owned(),
            Self::UnknownKey(_) => "`omx keys ls` lists the keys".to_owned(),
            Self::UnknownBackend(_) => "`omx nodes backend ls` lists the backends".to_owned(),
            Self::BackendTaken(name) => format!("take it out first with `omx nodes backend rm {name}`"),
            Self::QuorumAtRisk(_) => {
                "wake the voters that are down first, or remove those that will not come back".to_owned()
            }
            Self::LastVoter(_) => {
                "start another machine of role `node`: it takes over the vote; or just stop this one".to_owned()
            }
            Self::Full { .. } => "remove what is no longer needed".to_owned(),
            Self::TagMoved { .. } => "look where it is now, and ask again".to_owned(),
            Self::Pinned(_) => "unpin it first".to_owned(),
            Self::Contradicts { by, .. } => {
                format!("one of the two has other content than it says; if it is `{by}`, remove that node")
            }
            Self::InUse { .. } => "delete the tag first, or unpin it where it is on another version by now".to_owned(),
            Self::AlreadyFounded
            | Self::Denied(..)
            | Self::BadValue { .. }
            | Self::BadVersion { .. }
            | Self::UnknownVersion(_)
            | Self::UnknownTag(_)
            | Self::NoSuchMove { .. }
            | Self::NothingBefore(_)
            | Self::NameTaken(_)
            | Self::UnknownAlias(_)
            | Self::NoRule(_)
            | Self::BadRule { .. } => return None,
        })
    }
}
