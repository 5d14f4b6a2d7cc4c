//! Tells the other nodes what this one has and hears what they have: `vitals` over streams, one to each peer.
//!
//! Beats come four times a second, so a message costs one write on a stream that stays open, and nothing waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::Cluster;
use net::{Allowed, Frames, Keypair, Net, Protocol, Roles, Services, StreamSpec};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use types::NodeId;
use vitals::{BEAT, Effect, Event, Facts, Gossip, Keys, Message, Signature, Spread};

use super::Dispatcher;
use super::enrolled::Enrolled;
use super::here::Here;
use super::hosts::Hosts;
use crate::parts::pass_on;

const SPEC: StreamSpec = StreamSpec {
    protocol: Protocol::new("/omx/vitals/1"),
    allowed: Allowed::Members(Roles::ALL),
    // One, and the one after a reconnection that the old one has not noticed yet.
    concurrency_per_peer: 2,
    concurrency_total: 8_192,
};

/// Messages from all peers that wait to be looked at. Beyond it the peers' streams wait.
const INBOX_MAX: usize = 1_024;
/// Messages for one peer that wait to be sent. What comes beyond it is lost, as the protocol expects.
const OUTBOX_MAX: usize = 64;
/// Between two attempts to reach a peer.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(250);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A peer that takes no byte for so long is dialled anew.
const WRITE_MAX: Duration = Duration::from_secs(3);
/// Until it was measured.
const DISTANCE_UNKNOWN: Duration = Duration::from_millis(50);
/// Ticks between two looks at what does not change by the moment: members, connections, distances, what this node has.
const LOOK_EVERY: u64 = 2;

type Received = (NodeId, Message);

/// Where the peers' messages arrive. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(mpsc::Sender<Received>);

/// Runs until it is dropped.
pub(crate) struct Task {
    cluster: Cluster,
    net: Net,
    here: Here,
    hosts: Hosts,
    enrolled: Enrolled,
    dispatcher: Dispatcher,
    gossip: Gossip,
    inbox: mpsc::Receiver<Received>,
    /// One for each peer that something was to be sent to, and ended with its membership.
    links: BTreeMap<NodeId, Link>,
    links_running: JoinSet<()>,
    connected: BTreeSet<NodeId>,
    distances: BTreeMap<NodeId, Duration>,
    drained: BTreeSet<NodeId>,
    ticks: u64,
    start: Instant,
}

#[derive(Debug)]
struct Link {
    outbox: mpsc::Sender<Arc<[u8]>>,
    task: AbortHandle,
}

/// The parts it is made of.
pub(crate) struct Parts {
    pub(crate) cluster: Cluster,
    pub(crate) net: Net,
    pub(crate) keypair: Keypair,
    pub(crate) here: Here,
    pub(crate) hosts: Hosts,
    pub(crate) dispatcher: Dispatcher,
    /// Milliseconds of the wall clock, at the start.
    pub(crate) incarnation: u64,
}

pub(crate) fn new(parts: Parts) -> (Inbox, Task) {
    let Parts { cluster, net, keypair, here, hosts, dispatcher, incarnation } = parts;
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let sign = move |bytes: &[u8]| {
        let (first, second) = keypair.sign(bytes).into();
        Signature(first, second)
    };
    let verify = |node, bytes: &[u8], signature: &Signature| {
        net::verify(node, bytes, &net::Signature::from((signature.0, signature.1)))
    };
    let keys = Keys { sign: Box::new(sign), verify: Box::new(verify) };
    let task = Task {
        gossip: Gossip::new(cluster.id(), cluster.mesh(), incarnation, keys),
        enrolled: Enrolled::new(cluster.clone(), here.clone(), hosts.clone()),
        cluster,
        net,
        here,
        hosts,
        dispatcher,
        inbox,
        links: BTreeMap::new(),
        links_running: JoinSet::new(),
        connected: BTreeSet::new(),
        distances: BTreeMap::new(),
        drained: BTreeSet::new(),
        ticks: 0,
        start: Instant::now(),
    };
    (Inbox(sender), task)
}

impl Inbox {
    pub(crate) fn services(&self, services: Services) -> Services {
        let inbox = self.clone();
        services.on_stream(SPEC, move |caller, stream| {
            let inbox = inbox.clone();
            Box::pin(async move {
                let mut frames = Frames::new(stream, <Message as codec::Record>::LIMIT);
                // Whoever sends what is no message loses its stream, and may try again.
                while let Ok(Some(bytes)) = frames.next().await {
                    let Ok(message) = codec::decode(&bytes) else { break };
                    if inbox.0.send((caller.id, message)).await.is_err() {
                        break;
                    }
                }
            })
        })
    }
}

enum Next {
    Tick,
    Received(NodeId, Message),
}

