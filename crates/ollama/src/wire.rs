//! Ollama's JSON, as it goes over the wire: what is asked, what is answered, and what Go makes of both.
//!
//! Requests are read as forgivingly as Ollama reads them: unknown fields are passed over, `null` is as good as absent,
//! the case of a field's name does not matter. Answers are written byte by byte as it writes them.

mod embed;
mod infer;
mod json;
mod manage;
mod options;
mod value;

pub use embed::{EmbedRequest, EmbedResponse, EmbeddingsRequest, EmbeddingsResponse, InvalidInput};
pub use infer::{
    ChatRequest, ChatResponse, Common, DebugInfo, GenerateRequest, GenerateResponse, LogprobEntry, Message, Metrics,
    TokenLogprob, ToolCall, ToolFunction,
};
#[cfg(test)]
pub(crate) use json::VALUES_MAX;
pub use json::{InvalidBody, decode, encode, fields};
pub use manage::{
    CopyRequest, DeleteRequest, Details, ListResponse, ListedModel, LoadedModel, PsResponse, PullRequest, ShowRequest,
    ShowResponse, TensorInfo, Version,
};
pub use options::{InvalidOption, Options};
pub use value::{Format, InvalidFormat, KeepAlive, Level, Think, Time};

use serde::Serialize;

/// What every failed request gets, and what ends a stream that fails on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    pub error: String,
}
