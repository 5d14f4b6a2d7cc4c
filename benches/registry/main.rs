//! Registry writes on three nodes against etcd on three members: the same disk, the same clients, rounds in turn, since
//! a disk's sync time drifts.
//!
//!     cargo bench --bench registry -- [binary=PATH] [dir=FOLDER] [seconds=10] [rounds=3] [at=leader|follower]
//!
//! Prints one line per round and the means. CPU is that of all three servers, or of the clients, per second.

#[path = "../support/arguments.rs"]
mod arguments;
mod client;
mod etcd;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/process.rs"]
mod process;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testnet::Testnet;

use client::{Client, Target};
use etcd::Etcd;

struct Round {
    writes: Vec<Duration>,
    seconds: f64,
    errors: Vec<String>,
    server_cpu: f64,
    client_cpu: f64,
}

fn main() -> Result<()> {
    let scratch = arguments::scratch()?;
    let span = Duration::from_secs_f64(arguments::argument("seconds", 10.0)?);
    let rounds: usize = arguments::argument("rounds", 3)?;
    // The leader stands first in both lists.
    let at = match arguments::argument("at", "leader".to_owned())?.as_str() {
        "follower" => 1,
        _ => 0,
    };
    let omx = Testnet::up(&arguments::binary()?, &scratch.path().join("omx"), 3, &arguments::node_alone())?;
    let etcd = Etcd::up(scratch.path())?;
    let key = omx.nodes()[0].text(&["keys", "create", "bench", "--scope", "admin"])?;
    let omx_pids: Vec<u32> = omx.nodes().iter().filter_map(testnet::Node::pid).collect();
    println!("{}; writing at {}", machine::name(), ["the leader", "a follower"][at]);
    println!("| clients | to | writes/s | p50 ms | p99 ms | server CPU s/s | client CPU s/s | errors | load |");
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|");
    for clients in [1, 64] {
        let mut sums = [0.0; 3];
        for _ in 0..rounds {
            // Asked before each round: a leader may have changed under load.
            let omx_at = || leader_first(&omx).map(|apis| apis[at]);
            let etcd_at = || etcd.leader_first().map(|apis| apis[at]);
            for (system, sum) in sums.iter_mut().enumerate() {
                let (name, target, pids) = match system {
                    0 => ("omx, JSON", Target::Omx { api: omx_at()?, key: key.clone() }, omx_pids.clone()),
                    1 => ("etcd, gRPC", Target::EtcdGrpc { api: etcd_at()? }, etcd.pids()),
                    _ => ("etcd, JSON", Target::EtcdJson { api: etcd_at()? }, etcd.pids()),
                };
                let round = run(&target, clients, span, &pids)?;
                *sum += round.rate() / rounds as f64;
                println!("| {clients} | {name} | {}", round.cells());
                if let Some(error) = round.errors.first() {
                    println!("  first error: {error}");
                }
            }
        }
        let [omx, grpc, json] = sums;
        println!(
            "mean, {clients} clients: omx {omx:.0}/s, etcd {grpc:.0}/s by gRPC ({:.2} of it), {json:.0}/s by JSON ({:.2})",
            omx / grpc,
            omx / json
        );
    }
    drop(etcd);
    omx.down().map(drop)
}

/// The nodes' API addresses, the leader's first.
fn leader_first(omx: &Testnet) -> Result<Vec<SocketAddr>> {
    let status = omx.nodes()[0].status()?;
    let leader = status["leader"]["name"].as_str().context("no leader")?;
    let mut nodes: Vec<_> = omx.nodes().iter().collect();
    nodes.sort_by_key(|node| node.name() != leader);
    nodes.into_iter().map(|node| Ok(node.run()?.api)).collect()
}

/// So many clients write for so long, each its next value once the last one is acknowledged.
fn run(target: &Target, clients: usize, span: Duration, servers: &[u32]) -> Result<Round> {
    let ready = Barrier::new(clients + 1);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..clients)
            .map(|number| {
                let ready = &ready;
                scope.spawn(move || write(target, number, span, ready))
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        let (server_cpu, client_cpu) = (process::cpu_seconds(servers)?, process::cpu_seconds(&[std::process::id()])?);
        let mut round = Round { writes: Vec::new(), seconds: 0.0, errors: Vec::new(), server_cpu, client_cpu };
        for writer in writers {
            let (writes, errors) = writer.join().expect("no writer panics");
            round.writes.extend(writes);
            round.errors.extend(errors);
        }
        round.seconds = start.elapsed().as_secs_f64();
        round.server_cpu = process::cpu_seconds(servers)? - server_cpu;
        round.client_cpu = process::cpu_seconds(&[std::process::id()])? - client_cpu;
        round.writes.sort_unstable();
        Ok(round)
    })
}

/// How long each acknowledged write took, and what became of the others.
fn write(target: &Target, number: usize, span: Duration, ready: &Barrier) -> (Vec<Duration>, Vec<String>) {
    let (mut writes, mut errors) = (Vec::new(), Vec::new());
    // Connected, and known to work, before the clock starts.
    let mut client = Client::connect(target).and_then(|mut client| client.put(&value(number, 0)).map(|()| client));
    ready.wait();
    let start = Instant::now();
    for sequence in 1.. {
        let begun = Instant::now();
        if begun - start >= span {
            break;
        }
        match client.as_mut().map(|client| client.put(&value(number, sequence))) {
            Ok(Ok(())) => writes.push(begun.elapsed()),
            Ok(Err(error)) => {
                errors.push(format!("{error:#}"));
                client = Client::connect(target);
            }
            Err(error) => {
                errors.push(format!("{error:#}"));
                break;
            }
        }
    }
    (writes, errors)
}

/// Unlike any other, and base64 as it stands.
fn value(client: usize, sequence: u64) -> String {
    format!("bench{client:07}x{sequence:019}")
}

impl Round {
    fn rate(&self) -> f64 {
        self.writes.len() as f64 / self.seconds
    }

    fn cells(&self) -> String {
        let at = |share: f64| self.writes.get((self.writes.len() as f64 * share) as usize);
        let millis = |share| at(share).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
        format!(
            "{:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
            self.rate(),
            millis(0.5),
            millis(0.99),
            self.server_cpu / self.seconds,
            self.client_cpu / self.seconds,
            self.errors.len(),
            machine::load(),
        )
    }
}
