//! Bringing models to where they are wanted: out of registries, files and the Ollamas beside us, between nodes, and into
//! the Ollama or engine that runs them.

pub mod reconcile;
mod serve;
pub mod store;
pub mod upstream;
