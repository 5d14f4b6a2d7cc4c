//! The loops that keep a node's hold on the registry, and its end.

use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::Error;
use crate::registry::{Actor, Addresses, Registry, Verb};
use crate::runtime::Runtime;
use crate::{follow, voters};

/// After a change, the registry is written for the next start within this time: changes come in swarms. A swarm that
/// does not end is written ever more rarely, since each time all of it is.
const KEEP_AFTER: Duration = Duration::from_millis(500);
const KEEP_AFTER_MAX: Duration = Duration::from_secs(8);

/// Between two looks at whether the consensus still stands.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub struct Task<R: Runtime> {
    cluster: Cluster<R>,
}

/// Why the task ended.
#[derive(Debug)]
pub enum End {
    /// It was asked to.
    Shutdown,
    /// This node is no member any more: its people took it out.
    Left,
    /// This node is no member any more: others took it out.
    Removed,
    /// Nothing can be promised any more; the node must stop.
    Failed(Error),
}

impl<R: Runtime> std::fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl<R: Runtime> Task<R> {
    pub(crate) fn new(cluster: Cluster<R>) -> Self {
        Self { cluster }
    }

    /// Runs until it is told to stop or cannot go on. The consensus is stopped when this returns.
    pub async fn run(self, shutdown: CancellationToken) -> End {
        let cluster = self.cluster;
        let loops = async {
            let followed = follow::run(cluster.clone());
            let seated = voters::task::run(cluster.clone());
            futures::join!(followed, seated, keep(&cluster), publish_addresses(&cluster));
        };
        let end = tokio::select! {
            biased;
            () = shutdown.cancelled() => End::Shutdown,
            end = watch_for_end(&cluster) => end,
            error = consensus_gone(&cluster) => End::Failed(error),
            () = loops => End::Shutdown,
        };
        // The next start is to know it at once.
        if matches!(end, End::Left | End::Removed)
            && let Err(error) = follow::keep(&cluster.0.shelf, cluster.view(Clone::clone)).await
        {
            tracing::warn!(%error, "that this node is no member could not be kept");
        }
        if let Some(raft) = &cluster.0.raft
            && let Err(error) = raft.shutdown().await
        {
            tracing::warn!(%error, "the consensus did not stop in good order");
        }
        end
    }
}

/// Returns when this node cannot go on.
async fn watch_for_end<R: Runtime>(cluster: &Cluster<R>) -> End {
    let me = cluster.id();
    let mut changes = cluster.changes();
    let mut was_full = false;
    loop {
        cluster.admit_members();
        if let Some(by) = cluster.view(|registry| registry.removed(&me).map(|removed| removed.by.node())) {
            return if by == me { End::Left } else { End::Removed };
        }
        if let Some(error) = cluster.0.log.failure() {
            return End::Failed(error.into());
        }
        let is_full = !cluster.0.log.has_room();
        if is_full && !was_full {
            tracing::warn!("no space left: this node takes no changes, and another should lead");
        }
        was_full = is_full;
        if is_full && cluster.is_leader() {
            cluster.hand_over().await;
        }
        if let Some(raft) = &cluster.0.raft {
            let metrics = raft.metrics();
            // A node that lost its seat while it was away must not call elections it cannot win. Its own log counts where
            // it is further than what was followed: the end of it may hold the very change that seats this node.
            let last = metrics.borrow_watched().last_log_index.unwrap_or_default();
            let unseated = cluster
                .0
                .view
                .followed
                .registry(|held| held.applied() > last && !held.seats().voters.contains(&cluster.belonging().raft));
            raft.runtime_config().elect(!unseated);
        }
        let _ = <R::Async as AsyncRuntime>::timeout(LOOK_EVERY, changes.next()).await;
    }
}

/// Returns once this node has no consensus any more: it failed, or it panicked and took its side of the channel along.
async fn consensus_gone<R: Runtime>(cluster: &Cluster<R>) -> Error {
    let Some(raft) = &cluster.0.raft else { return std::future::pending().await };
    let mut server = raft.server_metrics();
    while server.changed().await.is_ok() {}
    let running = raft.metrics().borrow_watched().running_state.clone();
    let why = running.map_or_else(|error| error.to_string(), |()| "it ended in the middle of its work".to_owned());
    Error::Consensus(why)
}

/// Writes the registry for the next start, soon after it has changed. Who is a member decides whom the next start lets
/// in, so a change of that is written at once.
async fn keep<R: Runtime>(cluster: &Cluster<R>) {
    let mut changes = cluster.changes();
    let (mut kept, mut pause) = (0, KEEP_AFTER);
    loop {
        changes.reach(kept + 1).await;
        // What little room there is belongs to votes.
        while !cluster.0.log.has_room() {
            <R::Async as AsyncRuntime>::sleep(KEEP_AFTER_MAX).await;
        }
        let registry = cluster.view(Clone::clone);
        let applied = registry.applied();
        let members: Vec<_> = registry.members().map(|member| member.id).collect();
        match follow::keep(&cluster.0.shelf, registry).await {
            Ok(()) => kept = applied,
            // The consensus keeps its own; this one only shortens the next start.
            Err(error) => tracing::warn!(%error, "the registry could not be kept for the next start"),
        }
        let same = || cluster.view(|registry| registry.members().map(|member| member.id).eq(members.iter().copied()));
        let others_come_or_go = async { while same() && changes.next().await.is_some() {} };
        let _ = <R::Async as AsyncRuntime>::timeout(pause, others_come_or_go).await;
        let goes_on = cluster.view(Registry::applied) > applied;
        pause = if goes_on { (pause * 2).min(KEEP_AFTER_MAX) } else { KEEP_AFTER };
    }
}

/// Tells the mesh where this node can be reached, whenever that changes.
async fn publish_addresses<R: Runtime>(cluster: &Cluster<R>) {
    let me = cluster.id();
    let mut seen = cluster.0.net.addresses();
    loop {
        let addresses =
            Addresses { mesh: seen.mesh.iter().cloned().collect(), bulk: seen.bulk.iter().copied().collect() };
        let known = cluster.view(|registry| registry.member(&me).map(|member| member.addresses.clone()));
        if known.is_some_and(|known| known != addresses) {
            let verb = Verb::SetAddresses { node: me, addresses };
            if let Err(error) = cluster.write(Actor::Node(me), verb).await {
                tracing::warn!(%error, "the mesh does not know our new addresses yet");
                <R::Async as AsyncRuntime>::sleep(LOOK_EVERY).await;
                continue;
            }
        }
        seen = cluster.0.net.addresses_other_than(&seen).await;
    }
}
