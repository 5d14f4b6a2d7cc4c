//! What the leader does for the others: takes their writes, tells them how fresh they are, lets them go.

use std::time::Duration;

use net::verify;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{AsyncRuntime, Instant, ReadPolicy};
use types::{NodeId, RaftId, Role};

use crate::cluster::Cluster;
use crate::error::Error;
use crate::protocol::{Ask, Proposal, Told, Wish, proposal_statement};
use crate::raft::{Raft, Sealed};
use crate::registry::{Actor, Command, Refused, Verb};
use crate::runtime::Runtime;
use crate::voters::task::reconcile;

/// A commit that takes longer than this is reported as unknown. Below the deadline of the request that carries it.
const COMMIT_MAX: Duration = Duration::from_secs(5);

/// How long a node that goes down is waited for to lose its seat.
const SEAT_MAX: Duration = Duration::from_secs(4);
const SEAT_STEP: Duration = Duration::from_millis(100);

/// A hand-over that has not happened by then is tried anew.
const TRANSFER_MAX: Duration = Duration::from_secs(1);

/// Answers one question of another member.
pub(crate) async fn answer<R: Runtime>(cluster: Cluster<R>, from: NodeId, ask: Ask) -> Told {
    let wish = match ask {
        Ask::Write { proposal, signature } => {
            let Ok(read) = codec::decode::<Proposal>(&proposal.0) else {
                return Told::Outcome(Err(Refused::Denied(
                    Actor::Node(from),
                    "the proposal cannot be read".to_owned(),
                )));
            };
            // One hop: who sends a proposal is who took it and signed for it.
            let genuine = read.by.node() == from
                && read.mesh == cluster.mesh()
                && verify(from, &proposal_statement(&proposal.0), &signature);
            if !genuine {
                return Told::Outcome(Err(Refused::Denied(read.by, "the signature is not its node's".to_owned())));
            }
            Wish::Write(Box::new(read), proposal.0)
        }
        Ask::ReadIndex => Wish::ReadIndex,
        Ask::GiveUpSeat => Wish::GiveUpSeat,
    };
    grant(&cluster, from, wish).await
}

/// Does what a member wants that is known to want it: this node itself, or one that has proven it.
pub(crate) async fn grant<R: Runtime>(cluster: &Cluster<R>, from: NodeId, wish: Wish) -> Told {
    let Some(raft) = &cluster.0.raft else { return Told::NotLeader { leader: None } };
    match wish {
        Wish::Write(proposal, _) => write(cluster, raft, *proposal).await,
        Wish::ReadIndex => read_index(cluster, raft).await,
        Wish::GiveUpSeat => give_up_seat(cluster, raft, from).await,
    }
}

async fn write<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>, proposal: Proposal) -> Told {
    // A leader that has given its seat away still believes that it leads until its heir says otherwise; what it
    // appends in between nobody commits.
    if !raft.is_leader() || !voters(raft).contains(&cluster.belonging().raft) {
        return not_leader(cluster);
    }
    if !cluster.0.log.has_room() {
        return Told::NoSpace;
    }
    let Proposal { id, by, verb, .. } = proposal;
    let command = Command { id, at: cluster.wall_clock(), by, verb };
    // Only what no later entry can change is refused here: this view may lag behind the log.
    if let Err(refused @ Refused::Denied(..)) = cluster.view(|registry| registry.judge(&command)) {
        return Told::Outcome(Err(refused));
    }
    if let Verb::RemoveMember { node } = &command.verb
        && quorum_needs(cluster, raft, *node)
    {
        return Told::Outcome(Err(Refused::QuorumAtRisk(*node)));
    }
    let removal = match &command.verb {
        Verb::RemoveMember { node } => Some(*node),
        _ => None,
    };
    let Ok(sealed) = codec::encode(&command) else {
        return Told::Outcome(Err(Refused::Full {
            what: "bytes of one change".to_owned(),
            limit: <Command as codec::Record>::LIMIT,
        }));
    };
    let commit = raft.client_write(Sealed(sealed.into()));
    match <R::Async as AsyncRuntime>::timeout(COMMIT_MAX, commit).await {
        Ok(Ok(response)) => {
            if let (Some(node), Ok(_)) = (removal, &response.data) {
                tracing::info!(%node, "removed from the mesh");
            }
            Told::Outcome(response.data)
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => not_leader(cluster),
        // In the log of a leader that is none any more; another may yet commit it.
        Ok(Err(_)) | Err(_) => Told::Unknown,
    }
}

/// Whether those who would still vote without this node are not mostly up: then nobody could ever fill its seat.
fn quorum_needs<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>, node: NodeId) -> bool {
    let up: Vec<_> = cluster.0.net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
    let seats = voters(raft);
    let holder = |seat: &RaftId| cluster.view(|registry| registry.member_with(*seat).map(|member| member.id));
    if !seats.iter().any(|seat| holder(seat) == Some(node)) {
        return false;
    }
    let rest: Vec<_> = seats.iter().filter_map(holder).filter(|id| *id != node).collect();
    let alive = rest.iter().filter(|id| **id == cluster.id() || up.contains(id)).count();
    // The only voter is another matter, which the registry itself judges.
    !rest.is_empty() && alive * 2 <= rest.len()
}

