//! A network in memory, with faults to switch on. The same rules as the real one, another way of moving bytes.
//!
//! Needs no runtime: it waits by wakers and by the clock it is given, draws from its own seed, and never iterates in an
//! order that differs between runs. On a single-threaded executor with virtual time, a seed replays to the same trace.

mod fabric;
mod task;
mod wire;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod virtual_time;

pub use fabric::{Fabric, Stats};
pub(crate) use task::Task;
