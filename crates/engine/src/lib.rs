//! The engine inside: a model file goes in, text comes out, in the words of Ollama's API.
//!
//! What a request is and what comes back is in [`runner`]; [`library`] keeps models loaded and makes room for others.
//! [`chat`] knows how a model talks, and [`serve`] puts all of it behind Ollama's routes.
//! [`keeper`] is the node's side: it keeps the process that runs all this.
//! The pure parts know no model and no clock. Only `llama`, behind the feature of that name, knows llama.cpp; without
//! it everything here compiles and nothing runs a model. This crate does not know HTTP clients, nodes or meshes.

pub mod chat;
#[cfg(feature = "llama")]
pub mod child;
mod error;
pub mod keeper;
pub mod library;
#[cfg(feature = "llama")]
mod llama;
pub mod runner;
pub mod serve;
pub mod text;

mod machine;
// What decides for `llama`: pure, and tested without it.
#[cfg(any(feature = "llama", test))]
mod logits;
#[cfg(any(feature = "llama", test))]
mod plan;
#[cfg(any(feature = "llama", test))]
mod reuse;
#[cfg(any(feature = "llama", test))]
mod window;

pub use error::{Error, Fault};
#[cfg(feature = "llama")]
pub use llama::{Config, Llama};
pub use machine::memory_total;
