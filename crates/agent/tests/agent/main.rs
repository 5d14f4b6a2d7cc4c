//! An agent before a fake Ollama, asked on its own node and from another one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod bench;
mod local;
mod remote;
