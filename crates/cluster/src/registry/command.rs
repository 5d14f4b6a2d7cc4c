//! What can be asked of the registry, and what it answers. Variants are only ever added at the end: a node that meets
//! one it does not know stops, since skipping it would make its state differ.

use std::collections::BTreeSet;

use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};
use types::{Label, MeshId, NodeId, NodeName, RaftId, RequestId, Role, UnixMillis};

use super::{Actor, Addresses, ApiKey, Candidate, Expect, JoinToken, KeyId, Piece, Proof, Rule, TokenId};
use crate::Verbatim;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub id: RequestId,
    /// The leader's clock when it took the command.
    pub at: UnixMillis,
    pub by: Actor,
    pub verb: Verb,
}

impl codec::Record for Command {
    const VERSION: u8 = 1;
    /// The longest manifest and its layers, with room for who asks. What a node may ask for is less (`protocol`).
    const LIMIT: usize = 64 << 10;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// The first command of every mesh: its id and first member.
    Found {
        mesh: MeshId,
        member: Candidate,
    },
    AddMember(Box<Proof>),
    RemoveMember {
        node: NodeId,
    },
    SetAddresses {
        node: NodeId,
        addresses: Addresses,
    },
    SetLabels {
        node: NodeId,
        set: Vec<Label>,
        unset: Vec<String>,
    },
    SetDrain {
        node: NodeId,
        drain: bool,
    },
    CreateToken {
        id: TokenId,
        token: JoinToken,
    },
    RevokeToken {
        id: TokenId,
    },
    /// `expect` is the index of the change the caller has seen (0: never set); the write is refused if another came
    /// between.
    SetConfig {
        key: String,
        value: String,
        expect: Option<u64>,
    },
    ResetConfig {
        key: String,
    },
    RollbackConfig {
        key: String,
        to: u64,
    },
    CreateKey {
        id: KeyId,
        key: ApiKey,
    },
    RevokeKey {
        id: KeyId,
    },
    /// An Ollama on a machine without a node. `node` alone stands before it; without one, all come to the same node.
    EnrollBackend {
        name: NodeName,
        url: String,
        node: Option<NodeId>,
    },
    RemoveBackend {
        name: NodeName,
    },
    /// A version of a model, known by the digest of its manifest, and what its layers are called where they travel. A
    /// tag is made only where there is none, and left alone otherwise.
    AddVersion {
        manifest: Verbatim,
        layers: Vec<Piece>,
        tag: Option<ModelName>,
    },
    SetTag {
        name: ModelName,
        version: Digest,
        expect: Expect,
    },
    DeleteTag {
        name: ModelName,
    },
    RestoreTag {
        name: ModelName,
    },
    PinTag {
        name: ModelName,
        pinned: bool,
    },
    /// To what it was by the change at this index, or before its last change.
    RollbackTag {
        name: ModelName,
        to: Option<u64>,
    },
    SetAlias {
        alias: ModelName,
        to: ModelName,
    },
    RemoveAlias {
        alias: ModelName,
    },
    Place {
        name: ModelName,
        rule: Rule,
    },
    Unplace {
        name: ModelName,
    },
    /// Which nodes should have which versions; of others nothing is said.
    Assign {
        versions: Vec<(Digest, BTreeSet<NodeId>)>,
    },
    /// Of versions nobody needs. Whoever adds one is about to put a tag on it: so only of those that have been there for
    /// a while.
    ForgetVersions {
        versions: Vec<Digest>,
    },
}

pub type Outcome = Result<Done, Refused>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    Changed { index: u64 },
    Joined { index: u64, raft: RaftId, name: NodeName, role: Role },
}

impl Done {
    pub fn index(&self) -> u64 {
        match self {
            Self::Changed { index } | Self::Joined { index, .. } => *index,
        }
    }
}

/// Why the registry did not do as asked. The state is as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    #[error("this mesh is founded already")]
    AlreadyFounded,
    #[error("node `{0}` is not a member")]
    UnknownMember(NodeId),
    #[error("node `{0}` was removed from this mesh and its key is barred")]
    Barred(NodeId),
    #[error("`{0}` may not do this: {1}")]
    Denied(Actor, String),
    #[error("the token is not known to this mesh: it was revoked, or never made here")]
    UnknownToken,
    #[error("the token has expired")]
    TokenExpired,
    #[error("the token is used up")]
    TokenUsedUp,
    #[error("the proof of the token is wrong")]
    TokenProof,
    #[error("there is no setting `{key}`")]
    UnknownSetting { key: String, suggestion: Option<String> },
    #[error("`{value}` is not a value for `{key}`: {why}")]
    BadValue { key: String, value: String, why: String },
    #[error("`{key}` was changed at index {found}, not {expected}")]
    Conflict { key: String, expected: u64, found: u64 },
    #[error("`{key}` has no change at index {index} in its history")]
    NoSuchChange { key: String, index: u64 },
    #[error("there is no key `{0}`")]
    UnknownKey(KeyId),
    #[error("{what} are limited to {limit}")]
    Full { what: String, limit: usize },
    #[error("node `{0}` is the only one that votes")]
    LastVoter(NodeId),
    #[error("without node `{0}` most of those who vote would be down")]
    QuorumAtRisk(NodeId),
    #[error("there is no backend `{0}`")]
    UnknownBackend(NodeName),
    #[error("this name or URL is enrolled already, as `{0}`")]
    BackendTaken(NodeName),
    #[error("this is no version of a model: {why}")]
    BadVersion { why: String },
    #[error("layer `{layer}` is known to be something else, by the word of node `{by}`")]
    Contradicts { layer: Digest, by: NodeId },
    #[error("there is no version `{0}`")]
    UnknownVersion(Digest),
    #[error("version `{version}` is in use by `{tag}`")]
    InUse { version: Digest, tag: Box<ModelName> },
    #[error("there is no tag `{0}`")]
    UnknownTag(ModelName),
    #[error("tag `{name}` is not where it was expected, but {}", place_of(.found))]
    TagMoved { name: Box<ModelName>, found: Option<Digest> },
    #[error("tag `{0}` is pinned")]
    Pinned(ModelName),
    #[error("tag `{tag}` has no change at index {index} in its history")]
    NoSuchMove { tag: Box<ModelName>, index: u64 },
    #[error("tag `{0}` was nothing else before")]
    NothingBefore(ModelName),
    #[error("`{0}` is a tag or an alias already")]
    NameTaken(ModelName),
    #[error("there is no alias `{0}`")]
    UnknownAlias(ModelName),
    #[error("`{0}` has no rule")]
    NoRule(ModelName),
    #[error("this is no rule: {why}")]
    BadRule { why: String },
}

fn place_of(version: &Option<Digest>) -> String {
    version.map_or_else(|| "gone".to_owned(), |version| format!("on `{version}`"))
}
