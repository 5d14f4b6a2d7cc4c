//! Consensus messages from other nodes, each judged by itself: also on a stream that was granted long ago.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, MaybeDone, maybe_done};
use futures::{FutureExt, poll};
use net::{ByteStream, Caller, Frames, Refusal, read_framed, write_framed};
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use tokio::io::AsyncReadExt;
use types::{NodeId, RaftId, Role};

use super::network::{HEAD_MAX, MESSAGE_MAX, SNAPSHOT_DEADLINE, SnapshotError};
use super::wire::{Answer, Call, Image, Letter, SnapshotHead};
use super::{Entry, LogId, Membership, Raft, Snapshot, SnapshotMeta, Types};
use crate::pack;
use crate::registry::Seats;
use crate::runtime::Runtime;
use crate::view::View;

/// Appends of one leader that wait for the disk. With more the stream is not read.
const APPENDS_WAITING_MAX: usize = 8;

/// A leader that says nothing for so long may open another stream when it has something to say.
const APPENDS_IDLE_MAX: Duration = Duration::from_secs(60);

/// An answer is a few bytes.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Service<R: Runtime> {
    raft: Raft<R>,
    view: Arc<View<R>>,
    log: store::Log,
}

impl<R: Runtime> Clone for Service<R> {
    fn clone(&self) -> Self {
        Self { raft: self.raft.clone(), view: self.view.clone(), log: self.log.clone() }
    }
}

impl<R: Runtime> Service<R> {
    pub(crate) fn new(raft: Raft<R>, view: Arc<View<R>>, log: store::Log) -> Self {
        Self { raft, view, log }
    }

    pub(crate) async fn answer(self, caller: Caller, body: Bytes) -> Result<Bytes, Refusal> {
        let letter: Letter = codec::decode(&body).map_err(|_| Refusal::Malformed)?;
        self.check(&caller, letter.to, letter.call.sender()).map_err(|error| Refusal::Failed(error.to_string()))?;
        let answer = self.carry_out(letter.call).await.map_err(|_| Refusal::Malformed)?;
        Ok(pack(&answer))
    }

    /// Takes entries from a stream until it ends.
    pub(crate) async fn take_appends(self, caller: Caller, stream: ByteStream) {
        if let Err(error) = self.append_all(&caller, Frames::new(stream, MESSAGE_MAX)).await {
            tracing::debug!(leader = %caller.id, %error, "the stream of entries broke");
        }
    }

