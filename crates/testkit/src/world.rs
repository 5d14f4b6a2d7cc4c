//! A mesh, its disks and its wires.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{
    Actor, Belonging, Candidate, Cluster, Config, Consistency, Outside, Parts, Registry, Shelf, Sim, Start, StateHash,
    Timing, Verb,
};
use net::mem::Fabric;
use net::{Clock, Keypair, Net};
use openraft::{AsyncRuntime, Instant};
use openraft_rt_sim::{SimInstant, SimRuntime};
use store::{Log, MemoryDisk};
use tokio_util::sync::CancellationToken;
use types::{MeshId, NodeId, RaftId, Role, UnixMillis};

/// Wall clock at the start of each simulation: any fixed time will do.
const START: u64 = 1_790_000_000_000;

/// Virtual time that nothing may exceed.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub fabric: Fabric,
    pub nodes: BTreeMap<usize, Node>,
    random: Random,
    /// What each index of the log was hashed to, on whichever node got there first.
    hashes: BTreeMap<u64, StateHash>,
    start: SimInstant,
}

/// A machine: what it keeps, and what runs on it while it is up.
pub struct Node {
    pub id: NodeId,
    keypair: Keypair,
    disk: MemoryDisk,
    shelf: Shelf,
    belonging: Option<Belonging>,
    /// How many disks it has lost.
    lives: u8,
    pub up: Option<Up>,
}

pub struct Up {
    pub cluster: Cluster<Sim>,
    pub net: Net,
    stop: CancellationToken,
    task: <SimRuntime as AsyncRuntime>::JoinHandle<cluster::End>,
}

/// The simulation's only source of chance.
#[derive(Clone)]
pub struct Random(Arc<Mutex<u64>>);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)))
    }

    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    fn bytes(&self) -> [u8; 32] {
        let words = std::array::from_fn::<[u8; 8], 4, _>(|_| self.next().to_be_bytes());
        words.as_flattened().try_into().unwrap()
    }
}

pub async fn sleep(duration: Duration) {
    SimRuntime::sleep(duration).await;
}

impl World {
    /// Runs a scenario to its end. The same seed gives the same run.
    pub fn run(seed: u64, scenario: &impl AsyncFn(&mut World)) -> u64 {
        SimRuntime::with_seed(seed).block_on(async {
            let start = SimInstant::now();
            let clock = Clock::new(|time| Box::pin(SimRuntime::sleep(time)), move || SimInstant::now() - start);
            let fabric = Fabric::new(seed, clock);
            fabric.set_latency(Duration::from_micros(100)..=Duration::from_millis(5));
            let nodes = BTreeMap::new();
            let mut world = World { fabric, nodes, random: Random::new(seed), hashes: BTreeMap::new(), start };
            scenario(&mut world).await;
            for number in world.nodes.keys().copied().collect::<Vec<_>>() {
                world.kill(number).await;
            }
            world.fabric.trace()
        })
    }

    pub fn random(&self) -> &Random {
        &self.random
    }

    pub fn node(&mut self, number: usize) -> &mut Node {
        let random = &self.random;
        self.nodes.entry(number).or_insert_with(|| {
            let keypair = Keypair::from_seed(random.bytes());
            let shelf = Shelf::Memory(Arc::default());
            Node { id: keypair.node_id(), keypair, disk: MemoryDisk::new(), shelf, belonging: None, lives: 0, up: None }
        })
    }

    pub fn cluster(&self, number: usize) -> Cluster<Sim> {
        self.nodes[&number].up.as_ref().expect("the node is up").cluster.clone()
    }

    pub fn candidate(&mut self, number: usize) -> Candidate {
        let (id, lives) = (self.node(number).id, self.node(number).lives);
        let mut incarnation = [number as u8; 16];
        incarnation[0] = lives;
        let name = format!("node-{number}").parse().unwrap();
        Candidate { id, name, addresses: cluster::Addresses::default(), incarnation }
    }

    /// A mesh of so many nodes, as many voters as it takes.
    pub async fn mesh(&mut self, members: usize) {
        self.found(0).await;
        for number in 1..members {
            self.join(number, Role::Node).await;
        }
        let voters = match members {
            0..=2 => 1,
            3..=6 => 3,
            _ => 5,
        };
        self.settle("the wanted number of voters", |world| world.seated() == voters).await;
    }

