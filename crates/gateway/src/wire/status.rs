//! How a mesh and its nodes are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId, NodeName, Role};

use super::Time;

/// A mesh as one node sees it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    #[schemars(with = "String")]
    pub mesh_id: MeshId,
    /// Empty where nobody has named the mesh.
    pub mesh_name: String,
    /// The node that answers.
    #[schemars(with = "String")]
    pub node: NodeId,
    #[schemars(with = "String")]
    pub name: NodeName,
    pub role: Role,
    pub version: String,
    pub started_at: Time,
    pub leader: Option<Leader>,
    /// Whether a majority of the voters answered just now. Without it settings are read-only.
    pub quorum: bool,
    /// No voter this node knows votes any more: it believes nobody, and must be let in anew.
    pub estranged: bool,
    /// The consensus' term; none on a worker.
    pub term: Option<u64>,
    /// Up to which change this node has the registry.
    pub index: u64,
    /// Of the registry at that index; the same on every node.
    pub state_hash: String,
    /// Voters that cannot be reached from here: without a quorum, one of these must wake.
    #[schemars(with = "Vec<String>")]
    pub absent_voters: Vec<NodeName>,
    /// Whether this node's disk is too full for changes.
    pub disk_low: bool,
    pub backend: Backend,
    pub members: Vec<Member>,
    /// Nodes of other meshes on the local network.
    pub strangers: Vec<Stranger>,
}

/// What runs models on the node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// `ollama`, `engine` or `none`.
    pub kind: String,
    pub address: Option<String>,
    /// Why it is this one.
    pub why: String,
    /// Where it answers.
    pub version: Option<String>,
    /// Where it does not.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leader {
    #[schemars(with = "String")]
    pub id: NodeId,
    #[schemars(with = "String")]
    pub name: NodeName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stranger {
    #[schemars(with = "String")]
    pub id: NodeId,
    pub address: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    #[schemars(with = "String")]
    pub id: NodeId,
    #[schemars(with = "String")]
    pub name: NodeName,
    pub role: Role,
    pub voter: bool,
    pub leader: bool,
    pub state: State,
    /// Where its peers reach it: libp2p multiaddresses, then bulk listeners as `ip:port`.
    pub addresses: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub joined_at: Time,
    /// Its number in the consensus, never used twice.
    pub seat: u64,
}

/// As seen from the node that answers. A node that is down is down, whether it was draining or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Up,
    Down,
    /// Up, and given no new work.
    Draining,
}

/// A member, and how the connection to it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    #[serde(flatten)]
    pub member: Member,
    /// None for the node that answers.
    pub link: Option<Link>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// The address in use, while there is a connection.
    pub via: Option<String>,
    pub round_trip_ms: Option<f64>,
    pub last_seen_s: Option<f64>,
    /// How well the peer has kept the rules.
    pub score: f64,
    pub last_error: Option<String>,
}

/// Whether a node can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    pub ready: bool,
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    pub name: String,
    pub ready: bool,
    /// What is wrong; told only to who may see the mesh.
    pub why: Option<String>,
}
