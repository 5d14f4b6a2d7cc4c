//! Stands before one backend, an Ollama or the engine: owns the queue in front of it, never has more inside than it
//! runs at once, learns what it costs, and says beforehand how long a request would take.
//!
//! Most of it is pure: time is handed in, and nothing here knows a gateway or how nodes find each other. The shell is
//! [`Handle`], what others call, and [`Task`], which looks after the backend.

mod backend;
pub mod desk;
mod error;
mod handle;
mod lines;
mod pool;
mod protocol;
pub mod queue;
pub mod rates;
pub mod remote;
mod serve;
pub mod shadow;
pub mod slots;
pub mod state;
mod task;

pub use backend::{FindWay, Way};
pub use desk::{Ask, Config, Facts, ModelFacts, Refusal, Waited};
pub use error::Error;
pub use handle::{Answer, Handle, Question, Request, Route, new};
pub use pool::Error as SendError;
pub use protocol::{INFER, PROBE, Probe, Reply};
pub use queue::Ticket;
pub use remote::Remote;
pub use serve::{Broken, answer_probe, serve};
pub use state::State;
pub use task::Task;
