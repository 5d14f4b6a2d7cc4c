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
    /// A caller of a node's API who needs no key.
    Anonymous { node: NodeId },
}

impl Actor {
    /// The node that took the command and signed for it.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Node(node) | Self::User { node, .. } | Self::Key { node, .. } | Self::Anonymous { node } => *node,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::User { node, uid } => write!(f, "user {uid} at {node}"),
            Self::Key { node, key } => write!(f, "key {key} at {node}"),
            Self::Anonymous { node } => write!(f, "someone at {node}"),
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
                Some(found) if !found.scopes.allows(needed(verb)) => {
                    return deny(&format!("the key has no `{}` scope", needed(verb)));
                }
                Some(_) => {}
            }
        }
        if let Actor::Anonymous { .. } = by {
            // What Ollama lets everybody do who reaches it, as far as this mesh does.
            let ollamas = matches!(verb, Verb::AddVersion { .. } | Verb::SetTag { .. } | Verb::DeleteTag { .. });
            return match member.role {
                Role::Node if ollamas && self.settings.anonymous().allows(Scope::Models) => Ok(()),
                Role::Node => deny("it takes a key"),
                Role::Worker => deny("a worker acts on its own machine alone"),
            };
        }
        match verb {
            Verb::SetAddresses { node, .. } if *by == Actor::Node(*node) => Ok(()),
            Verb::SetAddresses { .. } => deny("a node alone says where it can be reached"),
            Verb::RemoveMember { node } | Verb::SetDrain { node, .. } if *node == origin => Ok(()),
            // Whoever has a model may say so. What is called by its name is another matter.
            Verb::AddVersion { tag: None, .. } => Ok(()),
            _ if member.role == Role::Worker => deny("a worker acts on its own machine alone"),
            // Nodes catalogue what they find and take out what nobody needs. They make a tag where there is none, and can
            // neither move nor delete one.
            Verb::AddVersion { .. } | Verb::ForgetVersions { .. } if matches!(by, Actor::Node(_)) => Ok(()),
            // It is the leader's work, but who leads is no part of the registry: any voter may. One that is hostile can
            // have what is catalogued copied to where nobody wants it, and taken away from where it was wanted; it cannot
            // change what is behind a name, nor have a node take something that is not catalogued.
            Verb::Assign { .. } => match by {
                Actor::Node(_) if self.seats.voters.contains(&member.raft) => Ok(()),
                _ => deny("only nodes that vote give versions to nodes"),
            },
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

/// What a key must open for whoever asks with it.
fn needed(verb: &Verb) -> Scope {
    match verb {
        Verb::AddVersion { .. }
        | Verb::SetTag { .. }
        | Verb::DeleteTag { .. }
        | Verb::RestoreTag { .. }
        | Verb::PinTag { .. }
        | Verb::RollbackTag { .. }
        | Verb::SetAlias { .. }
        | Verb::RemoveAlias { .. }
        | Verb::Place { .. }
        | Verb::Unplace { .. }
        | Verb::ForgetVersions { .. } => Scope::Models,
        Verb::Found { .. }
        | Verb::AddMember(_)
        | Verb::RemoveMember { .. }
        | Verb::SetAddresses { .. }
        | Verb::SetLabels { .. }
        | Verb::SetDrain { .. }
        | Verb::CreateToken { .. }
        | Verb::RevokeToken { .. }
        | Verb::SetConfig { .. }
        | Verb::ResetConfig { .. }
        | Verb::RollbackConfig { .. }
        | Verb::CreateKey { .. }
        | Verb::RevokeKey { .. }
        | Verb::EnrollBackend { .. }
        | Verb::RemoveBackend { .. }
        | Verb::Assign { .. } => Scope::Admin,
    }
}
