//! Nodes in memory that can die, hang and fail, and that notice when a request is with two of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dispatch::{Agents, Cause, Failure, Frames, Hosts, Refusal, Rest, Transcript};
use scheduler::{Estimate, Facts, Fleet, ModelKey, Moment, Promise, Seconds, Work};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};
use types::NodeId;

pub(crate) const MODEL: ModelKey = ModelKey::from_bytes([1; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// Refuses connections; those that stood are broken.
    Dead,
    /// Connections stand, and nothing comes.
    Frozen,
    /// Answers new requests with 500.
    Failing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) slots: u16,
    pub(crate) queue_max: usize,
    pub(crate) prefill: Duration,
    pub(crate) step: Duration,
    pub(crate) tokens: u32,
    /// Promises this wait whatever the queue is.
    pub(crate) claimed_wait: Option<Seconds>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) shape: Shape,
    health: watch::Sender<Health>,
    /// How often what runs its models has died.
    crashes: watch::Sender<u32>,
    slots: Semaphore,
    /// Held by whoever waits in the queue.
    inside: Mutex<usize>,
}

#[derive(Debug)]
pub(crate) struct Mesh {
    nodes: HashMap<NodeId, Node>,
    fleet: Mutex<Fleet>,
    pub(crate) books: Mutex<Books>,
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Which node has the request now.
    active: HashMap<u64, NodeId>,
    /// Requests that reached a node, by whatever way they ended but for refusals.
    pub(crate) taken: u32,
    /// How often an answer was given to its end.
    pub(crate) whole: HashMap<u64, u32>,
    /// Pieces that were read from a node.
    pub(crate) pieces: u32,
}

pub(crate) fn node(id: u8) -> NodeId {
    NodeId::from_public_key([id; 32])
}

pub(crate) const SHAPE: Shape = Shape {
    slots: 1,
    queue_max: 100,
    prefill: Duration::from_millis(100),
    step: Duration::from_millis(10),
    tokens: 20,
    claimed_wait: None,
};

impl Mesh {
    /// The first one is node 1.
    pub(crate) fn new(shapes: impl IntoIterator<Item = Shape>) -> Arc<Self> {
        let (mut nodes, mut fleet) = (HashMap::new(), Fleet::default());
        for (id, shape) in (1..).zip(shapes) {
            let facts = Facts {
                resident: Some(4096),
                slots: shape.slots,
                free_slots: shape.slots,
                wait: Seconds::ZERO,
                load: Seconds::new(8.0),
                prefill_rate: 1000.0,
                step: shape.step.into(),
            };
            fleet.hear(node(id), facts, Seconds::ZERO, Moment::default());
            let slots = Semaphore::new(shape.slots.into());
            nodes.insert(
                node(id),
                Node {
                    shape,
                    health: watch::Sender::new(Health::Well),
                    crashes: watch::Sender::new(0),
                    slots,
                    inside: Mutex::new(0),
                },
            );
        }
        Arc::new(Self { nodes, fleet: Mutex::new(fleet), books: Mutex::default() })
    }

    pub(crate) fn make(&self, id: u8, health: Health) {
        self.nodes[&node(id)].health.send_replace(health);
    }

    /// What it runs is lost; it takes new requests at once.
    pub(crate) fn crash(&self, id: u8) {
        self.nodes[&node(id)].crashes.send_modify(|crashes| *crashes += 1);
    }

    pub(crate) fn health(&self, id: u8) -> Health {
        *self.nodes[&node(id)].health.borrow()
    }

