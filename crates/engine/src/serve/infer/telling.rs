//! What a client is told of an answer, in the words of the route it asked.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ollama::wire::{
    self, ChatResponse, DebugInfo, ErrorBody, GenerateResponse, LogprobEntry, Message, Metrics, Time, ToolCall,
    ToolFunction,
};
use serde::Serialize;

use super::answering::Part;
use crate::Error;
use crate::chat::Piece;
use crate::runner::{Candidate, Done, Ended, Token, TokenLogprob};
use crate::serve::reply;

#[derive(Debug, Clone, Copy)]
pub(super) enum Voice {
    Generate { with_context: bool },
    Chat,
}

#[derive(Debug)]
pub(super) struct Teller {
    voice: Voice,
    /// As the client called it.
    model: String,
    began: Instant,
    load: Duration,
    /// Calls told so far: each has its number.
    calls: u64,
    kept: Kept,
}

/// All of an answer, for a client that wants it at once.
#[derive(Debug, Default)]
struct Kept {
    thinking: String,
    content: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<LogprobEntry>,
    done: Option<Done>,
}

#[derive(Debug, Default)]
struct Told {
    thinking: String,
    content: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<LogprobEntry>,
    done_reason: Option<&'static str>,
    metrics: Metrics,
    context: Vec<Token>,
    debug_info: Option<DebugInfo>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Response {
    Generate(GenerateResponse),
    Chat(ChatResponse),
}

impl Teller {
    pub(super) fn new(voice: Voice, model: &str, began: Instant) -> Self {
        Self { voice, model: model.to_owned(), began, load: Duration::ZERO, calls: 0, kept: Kept::default() }
    }

    /// From here on it is no longer loading that takes the time.
    pub(super) fn is_loaded(&mut self) {
        self.load = self.began.elapsed();
    }

    pub(super) fn loaded(&self) -> Response {
        self.response(Told { done_reason: Some("load"), ..Told::default() })
    }

    pub(super) fn unloaded(&self) -> Response {
        self.response(Told { done_reason: Some("unload"), ..Told::default() })
    }

    /// Ollama leaves the role out here.
    pub(super) fn rendered(&self, debug_info: DebugInfo) -> Response {
        let mut response = self.response(Told { debug_info: Some(debug_info), ..Told::default() });
        if let Response::Chat(chat) = &mut response {
            chat.message.role.clear();
        }
        response
    }

    pub(super) fn line(&mut self, part: Part) -> Bytes {
        let told = match part {
            Part::Piece { piece: Piece { thinking, content, calls }, logprobs } => {
                let logprobs = logprobs.iter().map(logprob).collect();
                Told { thinking, content, calls: self.numbered(calls), logprobs, ..Told::default() }
            }
            Part::Done(done) => self.end(done),
        };
        reply::line(&self.response(told))
    }

    /// A stream that has begun can only say so.
    pub(super) fn broken(error: &Error) -> Bytes {
        reply::line(&ErrorBody { error: error.to_string() })
    }

    pub(super) fn keep(&mut self, part: Part) {
        match part {
            Part::Piece { piece, logprobs } => {
                self.kept.thinking.push_str(&piece.thinking);
                self.kept.content.push_str(&piece.content);
                let calls = self.numbered(piece.calls);
                self.kept.calls.extend(calls);
                self.kept.logprobs.extend(logprobs.iter().map(logprob));
            }
            Part::Done(done) => self.kept.done = Some(done),
        }
    }

    pub(super) fn whole(&mut self) -> Response {
        let Kept { thinking, content, calls, logprobs, done } = std::mem::take(&mut self.kept);
        let end = done.map_or_else(Told::default, |done| self.end(done));
        self.response(Told { thinking, content, calls, logprobs, ..end })
    }

    fn end(&self, done: Done) -> Told {
        Told {
            done_reason: Some(match done.ended {
                Ended::Stop => "stop",
                Ended::Length => "length",
            }),
            metrics: Metrics {
                total_duration: self.began.elapsed(),
                load_duration: self.load,
                prompt_eval_count: done.prompt_tokens,
                prompt_eval_duration: done.prompt_time,
                eval_count: done.output_tokens,
                eval_duration: done.output_time,
            },
            context: done.context,
            ..Told::default()
        }
    }

    fn numbered(&mut self, calls: Vec<ToolFunction>) -> Vec<ToolCall> {
        let numbered = calls.into_iter().map(|function| {
            let index = self.calls;
            self.calls += 1;
            ToolCall { id: call_id(), function: ToolFunction { index, ..function } }
        });
        numbered.collect()
    }

    fn response(&self, told: Told) -> Response {
        let Told { thinking, content, calls, logprobs, done_reason, metrics, context, debug_info } = told;
        let (model, created_at, done) = (self.model.clone(), Time::now(), done_reason.is_some());
        match self.voice {
            Voice::Generate { with_context } => Response::Generate(GenerateResponse {
                model,
                created_at,
                response: content,
                thinking,
                done,
                done_reason,
                context: if with_context { context } else { Vec::new() },
                metrics,
                debug_info,
                logprobs,
            }),
            Voice::Chat => {
                let role = "assistant".to_owned();
                let message = Message { role, content, thinking, tool_calls: calls, ..Message::default() };
                Response::Chat(ChatResponse {
                    model,
                    created_at,
                    message,
                    done,
                    done_reason,
                    debug_info,
                    logprobs,
                    metrics,
                })
            }
        }
    }
}

/// `call_` and eight letters or digits, as Ollama makes them.
fn call_id() -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the operating system has a random source");
    let letters = random.map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
    format!("call_{}", letters.iter().collect::<String>())
}

fn logprob(token: &TokenLogprob) -> LogprobEntry {
    LogprobEntry { chosen: candidate(&token.chosen), top_logprobs: token.top.iter().map(candidate).collect() }
}

fn candidate(candidate: &Candidate) -> wire::TokenLogprob {
    wire::TokenLogprob {
        token: String::from_utf8_lossy(&candidate.bytes).into_owned(),
        logprob: f64::from(candidate.logprob),
        bytes: candidate.bytes.clone(),
    }
}
