//! What others call, and what they bring along.
//!
//! A request is driven by whoever waits for it: there is no task for it that could be left over, and dropped at any
//! time it is gone from its node too. Nothing is read ahead: a client that reads slowly slows its node down. State lies
//! behind a lock that is held for microseconds and never across an await.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt};
use scheduler::{Fleet, ModelKey, Moment, Promise, Work};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use types::{NodeId, RequestId};

use crate::error::{Cause, Cut, Failure, Unanswered};
use crate::state::{Attempt, Desk, Effect, Event, Figures, Sight};
use crate::task::Task;
use crate::trace::Trace;

/// Of an answer that reports a failure.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Of what a node says of an answer it was to go on with.
const REPORT_CHARS_MAX: usize = 512;
/// An agent gives its backend five and a half minutes at most between two pieces. If nothing came for longer, it is the
/// connection that died, whatever the node answers on others.
const SILENCE_MAX: Duration = Duration::from_secs(360);

/// How the agents before all backends are reached, the own node's included. Whatever is dropped is cancelled over
/// there.
pub trait Agents: Send + Sync + 'static {
    /// What is sent; opaque here.
    type Request: Send + Sync;
    type Answer: Frames;
    type Transcript: Transcript;

    /// What the work would meet there. The agent holds a place for `hold`, or none where that is nothing.
    fn probe(&self, node: NodeId, work: &Work, hold: Duration)
    -> impl Future<Output = Result<Promise, Failure>> + Send;

    /// Whether the node answers at all, from memory. It is given up after a second.
    fn look(&self, node: NodeId) -> impl Future<Output = bool> + Send;

    /// Sends it and returns with the head of the answer. `max_wait`: the agent refuses where it would wait longer. Only
    /// connecting has a time limit, the implementer's: queues may be long, and who hangs is found by looks. A
    /// connection that died without a word is found by its own keepalive, while the node answers on others.
    fn open(
        &self,
        node: NodeId,
        request: &Self::Request,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;

    /// Keeps what the client is told of the answer to it; nothing where its rest is never asked of another node.
    fn transcript(&self, request: &Self::Request) -> Option<Self::Transcript>;

    /// Sends for the rest of an answer, after [`Transcript::rest`] found that there is one; like [`Self::open`].
    fn go_on(
        &self,
        node: NodeId,
        request: &Self::Request,
        transcript: &mut Self::Transcript,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// What a client has been told of one answer.
pub trait Transcript: Send {
    /// What of this piece the client is told, maybe nothing.
    fn tell(&mut self, piece: Bytes) -> Result<Bytes, Failure>;

    /// It was told all.
    fn is_over(&self) -> bool;

    /// The answer broke off: what is there to do for the rest?
    fn rest(&mut self) -> Result<Rest, Cause>;
}

#[derive(Debug)]
pub enum Rest {
    /// Somebody has to be asked.
    Asked,
    /// Nothing was left but this piece.
    Over(Bytes),
}

/// An answer under way.
pub trait Frames: Send {
    fn status(&self) -> u16;

    /// The next piece. `None` only where the answer is whole: whatever breaks off is an error. It may be dropped while
    /// it waits, and nothing is lost.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Failure>>> + Send;

    /// Nobody wants the rest: it is cancelled on its node. Its head stays.
    fn cancel(&mut self);
}

/// What is known of the nodes without asking them.
pub trait Hosts: Send + Sync + 'static {
    /// Those that hold the model; an empty fleet where nobody does. Not called from within itself.
    fn with<T>(&self, model: ModelKey, see: impl FnOnce(&mut Fleet) -> T) -> T;

    /// Nobody has heard of the node lately.
    fn is_missed(&self, node: NodeId) -> bool;
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The gateway's own node.
    pub own: Option<NodeId>,
    /// For the choices that are drawn.
    pub seed: u64,
}

#[derive(Debug)]
pub struct Request<R> {
    pub id: RequestId,
    pub work: Work,
    /// The answer comes token by token, not in one piece when it is done.
    pub streams: bool,
    pub payload: R,
}

pub struct Handle<A, H>(Arc<Shared<A, H>>);

pub(crate) struct Shared<A, H> {
    pub(crate) agents: A,
    pub(crate) hosts: H,
    desk: Mutex<Desk>,
    start: Instant,
    /// Changes whenever a node is found frozen.
    pub(crate) found_frozen: watch::Sender<u64>,
    /// There is somebody to look at.
    pub(crate) nudge: Notify,
}

/// Nothing is looked at until the task runs; requests are served without it, but wait longer for the frozen.
pub fn new<A: Agents, H: Hosts>(config: Config, agents: A, hosts: H) -> (Handle<A, H>, Task<A, H>) {
    let shared = Arc::new(Shared {
        agents,
        hosts,
        desk: Mutex::new(Desk::new(config.own, config.seed)),
        start: Instant::now(),
        found_frozen: watch::Sender::new(0),
        nudge: Notify::new(),
    });
    (Handle(shared.clone()), Task::new(shared))
}

impl<A: Agents, H: Hosts> Handle<A, H> {
    /// Returns with the first piece of the answer in hand, or when it is sure that there will be none. Dropped at any
    /// time it is cancelled.
    pub async fn run(&self, request: Request<A::Request>) -> Result<Answer<A, H>, Unanswered> {
        let Request { id, work, streams, payload } = request;
        let attempt = Attempt::new(id, work, streams, self.0.now());
        let mut running = Running { shared: self.0.clone(), attempt: Some(attempt) };
        let mut effect = running.on(Event::Begin);
        loop {
            effect = match effect {
                Effect::Probe(nodes) => running.probe(&nodes).await,
                Effect::Send { node, max_wait } => {
                    let work = running.attempt().work(self.0.now());
                    let opening = begin(&self.0.agents, node, &payload, &work, max_wait);
                    match running.send(node, opening).await {
                        Ok((frames, first)) => {
                            let is_told = streams && frames.status() == 200;
                            let transcript = is_told.then(|| self.0.agents.transcript(&payload)).flatten();
                            return Ok(Answer {
                                frames,
                                first: Some(first),
                                node,
                                sends: running.attempt().sends(),
                                found_frozen: self.0.found_frozen.subscribe(),
                                payload,
                                transcript,
                                next: Next::Read,
                                running,
                            });
                        }
                        Err(effect) => effect,
                    }
                }
                Effect::Fail(error) => {
                    let (node, sends) = (running.attempt().sent_to(), running.attempt().sends());
                    return Err(Unanswered { error, node, sends });
                }
                Effect::Nothing | Effect::Deliver | Effect::Cut(_) | Effect::Done => {
                    unreachable!("before the first byte there is always something to do")
                }
            };
        }
    }

    /// One of the last requests that have ended.
    pub fn trace(&self, id: RequestId) -> Option<Arc<Trace>> {
        self.0.lock().traces.find(id)
    }

    /// The last requests that have ended, the last one first.
    pub fn traces(&self, count: usize) -> Vec<Arc<Trace>> {
        self.0.lock().traces.last(count)
    }

    /// The node has left the mesh, or is up again after it was down: what was held against it is void.
    pub fn forget(&self, node: NodeId) {
        self.0.lock().forget(node);
    }

    /// How long ago something was that a trace tells.
    pub fn since(&self, moment: Moment) -> Duration {
        self.0.now().since(moment)
    }

    /// Nodes that are left alone for some model now, once for each.
    pub fn barred(&self) -> usize {
        let now = self.0.now();
        self.0.lock().breakers.barred(now)
    }

    pub fn figures(&self) -> Figures {
        self.0.lock().figures
    }

    /// Requests that nodes have now.
    pub fn running(&self) -> usize {
        self.0.lock().pulses.requests()
    }
}

impl<A, H> Shared<A, H> {
    pub(crate) fn now(&self) -> Moment {
        Moment::since_start(self.start.elapsed())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sleep_until(&self, moment: Option<Moment>) {
        match moment.and_then(|moment| self.start.checked_add(moment.elapsed())) {
            Some(instant) => sleep_until(instant).await,
            None => std::future::pending().await,
        }
    }

    /// May be dropped at any time.
    async fn until_frozen(&self, node: NodeId, found: &mut watch::Receiver<u64>) {
        while !self.lock().pulses.is_frozen(node) {
            // The sender is in `self`.
            let _ = found.changed().await;
        }
    }
}

/// A request that has not ended. Dropped, it is told that its client left.
struct Running<A: Agents, H: Hosts> {
    shared: Arc<Shared<A, H>>,
    /// Always there between two events.
    attempt: Option<Attempt>,
}

impl<A: Agents, H: Hosts> Running<A, H> {
    fn attempt(&self) -> &Attempt {
        self.attempt.as_ref().expect("it is away during an event only")
    }

    fn on(&mut self, event: Event) -> Effect {
        let attempt = self.attempt.take().expect("it is away during an event only");
        let now = self.shared.now();
        let (attempt, effect) = self
            .shared
            .hosts
            .with(attempt.model(), |fleet| attempt.on(&mut Sight { desk: &mut self.shared.lock(), fleet, now }, event));
        self.attempt = Some(attempt);
        effect
    }

    async fn probe(&mut self, nodes: &[(NodeId, Duration)]) -> Effect {
        let shared = self.shared.clone();
        let (agents, work) = (&shared.agents, self.attempt().work(shared.now()));
        let ask = |(node, hold): &(NodeId, Duration)| {
            let (work, node, hold) = (&work, *node, *hold);
            async move { (node, agents.probe(node, work, hold).await) }
        };
        let mut probes: FuturesUnordered<_> = nodes.iter().map(ask).collect();
        loop {
            let event = tokio::select! {
                biased;
                Some((node, answer)) = probes.next() => Event::Answered(node, answer),
                () = shared.sleep_until(self.attempt().wakes()) => Event::Tick,
            };
            match self.on(event) {
                Effect::Nothing => {}
                effect => return effect,
            }
        }
    }

    /// The answer and its first piece, or what to do instead.
    async fn send(
        &mut self,
        node: NodeId,
        opening: impl Future<Output = Result<(A::Answer, Bytes), Failure>>,
    ) -> Result<(A::Answer, Bytes), Effect> {
        let shared = self.shared.clone();
        let mut found_frozen = shared.found_frozen.subscribe();
        shared.nudge.notify_one();
        let mut opening = pin!(opening);
        loop {
            let event = tokio::select! {
                biased;
                opened = &mut opening => match opened {
                    Ok((frames, first)) => {
                        return match self.on(Event::FirstByte { well: frames.status() < 400 }) {
                            Effect::Deliver => Ok((frames, first)),
                            effect => Err(effect),
                        };
                    }
                    Err(failure) => Event::Failed(failure),
                },
                () = shared.until_frozen(node, &mut found_frozen) => Event::Failed(Failure::Frozen),
                () = shared.sleep_until(self.attempt().wakes()) => Event::Tick,
            };
            match self.on(event) {
                Effect::Nothing => {}
                effect => return Err(effect),
            }
        }
    }
}

async fn begin<A: Agents>(
    agents: &A,
    node: NodeId,
    request: &A::Request,
    work: &Work,
    max_wait: Option<Duration>,
) -> Result<(A::Answer, Bytes), Failure> {
    // What the client did wrong it is told; what a node cannot do another may.
    first_piece(agents.open(node, request, work, max_wait).await?, 500).await
}

/// The same for the rest of an answer: there the client is told of nothing but the rest.
async fn go_on<A: Agents>(
    agents: &A,
    node: NodeId,
    request: &A::Request,
    transcript: &mut A::Transcript,
    work: &Work,
    max_wait: Option<Duration>,
) -> Result<(A::Answer, Bytes), Failure> {
    let begun = first_piece(agents.go_on(node, request, transcript, work, max_wait).await?, 400).await;
    begun.map_err(|failure| match failure {
        // The prompt with what was told is too long for the window, say.
        Failure::Served { status, body } if status < 500 => {
            let said = String::from_utf8_lossy(&body).chars().take(REPORT_CHARS_MAX).collect::<String>();
            Failure::Unable(said.into())
        }
        failure => failure,
    })
}

async fn first_piece<F: Frames>(mut frames: F, failed_from: u16) -> Result<(F, Bytes), Failure> {
    let status = frames.status();
    if status < failed_from {
        return match frames.next().await {
            Some(first) => Ok((frames, first?)),
            None => Err(Failure::Broken("it ended before it had begun".into())),
        };
    }
    let mut body = BytesMut::new();
    while let Some(Ok(piece)) = frames.next().await {
        body.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES_MAX - body.len())]);
        if body.len() == ERROR_BYTES_MAX {
            break;
        }
    }
    Err(Failure::Served { status, body: body.freeze() })
}

