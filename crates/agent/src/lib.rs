//! Stands before one backend, an Ollama or the engine: owns the queue in front of it, never has more inside than it
//! runs at once, learns what it costs, and says beforehand how long a request would take.
//!
//! Most of it is pure: time is handed in, and nothing here knows a gateway or how nodes find each other.

pub mod queue;
pub mod rates;
pub mod shadow;
pub mod slots;
pub mod state;
mod words;

pub use words::{Class, Link, Model, Moment, Tenant, Ticket};
