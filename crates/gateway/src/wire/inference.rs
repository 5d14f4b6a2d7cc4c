//! What requests went through, and what the nodes have for the next ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// What became of one request, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// As in the header `omx-request-id` of its answer.
    pub id: String,
    /// The names the model goes by now.
    pub models: Vec<String>,
    /// The beginning of the model's digest.
    pub digest: String,
    pub class: String,
    pub begun_at: Time,
    /// Seconds, all attempts together.
    pub phases: Phases,
    pub steps: Vec<Step>,
}

/// Where the time went, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Phases {
    /// Asking nodes and deciding.
    pub choosing: f64,
    /// On nodes that then failed or refused.
    pub lost: f64,
    /// On the node that answered, until its first byte.
    pub waiting: f64,
    pub streaming: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Seconds from the beginning.
    pub at: f64,
    pub what: What,
    pub node: Option<String>,
    /// What the node was thought to take, or said it would: less is better.
    pub score: Option<f64>,
    /// The longest wait that was asked for, in seconds.
    pub wait_max: Option<f64>,
    /// Why this node, or why it came to nothing.
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A candidate, and what it was thought to cost by what was heard of it earlier.
    Asked,
    /// It answered with a promise.
    Promised,
    /// It will not, or could not be asked.
    Declined,
    Sent,
    /// What was sent came to nothing there.
    Failed,
    FirstByte,
    /// It broke off after its first byte, and its rest is asked of another node.
    Lost,
    Ended,
    /// The client was told so.
    GaveUp,
    /// The client left.
    Cancelled,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Last {
    /// How many, the last one first; 20 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
}

/// What there is for the next request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// Requests in the backends of the node that answers.
    pub running: usize,
    /// Requests before them.
    pub waiting: usize,
    pub nodes: Vec<Load>,
}

/// What a node said last of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    pub node: String,
    /// Whether it can be asked now, as far as the mesh can tell.
    pub up: bool,
    pub backends: Vec<LoadedBackend>,
    pub models: Vec<LoadedModel>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoadedBackend {
    /// `ollama`, `engine` or `enrolled`.
    pub kind: String,
    /// `up`, `suspect`, `down` or `draining`.
    pub state: String,
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadedModel {
    pub name: String,
    /// The beginning of its digest.
    pub digest: String,
    /// Its place among the backends.
    pub backend: usize,
    pub loaded: bool,
    /// Tokens a slot has room for; none while it is not loaded.
    pub context: Option<u32>,
    pub slots: u32,
    pub free: u32,
    /// Seconds until a slot is free.
    pub wait: f64,
    /// Seconds a load takes.
    pub load: f64,
    /// Tokens a second, as measured there.
    pub prompt_rate: f64,
    pub answer_rate: f64,
}
