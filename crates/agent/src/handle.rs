//! What others call. State lies behind a lock that is held for microseconds and never across an await, not behind a
//! channel: a probe is answered without waking anybody, and a request that is dropped has left when the drop returns.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use ollama::{Endpoint, seen};
use scheduler::{ModelKey, Moment, Promise, Work};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::backend::{self, Backend, FindWay};
use crate::desk::{Action, Ask, Care, Config, Desk, Ending, Facts, Refusal, Start, Waited};
use crate::error::Error;
use crate::lines::Lines;
use crate::state::State;
use crate::task::Task;
use crate::{Ticket, pool};

#[derive(Debug, Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    inside: Mutex<Inside>,
    pub(crate) backend: Backend,
    start: Instant,
    /// Something changed that the task should look at before its time.
    pub(crate) nudge: Notify,
    /// The next look is to ask what there is.
    pub(crate) list_wanted: AtomicBool,
    pub(crate) looks: watch::Sender<Looks>,
}

/// How often the backend was asked what it lists, answered or not.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Looks {
    pub(crate) begun: u64,
    /// The number of the last one that is over.
    pub(crate) done: u64,
}

#[derive(Debug)]
struct Inside {
    desk: Desk,
    /// One for each job of the desk, and removed with it.
    seats: BTreeMap<Ticket, Signals>,
    /// What the task waits for; before its first round nothing is.
    awaited: Option<Care>,
}

/// Receivers may be gone; then nobody wants to know.
#[derive(Debug)]
struct Signals {
    fate: Option<oneshot::Sender<Result<Start, Refusal>>>,
    lost: Option<oneshot::Sender<String>>,
}

/// What a model is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Generate,
    Chat,
    Embed,
    Embeddings,
}

#[derive(Debug)]
pub struct Request {
    pub route: Route,
    pub ask: Ask,
    /// As the client sent it, or a gateway wrote it.
    pub body: Bytes,
}

/// What a backend is asked beside inference. It takes no place in the queue: it is answered from memory or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// What there is.
    Tags,
    /// What is loaded.
    Loaded,
    /// One model, as the client asked for it.
    Show(Bytes),
}

/// An answer that has begun. Dropped before its end, it closes the backend's connection, and the backend stops.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    /// The `num_ctx` that was set in place of the request's, for the header `omx-options`.
    pub raised_context: Option<u32>,
    pub waited: Option<Waited>,
    seat: Seat,
    body: pool::Answer<Endpoint>,
    lines: Lines,
    is_lines: bool,
    between_max: Duration,
    pieces: u32,
    /// The last line, or the beginning of an answer that is no stream.
    tail: Vec<u8>,
    is_over: bool,
}

/// A place in the queue, then in the backend. Given back when it is dropped.
#[derive(Debug)]
struct Seat {
    shared: Arc<Shared>,
    ticket: Ticket,
    fate: oneshot::Receiver<Result<Start, Refusal>>,
    lost: oneshot::Receiver<String>,
    ending: Ending,
}

/// An answer in one piece is read for its timings up to here; embeddings may be longer and then teach nothing.
const TAIL_BYTES_MAX: usize = 1 << 20;
/// Told at the end of an answer that has none.
const STOPPED: &[u8] = b"{\"error\":\"the backend ended its answer without a last line\"}\n";

/// The agent before the backend that `find` leads to. Nothing happens until the task runs.
pub fn new(config: Config, find: FindWay) -> (Handle, Task) {
    let inside = Mutex::new(Inside { desk: Desk::new(config), seats: BTreeMap::new(), awaited: None });
    let backend = Backend::new(find);
    let handle = Handle(Arc::new(Shared {
        inside,
        backend,
        start: Instant::now(),
        nudge: Notify::new(),
        list_wanted: AtomicBool::new(false),
        looks: watch::Sender::default(),
    }));
    (handle.clone(), Task::new(handle.0))
}

impl Route {
    pub const fn path(self) -> &'static str {
        match self {
            Self::Generate => "/api/generate",
            Self::Chat => "/api/chat",
            Self::Embed => "/api/embed",
            Self::Embeddings => "/api/embeddings",
        }
    }

    pub(crate) fn of_path(path: &str) -> Option<Self> {
        [Self::Generate, Self::Chat, Self::Embed, Self::Embeddings].into_iter().find(|route| route.path() == path)
    }
}

impl Handle {
    /// What a request would meet here; counted as taken for `hold`.
    pub fn probe(&self, work: &Work, hold: Duration) -> Result<Promise, Refusal> {
        let now = self.0.now();
        self.0.lock().desk.probe(now, work, hold)
    }

    /// Whether a place is kept here for this since a probe.
    pub fn has_promised(&self, work: &Work) -> bool {
        let now = self.0.now();
        self.0.ask(|desk| desk.has_promised(now, work))
    }

    /// What it would tell the mesh about itself.
    pub fn facts(&self) -> Facts {
        let now = self.0.now();
        self.0.ask(|desk| desk.facts(now))
    }

