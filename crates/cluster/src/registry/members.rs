//! Members: who belongs to the mesh, and under which number it votes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use net::Signature;
use serde::{Deserialize, Serialize};
use types::{Label, MeshId, NodeId, NodeName, RaftId, Role, UnixMillis};

use super::{Actor, Done, Mesh, Outcome, Refused, Registry, TokenId};

const MEMBERS_MAX: usize = 10_000;
/// A barred key is never forgotten, so there is an end to how many a mesh can bar.
const REMOVED_MAX: usize = 100_000;
const LABELS_MAX: usize = 32;
const ADDRESSES_MAX: usize = 16;
const ADDRESS_BYTES_MAX: usize = 128;

/// The founder's number. Every other member's number is the index of the entry that added it; entry 1 is the blank
/// one of the first leader, so the founder shares its number with nobody.
pub(crate) const FOUNDER: RaftId = RaftId(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    pub raft: RaftId,
    pub name: NodeName,
    pub role: Role,
    pub labels: BTreeMap<String, String>,
    pub addresses: Addresses,
    pub drain: bool,
    pub joined_at: UnixMillis,
    token: Option<TokenId>,
    incarnation: [u8; 16],
}

impl Member {
    /// Where the machine stands, as its people say by the label `zone`.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("zone").map(String::as_str)
    }
}

/// Where a node can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// libp2p multiaddresses.
    pub mesh: Vec<String>,
    pub bulk: Vec<SocketAddr>,
}

/// A node as it presents itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub id: NodeId,
    pub name: NodeName,
    pub addresses: Addresses,
    /// Made with the data folder, lost with it: a node that comes back with another one has forgotten what it voted.
    pub incarnation: [u8; 16],
}

/// A joiner's proof that it holds a token, bound to itself, to the node it spoke to and to that conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub token: TokenId,
    pub joiner: Candidate,
    pub acceptor: NodeId,
    pub nonce: [u8; 32],
    pub signature: Signature,
}

impl Proof {
    pub(crate) fn signed_bytes(&self, mesh: MeshId) -> Vec<u8> {
        join_statement(mesh, &self.joiner, self.acceptor, &self.nonce)
    }
}

/// What a joiner signs with the token's key.
pub(crate) fn join_statement(mesh: MeshId, joiner: &Candidate, acceptor: NodeId, nonce: &[u8; 32]) -> Vec<u8> {
    crate::statement(&("omx join 1", mesh, joiner, acceptor, nonce))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub name: NodeName,
    pub at: UnixMillis,
    pub by: Actor,
}

/// How a joiner stands to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    New,
    /// It has joined with this token before.
    Known,
    /// It has joined with this token before, and has lost its disk since.
    Reborn,
}

impl Registry {
    pub(super) fn found(&mut self, mesh: MeshId, member: &Candidate, at: UnixMillis) -> Outcome {
        check_addresses(&member.addresses)?;
        self.ground.mesh = Some(Mesh { id: mesh, founded_at: at });
        Ok(self.admit(FOUNDER, member, Role::Node, None, at, self.applied))
    }

    /// What a join would meet, without carrying it out.
    pub(crate) fn preview_join(&self, proof: &Proof, at: UnixMillis) -> Result<Join, Refused> {
        let joiner = &proof.joiner;
        check_addresses(&joiner.addresses)?;
        if self.is_removed(&joiner.id) {
            return Err(Refused::Barred(joiner.id));
        }
        let known = self.members.get(&joiner.id);
        // The same joiner with the same token, asking again after a crash: it costs no second use, and what has become
        // of the token since does not matter. That it holds the token is proven already.
        if known.is_some_and(|m| m.token == Some(proof.token) && m.incarnation == joiner.incarnation) {
            return Ok(Join::Known);
        }
        let token = self.tokens.get(&proof.token).ok_or(Refused::UnknownToken)?;
        if token.expires_at <= at {
            return Err(Refused::TokenExpired);
        }
        match known {
            Some(member) if member.token == Some(proof.token) => Ok(Join::Reborn),
            _ if token.uses_left == 0 => Err(Refused::TokenUsedUp),
            None if self.members.len() >= MEMBERS_MAX => {
                Err(Refused::Full { what: "members".to_owned(), limit: MEMBERS_MAX })
            }
            _ => Ok(Join::New),
        }
    }

