//! Models: which there are, what they are made of, and who has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// One name and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    pub name: String,
    /// Of its manifest, as Ollama shows it.
    pub digest: String,
    pub bytes: u64,
    /// It neither moves nor is deleted until somebody lets go of it.
    pub pinned: bool,
    pub aliases: Vec<String>,
    /// Where it should be; none where nobody said.
    pub rule: Option<Rule>,
    /// The nodes that have it, as they said last.
    pub holders: Vec<Holder>,
}

/// All about one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelShown {
    pub name: String,
    pub digest: String,
    pub bytes: u64,
    pub pinned: bool,
    pub aliases: Vec<String>,
    pub rule: Option<Rule>,
    /// The nodes that should have it by its rule.
    pub assigned: Vec<String>,
    /// Asked just now.
    pub holders: Vec<Holder>,
    pub layers: Vec<ModelLayer>,
    /// What the name meant, oldest first; the last one holds.
    pub history: Vec<Meant>,
}

/// How a node has a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    pub node: String,
    /// `verified`: all of it lies there, checked, and a backend there lists it: this counts. `stored`: the same, and no
    /// backend lists it. `fetching`: it comes in. `listed`: a backend has it, and nobody could look at its files yet.
    /// `damaged`: something of it is not what it should be.
    pub state: String,
    /// While it comes in: so much is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelLayer {
    /// What Ollama calls it.
    pub digest: String,
    /// By what it travels between nodes.
    pub blake3: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Meant {
    pub digest: String,
    pub at: Time,
    pub by: String,
    /// Of the change; `rollback` takes it.
    pub index: u64,
}

/// Where a model should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// How many copies; none means one on each node that may have it.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// `key=value`: a node must have all of these labels,
    #[serde(default)]
    pub on: Vec<String>,
    /// and none of these.
    #[serde(default)]
    pub never: Vec<String>,
    /// Copies are never given up to make room.
    #[serde(default)]
    pub pin: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlaceModel {
    pub name: String,
    /// None takes the rule away; copies stay where they are.
    pub rule: Option<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NameModel {
    pub name: String,
}

/// Asks for one model, in the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelNamed {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinModel {
    pub name: String,
    pub pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBackModel {
    pub name: String,
    /// To what it became by the change at this index; none means to what it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyModel {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportModel {
    /// Of a GGUF file on the node's machine, from the root on.
    pub path: String,
    pub name: String,
    /// In Go's template language; the file's own where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Ollama's options, such as `temperature`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyModel {
    pub name: String,
    /// Fetch what is damaged from other nodes.
    #[serde(default)]
    pub repair: bool,
}

/// One line of work that takes long. The last one has a status of `success`, or an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkLine {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A blob on its way to this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Transfer {
    pub blake3: String,
    /// The names of the models it is for.
    pub models: Vec<String>,
    /// `queued`, `waiting_for_space`, `waiting_for_sources`, `fetching`, `checking`, `done` or `failed`.
    pub stage: String,
    /// Verified and on the disk.
    pub bytes: u64,
    pub total: u64,
    /// Bytes a second now.
    pub rate: f64,
    pub sources: Vec<TransferSource>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TransferSource {
    pub node: String,
    /// Of good chunks.
    pub bytes: u64,
    pub rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectGarbage {
    /// Only say what would go.
    #[serde(default)]
    pub dry: bool,
}

/// What garbage collection frees on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Collected {
    pub blake3: String,
    pub bytes: u64,
    /// On the disk; nothing where only a file of somebody else's was referred to.
    pub freed: u64,
}
