//! OpenAI's API in Ollama's terms: each request becomes a native one, each native answer an answer as OpenAI shapes it.
//! What is heeded, what is passed over and what is said to mistakes follows Ollama's own translation, so that a client
//! finds the same behind `/v1` as with one local Ollama; where it differs, a comment says why.
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
