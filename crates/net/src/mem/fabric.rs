//! The wires between nodes, and the hands that cut them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use types::NodeId;

use super::task::{Delivery, Port, Task};
use crate::clock::Clock;
use crate::handle::{Inner, Net, Task as NetTask};
use crate::random::Random;
use crate::reception::Reception;

/// Deliveries that wait for one node's task. One more is lost, as a full socket buffer would lose it.
const INBOX_MAX: usize = 4096;

/// The network all nodes of one test hang on. Cheap to clone.
#[derive(Clone)]
pub struct Fabric(Arc<Shared>);

struct Shared {
    clock: Clock,
    state: Mutex<State>,
    /// Told at each change of nodes, cuts and pauses.
    changed: Notify,
}

struct State {
    random: Random,
    latency: RangeInclusive<Duration>,
    loss: f64,
    nodes: BTreeMap<NodeId, Node>,
    addresses: BTreeMap<SocketAddr, NodeId>,
    cut: BTreeSet<(NodeId, NodeId)>,
    paused: BTreeSet<NodeId>,
    stats: Stats,
    trace: u64,
}

struct Node {
    address: SocketAddr,
    /// `None` while the node is down. It keeps its address.
    inbox: Option<mpsc::Sender<Delivery>>,
    /// Tells a restarted node from what it was before.
    generation: u64,
}

/// What has happened so far. A test that switches a fault on should see its count rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests, answers, stream openings and gossip messages that set out.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost, or for streams held up, at a cut.
    pub cut: u64,
    /// Held up at a paused node.
    pub held: u64,
    /// For a node that was down or whose inbox was full.
    pub refused: u64,
}

/// What becomes of a message that sets out.
pub(super) enum Fate {
    Lost,
    Arrives { after: Duration },
}

