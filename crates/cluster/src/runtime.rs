//! Which clock and executor the consensus runs on: tokio's for real, a seeded virtual one in simulations.
//!
//! Everything in this crate spawns, sleeps and waits through it, so that a simulation replays from its seed.

use openraft::AsyncRuntime;

mod sealed {
    pub trait Sealed {}
}

/// The runtimes this crate knows. Nobody outside can add one.
pub trait Runtime: sealed::Sealed + Send + Sync + 'static {
    #[doc(hidden)]
    type Async: AsyncRuntime;
}

/// The real clock.
#[derive(Debug)]
pub struct Live;

impl sealed::Sealed for Live {}

impl Runtime for Live {
    type Async = openraft::TokioRuntime;
}

/// A virtual clock on one thread, seeded.
#[cfg(feature = "test-util")]
#[derive(Debug)]
pub struct Sim;

#[cfg(feature = "test-util")]
impl sealed::Sealed for Sim {}

#[cfg(feature = "test-util")]
impl Runtime for Sim {
    type Async = openraft_rt_sim::SimRuntime;
}
