//! Runs the fetches.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::drive;
use crate::error::FetchError;
use crate::fetch::Running;
use crate::shared::Shared;

/// What carries fetches. Nothing is fetched unless it runs; what is here is served without it.
#[must_use = "nothing is fetched until the task runs"]
pub struct Task {
    pub(crate) shared: Arc<Shared>,
    pub(crate) starts: mpsc::Receiver<Arc<Running>>,
}

impl Task {
    /// Until `shutdown`; then fetches end as `Stopping`, and what has come is kept. Dropped before its end it leaves the same.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, mut starts } = self;
        let _closing = Closing(shared.clone());
        let mut fetches = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(running) = starts.recv() => {
                    fetches.spawn(drive::run(shared.clone(), running));
                }
                Some(ended) = fetches.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a fetch failed");
                    }
                }
            }
        }
        fetches.shutdown().await;
    }
}

/// Nobody waits for a fetch that nobody carries.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.0.running());
        left.into_values().for_each(|running| running.end(Err(FetchError::Stopping)));
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}
