//! Meshes of vitals on a bad network, in virtual time: everybody learns everything, who is dead is found dead in time,
//! and who lives is never called dead. A failure names its seed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use types::{MeshId, NodeId};
use vitals::{
    BEAT, Backend, BackendKind, BackendState, Effect, Event, Facts, Gossip, Keys, Log8, Message, Model, Signature,
    Spread,
};

const SEEDS: std::ops::Range<u64> = 1..4;
const SECOND: Duration = Duration::from_secs(1);

/// splitmix64: enough for a network's moods.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

enum What {
    Tick,
    Message(NodeId, Vec<u8>),
}

struct Mesh {
    random: Random,
    now: Duration,
    loss_percent: u64,
    direct_max: usize,
    nodes: BTreeMap<NodeId, Gossip>,
    dead: BTreeSet<NodeId>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    waiting: BTreeMap<u64, (NodeId, What)>,
    scheduled: u64,
    /// When who found whom to be down or up again.
    found: Vec<(Duration, NodeId, Effect)>,
    messages: u64,
    bytes: u64,
}

fn facts(number: u8) -> Facts {
    let model = |name: &str| Model {
        digest: [number; 16],
        name: name.to_owned(),
        backend: 0,
        resident: true,
        slots: 4,
        context: 8192,
        prefill: Log8::of(2_000.0),
        decode: Log8::of(60.0),
        load: Log8::of(8.0),
        free: 4,
        wait: Log8::of(0.0),
    };
    Facts {
        version: "0.1.0".to_owned(),
        disk_free: 400_000,
        vram_total: 24_576,
        vram_free: 12_000,
        backends: vec![Backend { kind: BackendKind::Ollama, state: BackendState::Up, version: "0.33.0".to_owned() }],
        models: vec![model("llama3.2:1b"), model("qwen3:8b")],
        ..Facts::default()
    }
}

/// Stands in for ed25519: whatever is changed shows.
fn sum(node: NodeId, bytes: &[u8]) -> Signature {
    let mut halves = [[0_u8; 32]; 2];
    for (at, byte) in node.public_key().iter().chain(bytes).enumerate() {
        let place = &mut halves[at % 2][at / 2 % 32];
        *place = place.rotate_left(3).wrapping_add(*byte);
    }
    Signature(halves[0], halves[1])
}

fn gossip(me: NodeId, incarnation: u64) -> Gossip {
    let keys = Keys {
        sign: Box::new(move |bytes| sum(me, bytes)),
        verify: Box::new(|node, bytes, signature| sum(node, bytes) == *signature),
    };
    Gossip::new(me, MeshId::from_bytes([1; 16]), incarnation, keys)
}

impl Mesh {
    fn new(seed: u64, size: u8, loss_percent: u64) -> Self {
        Self::with_direct_max(seed, size, loss_percent, 256)
    }

    fn with_direct_max(seed: u64, size: u8, loss_percent: u64, direct_max: usize) -> Self {
        println!("seed {seed}");
        let mut random = Random(seed);
        let ids: Vec<NodeId> =
            (0..size).map(|_| NodeId::from_public_key(std::array::from_fn(|_| random.next() as u8))).collect();
        let mut mesh = Self {
            random,
            now: Duration::ZERO,
            loss_percent,
            direct_max,
            nodes: BTreeMap::new(),
            dead: BTreeSet::new(),
            queue: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            scheduled: 0,
            found: Vec::new(),
            messages: 0,
            bytes: 0,
        };
        let members: BTreeSet<NodeId> = ids.iter().copied().collect();
        for (number, id) in ids.iter().enumerate() {
            mesh.start(*id, 1, number as u8, &members);
        }
        mesh
    }

    fn start(&mut self, id: NodeId, incarnation: u64, number: u8, members: &BTreeSet<NodeId>) {
        self.dead.remove(&id);
        self.nodes.insert(id, gossip(id, incarnation).with_direct_max(self.direct_max));
        self.event(id, Event::Members(members.clone()));
        self.event(id, Event::Facts(Box::new(facts(number))));
        let phase = Duration::from_micros(self.random.below(BEAT.as_micros() as u64));
        self.schedule(phase, id, What::Tick);
    }

