//! Consensus messages from other nodes. The number a message speaks under must be that of the node that sent it, by
//! the registry or by the consensus membership; the message's own word does not count.

use std::sync::Arc;

use bytes::Bytes;
use net::{ByteStream, Caller, Refusal};
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use tokio::io::AsyncReadExt;
use types::{NodeId, Role};

use super::network::{HEAD_MAX, SNAPSHOT_DEADLINE, SnapshotError, read_framed, write_framed};
use super::wire::{Answer, Call, Image, SnapshotHead};
use super::{Entry, LogId, Raft, Snapshot, SnapshotMeta, Types};
use crate::pack;
use crate::runtime::Runtime;
use crate::view::View;

pub(crate) struct Service<R: Runtime> {
    raft: Raft<R>,
    view: Arc<View<R>>,
}

impl<R: Runtime> Clone for Service<R> {
    fn clone(&self) -> Self {
        Self { raft: self.raft.clone(), view: self.view.clone() }
    }
}

impl<R: Runtime> Service<R> {
    pub(crate) fn new(raft: Raft<R>, view: Arc<View<R>>) -> Self {
        Self { raft, view }
    }

    pub(crate) async fn answer(self, caller: Caller, body: Bytes) -> Result<Bytes, Refusal> {
        let call: Call = codec::decode(&body).map_err(|_| Refusal::Malformed)?;
        if !self.speaks_for(&caller, call.sender()) {
            return Err(Refusal::Failed(format!("node `{}` has no seat {}", caller.id, call.sender())));
        }
        let answer = self.carry_out(call).await.map_err(|_| Refusal::Malformed)?;
        Ok(pack(&answer))
    }

    fn speaks_for(&self, caller: &Caller, number: u64) -> bool {
        if caller.role != Some(Role::Node) {
            return false;
        }
        let by_registry = self.view.read(|registry| registry.member(&caller.id).map(|member| member.raft.0));
        by_registry == Some(number) || self.seated(number) == Some(caller.id)
    }

    fn seated(&self, number: u64) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&number).map(|seat| seat.0)
    }

    async fn carry_out(&self, call: Call) -> Result<Answer, codec::Error> {
        let answer = match call {
            Call::Append { vote, previous, entries, commit } => {
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
        if !self.speaks_for(caller, vote.leader_id.node_id) {
            return Err(SnapshotError::Refused(format!("no seat {}", vote.leader_id.node_id)));
        }
        let limit = <Image as codec::Record>::LIMIT as u64;
        if head.length > limit {
            return Err(SnapshotError::Refused(format!("{} bytes, where {limit} are allowed", head.length)));
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

fn vote_request<R: Runtime>(
    vote: super::wire::WireVote,
    last: Option<super::wire::WireLogId>,
    transfer: bool,
) -> VoteRequest<Types<R>> {
    let mut request = VoteRequest::new(vote.into(), last.map(LogId::from));
    request.leadership_transfer = transfer;
    request
}
