//! The leader's reconciler: looks at who is up, decides one step, carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, ChangeMembers, Instant};
use types::{NodeId, RaftId, Role};

use super::{Situation, Standing, Step};
use crate::cluster::Cluster;
use crate::raft::{Raft, Seat};
use crate::runtime::Runtime;

const EVERY: Duration = Duration::from_millis(500);

/// One change of the group; the next look finds out what became of one that took longer.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// So far behind, a learner is taken to have the log: what is missing follows with the next messages.
const LAG_MAX: u64 = 64;

/// A node that said it would go down and did not.
const LEAVING_MAX: Duration = Duration::from_secs(60);

/// Since when each member has been up or down.
pub(crate) struct Watch<R: Runtime>(BTreeMap<NodeId, (bool, <R::Async as AsyncRuntime>::Instant)>);

impl<R: Runtime> Default for Watch<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Runs for ever; does something only while this node leads. May be dropped at any time.
pub(crate) async fn run<R: Runtime>(cluster: Cluster<R>) {
    let Some(raft) = cluster.0.raft.clone() else { return std::future::pending().await };
    loop {
        observe(&cluster);
        if raft.is_leader() {
            reconcile(&cluster, &raft).await;
        }
        <R::Async as AsyncRuntime>::sleep(EVERY).await;
    }
}

fn observe<R: Runtime>(cluster: &Cluster<R>) {
    let now = <R::Async as AsyncRuntime>::Instant::now();
    let peers = cluster.0.net.peers();
    let mut watch = cluster.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
    watch.0.retain(|id, _| peers.iter().any(|peer| peer.id == *id));
    for peer in peers {
        let seen = watch.0.entry(peer.id).or_insert((peer.connected, now));
        if seen.0 != peer.connected {
            *seen = (peer.connected, now);
        }
    }
}

/// One look and at most one step. Returns whether there was a step to take.
pub(crate) async fn reconcile<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>) -> bool {
    let _one_at_a_time = cluster.0.seating.lock().await;
    observe(cluster);
    let situation = look(cluster, raft);
    let Some(step) = situation.decide() else { return false };
    tracing::info!(?step, voters = ?situation.voters, "seats");
    let seat = |id: RaftId| cluster.view(|registry| registry.member_with(id).map(|member| Seat(member.id)));
    let numbers = |ids: &BTreeSet<RaftId>| ids.iter().map(|id| id.0).collect::<BTreeSet<u64>>();
    let change = match step {
        Step::Learn(ids) => {
            let seats = ids.into_iter().filter_map(|id| seat(id).map(|seat| (id.0, seat)));
            ChangeMembers::AddNodes(seats.collect())
        }
        Step::Seat(ids) => ChangeMembers::ReplaceAllVoters(numbers(&ids)),
        Step::Forget(ids) => ChangeMembers::RemoveNodes(numbers(&ids)),
        Step::HandOver(heir) => {
            if let Err(error) = raft.trigger().transfer_leader(heir.0).await {
                tracing::warn!(%error, "cannot hand over");
            }
            return true;
        }
    };
    // Who loses its seat leaves the group altogether: as a learner it would be sent every entry.
    let changed = <R::Async as AsyncRuntime>::timeout(CHANGE_MAX, raft.change_membership(change, false)).await;
    match changed {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "seats not changed"),
        Err(_) => tracing::warn!("seats not changed within {CHANGE_MAX:?}"),
    }
    true
}

fn look<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>) -> Situation {
    let now = <R::Async as AsyncRuntime>::Instant::now();
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let learners: BTreeSet<_> = membership.learner_ids().map(RaftId).collect();
    let last = metrics.last_log_index.unwrap_or_default();
    let replicated = metrics.replication.unwrap_or_default();
    let has_log = |id: &RaftId| {
        let matched = replicated.get(&id.0).copied().flatten();
        matched.is_some_and(|matched| matched.index + LAG_MAX >= last)
    };
    let mut leaving = cluster.0.leaving.lock().unwrap_or_else(PoisonError::into_inner);
    leaving.retain(|_, since| now.saturating_duration_since(*since) < LEAVING_MAX);
    let watch = cluster.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
    let standing = |member: &crate::Member| {
        let (up, since) = watch.0.get(&member.id).map_or((member.id == cluster.id(), now), |seen| *seen);
        Standing {
            up,
            since: now.saturating_duration_since(since),
            drained: member.drain,
            leaving: member.drain || leaving.contains_key(&member.raft),
            zone: member.zone().map(str::to_owned),
        }
    };
    cluster.view(|registry| Situation {
        me: cluster.belonging().raft,
        members: registry
            .members()
            .filter(|member| member.role == Role::Node)
            .map(|member| (member.raft, standing(member)))
            .collect(),
        // Of a change left half-way, what it was to lead to.
        voters: membership.get_joint_config().last().into_iter().flatten().copied().map(RaftId).collect(),
        caught_up: learners.iter().copied().filter(has_log).collect(),
        learners,
        joint: membership.get_joint_config().len() > 1,
        voters_max: registry.settings().voters_max(),
        replace_after: registry.settings().voter_replace_after(),
    })
}