    fn schedule(&mut self, after: Duration, to: NodeId, what: What) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now + after, self.scheduled)));
        self.waiting.insert(self.scheduled, (to, what));
    }

    fn event(&mut self, at: NodeId, event: Event) {
        let effects = self.nodes.get_mut(&at).unwrap().on(self.now, event);
        for effect in effects {
            match effect {
                Effect::Send { to, message } => self.send(at, to, &message),
                Effect::Up(_) | Effect::Down(_) => self.found.push((self.now, at, effect)),
                Effect::Fresh(_) => {}
                Effect::Blame(who, refused) => panic!("{who} was blamed: {refused}"),
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: &Message) {
        let bytes = codec::encode(message).unwrap();
        self.messages += 1;
        self.bytes += bytes.len() as u64;
        if self.random.below(100) >= self.loss_percent {
            let latency = Duration::from_micros(500 + self.random.below(40_000));
            self.schedule(latency, to, What::Message(from, bytes));
        }
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(Reverse((at, number))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = at;
            let (to, what) = self.waiting.remove(&number).unwrap();
            if self.dead.contains(&to) {
                continue;
            }
            match what {
                What::Tick => {
                    let random = self.random.next();
                    self.event(to, Event::Tick { random });
                    self.schedule(BEAT, to, What::Tick);
                }
                What::Message(from, bytes) => {
                    let message = codec::decode(&bytes).unwrap();
                    self.event(to, Event::Received { from, message });
                }
            }
        }
        self.now = end;
    }

    fn living(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|node| !self.dead.contains(node)).collect()
    }

    /// Runs until all know the same newest record of all that live, and says how long that took.
    fn converge(&mut self, limit: Duration) -> Duration {
        let begun = self.now;
        loop {
            let living = self.living();
            let newest = |node: &NodeId| self.nodes[node].table().stamp(*node).sequence;
            let all = living
                .iter()
                .all(|of| newest(of) > 0 && living.iter().all(|at| self.nodes[at].table().get(*of).is_some()));
            if all {
                return self.now - begun;
            }
            assert!(self.now - begun < limit, "not everybody knows everybody after {limit:?}");
            self.run(BEAT);
        }
    }

    fn up_everywhere(&self, node: NodeId) -> usize {
        self.living().iter().filter(|at| self.nodes[at].is_up(node)).count()
    }
}

#[test]
fn fifty_learn_of_each_other_though_a_third_of_all_messages_is_lost() {
    for seed in SEEDS {
        let mut mesh = Mesh::new(seed, 50, 30);
        let took = mesh.converge(30 * SECOND);
        println!("converged within {took:?}");
        // What changes later is known everywhere too, and soon.
        let one = mesh.living()[7];
        mesh.event(one, Event::Facts(Box::new(Facts { draining: true, ..facts(7) })));
        let drains = |mesh: &Mesh| {
            let known = |at: &NodeId| mesh.nodes[at].table().get(one).is_some_and(|known| known.record.facts.draining);
            mesh.living().iter().filter(|at| known(at)).count()
        };
        let changed = mesh.now;
        while drains(&mesh) < 50 {
            assert!(mesh.now - changed < 30 * SECOND, "seed {seed}: {} know", drains(&mesh));
            mesh.run(BEAT);
        }
        println!("a change is everywhere within {:?}", mesh.now - changed);
    }
}

#[test]
fn nobody_who_lives_is_called_dead_on_a_bad_network() {
    for seed in SEEDS {
        let mut mesh = Mesh::new(seed, 50, 30);
        mesh.run(60 * SECOND);
        assert!(mesh.found.is_empty(), "seed {seed}: {} changes, first {:?}", mesh.found.len(), mesh.found[0]);
    }
}

#[test]
fn who_falls_silent_is_down_everywhere_within_three_seconds() {
    let mut worst = Duration::ZERO;
    for seed in SEEDS {
        let mut mesh = Mesh::new(seed, 50, 30);
        mesh.run(20 * SECOND);
        for number in [0, 11, 23, 37, 49] {
            let victim = *mesh.nodes.keys().nth(number).unwrap();
            let since = mesh.now;
            mesh.dead.insert(victim);
            while mesh.up_everywhere(victim) > 0 {
                let left = mesh.up_everywhere(victim);
                assert!(mesh.now - since < 3 * SECOND, "seed {seed}: {left} still believe in {number}");
                mesh.run(Duration::from_millis(50));
            }
            worst = worst.max(mesh.now - since);
        }
        let victims = mesh.dead.clone();
        mesh.run(20 * SECOND);
        let down = |effect: &Effect| matches!(effect, Effect::Down(node) if victims.contains(node));
        let wrong = mesh.found.iter().find(|(_, _, effect)| !down(effect));
        assert!(wrong.is_none(), "seed {seed}: {wrong:?}");
        assert_eq!(mesh.found.len(), 45 + 46 + 47 + 48 + 49, "seed {seed}: once for each that lived then");
    }
    println!("the slowest took {worst:?}");
}

