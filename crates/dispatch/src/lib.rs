//! One request on its way: which node has it, where it may be tried again, and where not any more.
//!
//! A request's course is a value without IO (`state`), and so are those who judge for all requests of a gateway: how
//! often it may try again at all (`budget`), which nodes it leaves alone for a while (`breaker`), which of them hang
//! (`frozen`). [`Handle`] drives them; how nodes are reached and what is known of them is behind [`Agents`] and
//! [`Hosts`]. What a request says is not known here.

mod breaker;
mod budget;
mod error;
mod frozen;
mod handle;
mod state;
mod task;
mod trace;

pub use budget::RETRIES_MAX;
pub use error::{Cause, Cut, Error, Failure, Refusal, Unanswered};
pub use handle::{Agents, Answer, Config, Frames, Handle, Hosts, Request, Rest, Transcript, new};
pub use scheduler::{Reason, Why};
pub use state::Figures;
pub use task::Task;
pub use trace::{Phases, Step, Trace, What};
