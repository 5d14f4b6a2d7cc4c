//! One line of an answer: as it is read, and as it is told after a seam.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Said, Voice};
use crate::wire::encode;

/// Borrows its texts where it can: each line of each answer is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) model: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) created_at: Cow<'a, str>,
    #[serde(borrow)]
    message: Message<'a>,
    #[serde(borrow)]
    response: Cow<'a, str>,
    #[serde(borrow)]
    thinking: Cow<'a, str>,
    pub(super) done: bool,
    pub(super) done_reason: Option<String>,
    pub(super) total_duration: Option<i64>,
    pub(super) load_duration: Option<i64>,
    pub(super) prompt_eval_count: Option<u64>,
    pub(super) prompt_eval_duration: Option<i64>,
    pub(super) eval_count: Option<u64>,
    pub(super) eval_duration: Option<i64>,
    pub(super) logprobs: Option<Value>,
    pub(super) error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(borrow)]
    thinking: Cow<'a, str>,
    tool_calls: Option<Vec<Value>>,
}

/// What is new in a line that is told.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) text: String,
    pub(super) thought: String,
    pub(super) calls: Vec<Value>,
    pub(super) logprobs: Option<Value>,
    pub(super) end: Option<End>,
}

/// Of the one answer that the client has seen.
#[derive(Debug, Default, Serialize)]
pub(super) struct End {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total_duration: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) load_duration: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_eval_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_eval_duration: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eval_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eval_duration: Option<i64>,
}

#[derive(Serialize)]
struct Told<'a> {
    model: &'a str,
    created_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<ToldMessage<'a>>,
    done: bool,
    #[serde(flatten)]
    end: Option<&'a End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a Value>,
}

#[derive(Serialize)]
struct ToldMessage<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [Value],
}

impl<'a> Line<'a> {
    pub(super) fn read(line: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }

    /// Whichever route it comes from.
    pub(super) fn text(&self) -> &str {
        if self.message.content.is_empty() { &self.response } else { &self.message.content }
    }

    pub(super) fn thought(&self) -> &str {
        if self.message.thinking.is_empty() { &self.thinking } else { &self.message.thinking }
    }

    pub(super) fn calls(&self) -> &[Value] {
        self.message.tool_calls.as_deref().unwrap_or_default()
    }
}

impl News {
    pub(super) fn is_nothing(&self) -> bool {
        self.text.is_empty() && self.thought.is_empty() && self.calls.is_empty() && self.end.is_none()
    }

    /// A line of the answer the client is told, with its end.
    pub(super) fn line(&self, voice: Voice, said: &Said) -> Bytes {
        let (text, thought) = (self.text.as_str(), self.thought.as_str());
        let is_chat = voice == Voice::Chat;
        let message = || ToldMessage { role: "assistant", content: text, thinking: thought, tool_calls: &self.calls };
        let mut line = encode(&Told {
            model: &said.model,
            created_at: &said.created_at,
            response: (!is_chat).then_some(text),
            thinking: if is_chat { "" } else { thought },
            message: is_chat.then(message),
            done: self.end.is_some(),
            end: self.end.as_ref(),
            logprobs: self.logprobs.as_ref(),
        });
        line.push(b'\n');
        line.into()
    }
}
