//! Whole swarms in one loop: every receiver has a plan of its own, and peers are honest, slow, silent or liars.

use super::*;
use crate::plan;

const STEP: Duration = Duration::from_millis(50);
const STALLED: Duration = Duration::from_secs(10);

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % end
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Honest,
    /// Sends bad chunks, from this one on.
    Liar {
        after: u32,
    },
    /// Sends a list that is none.
    ListLiar,
    /// Says another size, and has a list to prove nothing with.
    SizeLiar,
    /// Says it has everything, and has not what is in this remainder by three.
    Withholder(u32),
    /// Takes questions and sends nothing.
    Staller,
    Unreachable,
    /// Fetches as well, and serves what it has.
    Receiver,
}

struct Node {
    kind: Kind,
    /// Chunks a second, each way.
    rate: f64,
    up: f64,
    down: f64,
    plan: Option<Plan>,
    here: Bits,
    sent: u32,
    /// Bad chunks it has sent to each receiver.
    lies: BTreeMap<usize, u32>,
    done_at: Option<Duration>,
    shunned: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Wire {
    from: usize,
    to: usize,
    opened: bool,
    list_asked: bool,
    asked: VecDeque<u32>,
    told: Bits,
    quiet: Duration,
}

struct World {
    now: Duration,
    count: u32,
    nodes: Vec<Node>,
    wires: BTreeMap<(usize, Link), Wire>,
    list_is_known: Vec<bool>,
}

fn id(node: usize) -> NodeId {
    let mut key = [node as u8; 32];
    // The order of the ids says nothing of the order of the nodes.
    key[0] = (node as u8).wrapping_mul(167);
    key[1] = node as u8;
    NodeId::from_public_key(key)
}

impl World {
    fn new(count: u32, kinds: &[(Kind, f64)]) -> Self {
        let node = |(at, (kind, rate)): (usize, &(Kind, f64))| {
            let salt = u64::from_le_bytes(id(at).public_key()[..8].try_into().unwrap()).wrapping_mul(0x9e37_79b9);
            let size = u64::from(count) << 20;
            let plan = (*kind == Kind::Receiver).then(|| Plan::new(size, Bits::none(count), false, salt));
            let here = if plan.is_some() { Bits::none(count) } else { Bits::all(count) };
            let (lies, shunned) = (BTreeMap::new(), BTreeSet::new());
            Node { kind: *kind, rate: *rate, up: 0.0, down: 0.0, plan, here, sent: 0, lies, done_at: None, shunned }
        };
        let nodes: Vec<Node> = kinds.iter().enumerate().map(node).collect();
        let list_is_known = nodes.iter().map(|node| node.plan.is_none()).collect();
        Self { now: Duration::ZERO, count, nodes, wires: BTreeMap::new(), list_is_known }
    }

    fn tell(&mut self, node: usize, event: Event) {
        let now = self.now;
        let actions = self.nodes[node].plan.as_mut().unwrap().on(now, event);
        for action in actions {
            self.act(node, action);
        }
        self.check(node);
    }

    fn act(&mut self, from: usize, action: Action) {
        match action {
            Action::Dial { link, peer } => {
                let to = (0..self.nodes.len()).find(|node| id(*node) == peer).unwrap();
                assert_ne!(from, to);
                let told = Bits::none(self.count);
                let wire = Wire {
                    from,
                    to,
                    opened: false,
                    list_asked: false,
                    asked: VecDeque::new(),
                    told,
                    quiet: Duration::ZERO,
                };
                assert!(self.wires.insert((from, link), wire).is_none(), "a number was used twice");
            }
            Action::AskList { link } => {
                let wire = self.wires.get_mut(&(from, link)).expect("asked on a link that is up");
                assert!(wire.opened && !wire.list_asked);
                wire.list_asked = true;
            }
            Action::Ask { link, chunk } => {
                assert!(!self.nodes[from].here.has(chunk), "asked for what is here");
                let wire = self.wires.get_mut(&(from, link)).expect("asked on a link that is up");
                assert!(wire.opened && !wire.asked.contains(&chunk));
                wire.asked.push_back(chunk);
                assert!(wire.asked.len() <= DEPTH_MAX);
            }
            Action::HangUp { link } => _ = self.wires.remove(&(from, link)),
            Action::Shun { peer, .. } => assert!(self.nodes[from].shunned.insert(peer), "shunned twice"),
        }
    }