async fn read_index<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>) -> Told {
    let index = raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match <R::Async as AsyncRuntime>::timeout(COMMIT_MAX, index).await {
        Ok(Ok(linearizer)) => {
            let read = linearizer.read_log_id();
            let boot = &cluster.0.boot;
            let since_boot = boot.leader.filter(|leader| leader == read.committed_leader_id());
            Told::ReadIndex(since_boot.map_or(read.index(), |_| read.index().max(boot.last_index)))
        }
        Ok(Err(_)) | Err(_) => not_leader(cluster),
    }
}

fn not_leader<R: Runtime>(cluster: &Cluster<R>) -> Told {
    // A leader without a quorum names itself: that helps nobody.
    Told::NotLeader { leader: cluster.leader().filter(|leader| *leader != cluster.id()) }
}

async fn give_up_seat<R: Runtime>(cluster: &Cluster<R>, raft: &Raft<R>, from: NodeId) -> Told {
    if !raft.is_leader() {
        return not_leader(cluster);
    }
    let Some(seat) = cluster.view(|registry| registry.member(&from).map(|member| member.raft)) else {
        return Told::Seat { given_up: false };
    };
    let now = <R::Async as AsyncRuntime>::Instant::now();
    cluster.0.leaving.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(seat, now);
    while now.elapsed() < SEAT_MAX {
        if !voters(raft).contains(&seat) {
            return Told::Seat { given_up: true };
        }
        if !reconcile(cluster, raft).await {
            break;
        }
        <R::Async as AsyncRuntime>::sleep(SEAT_STEP).await;
    }
    Told::Seat { given_up: !voters(raft).contains(&seat) }
}

pub(crate) fn voters<R: Runtime>(raft: &Raft<R>) -> Vec<RaftId> {
    raft.metrics().borrow_watched().membership_config.voter_ids().map(RaftId).collect()
}

impl<R: Runtime> Cluster<R> {
    /// Lets another voter lead, if this node does and one is up. Keeps the seat.
    pub async fn hand_over(&self) {
        let Some(raft) = self.0.raft.clone() else { return };
        if let Some(heir) = self.heir(&raft).filter(|_| raft.is_leader())
            && let Err(error) = raft.trigger().transfer_leader(heir.0).await
        {
            tracing::warn!(%error, "cannot hand over");
        }
    }

    /// Another voter that is up.
    fn heir(&self, raft: &Raft<R>) -> Option<RaftId> {
        let me = self.belonging().raft;
        let up: Vec<_> = self.0.net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
        let node = |id: &RaftId| self.view(|registry| registry.member_with(*id).map(|member| member.id));
        let fit = |id: &RaftId| *id != me && node(id).is_some_and(|node| up.contains(&node));
        voters(raft).into_iter().find(fit)
    }

    /// Takes this node out of the mesh. An answer that was lost together with the membership is no failure.
    pub async fn leave(&self, by: Actor) -> Result<(), Error> {
        let node = self.id();
        match self.write(by, Verb::RemoveMember { node }).await {
            Err(error) if !self.view(|registry| registry.is_removed(&node)) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Hands over the lead and then the seat, as far as others can take them, before this node goes down.
    pub async fn step_aside(&self, limit: Duration) {
        let Some(raft) = self.0.raft.clone() else { return };
        let aside = async {
            while raft.is_leader() {
                let Some(heir) = self.heir(&raft) else { break };
                if raft.trigger().transfer_leader(heir.0).await.is_err() {
                    break;
                }
                // The heir has to win an election; asking again every moment would only disturb it.
                let asked = <R::Async as AsyncRuntime>::Instant::now();
                while raft.is_leader() && asked.elapsed() < TRANSFER_MAX {
                    <R::Async as AsyncRuntime>::sleep(SEAT_STEP).await;
                }
            }
            let others = self
                .view(|registry| registry.members().any(|member| member.role == Role::Node && member.id != self.id()));
            if others && voters(&raft).contains(&self.belonging().raft) {
                let given_up = self.ask_leader(&Wish::GiveUpSeat, SEAT_MAX).await;
                tracing::info!(?given_up, "seat");
            }
        };
        if <R::Async as AsyncRuntime>::timeout(limit, aside).await.is_err() {
            tracing::warn!("others did not take over within {limit:?}");
        }
    }
}
