//! Entries on their way from a leader to one follower.
//!
//! They have a stream of their own: a request between nodes negotiates a substream and passes through the mesh's one
//! task, which for a batch of entries is most of the work. Where a stream cannot be had they go as requests, as heartbeats
//! always do, so that the two ways do not fail together.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, poll};
use net::{Frames, Protocol};
use openraft::errors::{NetworkError, RPCError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use openraft::{AsyncRuntime, Instant};

use super::network::{Way, unfitting};
use super::wire::{Answer, Call};
use super::{LogId, Types};
use crate::runtime::Runtime;

pub(crate) const APPENDS: Protocol = Protocol::new("/omx/append/1");

/// Batches on the stream that are not answered. While they are on their way the next one grows.
const UNANSWERED_MAX: usize = 2;

const ANSWER_BYTES_MAX: usize = 1 << 10;

/// How many heartbeats a batch may take on the stream: a sync on a busy disk lasts longer than one.
const ANSWER_HEARTBEATS: u32 = 10;

/// A stream within a local network takes milliseconds.
const OPEN_MAX: Duration = Duration::from_secs(2);

/// For so long entries go as requests where no stream was to be had.
const REOPEN_AFTER: Duration = Duration::from_secs(30);

/// How long word of a commit waits for entries that could take it along. Under load there are always some, and without
/// the wait each batch would cost every follower two messages.
const COMMIT_LINGER: Duration = Duration::from_millis(2);

type Request<R> = AppendEntriesRequest<Types<R>>;
type Failed<R> = RPCError<Types<R>>;
type Answered<R> = Result<StreamAppendResult<Types<R>>, Failed<R>>;
type Moment<R> = <<R as Runtime>::Async as AsyncRuntime>::Instant;

/// The way to one follower.
pub(crate) struct Feeder<R: Runtime> {
    way: Way,
    /// Never locked. The library wants its links to be `Sync`, which a stream is not.
    stream: Mutex<Option<Frames>>,
    /// No stream is asked for before.
    not_before: Option<Moment<R>>,
}

/// One stream of requests, in order, from the library. Dropped half-way, its requests are sent again by another.
struct Session<'a, R: Runtime, S> {
    feeder: &'a mut Feeder<R>,
    input: S,
    ended: bool,
    /// What one heartbeat may take.
    limit: Duration,
    /// Sent on the stream and not answered.
    asked: VecDeque<Asked>,
    /// Word of a commit, and until when it waits.
    lingering: Option<(Request<R>, Moment<R>)>,
    over: bool,
}

struct Asked {
    previous: Option<LogId>,
    last: Option<LogId>,
}

impl<R: Runtime> Feeder<R> {
    pub(crate) fn new(way: Way) -> Self {
        Self { way, stream: Mutex::default(), not_before: None }
    }

    fn stream(&mut self) -> &mut Option<Frames> {
        self.stream.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the follower says, one answer to each request or to several; ends with the input or the first error.
    pub(crate) fn feed<'a, S>(&'a mut self, input: S, option: &RPCOption) -> impl Stream<Item = Answered<R>> + Send + 'a
    where
        S: Stream<Item = Request<R>> + Send + Unpin + 'static,
    {
        let limit = option.hard_ttl();
        let asked = VecDeque::new();
        let session = Session { feeder: self, input, ended: false, limit, asked, lingering: None, over: false };
        futures::stream::unfold(session, |mut session| async move {
            let answer = session.next().await?;
            Some((answer, session))
        })
    }

