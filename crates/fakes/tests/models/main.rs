//! An Ollama with a folder, and what comes into that and goes out of it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod client;
mod faults;
mod folder;
mod pull;
mod push;
