//! A stand-in for Ollama: its routes, shapes, queue and faults, without a model.
//!
//! It answers with numbered tokens, `t0 t1 t2 …`, so that a lost or doubled one shows, and takes the time it is told to
//! take. It uses nothing of the product, so that the two share no mistake; what both must do stands in one table, which
//! [`golden`] holds any server against.

mod body;
mod chat;
mod config;
mod counts;
mod embed;
mod fault;
mod generate;
pub mod golden;
mod infer;
mod json;
mod name;
mod numbered;
mod refusal;
mod runner;
mod server;
mod shelf;
mod stream;

pub use config::{Config, InvalidModel, Kind, Model};
pub use counts::{Counts, End, Served, TooLate};
pub use fault::{Fault, Faults, InvalidFault};
pub use numbered::{next_number, token};
pub use server::Ollama;