    fn check(&self, node: usize) {
        let plan = self.nodes[node].plan.as_ref().unwrap();
        let mut per_peer: BTreeMap<usize, usize> = BTreeMap::new();
        for wire in self.wires.values().filter(|wire| wire.from == node) {
            *per_peer.entry(wire.to).or_default() += 1;
        }
        assert!(per_peer.len() <= PEERS_MAX && per_peer.values().all(|links| *links <= LINKS_ALONE_MAX));
        let asked: BTreeSet<u32> = plan.asked.keys().copied().collect();
        assert!(asked.iter().all(|chunk| !plan.wanted.has(*chunk) && !plan.here.has(*chunk)));
        let all = plan.here.count() + plan.wanted.count() + asked.len() as u32;
        assert_eq!(all, self.count, "every chunk is here, asked for or wanted");
    }

    fn down(&mut self, key: (usize, Link), why: Why) {
        if self.wires.remove(&key).is_some() {
            self.tell(key.0, Event::Down { link: key.1, why });
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in &mut self.nodes {
            let more = node.rate * STEP.as_secs_f64();
            node.up = (node.up + more).min(more + 1.0);
            node.down = (node.down + more).min(more + 1.0);
        }
        let receivers: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].plan.is_some()).collect();
        for node in &receivers {
            if self.now.as_millis() % 2000 == 50 {
                let all = (0..self.nodes.len()).filter(|other| other != node).map(id).collect();
                self.tell(*node, Event::Sources(all));
            }
            if self.now.as_millis().is_multiple_of(250) {
                self.tell(*node, Event::Tick);
            }
        }
        let keys: Vec<(usize, Link)> = self.wires.keys().copied().collect();
        for key in &keys {
            self.speak(*key);
        }
        // Chunks go round among the links, one each, as long as there is room at both ends.
        let turn = (self.now.as_millis() / STEP.as_millis()) as usize % keys.len().max(1);
        loop {
            let mut sent = false;
            for key in keys[turn..].iter().chain(&keys[..turn]) {
                sent |= self.send(*key);
            }
            if !sent {
                break;
            }
        }
        for node in receivers {
            if self.nodes[node].plan.as_ref().unwrap().is_complete() && self.nodes[node].done_at.is_none() {
                self.nodes[node].done_at = Some(self.now);
            }
        }
    }

    /// Everything but chunks.
    fn speak(&mut self, key: (usize, Link)) {
        let (from, link) = key;
        let Some(wire) = self.wires.get_mut(&key) else { return };
        let (to, size) = (wire.to, u64::from(self.count) << 20);
        let kind = self.nodes[to].kind;
        if !wire.opened {
            if kind == Kind::Unreachable {
                return self.down(key, Why::Broken);
            }
            wire.opened = true;
            let held = match kind {
                Kind::Receiver => {
                    wire.told = self.nodes[to].here.clone();
                    Held::Part(wire.told.clone())
                }
                _ => Held::Whole,
            };
            let size = if kind == Kind::SizeLiar { size - 1 } else { size };
            return self.tell(from, Event::Opened { link, size, held });
        }
        let owes = wire.list_asked || !wire.asked.is_empty();
        wire.quiet = if owes { wire.quiet + STEP } else { Duration::ZERO };
        if kind == Kind::Staller {
            if wire.quiet > STALLED {
                self.down(key, Why::Stalled);
            }
            return;
        }
        if kind == Kind::Receiver {
            let news: Vec<u32> = self.nodes[to].here.without(&wire.told).collect();
            if !news.is_empty() {
                news.iter().for_each(|chunk| _ = wire.told.put(*chunk));
                self.tell(from, Event::News { link, chunks: news });
            }
        }
        let Some(wire) = self.wires.get_mut(&key).filter(|wire| wire.list_asked) else { return };
        wire.list_asked = false;
        match kind {
            Kind::ListLiar | Kind::SizeLiar => self.down(key, Why::Lied(Lie::List)),
            _ if !self.list_is_known[to] => self.tell(from, Event::NoList { link }),
            _ => {
                let last = self.count - 1;
                self.list_is_known[from] = true;
                self.nodes[from].here.put(last);
                self.tell(from, Event::Listed { link });
            }
        }
    }