    async fn append_all(&self, caller: &Caller, mut frames: Frames) -> Result<(), Broken> {
        let mut waiting = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                () = first(&mut waiting), if !waiting.is_empty() => {
                    queue_answers(&mut waiting, &mut frames).await?;
                    within::<R, _>(ANSWER_MAX, frames.flush()).await?;
                }
                frame = within::<R, _>(APPENDS_IDLE_MAX, frames.next()), if waiting.len() < APPENDS_WAITING_MAX => {
                    let Some(frame) = frame? else { return Ok(()) };
                    let Letter { to, call } = codec::decode(&frame)?;
                    self.check(caller, to, call.sender())?;
                    if !matches!(call, Call::Append { .. }) {
                        return Err(Broken::NoAppend);
                    }
                    let service = self.clone();
                    let mut append = maybe_done(async move { service.carry_out(call).await }.boxed());
                    // Once now, so that it reaches the consensus before the one behind it does.
                    let _ = poll!(&mut append);
                    waiting.push_back(append);
                }
            }
        }
    }

    /// Whether a message is meant for this node's seat, and comes from whom it says.
    fn check(&self, caller: &Caller, to: u64, from: u64) -> Result<(), Misplaced> {
        let me = *self.raft.node_id();
        match () {
            () if to != me => Err(Misplaced::Receiver { to, me }),
            () if !self.speaks_for(caller, from) => Err(Misplaced::Sender { node: caller.id, from }),
            () => Ok(()),
        }
    }

    fn speaks_for(&self, caller: &Caller, number: u64) -> bool {
        if caller.role != Some(Role::Node) {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (me, membership) = (metrics.id, metrics.membership_config.membership());
        let leader = metrics.vote.committed.then_some(metrics.vote.leader_id.node_id);
        self.view.read(|registry| {
            let own = registry.member(&caller.id).map(|member| member.raft);
            Known { me, leader, membership, seats: registry.seats() }.admits(caller.id, own, number)
        })
    }

    async fn carry_out(&self, call: Call) -> Result<Answer, codec::Error> {
        let answer = match call {
            Call::Append { vote, previous, entries, commit } => {
                // The consensus would take a full disk for a broken one and stop for good.
                if !entries.is_empty() && !self.log.has_room() {
                    return Ok(Answer::NoSpace);
                }
                let entries = entries.into_iter().map(Entry::try_from).collect::<Result<_, _>>()?;
                let (prev_log_id, leader_commit) = (previous.map(Into::into), commit.map(Into::into));
                let request = AppendEntriesRequest { vote: vote.into(), prev_log_id, entries, leader_commit };
                let answer = self.raft.append_entries(request).await;
                if answer.as_ref().is_ok_and(AppendEntriesResponse::is_success) {
                    self.view.fed();
                }
                answer.map(Answer::appended).map_err(|error| error.to_string())
            }
            Call::Vote { vote, last, transfer } => {
                let request = vote_request::<R>(vote, last, transfer);
                self.raft.vote(request).await.map(|vote| Answer::voted(&vote)).map_err(|error| error.to_string())
            }
            Call::PreVote { vote, last, transfer } => {
                let request = vote_request::<R>(vote, last, transfer);
                self.raft.pre_vote(request).await.map(|vote| Answer::voted(&vote)).map_err(|error| error.to_string())
            }
            Call::Transfer { from, to, last } => {
                let request = TransferLeaderRequest::new(from.into(), to, last.map(Into::into));
                match self.raft.handle_transfer_leader(request).await {
                    Ok(Ok(())) => Ok(Answer::Transferred),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
        };
        Ok(answer.unwrap_or_else(Answer::Failed))
    }

    pub(crate) async fn receive_snapshot(self, caller: Caller, mut stream: ByteStream) {
        let receive = <R::Async as AsyncRuntime>::timeout(SNAPSHOT_DEADLINE, self.install(&caller, &mut stream));
        if let Err(error) = receive.await.unwrap_or(Err(SnapshotError::Deadline)) {
            tracing::warn!(from = %caller.id, error = %error, "snapshot refused");
        }
    }

    async fn install(&self, caller: &Caller, stream: &mut ByteStream) -> Result<(), SnapshotError> {
        let head: SnapshotHead = codec::decode(&read_framed(stream, HEAD_MAX).await?)?;
        let vote: super::Vote = head.vote.into();
        let checked = self.check(caller, head.to, vote.leader_id.node_id);
        checked.map_err(|error| SnapshotError::Refused(error.to_string()))?;
        let limit = <Image as codec::Record>::LIMIT as u64;
        if head.length > limit {
            return Err(SnapshotError::Refused(format!("{} bytes, where {limit} are allowed", head.length)));
        }
        if !self.log.has_room_for(head.length) {
            return Err(SnapshotError::Refused("no room on the disk".to_owned()));
        }
        // Read as it comes: the announced length reserves nothing.
        let mut bytes = Vec::new();
        (&mut *stream).take(head.length).read_to_end(&mut bytes).await?;
        let image: Image = codec::decode(&bytes)?;
        let meta = SnapshotMeta { last_log_id: image.last(), last_membership: image.stored_membership()? };
        let snapshot = Snapshot { meta, snapshot: Bytes::from(bytes) };
        let answer = match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => Answer::HigherVote(response.vote.into()),
            Err(error) => Answer::Failed(error.to_string()),
        };
        write_framed(stream, &pack(&answer)).await?;
        Ok(())
    }
}

/// What this node knows of who votes. Of the two sources either may be behind.
struct Known<'a> {
    me: u64,
    /// Whom this node has accepted as the leader of its term.
    leader: Option<u64>,
    membership: &'a Membership,
    seats: &'a Seats,
}

impl Known<'_> {
    /// Whether a member, known under the number `own`, may speak to the consensus here under `number`.
    ///
    /// It must hold that seat in the membership in force here, or in the registry this node has; or be the leader of this
    /// term, which goes on for a moment after it has given its own seat away. A node without a seat has no promise to
    /// keep and does not know yet who votes, since it is about to learn just that: it takes the word of any node under
    /// its own number.
    fn admits(&self, caller: NodeId, own: Option<RaftId>, number: u64) -> bool {
        if let Some(seat) = self.membership.get_node(&number) {
            return seat.0 == caller;
        }
        let raft = RaftId(number);
        let seated = self.seats.voters.contains(&raft) || self.seats.learners.contains(&raft);
        let leads = self.leader == Some(number);
        own == Some(raft) && (seated || leads || self.membership.get_node(&self.me).is_none())
    }
}

type Append = MaybeDone<BoxFuture<'static, Result<Answer, codec::Error>>>;