    /// Sees to it that there is a stream, if there can be one. `idle`: nothing is under way on it.
    async fn open(&mut self, idle: bool) {
        if let Some(frames) = self.stream() {
            // Nothing is asked, so all there can be to read is the end: the follower has restarted, or hung up.
            if !idle || poll!(Box::pin(frames.next())).is_pending() {
                return;
            }
            *self.stream() = None;
        }
        let now = Moment::<R>::now();
        // Who is not connected at all takes seconds to find out about.
        if self.not_before.is_some_and(|at| now < at) || !self.way.net.is_connected(&self.way.node) {
            return;
        }
        let connected =
            <R::Async as AsyncRuntime>::timeout(OPEN_MAX, self.way.net.connect(self.way.node, APPENDS)).await;
        match connected {
            Ok(Ok(stream)) => *self.stream() = Some(Frames::new(stream, ANSWER_BYTES_MAX)),
            Ok(Err(error)) => {
                tracing::debug!(follower = %self.way.node, %error, "no stream for entries; they go as requests");
                self.not_before = Some(now + REOPEN_AFTER);
            }
            Err(_) => self.not_before = Some(now + REOPEN_AFTER),
        }
    }

    /// The next answer on the stream. May be dropped at any time.
    async fn answer(&mut self, limit: Duration) -> Result<Answer, Failed<R>> {
        let read = async {
            let frames = self.stream().as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let answer = frames.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            codec::decode(&answer).map_err(io::Error::other)
        };
        within::<R, _>(limit, read).await
    }

    async fn send(&mut self, body: &[u8], limit: Duration) -> Result<(), Failed<R>> {
        let write = async {
            let frames = self.stream().as_mut().ok_or(io::ErrorKind::NotConnected)?;
            frames.queue(body);
            frames.flush().await
        };
        within::<R, _>(limit, write).await
    }
}

impl<R: Runtime, S: Stream<Item = Request<R>> + Send + Unpin> Session<'_, R, S> {
    async fn next(&mut self) -> Option<Answered<R>> {
        while !self.over {
            let room = self.asked.len() < UNANSWERED_MAX;
            let due = self.lingering.as_ref().map(|(_, due)| *due);
            let request = tokio::select! {
                biased;
                answer = self.feeder.answer(self.limit * ANSWER_HEARTBEATS), if !self.asked.is_empty() => {
                    let asked = self.asked.pop_front().expect("just seen");
                    if answer.is_err() {
                        // Should it come after all, it would be taken for the answer to what is asked next.
                        *self.feeder.stream() = None;
                    }
                    return Some(self.judge(asked, answer));
                }
                request = self.input.next(), if room && !self.ended => match request {
                    Some(request) if request.entries.is_empty() && self.feeder.stream().is_some() => {
                        let due = due.unwrap_or_else(|| Moment::<R>::now() + COMMIT_LINGER);
                        self.lingering = Some((request, due));
                        continue;
                    }
                    Some(request) => Some(request),
                    None => {
                        self.ended = true;
                        self.lingering.take().map(|(request, _)| request)
                    }
                },
                () = until::<R>(due), if room && due.is_some() => self.lingering.take().map(|(request, _)| request),
                else => return None,
            };
            // Whatever goes out carries the newest commit.
            self.lingering = None;
            if let Some(request) = request
                && let Some(answer) = self.send(request).await
            {
                return Some(answer);
            }
        }
        None
    }

    /// Sends one request. Returns what was said to it where that is known at once.
    async fn send(&mut self, request: Request<R>) -> Option<Answered<R>> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let asked = Asked { previous: request.prev_log_id, last };
        if !request.entries.is_empty() {
            self.feeder.open(self.asked.is_empty()).await;
        }
        let letter = self.feeder.way.letter(Call::append(request));
        if self.feeder.stream().is_none() {
            let answer = self.feeder.way.ask(letter, self.limit).await;
            return Some(self.judge(asked, answer));
        }
        // First: should this be dropped in the middle, the stream is of no use any more.
        self.asked.push_back(asked);
        let sent = self.feeder.send(&letter, self.limit * ANSWER_HEARTBEATS).await;
        sent.err().map(|error| {
            self.over = true;
            Err(error)
        })
    }

    /// Anything but full success ends the session: what was sent behind it has no ground to stand on.
    fn judge(&mut self, asked: Asked, answer: Result<Answer, Failed<R>>) -> Answered<R> {
        self.over = !matches!(answer, Ok(Answer::Appended));
        let answer = match answer? {
            // Nothing can be missing before the first entry.
            Answer::Conflict if asked.previous.is_none() => return Err(unfitting(Answer::Conflict)),
            // The library waits a moment before it tries again.
            Answer::NoSpace => return Err(RPCError::Unreachable(Unreachable::from_string("no room on its disk"))),
            answer => answer.into_append().map_err(unfitting)?,
        };
        Ok(answer.into_stream_result(asked.previous, asked.last))
    }
}

