//! A node's faces: the admin API over HTTP, health and metrics.
//!
//! HTTP only. What a node is and does is `node::Api`; this crate knows how callers are told apart, what they may ask,
//! and how their questions and the answers look. It holds no state of the mesh.
//!
//! A request goes: connection limits and deadlines, a thread to stay on, and TLS (`serve`,
//! `pace`, `crowd`, `lanes`, `tls`), framing (`framing`), host
//! and origin (`host`, `cors`), route (`table`), caller and scope (`access`), the limits of its key (`quota`), body limit and
//! deadline (`route`), the route's function (`admin`, `health`, `ollama`, `openai`).

mod access;
mod admin;
mod config;
mod cookie;
mod cors;
mod crowd;
mod error;
mod face;
mod failure;
mod framing;
mod health;
mod host;
mod lanes;
mod listen;
mod metrics;
mod ollama;
mod openai;
mod openapi;
mod pace;
mod quota;
mod route;
mod serve;
mod socket;
mod table;
mod throttle;
mod tls;
pub mod wire;
mod work;

pub use config::{Config, Limits, Local};
pub use error::Error;
pub use listen::{Addresses, Bound, bind};
pub use serve::Task;
pub use tls::{Error as TlsError, Tls};