    /// Requests that some node has now.
    pub(crate) fn active(&self) -> usize {
        self.books().active.len()
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

impl Node {
    fn promise(&self) -> Promise {
        let honest = self.honest();
        let wait = self.shape.claimed_wait.unwrap_or(honest.estimate.wait);
        Promise { estimate: Estimate { wait, ..honest.estimate }, ..honest }
    }

    fn honest(&self) -> Promise {
        let queue = self.inside.lock().unwrap().saturating_sub(usize::from(self.shape.slots) - 1);
        let decode = Seconds::from(self.shape.step * self.shape.tokens);
        let prefill = Seconds::from(self.shape.prefill);
        let wait = (prefill + decode) * (queue as f32 / f32::from(self.shape.slots));
        let estimate = Estimate { wait, prefill, decode, ..Estimate::default() };
        Promise { estimate, free_slots: self.slots.available_permits() as u16 }
    }

    /// Answers in no time unless it is ill.
    async fn answers(&self) -> Result<(), Failure> {
        let health = *self.health.subscribe().wait_for(|health| *health != Health::Frozen).await.unwrap();
        if health == Health::Dead { Err(Failure::Unreachable("connection refused".into())) } else { Ok(()) }
    }

    async fn until_lost(&self, crashes: u32) -> Failure {
        let (mut health, mut now) = (self.health.subscribe(), self.crashes.subscribe());
        tokio::select! {
            dead = health.wait_for(|health| *health == Health::Dead) => drop(dead.unwrap()),
            crashed = now.wait_for(|now| *now != crashes) => drop(crashed.unwrap()),
        }
        Failure::Broken("connection reset".into())
    }

    async fn until_thawed(&self) {
        self.health.subscribe().wait_for(|health| *health != Health::Frozen).await.unwrap();
    }
}

/// A request that is with a node, from its arrival until it is dropped.
struct Visit {
    mesh: Arc<Mesh>,
    node: NodeId,
    request: u64,
}

impl Visit {
    fn new(mesh: &Arc<Mesh>, node: NodeId, request: u64) -> Self {
        let before = mesh.books().active.insert(request, node);
        assert_eq!(before, None, "request {request} is with two nodes");
        *mesh.nodes[&node].inside.lock().unwrap() += 1;
        Self { mesh: mesh.clone(), node, request }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.mesh.books().active.remove(&self.request);
        *self.mesh.nodes[&self.node].inside.lock().unwrap() -= 1;
    }
}

pub(crate) struct Stream {
    visit: Option<Visit>,
    status: u16,
    /// Of its node, when it began.
    crashes: u32,
    said: u32,
    /// It has not said its first piece of a rest.
    goes_on: bool,
    due: Instant,
}

#[derive(Debug, Clone)]
pub(crate) struct Net {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) kept: Kept,
}

/// What can be made of an answer that broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Nothing,
    /// Its rest can be asked for.
    Told,
    /// So it was said, but it cannot.
    Bound,
    /// The first node that goes on says something else.
    Contradicted,
}

/// Counts what the client was told.
#[derive(Debug)]
pub(crate) struct Told {
    pieces: u32,
    kept: Kept,
    is_over: bool,
}

impl Transcript for Told {
    fn tell(&mut self, piece: Bytes) -> Result<Bytes, Failure> {
        if self.kept == Kept::Contradicted && self.pieces > 0 && piece.ends_with(b" again") {
            self.kept = Kept::Told;
            return Err(Failure::Contradicted);
        }
        let piece = piece.strip_suffix(b" again").map_or(piece.clone(), Bytes::copy_from_slice);
        self.pieces += 1;
        self.is_over = self.pieces == SHAPE.tokens;
        Ok(piece)
    }

    fn is_over(&self) -> bool {
        self.is_over
    }

    fn rest(&mut self) -> Result<Rest, Cause> {
        if self.kept == Kept::Bound { Err("it is half a JSON".into()) } else { Ok(Rest::Asked) }
    }
}

impl Agents for Net {
    type Request = u64;
    type Answer = Stream;
    type Transcript = Told;

    async fn probe(&self, node: NodeId, _: &Work, _: Duration) -> Result<Promise, Failure> {
        let node = &self.mesh.nodes[&node];
        node.answers().await?;
        let promise = node.promise();
        if *node.inside.lock().unwrap() >= usize::from(node.shape.slots) + node.shape.queue_max {
            return Err(Failure::Refused(Refusal::Full { wait: promise.estimate.wait }));
        }
        Ok(promise)
    }