impl<A: Agents, H: Hosts> Drop for Running<A, H> {
    fn drop(&mut self) {
        // Without it there was a panic within an event, and nothing can be said any more.
        if self.attempt.is_some() {
            self.on(Event::Gone);
        }
    }
}

/// An answer that has begun. Dropped before its end, it is cancelled on its node.
pub struct Answer<A: Agents, H: Hosts> {
    // Before `running`, so that the node hears of it first.
    frames: A::Answer,
    running: Running<A, H>,
    first: Option<Bytes>,
    node: NodeId,
    sends: u32,
    found_frozen: watch::Receiver<u64>,
    payload: A::Request,
    transcript: Option<A::Transcript>,
    next: Next,
}

/// What [`Answer::next`] has to do. It may be dropped while it waits: what was under way is then done again.
enum Next {
    Read,
    /// The answer broke off, and this comes next on the way to its rest.
    GoOn(Effect),
    /// Nothing but this is left of it.
    Last(Bytes),
    Nothing,
}

impl<A: Agents, H: Hosts> Answer<A, H> {
    /// Who tells it now.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Times the request was sent to some node until it began, that node included.
    pub const fn sends(&self) -> u32 {
        self.sends
    }

    /// Times its rest was asked of another node.
    pub fn seams(&self) -> u32 {
        self.running.attempt().seams()
    }