    fn send(&mut self, key: (usize, Link)) -> bool {
        let Some(wire) = self.wires.get_mut(&key) else { return false };
        let (from, to, link) = (wire.from, wire.to, key.1);
        let kind = self.nodes[to].kind;
        if kind == Kind::Staller || self.nodes[to].up < 1.0 || self.nodes[from].down < 1.0 {
            return false;
        }
        let Some(chunk) = wire.asked.pop_front() else { return false };
        wire.quiet = Duration::ZERO;
        let withheld = matches!(kind, Kind::Withholder(rest) if chunk % 3 == rest);
        if withheld || !self.nodes[to].here.has(chunk) {
            assert!(kind != Kind::Receiver, "asked for what it never said it has");
            self.tell(from, Event::NoChunk { link, chunk });
            return true;
        }
        self.nodes[to].up -= 1.0;
        self.nodes[from].down -= 1.0;
        self.nodes[to].sent += 1;
        if matches!(kind, Kind::Liar { after } if self.nodes[to].sent > after) {
            *self.nodes[to].lies.entry(from).or_default() += 1;
            self.down(key, Why::Lied(Lie::Chunk));
            return true;
        }
        self.nodes[from].here.put(chunk);
        self.tell(from, Event::Got { link, chunk });
        true
    }

    fn run(&mut self, limit: Duration) {
        while self.nodes.iter().any(|node| node.plan.is_some() && node.done_at.is_none()) {
            assert!(self.now < limit, "not through after {limit:?}: {:?}", self.stuck());
            self.step();
        }
    }

    fn stuck(&self) -> Vec<String> {
        let receivers = self.nodes.iter().filter(|node| node.plan.is_some());
        receivers.map(|node| format!("{:?}: {:?}", node.here, node.plan.as_ref().unwrap().links)).collect()
    }

    fn finished(&self) -> Duration {
        self.nodes.iter().filter_map(|node| node.done_at).max().unwrap()
    }
}

fn swarm(seed: u64) {
    let mut random = Random(seed);
    let count = 1 + random.below(60) as u32;
    let mut kinds = vec![(Kind::Honest, 1.0 + random.below(40) as f64)];
    for _ in 0..random.below(9) {
        let kind = match random.below(9) {
            0 => Kind::Honest,
            1 | 2 => Kind::Liar { after: random.below(5) as u32 },
            3 => Kind::ListLiar,
            4 => Kind::SizeLiar,
            5 => Kind::Withholder(random.below(3) as u32),
            6 => Kind::Staller,
            7 => Kind::Unreachable,
            _ => Kind::Receiver,
        };
        kinds.push((kind, 1.0 + random.below(40) as f64));
    }
    kinds.push((Kind::Receiver, 5.0 + random.below(40) as f64));
    let at = random.below(kinds.len() as u64) as usize;
    kinds.swap(0, at);
    let mut world = World::new(count, &kinds);
    world.run(Duration::from_secs(600));
    for node in &world.nodes {
        assert!(node.lies.values().all(|lies| *lies <= LINKS_ALONE_MAX as u32), "it was believed after its proof");
        if let Some(plan) = &node.plan {
            assert!(plan.is_complete() && plan.wanted.count() == 0 && plan.asked.is_empty());
            let honest = |peer: &NodeId| {
                let node = (0..kinds.len()).find(|node| id(*node) == *peer).unwrap();
                !matches!(kinds[node].0, Kind::Liar { .. } | Kind::ListLiar | Kind::SizeLiar)
            };
            assert!(!node.shunned.iter().any(honest), "an honest peer was shunned");
        }
    }
}

