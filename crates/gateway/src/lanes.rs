//! Threads that serve connections, each with a runtime to itself.
//!
//! A request is a dozen short steps between which it waits for a socket. Where many threads share them, each step may
//! wake another thread, which costs more than the step. So a connection stays on one thread from its first byte to its
//! last, and so does what it opens on its way, a connection to a backend above all.

use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::failure::Failure;

/// Beyond it requests are no longer what keeps a machine busy.
const LANES_MAX: usize = 16;

/// Of a body: to go through it once takes milliseconds.
const LONG: usize = 256 << 10;

/// Dropped, it ends its threads and what still runs on them.
#[derive(Debug)]
pub(crate) struct Lanes {
    handles: Vec<Handle>,
    _stop: DropGuard,
}

impl Lanes {
    /// As many as the machine has processors. Where the system has no thread to give, the caller's runtime does their
    /// work.
    pub(crate) async fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(LANES_MAX);
        let stop = CancellationToken::new();
        let mut handles = Vec::new();
        for _ in 0..count {
            match lane(stop.clone()).await {
                Ok(handle) => handles.push(handle),
                Err(error) => tracing::warn!(%error, "there are fewer threads for requests than there should be"),
            }
        }
        if handles.is_empty() {
            handles.push(Handle::current());
        }
        Self { handles, _stop: stop.drop_guard() }
    }

    /// The one that serves the fewest.
    pub(crate) fn emptiest(&self) -> &Handle {
        let busy = |handle: &&Handle| handle.metrics().num_alive_tasks();
        self.handles.iter().min_by_key(busy).expect("there is always one")
    }
}

async fn lane(stop: CancellationToken) -> std::io::Result<Handle> {
    let (started, lane) = oneshot::channel();
    let run = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        if started.send(Ok(runtime.handle().clone())).is_ok() {
            runtime.block_on(stop.cancelled());
        }
        // A long body that is being read on the side has nobody left to be read for.
        runtime.shutdown_background();
    };
    thread::Builder::new().name("requests".to_owned()).spawn(run)?;
    lane.await.unwrap_or_else(|_| Err(std::io::Error::other("the thread ended at once")))
}

/// What goes through a body of so many bytes; through a long one beside the threads that serve others.
pub(crate) async fn beside<T: Send + 'static>(
    bytes: usize,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    match bytes > LONG {
        true => spawn_blocking(read).await.map_err(Failure::internal),
        false => Ok(read()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_long_body_is_gone_through_beside_the_thread_that_has_it() {
        let here = thread::current().id();
        let is_here = async |bytes| beside(bytes, || thread::current().id()).await.unwrap() == here;
        assert!(is_here(LONG).await);
        assert!(!is_here(LONG + 1).await);
    }

    #[tokio::test]
    async fn what_is_given_out_is_spread_and_ends_with_the_lanes() {
        let lanes = Lanes::start().await;
        let mut tasks: JoinSet<()> = JoinSet::new();
        for _ in 0..lanes.handles.len() {
            tasks.spawn_on(std::future::pending(), &lanes.emptiest().clone());
        }
        assert!(lanes.handles.iter().all(|lane| lane.metrics().num_alive_tasks() == 1));
        drop(lanes);
        while let Some(ended) = tasks.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()));
        }
    }
}