    /// Its head is in there; pieces are to be taken from [`Self::next`] alone.
    pub const fn head(&self) -> &A::Answer {
        &self.frames
    }

    /// The next piece; `None` at the answer's own end. After an error nothing follows, and the client has to be told of
    /// it. May be dropped while it waits, and nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        loop {
            let came = match &self.next {
                Next::Read => match self.first.take() {
                    Some(first) => Ok(first),
                    None => self.read().await,
                },
                // Boxed: it is rare, and long.
                Next::GoOn(_) => match Box::pin(self.go_on()).await {
                    Ok(first) => Ok(first),
                    Err(Effect::Cut(cut)) => return self.end(Some(Err(cut))),
                    Err(_) => return self.end(None),
                },
                Next::Last(last) => {
                    let last = last.clone();
                    return self.end(Some(Ok(last)));
                }
                Next::Nothing => return None,
            };
            let event = match came {
                Ok(piece) => match self.tell(piece) {
                    Ok(piece) if piece.is_empty() => continue,
                    Ok(piece) => return Some(Ok(piece)),
                    Err(failure) => Event::Failed(failure),
                },
                Err(event) => event,
            };
            match self.ended(event) {
                Effect::Nothing => {}
                Effect::Cut(cut) => return self.end(Some(Err(cut))),
                effect @ (Effect::Probe(_) | Effect::Send { .. }) => self.next = Next::GoOn(effect),
                _ if matches!(self.next, Next::Last(_)) => {}
                _ => return self.end(None),
            }
        }
    }

    fn end(&mut self, last: Option<Result<Bytes, Cut>>) -> Option<Result<Bytes, Cut>> {
        self.next = Next::Nothing;
        last
    }

    fn tell(&mut self, piece: Bytes) -> Result<Bytes, Failure> {
        let Some(transcript) = &mut self.transcript else { return Ok(piece) };
        let told = transcript.tell(piece)?;
        if transcript.is_over() && self.seams() > 0 {
            // Whoever goes on with an answer may have more to say than belonged to it.
            self.frames.cancel();
            self.running.on(Event::Ended);
            self.next = Next::Nothing;
        }
        Ok(told)
    }

    /// The node says nothing more: is there more to be said?
    fn ended(&mut self, event: Event) -> Effect {
        let Event::Failed(failure) = event else { return self.running.on(event) };
        let Some(transcript) = &mut self.transcript else { return self.running.on(Event::Failed(failure)) };
        if transcript.is_over() {
            return self.running.on(Event::Ended);
        }
        if matches!(failure, Failure::Deadline) {
            return self.running.on(Event::Failed(failure));
        }
        match transcript.rest() {
            Ok(Rest::Asked) => {
                // It may have hung: the request must not be with two nodes.
                self.frames.cancel();
                self.running.on(Event::Lost(failure))
            }
            Ok(Rest::Over(last)) => {
                self.next = Next::Last(last);
                self.running.on(Event::Ended)
            }
            Err(bound) => match self.running.on(Event::Failed(failure)) {
                Effect::Cut(cut) => Effect::Cut(Cut { bound: Some(bound), ..cut }),
                effect => effect,
            },
        }
    }

    /// The first piece of the rest, or what there is instead.
    async fn go_on(&mut self) -> Result<Bytes, Effect> {
        loop {
            let effect = match &self.next {
                Next::GoOn(Effect::Probe(nodes)) => self.running.probe(nodes).await,
                Next::GoOn(Effect::Send { node, max_wait }) => {
                    let (node, max_wait, shared) = (*node, *max_wait, self.running.shared.clone());
                    let work = self.running.attempt().work(shared.now());
                    let transcript = self.transcript.as_mut().expect("without one nothing is gone on with");
                    let opening = go_on(&shared.agents, node, &self.payload, transcript, &work, max_wait);
                    match self.running.send(node, opening).await {
                        Ok((frames, first)) => {
                            (self.frames, self.node, self.next) = (frames, node, Next::Read);
                            self.found_frozen = shared.found_frozen.subscribe();
                            return Ok(first);
                        }
                        Err(effect) => effect,
                    }
                }
                _ => return Err(Effect::Nothing),
            };
            match effect {
                effect @ (Effect::Probe(_) | Effect::Send { .. }) => self.next = Next::GoOn(effect),
                effect => return Err(effect),
            }
        }
    }

    /// The next piece, or what has become of the answer.
    async fn read(&mut self) -> Result<Bytes, Event> {
        let shared = self.running.shared.clone();
        let silent = shared.now() + SILENCE_MAX;
        let wakes = self.running.attempt().wakes().map_or(silent, |wakes| wakes.min(silent));
        tokio::select! {
            biased;
            piece = self.frames.next() => match piece {
                Some(Ok(piece)) => {
                    let now = shared.now();
                    shared.lock().pulses.heard(self.node, now);
                    Ok(piece)
                }
                Some(Err(failure)) => Err(Event::Failed(failure)),
                None => Err(Event::Ended),
            },
            () = shared.until_frozen(self.node, &mut self.found_frozen) => Err(Event::Failed(Failure::Frozen)),
            () = shared.sleep_until(Some(wakes)) => Err(match shared.now() >= silent {
                true => Event::Failed(Failure::Broken("nothing came any more".into())),
                false => Event::Tick,
            }),
        }
    }
}

impl<A, H> Clone for Handle<A, H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A, H> fmt::Debug for Handle<A, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl<A: Agents, H: Hosts> fmt::Debug for Answer<A, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("node", &self.node).field("sends", &self.sends).finish_non_exhaustive()
    }
}