#[test]
fn every_swarm_with_one_honest_source_comes_through() {
    for seed in 0..4000 {
        if let Err(cause) = std::panic::catch_unwind(|| swarm(seed)) {
            eprintln!("with seed {seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn a_liar_costs_one_chunk_and_is_not_asked_again() {
    for liars in 1..8 {
        let mut kinds = vec![(Kind::Receiver, 50.0)];
        kinds.extend((0..liars).map(|_| (Kind::Liar { after: 0 }, 10.0)));
        kinds.push((Kind::Honest, 10.0));
        let mut world = World::new(50, &kinds);
        world.run(Duration::from_secs(60));
        let lies: u32 = world.nodes.iter().flat_map(|node| node.lies.values()).sum();
        assert!(lies <= liars, "{lies} bad chunks of {liars} liars");
        assert!(world.nodes.iter().all(|node| node.lies.values().all(|lies| *lies == 1)));
    }
}

#[test]
fn one_that_stalls_does_not_hold_up_the_end() {
    let honest = [(Kind::Receiver, 100.0), (Kind::Honest, 10.0), (Kind::Honest, 10.0)];
    let mut alone = World::new(200, &honest);
    alone.run(Duration::from_secs(60));
    let mut stalled = World::new(200, &[&honest[..], &[(Kind::Staller, 10.0), (Kind::Staller, 10.0)]].concat());
    stalled.run(Duration::from_secs(60));
    assert!(stalled.finished() <= alone.finished() * 2, "{:?} {:?}", stalled.finished(), alone.finished());
}

/// All begin at once, and each can send and take as much as the origin.
#[test]
fn ten_receivers_take_little_longer_than_one_and_the_origin_sends_little_more_than_one_copy() {
    let rate = 20.0;
    let mut one = World::new(400, &[(Kind::Honest, rate), (Kind::Receiver, rate)]);
    one.run(Duration::from_secs(100));
    let mut kinds = vec![(Kind::Honest, rate)];
    kinds.extend([(Kind::Receiver, rate); 10]);
    let mut ten = World::new(400, &kinds);
    ten.run(Duration::from_secs(100));
    let (alone, together) = (one.finished(), ten.finished());
    println!("one {alone:?}, ten {together:?}, the origin sent {} of 400", ten.nodes[0].sent);
    assert!(together.as_secs_f64() <= 1.3 * alone.as_secs_f64(), "{alone:?}, and {together:?} for ten");
    assert!(ten.nodes[0].sent <= 600, "the origin sent {}", ten.nodes[0].sent);
}

// ---- single steps

fn plan_of(count: u32) -> Plan {
    Plan::new(u64::from(count) << 20, Bits::none(count), false, 0)
}

fn start(plan: &mut Plan, peers: usize) -> Vec<Link> {
    let actions = plan.on(Duration::ZERO, Event::Sources((1..=peers).map(id).collect()));
    let dialled = |action: &Action| match action {
        Action::Dial { link, .. } => Some(*link),
        _ => None,
    };
    actions.iter().filter_map(dialled).collect()
}

fn whole(link: Link, count: u32) -> Event {
    Event::Opened { link, size: u64::from(count) << 20, held: Held::Whole }
}

#[test]
fn a_lone_source_is_read_front_to_back_and_given_more_links_once_it_is_proven() {
    let mut plan = plan_of(100);
    let links = start(&mut plan, 1);
    assert_eq!(links.len(), 1);
    let link = links[0];
    let now = Duration::from_millis(1);
    assert_eq!(plan.on(now, whole(link, 100)), [Action::AskList { link }]);
    let first = plan.on(now, Event::Listed { link });
    assert!(first.iter().any(|action| matches!(action, Action::Dial { peer, .. } if *peer == id(1))));
    assert_eq!(first[1..], [0, 1].map(|chunk| Action::Ask { link, chunk }));
    assert_eq!(plan.on(now * 2, Event::Got { link, chunk: 0 })[0], Action::Ask { link, chunk: 2 });
}

#[test]
fn the_rarest_come_first_when_others_fetch_as_well() {
    let mut plan = plan_of(4);
    let links = start(&mut plan, 3);
    let part = |link, chunks: &[u32]| {
        let mut bits = Bits::none(4);
        chunks.iter().for_each(|chunk| _ = bits.put(*chunk));
        Event::Opened { link, size: 4 << 20, held: Held::Part(bits) }
    };
    plan.on(Duration::ZERO, part(links[0], &[0, 1, 3]));
    plan.on(Duration::ZERO, part(links[1], &[0, 3]));
    plan.on(Duration::ZERO, Event::Opened { link: links[2], size: 4 << 20, held: Held::Whole });
    let actions = plan.on(Duration::ZERO, Event::Listed { link: links[2] });
    let asked = |link| {
        let of = move |action: &Action| match action {
            Action::Ask { link: other, chunk } if *other == link => Some(*chunk),
            _ => None,
        };
        actions.iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(asked(links[0])[0], 1, "what only two have, before what three have");
    assert_eq!(asked(links[2])[0], 2, "what nobody else has");
}

#[test]
fn when_all_sources_are_gone_it_waits_and_goes_on_when_one_is_back() {
    let mut plan = plan_of(10);
    let link = start(&mut plan, 1)[0];
    plan.on(Duration::ZERO, whole(link, 10));
    let more = plan.on(Duration::ZERO, Event::Listed { link });
    let Action::Dial { link: second, .. } = more[0] else { panic!("{more:?}") };
    assert!(plan.has_sources());
    plan.on(Duration::ZERO, Event::Down { link: second, why: Why::Broken });
    assert_eq!(plan.on(Duration::ZERO, Event::Down { link, why: Why::Broken }), []);
    assert!(!plan.has_sources());
    assert_eq!(plan.on(Duration::from_millis(1900), Event::Tick), [], "it failed twice");
    let again = plan.on(Duration::from_millis(2100), Event::Tick);
    let [Action::Dial { link, .. }] = again[..] else { panic!("{again:?}") };
    let asked = plan.on(Duration::from_millis(2200), whole(link, 10));
    assert!(asked.contains(&Action::Ask { link, chunk: 0 }));
}

#[test]
fn a_full_disk_stops_the_asking_and_room_lets_it_go_on() {
    let mut plan = plan_of(10);
    let link = start(&mut plan, 1)[0];
    plan.on(Duration::ZERO, whole(link, 10));
    plan.on(Duration::ZERO, Event::Listed { link });
    plan.on(Duration::ZERO, Event::Got { link, chunk: 0 });
    assert_eq!(plan.on(Duration::ZERO, Event::Lost { chunk: 0 }).len(), 0, "as many are asked for as may be");
    assert_eq!(plan.on(Duration::ZERO, Event::Full), []);
    assert_eq!(plan.on(Duration::ZERO, Event::Got { link, chunk: 1 }), []);
    let after = plan.on(Duration::ZERO, Event::Room);
    assert!(after.contains(&Action::Ask { link, chunk: 0 }), "{after:?}");
}

#[test]
fn who_gives_another_size_than_the_proven_one_is_shunned() {
    let mut plan = plan_of(10);
    let links = start(&mut plan, 2);
    plan.on(Duration::ZERO, whole(links[0], 11));
    let actions = plan.on(Duration::ZERO, whole(links[1], 10));
    assert!(!actions.contains(&Action::AskList { link: links[1] }), "one is asked at a time");
    let liar = plan.peer_of(links[0]).unwrap();
    let actions = plan.on(Duration::ZERO, Event::Listed { link: links[1] });
    assert!(actions.contains(&Action::Shun { peer: liar, lie: Lie::Size }), "{actions:?}");
    assert!(actions.contains(&Action::HangUp { link: links[0] }));
    let later = plan.on(Duration::from_secs(100), Event::Tick);
    assert!(!later.iter().any(|action| matches!(action, Action::Dial { peer, .. } if *peer == liar)));
}

#[test]
fn events_of_links_that_are_gone_change_nothing() {
    let mut plan = plan_of(5);
    let gone = plan::Link(77);
    for event in [
        whole(gone, 5),
        Event::News { link: gone, chunks: vec![1, 99] },
        Event::NoList { link: gone },
        Event::NoChunk { link: gone, chunk: 1 },
        Event::Down { link: gone, why: Why::Lied(Lie::Chunk) },
        Event::Lost { chunk: 99 },
        Event::Tick,
    ] {
        assert_eq!(plan.on(Duration::ZERO, event), []);
    }
    assert_eq!(plan.wanted.count(), 5);
}
