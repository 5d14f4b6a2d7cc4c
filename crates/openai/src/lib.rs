//! OpenAI's API in Ollama's terms: each request becomes a native one, each native answer an answer as OpenAI shapes it.
//! What is heeded, what is passed over and what is said to mistakes follows Ollama's own translation, so that a client
//! finds the same behind `/v1` as with one local Ollama. It goes its own way where Ollama's loses something:
//!
//! - A stream that fails, or ends before its last line, ends with an event that has an `error` and without `[DONE]`.
//! - Tool calls are counted through all chunks, and have an id where the host gave none.
//! - A tool's result in parts keeps its name and the id of its call; a message's thoughts are kept in parts too.
//! - What is only rendered (`_debug_render_only`) is told whole, since it never streams.
//!
//! Bytes in, bytes out: no IO, no clock, no chance. Ids and the time are handed in.

mod base64;
pub mod chat;
pub mod completions;
pub mod embeddings;
mod error;
pub mod models;
mod native;
mod options;
mod stream;

use ollama::wire::encode;
use serde::Serialize;

pub use error::Error;
pub use stream::{LINE_MAX, Stream};

/// What an answer is known by. One pair serves a whole answer, however many chunks it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The request's own part; `chatcmpl-` or `cmpl-` is put before it.
    pub id: String,
    /// In seconds since 1970.
    pub created: i64,
}

const FINGERPRINT: &str = "fp_ollama";

/// An answer that is one object; Go ends it with an end of line.
fn written<T: Serialize>(answer: &T) -> Vec<u8> {
    let mut body = encode(answer);
    body.push(b'\n');
    body
}