    pub async fn found(&mut self, number: usize) {
        let candidate = self.candidate(number);
        let mesh = MeshId::from_bytes([7; 16]);
        let belonging = Belonging { mesh, raft: RaftId(1), role: Role::Node, incarnation: candidate.incarnation };
        self.node(number).belonging = Some(belonging);
        self.start_as(number, Start::Found(candidate)).await;
    }

    /// Joins by a token of node 0's.
    pub async fn join(&mut self, number: usize, role: Role) {
        let (by, actor) = (self.cluster(0), self.admin(0));
        self.settle("an address to put into a token", |world| world.has_address(0)).await;
        let token = by.create_token(actor, role, 1, Duration::from_secs(3_600)).await.unwrap();
        self.join_with(number, &token).await.unwrap();
    }

    fn has_address(&self, number: usize) -> bool {
        let id = self.nodes[&number].id;
        let known = |registry: &Registry| registry.member(&id).is_some_and(|m| !m.addresses.bulk.is_empty());
        self.cluster(number).view(known)
    }

    pub async fn join_with(&mut self, number: usize, token: &cluster::Token) -> Result<(), cluster::JoinError> {
        let candidate = self.candidate(number);
        let clock = self.wall_clock();
        let (net, task) = self.fabric.join(candidate.id);
        let stop = CancellationToken::new();
        let running = SimRuntime::spawn(task.run(net::Services::new(), stop.clone()));
        let welcome = cluster::join::<Sim>(&net, token, &candidate, clock).await;
        stop.cancel();
        let _ = running.await;
        let welcome = welcome?;
        let (mesh, raft, role) = (welcome.mesh, welcome.raft, welcome.role);
        let incarnation = candidate.incarnation;
        self.node(number).belonging = Some(Belonging { mesh, raft, role, incarnation });
        self.start_as(number, Start::Joined(Box::new(welcome.registry))).await;
        Ok(())
    }

    pub async fn start(&mut self, number: usize) {
        self.start_as(number, Start::Resumed).await;
    }

    async fn start_as(&mut self, number: usize, start: Start) {
        let config = Config { timing: self.timing(), patience: Duration::from_secs(5) };
        let outside = self.outside();
        let fabric = self.fabric.clone();
        let node = self.node(number);
        let (net, net_task) = fabric.join(node.id);
        let parts = Parts {
            keypair: node.keypair.clone(),
            net: net.clone(),
            log: Log::on(&node.disk).unwrap(),
            shelf: node.shelf.clone(),
            outside,
        };
        let belonging = node.belonging.expect("a node belongs to a mesh before it starts");
        let (cluster, task) = Cluster::<Sim>::open(config, parts, belonging, start).await.unwrap();
        let stop = CancellationToken::new();
        let services = cluster.services();
        let net_stop = stop.clone();
        let whole = async move {
            let net_ended = CancellationToken::new();
            let serving = SimRuntime::spawn(net_task.run(services, net_ended.clone()));
            let end = task.run(net_stop).await;
            net_ended.cancel();
            let _ = serving.await;
            end
        };
        let task = SimRuntime::spawn(whole);
        node.up = Some(Up { cluster, net, stop, task });
    }

    fn timing(&self) -> Timing {
        Timing { snapshot_every: 50, keep_behind_snapshot: 10, ..Timing::default() }
    }

    pub fn wall_clock(&self) -> UnixMillis {
        UnixMillis(START + (SimInstant::now() - self.start).as_millis() as u64)
    }

    fn outside(&self) -> Outside {
        let (start, random) = (self.start, self.random.clone());
        Outside {
            wall_clock: Arc::new(move || UnixMillis(START + (SimInstant::now() - start).as_millis() as u64)),
            random: Arc::new(move || random.bytes()),
        }
    }

    /// Ends a node without a goodbye: not one of its messages gets out from the moment it dies. Returns whether it ran.
    pub async fn kill(&mut self, number: usize) -> bool {
        let fabric = self.fabric.clone();
        let node = self.node(number);
        let Some(Up { stop, task, .. }) = node.up.take() else { return false };
        fabric.pause(node.id);
        stop.cancel();
        let ended = task.await;
        fabric.resume(node.id);
        ended.expect("a node ends without a panic");
        true
    }