    /// The backend's own answer, in one piece.
    pub async fn question(&self, question: Question) -> Result<(StatusCode, Bytes), Error> {
        let asked = match question {
            Question::Tags => self.0.backend.ask(hyper::Method::GET, "/api/tags", Bytes::new()),
            Question::Loaded => self.0.backend.ask(hyper::Method::GET, "/api/ps", Bytes::new()),
            Question::Show(body) => self.0.backend.ask(hyper::Method::POST, "/api/show", body),
        };
        asked.await
    }

    /// Looks anew at what the backend lists and returns when it is known, or that the backend does not answer: models
    /// come and go by hand, and somebody just asked for one that was not there. Takes a moment where that was done a
    /// moment ago.
    pub async fn refresh(&self) {
        let mut looks = self.0.looks.subscribe();
        // One that is under way may have read the list already.
        let begun = looks.borrow_and_update().begun;
        self.0.list_wanted.store(true, Ordering::Release);
        self.0.nudge.notify_one();
        // The sender is in `self`; without a task there is no look to wait for, which the caller's limit ends.
        let _ = looks.wait_for(|looks| looks.done > begun).await;
    }

    pub fn state(&self) -> State {
        self.0.lock().desk.state()
    }

    /// Requests inside the backend.
    pub fn running(&self) -> usize {
        self.0.lock().desk.running()
    }

    pub fn waiting(&self) -> usize {
        self.0.lock().desk.waiting()
    }

    /// How many it runs at once, as far as is known; `None` where the backend has no such model.
    pub fn slots(&self, model: ModelKey) -> Option<u16> {
        self.0.lock().desk.slots(model)
    }

    /// The context of each slot, where the model is loaded and the backend has said it.
    pub fn loaded_context(&self, model: ModelKey) -> Option<u32> {
        self.0.ask(|desk| desk.loaded_context(model))
    }

    /// What the backend lists under this full name, as in `llama3:latest`.
    pub fn model(&self, name: &str) -> Option<ModelKey> {
        self.0.ask(|desk| desk.model(name))
    }

    /// Takes nothing new, or takes again; what is inside goes on.
    pub fn drain(&self, draining: bool) {
        let actions = |desk: &mut Desk, now| {
            desk.drain(draining);
            desk.tick(now)
        };
        self.0.act(actions);
    }

    /// Waits for its turn and returns with the head of the answer. Dropped at any time it is cancelled.
    pub async fn run(&self, request: Request) -> Result<Answer, Error> {
        let Request { route, ask, body } = request;
        let asked = seen::num_ctx(&body);
        let mut seat = self.0.enter(ask, asked)?;
        let start = match (&mut seat.fate).await {
            Ok(fate) => fate.map_err(Error::Refused)?,
            Err(_) => return Err(Error::GivenUp("the agent forgot it".to_owned())),
        };
        let raised = start.loaded_context.and_then(|loaded| loaded.raises(asked));
        let raised = raised.and_then(|context| Some((context, seen::with_num_ctx(&body, context)?)));
        let (raised_context, body) = match raised {
            Some((context, body)) => (Some(context), Bytes::from(body)),
            None => (None, body),
        };
        let Seat { shared, lost, .. } = &mut seat;
        let sent = shared.backend.send(hyper::Method::POST, route.path(), body);
        let response = tokio::select! {
            biased;
            why = lost => return Err(Error::GivenUp(why.unwrap_or_default())),
            sent = timeout(start.first_byte_max, sent) => match sent {
                Ok(Ok(response)) => response,
                Ok(Err(backend::Error::NoWay(why))) => return Err(Error::NoWay(why)),
                Ok(Err(backend::Error::Send(error))) => return Err(Error::Unreachable(error)),
                Err(_) => return Err(Error::Silent(start.first_byte_max)),
            },
        };
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            let ticket = seat.ticket;
            seat.shared.act(|desk, now| desk.spoke(now, ticket));
        }
        let content_type = head.headers.get(CONTENT_TYPE).cloned();
        let is_lines = content_type.as_ref().is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-ndjson"));
        Ok(Answer {
            status: head.status,
            content_type,
            raised_context,
            waited: start.waited,
            seat,
            body,
            lines: Lines::default(),
            is_lines,
            between_max: start.between_max,
            pieces: 0,
            tail: Vec::new(),
            is_over: false,
        })
    }
}

