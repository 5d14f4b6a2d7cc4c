//! Consensus messages to other nodes, by `net`.

use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use net::{Net, Protocol};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::NodeId;

use super::wire::{Answer, Call, SnapshotHead};
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

/// The way to one other node.
pub(crate) struct Link<R> {
    net: Net,
    target: NodeId,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Factory<R> {
    pub(crate) fn new(net: Net) -> Self {
        Self { net, runtime: PhantomData }
    }
}

impl<R: Runtime> RaftNetworkFactory<Types<R>> for Factory<R> {
    type Network = Link<R>;

    async fn new_client(&mut self, _target: u64, seat: &Seat) -> Link<R> {
        Link { net: self.net.clone(), target: seat.0, runtime: PhantomData }
    }
}

impl<R: Runtime> Link<R> {
    async fn call(&self, call: Call, limit: Duration) -> Result<Answer, RPCError<Types<R>>> {
        let body = pack(&call);
        match self.net.request_within(self.target, CALLS, body, limit).await {
            Ok(answer) => codec::decode(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error))),
            // The library backs off from an unreachable node and asks others meanwhile.
            Err(error) if !error.maybe_done() => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }

    async fn send_snapshot(&self, vote: Vote, bytes: Bytes) -> Result<Answer, SnapshotError> {
        let mut stream = self.net.connect(self.target, SNAPSHOTS).await?;
        let head = SnapshotHead { vote: vote.into(), length: bytes.len() as u64 };
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

pub(crate) async fn write_framed(stream: &mut net::ByteStream, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

pub(crate) async fn read_framed(stream: &mut net::ByteStream, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if length > bytes_max {
        return Err(std::io::Error::other(format!("a message of {length} bytes, where {bytes_max} are allowed")));
    }
    // Grows as bytes come in: the announced length reserves nothing.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
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

fn unfitting<R: Runtime>(answer: Answer) -> RPCError<Types<R>> {
    RPCError::Network(NetworkError::from_string(format!("answered {answer:?}")))
}