#[test]
fn who_comes_back_is_up_everywhere_and_stays_so() {
    for seed in SEEDS {
        let mut mesh = Mesh::new(seed, 50, 30);
        let members: BTreeSet<NodeId> = mesh.nodes.keys().copied().collect();
        mesh.run(20 * SECOND);
        let victim = *mesh.nodes.keys().nth(20).unwrap();
        mesh.dead.insert(victim);
        mesh.run(30 * SECOND);
        assert_eq!(mesh.up_everywhere(victim), 0);
        // Its clock was set back meanwhile: it begins with the count it had before.
        mesh.start(victim, 0, 99, &members);
        let since = mesh.now;
        while mesh.up_everywhere(victim) < 50 {
            assert!(mesh.now - since < 30 * SECOND, "seed {seed}: {} believe in it", mesh.up_everywhere(victim));
            mesh.run(BEAT);
        }
        let changes = mesh.found.len();
        mesh.run(30 * SECOND);
        assert_eq!(mesh.found.len(), changes, "seed {seed}: it wavered");
        let digest = |at: &NodeId| mesh.nodes[at].table().get(victim).unwrap().record.facts.models[0].digest;
        assert!(mesh.living().iter().all(|at| digest(at) == [99; 16]), "its past was believed over its presence");
    }
}

#[test]
fn who_slept_is_found_again_and_takes_nobody_for_dead() {
    let mut mesh = Mesh::new(1, 50, 10);
    mesh.run(20 * SECOND);
    let sleeper = *mesh.nodes.keys().nth(30).unwrap();
    mesh.dead.insert(sleeper);
    mesh.run(60 * SECOND);
    assert_eq!(mesh.up_everywhere(sleeper), 0);
    mesh.dead.remove(&sleeper);
    mesh.schedule(Duration::ZERO, sleeper, What::Tick);
    let since = mesh.now;
    while mesh.up_everywhere(sleeper) < 50 {
        assert!(mesh.now - since < 10 * SECOND, "{} believe in it", mesh.up_everywhere(sleeper));
        mesh.run(BEAT);
    }
    println!("back everywhere within {:?}", mesh.now - since);
    mesh.run(20 * SECOND);
    assert!(mesh.found.iter().all(|(_, at, _)| *at != sleeper), "it took others for dead");
    assert_eq!(mesh.found.len(), 2 * 49, "down once and up once for each of the others");
}

#[test]
fn what_it_costs_at_fifty_nodes_is_bounded() {
    let mut mesh = Mesh::new(1, 50, 0);
    mesh.run(30 * SECOND);
    (mesh.bytes, mesh.messages) = (0, 0);
    mesh.run(60 * SECOND);
    let (bytes, messages) = (mesh.bytes / 50 / 60, mesh.messages / 50 / 60);
    println!("{bytes} bytes and {messages} messages sent a second by each of 50");
    assert!(bytes <= 2_000, "{bytes} bytes a second");
}

#[test]
fn many_pass_on_what_they_hear() {
    let mut mesh = Mesh::with_direct_max(3, 80, 10, 20);
    let took = mesh.converge(30 * SECOND);
    (mesh.bytes, mesh.messages) = (0, 0);
    mesh.run(30 * SECOND);
    println!("converged within {took:?}, {} bytes a second each", mesh.bytes / 80 / 30);
    assert!(mesh.found.is_empty(), "{:?}", mesh.found);
}

#[test]
fn an_incompatible_stranger_changes_nothing() {
    let mut mesh = Mesh::new(1, 3, 0);
    mesh.run(5 * SECOND);
    let at = mesh.living()[0];
    let stranger = NodeId::from_public_key([200; 32]);
    let before = mesh.messages;
    mesh.event(at, Event::Received { from: stranger, message: Message::Digest { entries: Vec::new(), answer: true } });
    mesh.event(at, Event::Connected(stranger));
    assert_eq!(mesh.messages, before);
    assert!(!mesh.nodes[&at].is_up(stranger));
}
