//! Looks at the nodes from which nothing comes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use types::NodeId;

use crate::frozen::LOOK_TIMEOUT;
use crate::handle::{Agents, Hosts, Shared};

const EVERY: Duration = Duration::from_millis(250);

/// Runs until it is dropped. While no request is under way it sleeps.
pub struct Task<A, H> {
    shared: Arc<Shared<A, H>>,
}

impl<A: Agents, H: Hosts> Task<A, H> {
    pub(crate) fn new(shared: Arc<Shared<A, H>>) -> Self {
        Self { shared }
    }

    pub async fn run(self) {
        // One for each node with a request of ours, at most.
        let mut looks = FuturesUnordered::new();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                Some((node, answered)) = looks.next() => self.looked(node, answered),
                () = self.pause(next) => {
                    next = Instant::now() + EVERY;
                    let now = self.shared.now();
                    let due = self.shared.lock().pulses.due(now);
                    looks.extend(due.into_iter().map(|node| self.look(node)));
                }
            }
        }
    }

    async fn pause(&self, next: Instant) {
        if self.shared.lock().pulses.is_empty() {
            self.shared.nudge.notified().await;
        }
        sleep_until(next).await;
    }

    async fn look(&self, node: NodeId) -> (NodeId, bool) {
        (node, timeout(LOOK_TIMEOUT, self.shared.agents.look(node)).await.unwrap_or(false))
    }

    fn looked(&self, node: NodeId, answered: bool) {
        let is_missed = self.shared.hosts.is_missed(node);
        let now = self.shared.now();
        if self.shared.lock().pulses.looked(node, now, answered, is_missed) {
            tracing::warn!(%node, "the node answers nothing any more");
            self.shared.found_frozen.send_modify(|times| *times += 1);
        }
    }
}

impl<A, H> fmt::Debug for Task<A, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}