impl Task {
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(BEAT);
        // Beats that were slept through are not made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                _ = ticks.tick() => Next::Tick,
                Some((from, message)) = self.inbox.recv() => Next::Received(from, message),
            };
            match next {
                Next::Tick => self.tick(),
                Next::Received(from, message) => self.feed(Event::Received { from, message }),
            }
        }
    }

    fn tick(&mut self) {
        if self.ticks.is_multiple_of(LOOK_EVERY) {
            self.look();
            let facts = self.facts();
            // The own node is known best, and as it is now.
            self.hosts.hear(self.cluster.id(), &facts, Duration::ZERO, true);
            self.feed(Event::Facts(Box::new(facts)));
        }
        self.ticks += 1;
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the operating system has a random source");
        self.feed(Event::Tick { random: u64::from_ne_bytes(random) });
    }

    fn look(&mut self) {
        let me = self.cluster.id();
        let (members, drained) = self.cluster.view(|registry| {
            let members: BTreeSet<NodeId> = registry.members().map(|member| member.id).collect();
            let drained: BTreeSet<NodeId> =
                registry.members().filter(|member| member.drain).map(|member| member.id).collect();
            (members, drained)
        });
        if members != *self.gossip.table().members() {
            let gone: Vec<NodeId> = self.gossip.table().members().difference(&members).copied().collect();
            for node in gone {
                if let Some(link) = self.links.remove(&node) {
                    link.task.abort();
                }
                self.hosts.forget(node);
                self.dispatcher.forget(node);
            }
            self.feed(Event::Members(members.clone()));
            // Whoever is new is up until it is found missing.
            members
                .iter()
                .filter(|node| **node != me)
                .for_each(|node| self.hosts.set_up(*node, self.gossip.is_up(*node)));
        }
        if drained != self.drained {
            self.here.drain(drained.contains(&me));
            let changed: Vec<NodeId> = drained.symmetric_difference(&self.drained).copied().collect();
            self.drained = drained;
            changed.into_iter().for_each(|node| self.hear(node));
        }
        let peers = self.net.peers();
        let distances: BTreeMap<NodeId, Duration> =
            peers.iter().filter_map(|peer| Some((peer.id, peer.round_trip?))).collect();
        let before = std::mem::replace(&mut self.distances, distances);
        let changed = |(node, now): (&NodeId, &Duration)| {
            let moved = |before: &Duration| *now > *before * 2 || *now < *before / 2;
            before.get(node).is_none_or(moved).then_some(*node)
        };
        let changed: Vec<NodeId> = self.distances.iter().filter_map(changed).collect();
        changed.into_iter().for_each(|node| self.hear(node));
        let connected: BTreeSet<NodeId> = peers.iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
        let before = std::mem::replace(&mut self.connected, connected.clone());
        before.difference(&connected).for_each(|node| self.feed(Event::Lost(*node)));
        connected.difference(&before).for_each(|node| self.feed(Event::Connected(*node)));
        while let Some(ended) = self.links_running.try_join_next() {
            pass_on(ended);
        }
        self.enrolled.reconcile();
    }

    fn facts(&self) -> Facts {
        let (backends, models) = self.here.facts();
        Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            draining: self.drained.contains(&self.cluster.id()),
            backends,
            models,
            ..Facts::default()
        }
    }

    fn feed(&mut self, event: Event) {
        for effect in self.gossip.on(self.start.elapsed(), event) {
            match effect {
                Effect::Send { to, message } => self.send(to, &message),
                Effect::Fresh(node) => self.hear(node),
                Effect::Up(node) => {
                    self.hosts.set_up(node, true);
                    self.dispatcher.forget(node);
                    self.hear(node);
                }
                Effect::Down(node) => {
                    tracing::info!(%node, "a node is down");
                    self.hosts.set_up(node, false);
                }
                Effect::Blame(node, why) => tracing::warn!(%node, %why, "a node tells what is not so"),
            }
        }
    }

    /// Takes up what is known of a node.
    fn hear(&self, node: NodeId) {
        if let Some(known) = self.gossip.table().get(node) {
            let distance = self.distances.get(&node).copied().unwrap_or(DISTANCE_UNKNOWN);
            self.hosts.hear(node, &known.record.facts, distance, !self.drained.contains(&node));
        }
    }

    fn send(&mut self, to: NodeId, message: &Message) {
        let Ok(bytes) = codec::encode(message) else { return };
        let link = self.links.entry(to).or_insert_with(|| {
            let (outbox, to_send) = mpsc::channel(OUTBOX_MAX);
            let task = self.links_running.spawn(link(self.net.clone(), to, to_send));
            Link { outbox, task }
        });
        // Full: the peer takes nothing, and what it misses it will be told again.
        let _ = link.outbox.try_send(bytes.into());
    }
}

/// Sends to one peer for as long as somebody has something to send. What cannot be sent is lost.
async fn link(net: Net, to: NodeId, mut outbox: mpsc::Receiver<Arc<[u8]>>) {
    let mut pause = DIAL_PAUSE_MIN;
    while let Some(first) = outbox.recv().await {
        let Ok(stream) = net.connect(to, SPEC.protocol).await else {
            sleep(pause).await;
            pause = (pause * 2).min(DIAL_PAUSE_MAX);
            // What waited through the pause is old.
            while outbox.try_recv().is_ok() {}
            continue;
        };
        pause = DIAL_PAUSE_MIN;
        let mut frames = Frames::new(stream, 0);
        frames.queue(&first);
        loop {
            while let Ok(more) = outbox.try_recv() {
                frames.queue(&more);
            }
            match tokio::time::timeout(WRITE_MAX, frames.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
            match outbox.recv().await {
                Some(next) => frames.queue(&next),
                None => return,
            }
        }
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("links", &self.links.len()).finish_non_exhaustive()
    }
}