    pub(super) fn add_member(&mut self, index: u64, proof: &Proof, at: UnixMillis) -> Outcome {
        let join = self.preview_join(proof, at)?;
        let joiner = &proof.joiner;
        if let (Join::Known, Some(member)) = (join, self.members.get(&joiner.id)) {
            let (raft, name, role) = (member.raft, member.name.clone(), member.role);
            return Ok(Done::Joined { index, raft, name, role });
        }
        let token = self.tokens.get_mut(&proof.token).ok_or(Refused::UnknownToken)?;
        if join == Join::New {
            token.uses_left = token.uses_left.checked_sub(1).ok_or(Refused::TokenUsedUp)?;
        }
        let role = token.role;
        Ok(self.admit(RaftId(index), joiner, role, Some(proof.token), at, index))
    }

    fn admit(
        &mut self,
        raft: RaftId,
        candidate: &Candidate,
        role: Role,
        token: Option<TokenId>,
        at: UnixMillis,
        index: u64,
    ) -> Done {
        let before = self.members.remove(&candidate.id);
        let name = self.free_name(&candidate.name);
        let member = Member {
            id: candidate.id,
            raft,
            name: name.clone(),
            role,
            labels: before.as_ref().map(|member| member.labels.clone()).unwrap_or_default(),
            addresses: candidate.addresses.clone(),
            drain: false,
            joined_at: before.map_or(at, |member| member.joined_at),
            token,
            incarnation: candidate.incarnation,
        };
        self.members.insert(candidate.id, member);
        Done::Joined { index, raft, name, role }
    }

    /// The wanted name, or that name with the first free number.
    fn free_name(&self, wanted: &NodeName) -> NodeName {
        let numbered = (2..).map(|number| wanted.numbered(number));
        let mut names = std::iter::once(wanted.clone()).chain(numbered);
        names.find(|name| self.member_named(name).is_none()).expect("there are more numbers than members")
    }

    pub(super) fn remove_member(&mut self, node: &NodeId, by: &Actor, at: UnixMillis) -> Result<(), Refused> {
        let member = self.members.get(node).ok_or(Refused::UnknownMember(*node))?;
        let others = || self.members().filter(|other| other.id != *node && other.role == Role::Node);
        // Without it nobody could ever change anything again, not even let somebody else vote.
        let alone = self.seats.voters.len() == 1 && self.seats.voters.contains(&member.raft);
        if alone || member.role == Role::Node && others().next().is_none() {
            return Err(Refused::LastVoter(*node));
        }
        if self.removed.len() >= REMOVED_MAX {
            return Err(Refused::Full { what: "removed nodes".to_owned(), limit: REMOVED_MAX });
        }
        let removed = Removed { name: member.name.clone(), at, by: by.clone() };
        self.members.remove(node);
        self.unassign_all(node);
        self.removed.insert(*node, removed);
        Ok(())
    }

    pub(super) fn set_addresses(&mut self, node: &NodeId, addresses: &Addresses) -> Result<(), Refused> {
        check_addresses(addresses)?;
        self.member_mut(node)?.addresses = addresses.clone();
        Ok(())
    }

    pub(super) fn set_labels(&mut self, node: &NodeId, set: &[Label], unset: &[String]) -> Result<(), Refused> {
        let member = self.member_mut(node)?;
        let mut labels = member.labels.clone();
        labels.retain(|key, _| !unset.contains(key));
        labels.extend(set.iter().map(|label| (label.key.clone(), label.value.clone())));
        if labels.len() > LABELS_MAX {
            return Err(Refused::Full { what: "labels of one node".to_owned(), limit: LABELS_MAX });
        }
        member.labels = labels;
        Ok(())
    }

    pub(super) fn set_drain(&mut self, node: &NodeId, drain: bool) -> Result<(), Refused> {
        self.member_mut(node)?.drain = drain;
        Ok(())
    }

    fn member_mut(&mut self, node: &NodeId) -> Result<&mut Member, Refused> {
        self.members.get_mut(node).ok_or(Refused::UnknownMember(*node))
    }
}

fn check_addresses(addresses: &Addresses) -> Result<(), Refused> {
    let many = addresses.mesh.len().max(addresses.bulk.len()) > ADDRESSES_MAX;
    let long = addresses.mesh.iter().any(|address| address.len() > ADDRESS_BYTES_MAX);
    if many || long {
        return Err(Refused::Full { what: "addresses of one node".to_owned(), limit: ADDRESSES_MAX });
    }
    Ok(())
}