    /// Its identity is all a node that is down has left.
    pub fn lose_disk(&mut self, number: usize) {
        let node = self.node(number);
        assert!(node.up.is_none(), "a machine that runs has its disk");
        (node.disk, node.shelf, node.belonging) = (MemoryDisk::new(), Shelf::Memory(Arc::default()), None);
        node.lives += 1;
    }

    /// A full disk takes no entries until it is told otherwise.
    pub fn set_disk_full(&self, number: usize, full: bool) {
        let node = &self.nodes[&number];
        node.disk.set_full(full);
        let Shelf::Memory(memory) = &node.shelf else { unreachable!("simulated nodes keep what they have in memory") };
        memory.lock().unwrap().full = full;
    }

    /// Index of the last entry on a node's disk.
    pub fn log_end(&self, number: usize) -> u64 {
        self.nodes[&number].disk.last_index().unwrap_or_default()
    }

    pub fn admin(&self, number: usize) -> Actor {
        Actor::User { node: self.nodes[&number].id, uid: 1000 }
    }

    pub fn up(&self) -> Vec<usize> {
        self.nodes.iter().filter(|(_, node)| node.up.is_some()).map(|(number, _)| *number).collect()
    }

    pub fn leader(&self) -> Option<usize> {
        self.up().into_iter().find(|number| self.cluster(*number).is_leader())
    }

    /// Who votes, by the word of whoever leads.
    pub fn voters(&self) -> Vec<usize> {
        let Some(leader) = self.leader() else { return Vec::new() };
        self.cluster(leader).view(|registry| {
            let votes = |id: &NodeId| registry.member(id).is_some_and(|m| registry.seats().voters.contains(&m.raft));
            self.nodes.iter().filter(|(_, node)| votes(&node.id)).map(|(number, _)| *number).collect()
        })
    }

    /// How many vote once nothing is half done; 0 while it is.
    fn seated(&self) -> usize {
        let Some(leader) = self.leader() else { return 0 };
        let (voters, changing) = self.cluster(leader).view(|r| (r.seats().voters.len(), r.seats().changing));
        if changing { 0 } else { voters }
    }

    /// Waits, in virtual time, for something to become true.
    pub async fn settle(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let begun = SimInstant::now();
        while !done(self) {
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}\n{}", self.describe());
            sleep(Duration::from_millis(50)).await;
            self.compare_hashes();
        }
    }

    fn describe(&self) -> String {
        let node = |number: usize| {
            let cluster = self.cluster(number);
            let seats = cluster.view(|registry| registry.seats().clone());
            let peers = self.nodes[&number].up.as_ref().map(|up| up.net.peers()).unwrap_or_default();
            let connected = peers.iter().filter(|peer| peer.connected).count();
            let (seat, leads) = (cluster.belonging().raft, cluster.is_leader());
            format!("node {number}: {seat:?} at {} leads {leads} sees {connected}, {seats:?}", cluster.position().0)
        };
        self.up().into_iter().map(node).collect::<Vec<_>>().join("\n")
    }

    /// The same index means the same state, wherever it is looked at.
    pub fn compare_hashes(&mut self) {
        for number in self.up() {
            let (index, hash) = self.cluster(number).view(|registry| (registry.applied(), registry.hash()));
            let known = *self.hashes.entry(index).or_insert(hash);
            assert_eq!(known, hash, "node {number} has another state at index {index}");
        }
    }

    /// Waits until every node that is up has everything, and compares.
    pub async fn converge(&mut self) {
        self.fabric.heal();
        self.settle("a leader", |world| world.leader().is_some()).await;
        let all = self.up();
        let begun = SimInstant::now();
        let index = loop {
            match self.cluster(all[0]).read(Consistency::Linearizable, Registry::applied).await {
                Ok(index) => break index,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "no fresh read after healing: {error}"),
            }
        };
        let applied = move |world: &World, number: usize| world.cluster(number).view(Registry::applied) >= index;
        self.settle("all nodes to have the registry", |world| all.iter().all(|n| applied(world, *n))).await;
        self.compare_hashes();
    }

    pub async fn set(&self, number: usize, key: &str, value: &str) -> Result<u64, cluster::Error> {
        let verb = Verb::SetConfig { key: key.to_owned(), value: value.to_owned(), expect: None };
        self.cluster(number).write(self.admin(number), verb).await.map(|done| done.index())
    }
}