    async fn look(&self, node: NodeId) -> bool {
        self.mesh.nodes[&node].answers().await.is_ok()
    }

    fn transcript(&self, _: &u64) -> Option<Told> {
        (self.kept != Kept::Nothing).then_some(Told { pieces: 0, kept: self.kept, is_over: false })
    }

    async fn go_on(
        &self,
        node: NodeId,
        request: &u64,
        told: &mut Told,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> Result<Stream, Failure> {
        let mut stream = self.open(node, request, work, max_wait).await?;
        stream.said = told.pieces;
        stream.goes_on = true;
        Ok(stream)
    }

    async fn open(&self, id: NodeId, request: &u64, _: &Work, max_wait: Option<Duration>) -> Result<Stream, Failure> {
        let node = &self.mesh.nodes[&id];
        if *node.health.borrow() == Health::Dead {
            return Err(Failure::Unreachable("connection refused".into()));
        }
        let honest = node.honest();
        if max_wait.is_some_and(|max| honest.estimate.wait > max.into()) {
            return Err(Failure::Refused(Refusal::Wait(honest)));
        }
        self.mesh.books().taken += 1;
        let visit = Visit::new(&self.mesh, id, *request);
        let crashes = *node.crashes.borrow();
        let start = async {
            node.until_thawed().await;
            if *node.health.borrow() == Health::Failing {
                return 500;
            }
            // Given back where the stream is dropped.
            node.slots.acquire().await.unwrap().forget();
            200
        };
        let status = tokio::select! {
            biased;
            failure = node.until_lost(crashes) => return Err(failure),
            status = start => status,
        };
        let mut stream = Stream { visit: Some(visit), status, crashes, said: 0, goes_on: false, due: Instant::now() };
        if status == 200 {
            tokio::select! {
                biased;
                failure = node.until_lost(crashes) => return Err(failure),
                () = async { sleep(node.shape.prefill).await; node.until_thawed().await } => {}
            }
            stream.due = Instant::now();
        }
        Ok(stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Frames for Stream {
    fn status(&self) -> u16 {
        self.status
    }

    /// Numbered tokens, each with its node's number.
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        let visit = self.visit.as_ref().expect("nobody reads what was cancelled");
        let node = &visit.mesh.nodes[&visit.node];
        if self.status != 200 {
            self.said += 1;
            return (self.said == 1).then(|| Ok(Bytes::from_static(b"out of memory")));
        }
        tokio::select! {
            biased;
            failure = node.until_lost(self.crashes) => return Some(Err(failure)),
            () = async { sleep_until(self.due).await; node.until_thawed().await } => {}
        }
        let mut books = visit.mesh.books();
        if self.said == node.shape.tokens {
            *books.whole.entry(visit.request).or_default() += 1;
            return None;
        }
        books.pieces += 1;
        self.due = Instant::now() + node.shape.step;
        self.said += 1;
        let again = if std::mem::take(&mut self.goes_on) { " again" } else { "" };
        Some(Ok(Bytes::from(format!("{} {}{again}", visit.node, self.said - 1))))
    }

    fn cancel(&mut self) {
        if let Some(visit) = self.visit.take()
            && self.status == 200
        {
            visit.mesh.nodes[&visit.node].slots.add_permits(1);
        }
    }
}

/// What vitals would say: all nodes hold the model, whatever has become of them since. The worst case.
#[derive(Debug, Clone)]
pub(crate) struct View(pub(crate) Arc<Mesh>);

impl Hosts for View {
    fn with<T>(&self, model: ModelKey, see: impl FnOnce(&mut Fleet) -> T) -> T {
        if model == MODEL { see(&mut self.0.fleet.lock().unwrap()) } else { see(&mut Fleet::default()) }
    }

    fn is_missed(&self, _: NodeId) -> bool {
        false
    }
}
