//! Consensus messages to other nodes, by `net`.

use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream};
use net::{Net, Protocol, read_framed, write_framed};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::io::AsyncWriteExt;
use types::NodeId;

use super::feed::Feeder;
use super::wire::{Answer, Call, Letter, SnapshotHead};
use super::{Seat, Snapshot, Types, Vote};
use crate::pack;
use crate::runtime::Runtime;

pub(crate) const CALLS: Protocol = Protocol::new("/omx/raft/1");
pub(crate) const SNAPSHOTS: Protocol = Protocol::new("/omx/snapshot/1");

/// A call carries at most what one read of the log gives, which one large entry may exceed.
pub(crate) const MESSAGE_MAX: usize = 4 << 20;

/// A head or an answer beside a snapshot, with its length before it.
pub(crate) const HEAD_MAX: usize = 1 << 10;

/// No byte of a snapshot may take longer than this to be accepted.
pub(crate) const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Factory<R> {
    net: Net,
    runtime: PhantomData<fn() -> R>,
}

/// Where messages for one seat go.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) net: Net,
    pub(crate) node: NodeId,
    pub(crate) seat: u64,
}

/// What the library holds of one other node. It makes one for entries, one for heartbeats and one for snapshots.
pub(crate) struct Link<R: Runtime> {
    way: Way,
    feeder: Feeder<R>,
}

impl<R> Factory<R> {
    pub(crate) fn new(net: Net) -> Self {
        Self { net, runtime: PhantomData }
    }
}

impl<R: Runtime> RaftNetworkFactory<Types<R>> for Factory<R> {
    type Network = Link<R>;

    async fn new_client(&mut self, number: u64, seat: &Seat) -> Link<R> {
        let way = Way { net: self.net.clone(), node: seat.0, seat: number };
        Link { feeder: Feeder::new(way.clone()), way }
    }
}

impl Way {
    pub(crate) fn letter(&self, call: Call) -> Bytes {
        pack(&Letter { to: self.seat, call })
    }

    /// Puts one letter as a request.
    pub(crate) async fn ask<R: Runtime>(&self, letter: Bytes, limit: Duration) -> Result<Answer, RPCError<Types<R>>> {
        match self.net.request_within(self.node, CALLS, letter, limit).await {
            Ok(answer) => codec::decode(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error))),
            // The library backs off from an unreachable node and asks others meanwhile.
            Err(error) if !error.maybe_done() => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }
}

impl<R: Runtime> Link<R> {
    async fn call(&self, call: Call, limit: Duration) -> Result<Answer, RPCError<Types<R>>> {
        self.way.ask(self.way.letter(call), limit).await
    }

    async fn send_snapshot(&self, vote: Vote, bytes: Bytes) -> Result<Answer, SnapshotError> {
        let mut stream = self.way.net.connect(self.way.node, SNAPSHOTS).await?;
        let head = SnapshotHead { to: self.way.seat, vote: vote.into(), length: bytes.len() as u64 };
        write_framed(&mut stream, &pack(&head)).await?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        let answer = read_framed(&mut stream, HEAD_MAX).await?;
        Ok(codec::decode(&answer)?)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("cannot reach the node")]
    Net(#[from] net::Error),
    #[error("the stream broke")]
    Io(#[from] std::io::Error),
    #[error("the answer cannot be read")]
    Codec(#[from] codec::Error),
    #[error("not done within {SNAPSHOT_DEADLINE:?}")]
    Deadline,
    #[error("refused: {0}")]
    Refused(String),
}

impl<R: Runtime> RaftNetworkV2<Types<R>> for Link<R> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Call::append(request), option.hard_ttl()).await?.into_append().map_err(unfitting)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>>, RPCError<Types<R>>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + OptionalSend + Unpin + 'static,
    {
        let answers: BoxStream<'s, _> = Box::pin(self.feeder.feed(input, &option));
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Call::vote(request), option.hard_ttl()).await?.into_vote().map_err(unfitting)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        self.call(Call::pre_vote(request), option.hard_ttl()).await?.into_vote().map_err(unfitting)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let send = <R::Async as AsyncRuntime>::timeout(SNAPSHOT_DEADLINE, self.send_snapshot(vote, snapshot.snapshot));
        let (send, cancel) = (std::pin::pin!(send.fuse()), std::pin::pin!(cancel.fuse()));
        let answer = match futures::future::select(send, cancel).await {
            futures::future::Either::Left((sent, _)) => sent.unwrap_or(Err(SnapshotError::Deadline)),
            futures::future::Either::Right((closed, _)) => return Err(StreamingError::Closed(closed)),
        };
        match answer {
            Ok(Answer::HigherVote(vote)) => Ok(SnapshotResponse::new(vote.into())),
            Ok(other) => {
                Err(StreamingError::Unreachable(Unreachable::new(&SnapshotError::Refused(format!("{other:?}")))))
            }
            Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        match self.call(Call::transfer(&request), option.hard_ttl()).await? {
            Answer::Transferred => Ok(Ok(())),
            other => Err(unfitting(other)),
        }
    }
}

pub(crate) fn unfitting<R: Runtime>(answer: Answer) -> RPCError<Types<R>> {
    RPCError::Network(NetworkError::from_string(format!("answered {answer:?}")))
}
