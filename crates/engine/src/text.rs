//! From a model's bytes to what a client may see: whole characters, and no part of a stop string.

mod begun;
mod stop;
mod utf8;
mod writer;

pub use begun::{Begun, cuts, split_tail};
pub use stop::{Screened, StopStrings};
pub use utf8::Utf8;
pub use writer::{Spelled, Writer, Written};