impl<R: Runtime, S> Drop for Session<'_, R, S> {
    /// Answers to what was asked here must not be taken for answers to somebody else.
    fn drop(&mut self) {
        if !self.asked.is_empty() {
            *self.feeder.stream() = None;
        }
    }
}

async fn until<R: Runtime>(moment: Option<Moment<R>>) {
    match moment {
        Some(moment) => <R::Async as AsyncRuntime>::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn within<R: Runtime, T: Send>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>> + Send,
) -> Result<T, Failed<R>> {
    let done = <R::Async as AsyncRuntime>::timeout(limit, work).await;
    let done = done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    done.map_err(|error| RPCError::Network(NetworkError::new(&error)))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use net::mem::Fabric;
    use net::{Clock, Member, Services};
    use openraft::EntryPayload;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;
    use types::{NodeId, Role};

    use super::super::{Entry, LeaderId, Vote};
    use super::*;
    use crate::pack;
    use crate::protocol::APPENDS_SPEC;
    use crate::runtime::Live;

    /// What one heartbeat may take; ten times that is what an answer may.
    const LIMIT: Duration = Duration::from_millis(10);

    fn id(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn request(index: u64) -> Request<Live> {
        let leader_id = LeaderId { term: 1, node_id: 1 };
        let at = |index| LogId { leader_id, index };
        AppendEntriesRequest {
            vote: Vote { leader_id, committed: true },
            prev_log_id: index.checked_sub(1).map(at),
            entries: vec![Entry { log_id: at(index), payload: EntryPayload::Blank }],
            leader_commit: None,
        }
    }

    async fn said(feeder: &mut Feeder<Live>, index: u64) -> Answered<Live> {
        let answers = feeder.feed(futures::stream::iter([request(index)]), &RPCOption::new(LIMIT));
        pin!(answers).next().await.expect("an answer or an error")
    }

    /// The first answer of all comes when nobody waits for it any more; whoever asks on another stream is contradicted.
    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_none_to_what_is_asked_next() {
        let fabric = Fabric::new(1, Clock::tokio());
        let (leader, leader_task) = fabric.join(id(1));
        let (follower, follower_task) = fabric.join(id(2));
        let member = |number| Member { id: id(number), role: Role::Node, mesh: Vec::new(), bulk: Vec::new() };
        leader.admit(vec![member(2)]);
        follower.admit(vec![member(1)]);
        let streams = Arc::new(AtomicU32::new(0));
        let services = Services::new().on_stream(APPENDS_SPEC, move |_, stream| {
            let number = streams.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                let mut frames = Frames::new(stream, super::super::network::MESSAGE_MAX);
                while let Ok(Some(_)) = frames.next().await {
                    if number == 0 {
                        tokio::time::sleep(LIMIT * (ANSWER_HEARTBEATS + 5)).await;
                    }
                    frames.queue(&pack(&if number == 0 { Answer::Appended } else { Answer::Conflict }));
                    if frames.flush().await.is_err() {
                        return;
                    }
                }
            })
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(leader_task.run(Services::new(), CancellationToken::new()));
        tasks.spawn(follower_task.run(services, CancellationToken::new()));
        while !leader.is_connected(&id(2)) {
            tokio::task::yield_now().await;
        }
        let mut feeder = Feeder::<Live>::new(Way { net: leader, node: id(2), seat: 2 });
        assert!(said(&mut feeder, 1).await.is_err(), "the answer is late");
        let second = said(&mut feeder, 2).await.expect("the second stream answers at once");
        assert!(second.is_err(), "the late answer was taken for this one: {second:?}");
    }
}
