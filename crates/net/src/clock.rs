//! Time, given from outside, so that a simulation owns it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

type Sleep = dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync;
type Elapsed = dyn Fn() -> Duration + Send + Sync;

/// A monotonic clock and the way to wait on it. Nothing in this crate reads the wall clock.
#[derive(Clone)]
pub struct Clock {
    sleep: Arc<Sleep>,
    elapsed: Arc<Elapsed>,
}

impl Clock {
    /// `elapsed` is the time since any fixed start.
    pub fn new(
        sleep: impl Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync + 'static,
        elapsed: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        Self { sleep: Arc::new(sleep), elapsed: Arc::new(elapsed) }
    }

    /// The runtime's own.
    pub fn tokio() -> Self {
        let start = tokio::time::Instant::now();
        Self::new(|time| Box::pin(tokio::time::sleep(time)), move || start.elapsed())
    }

    pub fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        (self.sleep)(time)
    }

    pub fn elapsed(&self) -> Duration {
        (self.elapsed)()
    }

    /// `None` where `time` passed first. What was running is dropped then.
    pub(crate) async fn within<F: Future>(&self, time: Duration, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.sleep(time) => None,
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.elapsed()).finish()
    }
}
