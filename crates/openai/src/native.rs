//! What Ollama answers, as far as OpenAI's clients are told of it.

use ollama::wire::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;

/// A line of `/api/chat` or `/api/generate`, or all of the answer: each route leaves the other's half empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) model: String,
    pub(crate) message: Message,
    pub(crate) response: String,
    pub(crate) done: bool,
    pub(crate) done_reason: String,
    pub(crate) logprobs: Vec<Value>,
    prompt_eval_count: u64,
    eval_count: u64,
    #[serde(rename = "_debug_info")]
    pub(crate) debug_info: Option<Value>,
    error: Option<Value>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Answer {
    pub(crate) fn read(native: &[u8]) -> Result<Self, Error> {
        let answer: Self = serde_json::from_slice(native).map_err(Error::Answer)?;
        answer.error.as_ref().map_or(Ok(()), |error| Err(Error::of_line(error)))?;
        Ok(answer)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_eval_count,
            completion_tokens: self.eval_count,
            total_tokens: self.prompt_eval_count.saturating_add(self.eval_count),
        }
    }
}