impl Answer {
    /// The next line of a stream with its end, or the next bytes of what is none; `None` at the end. After an error
    /// nothing follows. May be dropped at any time, nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if self.is_over {
            return None;
        }
        let next = self.read().await;
        if let None | Some(Err(_)) = next {
            self.is_over = true;
        }
        next
    }

    async fn read(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return Some(self.line(line)),
                Ok(None) => {}
                Err(_) => return Some(Err(Error::Garbage("a line without end"))),
            }
            let more = tokio::select! {
                biased;
                more = timeout(self.between_max, self.body.bytes()) => more,
                why = &mut self.seat.lost => return Some(Err(Error::GivenUp(why.unwrap_or_default()))),
            };
            match more {
                Err(_) => return Some(Err(Error::Silent(self.between_max))),
                Ok(Some(Err(error))) => return Some(Err(Error::Broken(error))),
                Ok(Some(Ok(bytes))) if self.is_lines => {
                    self.seat.shared.lock().desk.heard();
                    self.lines.push(bytes);
                }
                Ok(Some(Ok(bytes))) => {
                    if self.tail.len() + bytes.len() <= TAIL_BYTES_MAX {
                        self.tail.extend_from_slice(&bytes);
                    }
                    return Some(Ok(bytes));
                }
                Ok(None) => {
                    if self.lines.rest().is_some() {
                        return Some(Err(Error::Garbage("half a line at the end")));
                    }
                    return self.ended().map(Ok);
                }
            }
        }
    }

    fn line(&mut self, line: Bytes) -> Result<Bytes, Error> {
        if !line.starts_with(b"{") {
            return Err(Error::Garbage("a line that is no object"));
        }
        self.pieces = self.pieces.saturating_add(1);
        self.seat.ending = Ending::Cut { written: self.pieces };
        self.tail.clear();
        self.tail.extend_from_slice(&line);
        Ok(line)
    }

    /// What is still to be said where a stream just stops: told on, nobody could tell that from an end. It is no failure
    /// of the node's, and another one would do the same: Ollama so ends a model that says one token for ever.
    fn ended(&mut self) -> Option<Bytes> {
        let last = serde_json::from_slice::<seen::Last>(&self.tail).unwrap_or_default();
        let is_end = last.done || self.tail.starts_with(b"{\"error\":");
        if self.is_lines && self.status.is_success() && !is_end {
            self.is_over = true;
            self.seat.leave();
            return Some(Bytes::from_static(STOPPED));
        }
        // An error, or an end without figures, teaches nothing.
        if !last.total_duration.is_zero() {
            self.seat.ending = Ending::Done(last);
        }
        self.seat.leave();
        None
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Moment {
        Moment::since_start(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the desk decide, and tells those it decided about.
    pub(crate) fn act(&self, decide: impl FnOnce(&mut Desk, Moment) -> Vec<Action>) {
        let now = self.now();
        let mut inside = self.lock();
        let actions = decide(&mut inside.desk, now);
        inside.tell(actions);
        self.wake_for(inside);
    }

    /// Wakes the task where it would come too late. It is another thread's as a rule, and requests come and go a
    /// thousand times between two of its rounds.
    fn wake_for(&self, mut inside: MutexGuard<'_, Inside>) {
        let care = inside.desk.care();
        if inside.awaited.is_some_and(|awaited| care.is_sooner_than(&awaited)) {
            inside.awaited = Some(care);
            drop(inside);
            self.nudge.notify_one();
        }
    }

    /// What the task is to wait for from here on.
    pub(crate) fn await_care(&self) -> Care {
        let mut inside = self.lock();
        let care = inside.desk.care();
        inside.awaited = Some(care);
        care
    }

    pub(crate) fn ask<T>(&self, read: impl FnOnce(&Desk) -> T) -> T {
        read(&self.lock().desk)
    }

    fn enter(self: &Arc<Self>, ask: Ask, asked_context: Option<u64>) -> Result<Seat, Error> {
        let now = self.now();
        let (fate_sender, fate) = oneshot::channel();
        let (lost_sender, lost) = oneshot::channel();
        let mut inside = self.lock();
        let (ticket, actions) = inside.desk.enter(now, ask, asked_context).map_err(Error::Refused)?;
        inside.seats.insert(ticket, Signals { fate: Some(fate_sender), lost: Some(lost_sender) });
        inside.tell(actions);
        self.wake_for(inside);
        Ok(Seat { shared: self.clone(), ticket, fate, lost, ending: Ending::Cut { written: 0 } })
    }
}

impl Inside {
    fn tell(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { ticket, start } => self.decide(ticket, Ok(start)),
                Action::Refuse { ticket, why } => self.decide(ticket, Err(why)),
                Action::GiveUp { ticket, why } => {
                    let lost = self.seats.get_mut(&ticket).and_then(|signals| signals.lost.take());
                    if let Some(lost) = lost {
                        let _ = lost.send(why);
                    }
                }
            }
        }
    }

    /// Whoever has gone meanwhile gives its place back itself, when its seat is dropped.
    fn decide(&mut self, ticket: Ticket, fate: Result<Start, Refusal>) {
        if let Some(sender) = self.seats.get_mut(&ticket).and_then(|signals| signals.fate.take()) {
            let _ = sender.send(fate);
        }
    }
}

impl Seat {
    fn leave(&mut self) {
        let now = self.shared.now();
        let mut inside = self.shared.lock();
        if inside.seats.remove(&self.ticket).is_some() {
            let actions = inside.desk.end(now, self.ticket, &self.ending);
            inside.tell(actions);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}
