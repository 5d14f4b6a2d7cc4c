//! What clients saw, and what it allows them to see next.
//!
//! Each writer owns one label of one node and writes growing numbers. A read must show at least what was acknowledged
//! to anybody before it began, at most what was asked for before it ended, and never less than an earlier read showed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{Actor, Cluster, Consistency, Error, Refused, Sim, Verb};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use tokio_util::sync::CancellationToken;
use types::{Label, NodeId, RequestId};

use crate::world::{Random, World, sleep};

#[derive(Debug, Clone, Copy, Default)]
struct Register {
    asked: u64,
    /// Where the last acknowledged write stands in the log.
    index: u64,
    acknowledged: u64,
    seen: u64,
}

/// Shared by all clients of one run.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    registers: BTreeMap<usize, Register>,
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    reads: u64,
}

/// Clients that go on until they are told to stop.
pub struct Load {
    history: History,
    stop: CancellationToken,
    clients: Vec<<SimRuntime as AsyncRuntime>::JoinHandle<()>>,
}

/// Where a client may call: nodes come and go, so it asks each time.
pub type Entries = Arc<Mutex<BTreeMap<usize, Cluster<Sim>>>>;

impl History {
    fn key(writer: usize) -> String {
        format!("writer-{writer}")
    }

    fn begin_write(&self, writer: usize) -> u64 {
        let mut inner = self.0.lock().unwrap();
        let register = inner.registers.entry(writer).or_default();
        register.asked += 1;
        register.asked
    }

    fn end_write(&self, writer: usize, value: u64, outcome: &Result<cluster::Done, Error>) {
        let mut inner = self.0.lock().unwrap();
        match outcome {
            Ok(done) => {
                inner.acknowledged += 1;
                let register = inner.registers.entry(writer).or_default();
                register.acknowledged = register.acknowledged.max(value);
                register.index = register.index.max(done.index());
            }
            Err(Error::Unknown { .. }) => inner.unknown += 1,
            Err(
                Error::NoLeader { .. }
                | Error::Consensus(_)
                | Error::Refused(Refused::Barred(_) | Refused::UnknownMember(_)),
            ) => inner.refused += 1,
            Err(other) => panic!("a write failed for a reason no fault gives: {other}"),
        }
    }

    fn floors(&self) -> BTreeMap<usize, u64> {
        let inner = self.0.lock().unwrap();
        inner.registers.iter().map(|(writer, register)| (*writer, register.acknowledged.max(register.seen))).collect()
    }

    fn end_read(&self, floors: &BTreeMap<usize, u64>, found: &BTreeMap<String, String>, by: &str) {
        let mut inner = self.0.lock().unwrap();
        inner.reads += 1;
        for (writer, register) in &mut inner.registers {
            let value = found.get(&Self::key(*writer)).map_or(0, |value| value.parse().unwrap());
            let floor = floors.get(writer).copied().unwrap_or_default();
            assert!(
                value >= floor,
                "{by} reads {value} of writer {writer}, acknowledged or seen: {floor}, {register:?}"
            );
            assert!(
                value <= register.asked,
                "{by} reads {value} of writer {writer}, which asked for {}",
                register.asked
            );
            register.seen = register.seen.max(value);
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.0.lock().unwrap().acknowledged
    }

    pub fn reads(&self) -> u64 {
        self.0.lock().unwrap().reads
    }

    /// After all faults: everything acknowledged is on every node.
    pub fn check_all(&self, world: &World) {
        let floors = self.floors();
        for number in world.up() {
            let labels = world.cluster(number).view(|registry| {
                registry.member(&world.nodes[&0].id).map(|member| member.labels.clone()).unwrap_or_default()
            });
            self.end_read(&floors, &labels, &format!("node {number} at the end"));
        }
    }
}

impl Load {
    /// `writers` clients that write and as many that read, each calling any node that is up.
    pub fn start(world: &World, writers: usize) -> (Self, Entries) {
        let entries = Entries::default();
        let load = Self { history: History::default(), stop: CancellationToken::new(), clients: Vec::new() };
        let mut load = load;
        let subject = world.nodes[&0].id;
        for writer in 0..writers {
            let random = world.random().clone();
            let (entries, history, stop) = (entries.clone(), load.history.clone(), load.stop.clone());
            let chance = random.clone();
            let pick = move || {
                let entries = entries.lock().unwrap();
                let all: Vec<_> = entries.values().cloned().collect();
                (!all.is_empty()).then(|| all[chance.below(all.len())].clone())
            };
            let (picked, read, halt) = (pick.clone(), history.clone(), stop.clone());
            load.clients.push(SimRuntime::spawn(async move {
                while !stop.is_cancelled() {
                    write(&pick, &history, writer, subject, &random).await;
                    sleep(Duration::from_millis(20)).await;
                }
            }));
            load.clients.push(SimRuntime::spawn(async move {
                while !halt.is_cancelled() {
                    if let Some(cluster) = picked() {
                        fresh_read(&cluster, &read, subject).await;
                    }
                    sleep(Duration::from_millis(30)).await;
                }
            }));
        }
        Self::refresh(world, &entries);
        (load, entries)
    }

    /// Tells the clients who is up now.
    pub fn refresh(world: &World, entries: &Entries) {
        *entries.lock().unwrap() = world.up().into_iter().map(|number| (number, world.cluster(number))).collect();
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    pub async fn stop(self) -> History {
        self.stop.cancel();
        for client in self.clients {
            client.await.expect("a client ends without a panic");
        }
        self.history
    }
}

/// Writes the next value, asking under one id until somebody says that it is done: a write whose outcome nobody knows
/// could otherwise take effect after a later one.
async fn write(
    pick: &impl Fn() -> Option<Cluster<Sim>>,
    history: &History,
    writer: usize,
    subject: NodeId,
    random: &Random,
) {
    let mut id = new_id(random);
    let value = history.begin_write(writer);
    let set = vec![Label { key: History::key(writer), value: value.to_string() }];
    let verb = Verb::SetLabels { node: subject, set, unset: Vec::new() };
    loop {
        if let Some(cluster) = pick() {
            let by = Actor::User { node: cluster.id(), uid: 1000 };
            let outcome = cluster.write_as(id, by, verb.clone()).await;
            history.end_write(writer, value, &outcome);
            match outcome {
                Ok(_) => return,
                // Final for this id: the node that was asked is a member no more. Another one may be asked anew.
                Err(Error::Refused(_)) => id = new_id(random),
                Err(_) => {}
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn new_id(random: &Random) -> RequestId {
    let half = random.next().to_be_bytes();
    RequestId::from_bytes([half, half].as_flattened().try_into().expect("two halves of 8 bytes"))
}

async fn fresh_read(cluster: &Cluster<Sim>, history: &History, subject: NodeId) {
    let floors = history.floors();
    let labels = |registry: &cluster::Registry| {
        let labels = registry.member(&subject).map(|member| member.labels.clone()).unwrap_or_default();
        (labels, registry.applied())
    };
    if let Ok((found, index)) = cluster.read(Consistency::Linearizable, labels).await {
        history.end_read(&floors, &found, &format!("a fresh read at {index} by {}", cluster.belonging().raft));
    }
}
