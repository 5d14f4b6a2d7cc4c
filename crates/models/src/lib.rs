//! Bringing models to where they are wanted: out of registries, files and the Ollamas beside us, between nodes, and into
//! the Ollama or engine that runs them.
//!
//! What is wanted where stands in the registry; what is there, on this machine. [`reconcile`] compares the two, purely, and
//! [`Task`] takes the steps. What somebody waits for (an import, a pull) runs in their own call.

mod error;
mod handle;
mod holders;
mod import;
mod protocol;
mod pull;
mod pulls;
pub mod reconcile;
mod serve;
mod site;
pub mod store;
mod task;
mod turn;
pub mod upstream;
mod verify;

pub use error::{Error, chain};
pub use handle::{Models, Parts, new};
pub use import::Imported;
pub use protocol::{HolderState, Holdings, Verified};
pub use task::Task;
