//! The answer of `/api/chat`, as OpenAI shapes it: whole, or in chunks.

use std::mem;

use ollama::wire::{ToolCall, encode};
use serde::Serialize;
use serde_json::Value;

use crate::native::{Answer, Usage};
use crate::stream::event;
use crate::{FINGERPRINT, Ids, written};

#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: [Choice<'a>; 1],
    usage: Usage,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    debug_info: Option<&'a Value>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Said<'a>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs<'a>>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: &'a [ChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Said<'a>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs<'a>>,
}

/// A message or what a chunk adds to it.
#[derive(Default, Serialize)]
struct Said<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [Call<'a>],
}

#[derive(Serialize)]
struct Call<'a> {
    id: String,
    index: usize,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    /// JSON within a text.
    arguments: String,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: &'a [Value],
}

pub(super) fn whole(answer: &Answer, ids: &Ids) -> Vec<u8> {
    let id = name(ids);
    let message = &answer.message;
    let calls = calls(&message.tool_calls, 0, &id);
    let said = Said {
        role: Some(&message.role),
        content: Some(&message.content),
        reasoning: &message.thinking,
        tool_calls: &calls,
    };
    let reason = Some(answer.done_reason.as_str()).filter(|reason| !reason.is_empty());
    let finish_reason = reason.map(|reason| finish(reason, !calls.is_empty()));
    written(&Whole {
        id: &id,
        object: "chat.completion",
        created: ids.created,
        model: &answer.model,
        system_fingerprint: FINGERPRINT,
        choices: [Choice { index: 0, message: said, finish_reason, logprobs: logprobs(answer) }],
        usage: answer.usage(),
        debug_info: answer.debug_info.as_ref(),
    })
}

#[derive(Debug)]
pub(crate) struct Chunks {
    id: String,
    created: i64,
    include_usage: bool,
    /// The first chunk says who speaks.
    begun: bool,
    calls: usize,
}

impl Chunks {
    pub(super) fn new(ids: &Ids, include_usage: bool) -> Self {
        Self { id: name(ids), created: ids.created, include_usage, begun: false, calls: 0 }
    }

    pub(crate) fn retell(&mut self, answer: &Answer, events: &mut Vec<u8>) {
        let message = &answer.message;
        let calls = calls(&message.tool_calls, self.calls, &self.id);
        self.calls += calls.len();
        let spoken = !message.content.is_empty() || !calls.is_empty();
        let thought = !message.thinking.is_empty();
        // The last line mostly has figures alone. A chunk for it is due only where no other said who speaks.
        if spoken || thought || !answer.logprobs.is_empty() || !answer.done || !self.begun {
            let role = (!mem::replace(&mut self.begun, true)).then_some("assistant");
            let thinking = Said { role, reasoning: &message.thinking, ..Said::default() };
            let said = Said { content: Some(&message.content), tool_calls: &calls, ..Said::default() };
            if spoken && thought {
                // Nobody says which of the logprobs are of the second: they stay with the first, as in Ollama.
                self.chunk(answer, thinking, logprobs(answer), events);
                self.chunk(answer, said, None, events);
            } else {
                let both = Said { content: said.content, tool_calls: said.tool_calls, ..thinking };
                self.chunk(answer, both, logprobs(answer), events);
            }
        }
        if answer.done {
            let reason = Some(answer.done_reason.as_str()).filter(|reason| !reason.is_empty()).unwrap_or("stop");
            let finish_reason = Some(finish(reason, self.calls > 0));
            let last = ChunkChoice { index: 0, delta: Said::default(), finish_reason, logprobs: None };
            event(&self.frame(answer, &[last], None), events);
            if self.include_usage {
                event(&self.frame(answer, &[], Some(answer.usage())), events);
            }
        }
    }

    fn chunk(&self, answer: &Answer, delta: Said<'_>, logprobs: Option<Logprobs<'_>>, events: &mut Vec<u8>) {
        let choice = ChunkChoice { index: 0, delta, finish_reason: None, logprobs };
        event(&self.frame(answer, &[choice], None), events);
    }

    fn frame<'a>(&'a self, answer: &'a Answer, choices: &'a [ChunkChoice<'a>], usage: Option<Usage>) -> Chunk<'a> {
        Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &answer.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }
    }
}

fn name(ids: &Ids) -> String {
    format!("chatcmpl-{}", ids.id)
}

/// Only a regular end is one for the sake of calls: an answer cut short is told as that.
fn finish(reason: &str, called: bool) -> &str {
    if called && reason == "stop" { "tool_calls" } else { reason }
}

/// Counted through the whole answer: clients put together what has the same index, and hosts do not agree on whether a
/// second chunk's calls begin at nought. Hosts too old to give ids get one, since clients answer by it.
fn calls<'a>(native: &'a [ToolCall], before: usize, answer_id: &str) -> Vec<Call<'a>> {
    let call = |(index, call): (usize, &'a ToolCall)| Call {
        id: if call.id.is_empty() { format!("call_{answer_id}_{index}") } else { call.id.clone() },
        index,
        kind: "function",
        function: Function {
            name: &call.function.name,
            arguments: String::from_utf8(encode(&call.function.arguments)).expect("JSON is text"),
        },
    };
    (before..).zip(native).map(call).collect()
}

fn logprobs(answer: &Answer) -> Option<Logprobs<'_>> {
    (!answer.logprobs.is_empty()).then_some(Logprobs { content: &answer.logprobs })
}
