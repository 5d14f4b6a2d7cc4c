//! Who may ask for what. Judged at the leader before a command enters the log and again when it is applied, by the
//! same function: the first keeps noise out of the log, the second is what counts.

use std::fmt;

use net::verify;
use serde::{Deserialize, Serialize};
use types::{NodeId, Role, Scope};

use super::{Command, KeyId, Refused, Registry, Verb};

/// On whose account a command is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// A node on its own account.
    Node(NodeId),
    /// Someone at a node's local socket.
    User { node: NodeId, uid: u32 },
    /// A caller of a node's API with a key.
    Key { node: NodeId, key: KeyId },
}

impl Actor {
    /// The node that took the command and signed for it.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Node(node) | Self::User { node, .. } | Self::Key { node, .. } => *node,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::User { node, uid } => write!(f, "user {uid} at {node}"),
            Self::Key { node, key } => write!(f, "key {key} at {node}"),
        }
    }
}

impl Registry {
    pub(crate) fn judge(&self, command: &Command) -> Result<(), Refused> {
        let Command { at, by, verb, .. } = command;
        if let Verb::Found { member, .. } = verb {
            return match self.mesh() {
                None if by.node() == member.id => Ok(()),
                _ => Err(Refused::AlreadyFounded),
            };
        }
        let origin = by.node();
        let deny = |why: &str| Err(Refused::Denied(by.clone(), why.to_owned()));
        let Some(member) = self.member(&origin) else {
            return Err(if self.is_removed(&origin) {
                Refused::Barred(origin)
            } else {
                Refused::UnknownMember(origin)
            });
        };
        if member.role == Role::Worker && matches!(by, Actor::Key { .. }) {
            return deny("a worker acts on its own machine alone");
        }
        if let Actor::Key { key, .. } = by {
            match self.key(key) {
                None => return Err(Refused::UnknownKey(key.clone())),
                Some(found) if found.expired(*at) => return deny("the key has expired"),
                Some(found) if !found.scopes.allows(Scope::Admin) => return deny("the key has no `admin` scope"),
                Some(_) => {}
            }
        }
        match verb {
            Verb::SetAddresses { node, .. } if *by == Actor::Node(*node) => Ok(()),
            Verb::SetAddresses { .. } => deny("a node alone says where it can be reached"),
            Verb::RemoveMember { node } | Verb::SetDrain { node, .. } if *node == origin => Ok(()),
            _ if member.role == Role::Worker => deny("a worker acts on its own machine alone"),
            Verb::AddMember(proof) => self.judge_proof(proof, origin),
            _ if matches!(by, Actor::Node(_)) => deny("only people and keys change this"),
            _ => Ok(()),
        }
    }

    pub(crate) fn judge_proof(&self, proof: &super::Proof, acceptor: NodeId) -> Result<(), Refused> {
        if proof.acceptor != acceptor {
            return Err(Refused::TokenProof);
        }
        let mesh = self.mesh().map(|mesh| mesh.id).ok_or(Refused::TokenProof)?;
        let signed = verify(proof.token.as_node_id(), &proof.signed_bytes(mesh), &proof.signature);
        if signed { Ok(()) } else { Err(Refused::TokenProof) }
    }
}
