//! A stand-in for Ollama: its routes, shapes, queue and faults, without a model.
//!
//! It answers with numbered tokens, `t0 t1 t2 …`, so that a lost or doubled one shows, and takes the time it is told to
//! take. It uses nothing of the product, so that the two share no mistake; what both must do stands in one table, which
//! [`golden`] holds any server against.

mod body;
mod chat;
mod config;
mod connections;
mod counts;
mod digest;
mod embed;
mod fault;
mod folder;
mod generate;
pub mod golden;
pub mod hostile;
mod infer;
mod json;
mod name;
mod numbered;
mod orders;
mod refusal;
pub mod registry;
mod release;
mod runner;
mod server;
mod shelf;
mod spoil;
mod stream;
mod transfer;
mod weights;

pub use config::{Config, InvalidModel, Kind, Model, Transfer, Written};
pub use counts::{Counts, End, Served, TooLate};
pub use digest::{Digest, InvalidDigest};
pub use fault::{Fault, Faults, InvalidFault, Routes};
pub use numbered::{natural_length, next_number, token};
pub use registry::Registry;
pub use release::{Blob, Content, Release};
pub use server::Ollama;
pub use weights::Weights;