/// Returns when the oldest append is answered.
async fn first(waiting: &mut VecDeque<Append>) {
    if let Some(append) = waiting.front_mut() {
        append.await;
    }
}

/// Queues the answers to all appends that are through: one sync makes several durable, and their answers go together.
async fn queue_answers(waiting: &mut VecDeque<Append>, frames: &mut Frames) -> Result<(), codec::Error> {
    while let Some(append) = waiting.front_mut()
        && poll!(&mut *append).is_ready()
    {
        let answer = Pin::new(append).take_output().expect("it is ready, and was not taken");
        frames.queue(&pack(&answer?));
        waiting.pop_front();
    }
    Ok(())
}

/// Why a message is not taken.
#[derive(Debug, thiserror::Error)]
enum Misplaced {
    #[error("this is for seat {to}, and here is seat {me}")]
    Receiver { to: u64, me: u64 },
    #[error("node `{node}` has no seat {from}")]
    Sender { node: NodeId, from: u64 },
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it failed")]
    Io(#[from] io::Error),
    #[error("a message cannot be read")]
    Codec(#[from] codec::Error),
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error("a message is not about entries")]
    NoAppend,
}

async fn within<R: Runtime, T: Send>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>> + Send,
) -> io::Result<T> {
    let done = <R::Async as AsyncRuntime>::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn vote_request<R: Runtime>(
    vote: super::wire::WireVote,
    last: Option<super::wire::WireLogId>,
    transfer: bool,
) -> VoteRequest<Types<R>> {
    let mut request = VoteRequest::new(vote.into(), last.map(LogId::from));
    request.leadership_transfer = transfer;
    request
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Seat;
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::from_public_key([u8::try_from(number).unwrap(); 32])
    }

    fn membership(seats: &[u64]) -> Membership {
        let nodes: BTreeMap<_, _> = seats.iter().map(|number| (*number, Seat(node(*number)))).collect();
        Membership::new(vec![seats.iter().copied().collect()], nodes).unwrap()
    }

    fn voters(seats: &[u64]) -> Seats {
        Seats { voters: seats.iter().copied().map(RaftId).collect(), ..Seats::default() }
    }

    fn admits(membership: &Membership, seats: &Seats, number: u64) -> bool {
        Known { me: 1, leader: None, membership, seats }.admits(node(number), Some(RaftId(number)), number)
    }

    #[test]
    fn a_seat_is_spoken_for_by_its_node_alone() {
        let (membership, seats) = (membership(&[1, 2, 3]), voters(&[1, 2, 3]));
        let known = Known { me: 1, leader: None, membership: &membership, seats: &seats };
        assert!(known.admits(node(2), Some(RaftId(2)), 2));
        assert!(!known.admits(node(3), Some(RaftId(3)), 2), "another voter");
        assert!(!known.admits(node(4), Some(RaftId(4)), 2), "a member without a seat");
        assert!(!known.admits(node(4), Some(RaftId(4)), 4), "a member without a seat, under its own number");
        assert!(!known.admits(node(5), None, 5), "nobody");
    }

    #[test]
    fn a_seat_this_nodes_log_has_not_heard_of_counts_by_the_registry_it_follows() {
        let membership = membership(&[1, 2, 3]);
        assert!(admits(&membership, &voters(&[1, 2, 4]), 4));
        assert!(!admits(&membership, &voters(&[1, 2, 4]), 5));
        let learning = Seats { learners: [RaftId(5)].into(), ..voters(&[1, 2, 4]) };
        assert!(admits(&membership, &learning, 5), "it may have been seated since");
    }

    #[test]
    fn a_leader_that_gave_its_seat_away_is_heard_until_another_leads() {
        let (membership, seats) = (membership(&[1, 2]), voters(&[1, 2]));
        let led_by = |leader| Known { me: 1, leader: Some(leader), membership: &membership, seats: &seats };
        assert!(led_by(3).admits(node(3), Some(RaftId(3)), 3));
        assert!(!led_by(2).admits(node(3), Some(RaftId(3)), 3));
        assert!(!led_by(3).admits(node(4), Some(RaftId(4)), 3), "somebody else under its number");
    }

    #[test]
    fn a_node_without_a_seat_takes_the_word_of_any_member_under_its_own_number() {
        for membership in [Membership::default(), membership(&[2, 3])] {
            let seats = voters(&[2, 3]);
            assert!(admits(&membership, &seats, 4));
            let known = Known { me: 1, leader: None, membership: &membership, seats: &seats };
            assert!(!known.admits(node(4), Some(RaftId(4)), 5));
            assert!(!known.admits(node(4), None, 4));
        }
    }
}