impl Fabric {
    /// Without faults: no loss, no latency.
    pub fn new(seed: u64, clock: Clock) -> Self {
        let state = State {
            random: Random::new(seed),
            latency: Duration::ZERO..=Duration::ZERO,
            loss: 0.0,
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            cut: BTreeSet::new(),
            paused: BTreeSet::new(),
            stats: Stats::default(),
            trace: 0xcbf2_9ce4_8422_2325,
        };
        Self(Arc::new(Shared { clock, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Puts a node on the network. For a node that was there before this is its restart: same address, all else new.
    pub fn join(&self, id: NodeId) -> (Net, NetTask) {
        let (inbox, deliveries) = mpsc::channel(INBOX_MAX);
        let mut state = self.state();
        let number = u32::try_from(state.nodes.len()).expect("fewer than four billion nodes");
        let address = SocketAddr::from((Ipv4Addr::from(0x0a00_0001_u32 + number), 11437));
        let node = state.nodes.entry(id).or_insert(Node { address, inbox: None, generation: 0 });
        node.inbox = Some(inbox);
        node.generation += 1;
        let (address, generation) = (node.address, node.generation);
        state.addresses.insert(address, id);
        drop(state);
        self.0.changed.notify_waiters();
        let reception = Reception::new(id, self.0.clock.clone());
        let port = Port { fabric: self.clone(), reception: reception.clone(), address };
        let task = Task { port: port.clone(), deliveries, generation };
        (Net::new(reception, Arc::new(port)), NetTask(Inner::Mem(task)))
    }

    /// Nothing gets from `from` to `to` any more; the way back is not touched. Streams stall, the rest is lost.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.change(|state| _ = state.cut.insert((from, to)));
    }

    /// Cuts both ways between this node and every other.
    pub fn isolate(&self, id: NodeId) {
        self.change(|state| {
            let others: Vec<_> = state.nodes.keys().copied().filter(|other| *other != id).collect();
            state.cut.extend(others.into_iter().flat_map(|other| [(id, other), (other, id)]));
        });
    }

    /// Undoes every cut.
    pub fn heal(&self) {
        self.change(|state| state.cut.clear());
    }

    /// Holds up everything from and to this node until it resumes; then all of it arrives.
    pub fn pause(&self, id: NodeId) {
        self.change(|state| _ = state.paused.insert(id));
    }

    pub fn resume(&self, id: NodeId) {
        self.change(|state| _ = state.paused.remove(&id));
    }

    /// For each message its own, so messages overtake each other; the bytes of a stream do not.
    pub fn set_latency(&self, one_way: RangeInclusive<Duration>) {
        self.change(|state| state.latency = one_way);
    }

    /// The part of messages that is lost, `0.0..=1.0`. Bytes of a stream are not: a real one repeats them.
    pub fn set_loss(&self, part: f64) {
        self.change(|state| state.loss = part);
    }

    pub fn stats(&self) -> Stats {
        self.state().stats
    }

    /// A hash over every message that set out: when, from whom, to whom, how long, what became of it. Equal seeds on a
    /// virtual clock give equal traces.
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    pub(super) fn changed(&self) -> &Notify {
        &self.0.changed
    }

    pub(super) fn at(&self, address: &SocketAddr) -> Option<NodeId> {
        self.state().addresses.get(address).copied()
    }

    pub(super) fn linked(&self, a: &NodeId, b: &NodeId) -> bool {
        let state = self.state();
        let up = |id| state.nodes.get(id).is_some_and(|node| node.inbox.is_some()) && !state.paused.contains(id);
        up(a) && up(b) && !state.cut.contains(&(*a, *b)) && !state.cut.contains(&(*b, *a))
    }

    pub(super) fn inbox(&self, id: &NodeId) -> Option<mpsc::Sender<Delivery>> {
        self.state().nodes.get(id)?.inbox.clone()
    }

    pub(super) fn count_refused(&self) {
        self.state().stats.refused += 1;
    }

    pub(super) fn set_out(&self, from: NodeId, to: NodeId, bytes: usize) -> Fate {
        let now = self.0.clock.elapsed();
        let mut state = self.state();
        state.stats.sent += 1;
        let lost = state.random.fraction() < state.loss;
        let after = state.draw_latency();
        state.record(now, from, to, bytes, lost, after);
        if lost {
            state.stats.lost += 1;
            return Fate::Lost;
        }
        Fate::Arrives { after }
    }

    /// Carries a message over the wire. `false` where a cut swallowed it.
    pub(super) async fn carry(&self, from: NodeId, to: NodeId, after: Duration) -> bool {
        self.0.clock.sleep(after).await;
        self.while_paused(from, to).await;
        let mut state = self.state();
        let cut = state.cut.contains(&(from, to));
        state.stats.cut += u64::from(cut);
        !cut
    }

    /// Carries some bytes of a stream: they wait at a cut, as a real connection would repeat them.
    pub(super) async fn carry_bytes(&self, from: NodeId, to: NodeId) {
        let after = self.state().draw_latency();
        self.0.clock.sleep(after).await;
        self.while_paused(from, to).await;
        let cut = |state: &State| state.cut.contains(&(from, to));
        self.wait_while(cut, |stats| stats.cut += 1).await;
    }

    pub(super) fn left(&self, id: NodeId, generation: u64) {
        self.change(|state| {
            if let Some(node) = state.nodes.get_mut(&id).filter(|node| node.generation == generation) {
                node.inbox = None;
            }
        });
    }

    async fn while_paused(&self, from: NodeId, to: NodeId) {
        let paused = |state: &State| state.paused.contains(&from) || state.paused.contains(&to);
        self.wait_while(paused, |stats| stats.held += 1).await;
    }

    async fn wait_while(&self, held: impl Fn(&State) -> bool, count: impl FnOnce(&mut Stats)) {
        let mut count = Some(count);
        loop {
            // Asked for first: a change between looking and waiting is not missed.
            let changed = self.0.changed.notified();
            {
                let mut state = self.state();
                if !held(&state) {
                    return;
                }
                if let Some(count) = count.take() {
                    count(&mut state.stats);
                }
            }
            changed.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn draw_latency(&mut self) -> Duration {
        let (low, high) = (*self.latency.start(), *self.latency.end());
        low + high.saturating_sub(low).mul_f64(self.random.fraction())
    }

    fn record(&mut self, now: Duration, from: NodeId, to: NodeId, bytes: usize, lost: bool, after: Duration) {
        let times = [now.as_nanos() as u64, after.as_nanos() as u64, bytes as u64, u64::from(lost)];
        let words = times.map(u64::to_be_bytes);
        let all = words.as_flattened().iter().chain(from.public_key()).chain(to.public_key());
        // FNV-1a: it only has to tell two runs apart.
        self.trace = all.fold(self.trace, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Fabric").field("stats", &state.stats).field("trace", &state.trace).finish_non_exhaustive()
    }
}
