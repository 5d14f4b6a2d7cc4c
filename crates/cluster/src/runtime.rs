//! Which clock and executor the consensus runs on: tokio's for real, a seeded virtual one in simulations.
//!
//! Everything in this crate spawns, sleeps and waits through it, so that a simulation replays from its seed.

use std::io;

use openraft::AsyncRuntime;

mod sealed {
    pub trait Sealed {}
}

/// The runtimes this crate knows. Nobody outside can add one.
pub trait Runtime: sealed::Sealed + Send + Sync + 'static {
    #[doc(hidden)]
    type Async: AsyncRuntime;

    /// Waits for the disk where nobody else is kept waiting. In a simulation there is no disk, and no time passes.
    #[doc(hidden)]
    fn aside<T: Send + 'static>(
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;
}

/// The real clock.
#[derive(Debug)]
pub struct Live;

impl sealed::Sealed for Live {}

impl Runtime for Live {
    type Async = openraft::TokioRuntime;

    async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }
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

    async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        work()
    }
}
