//! Enrolled backends: Ollamas on machines without a node, and which node stands before each.

use serde::{Deserialize, Serialize};
use types::{NodeId, NodeName, Role, UnixMillis};

use super::{Refused, Registry};

const BACKENDS_MAX: usize = 1_024;
/// A scheme, the longest name of a host, and a port.
const URL_BYTES_MAX: usize = 300;

/// An Ollama somebody enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Where it listens. A text here: whoever asks it parses it, and passes over what is none.
    pub url: String,
    /// The one node that may stand before it; any that can, where there is none.
    pub node: Option<NodeId>,
    pub enrolled_at: UnixMillis,
}

impl Registry {
    pub fn backends(&self) -> impl Iterator<Item = (&NodeName, &Enrolled)> {
        self.ground.backends.iter()
    }

    pub fn backend(&self, name: &NodeName) -> Option<&Enrolled> {
        self.ground.backends.get(name)
    }

    /// The node that stands before a backend: the one that was named, or the one that all who see the same nodes up
    /// come to by themselves. When that one goes down or is drained only its own backends move. None where nobody may.
    ///
    /// Two who see different nodes up may come to different answers for a while, so that two nodes stand before one
    /// backend, or none does.
    pub fn backend_host(&self, name: &NodeName, is_up: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let named = self.backend(name)?.node;
        let able = self.members().filter(|member| !member.drain && is_up(&member.id));
        let able = able.filter(|member| match named {
            Some(node) => member.id == node,
            None => member.role == Role::Node,
        });
        able.map(|member| member.id).max_by_key(|node| weight(name, node))
    }

    pub(super) fn enroll_backend(&mut self, name: &NodeName, wanted: Enrolled) -> Result<(), Refused> {
        if wanted.url.len() > URL_BYTES_MAX {
            return Err(Refused::Full { what: "bytes of a backend's URL".to_owned(), limit: URL_BYTES_MAX });
        }
        if let Some(node) = wanted.node.filter(|node| self.member(node).is_none()) {
            return Err(Refused::UnknownMember(node));
        }
        // Two names for one Ollama would send it twice what it can take.
        let alike = |(known, backend): &(&NodeName, &Enrolled)| *known == name || backend.url == wanted.url;
        if let Some((taken, _)) = self.backends().find(alike) {
            return Err(Refused::BackendTaken(taken.clone()));
        }
        if self.ground.backends.len() >= BACKENDS_MAX {
            return Err(Refused::Full { what: "enrolled backends".to_owned(), limit: BACKENDS_MAX });
        }
        self.ground.backends.insert(name.clone(), wanted);
        Ok(())
    }

    pub(super) fn remove_backend(&mut self, name: &NodeName) -> Result<(), Refused> {
        let removed = self.ground.backends.remove(name);
        removed.map(drop).ok_or_else(|| Refused::UnknownBackend(name.clone()))
    }
}

/// Rendezvous hashing: each node has a weight of its own for each backend, and the heaviest stands before it.
fn weight(name: &NodeName, node: &NodeId) -> [u8; 32] {
    *blake3::hash(&crate::statement(&("omx backend host 1", name, node))).as_bytes()
}
