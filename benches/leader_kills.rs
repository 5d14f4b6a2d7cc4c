//! How long a mesh of three is without a leader when that is killed: from `SIGKILL` to the first write that is
//! acknowledged at another node.
//!
//!     cargo bench --bench leader_kills -- [binary=PATH] [dir=FOLDER] [kills=100]
//!
//! Both survivors get a new write every 50 ms, each on a connection of its own, until one is acknowledged: that is "first".
//! "patient" is when both writes that were sent first, as soon as the process was gone, were acknowledged.

#[path = "support/arguments.rs"]
mod arguments;
#[path = "../tests/support/http.rs"]
mod http;
#[path = "support/machine.rs"]
mod machine;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testnet::{Testnet, wait_until};

const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Per node. Its local socket takes 64 connections; those that wait try again by themselves.
const PROBES_MAX: u32 = 48;
/// Without a leader for this long is a failure, not a figure.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
const WHOLE_LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let scratch = arguments::scratch()?;
    let kills: usize = arguments::argument("kills", 100)?;
    let mut omx = Testnet::up(&arguments::binary()?, &scratch.path().join("omx"), 3, &arguments::node_alone())?;
    println!("{}; {kills} kills of the leader of three", machine::name());
    let (mut first, mut patient) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        let leader = wait_until("all three up, under one leader", WHOLE_LIMIT, || whole(&omx))?;
        let survivors = omx.nodes().iter().filter(|node| node.name() != leader);
        let sockets: Vec<PathBuf> = survivors.map(|node| node.dir().join("run/omx.sock")).collect();
        let killed = Instant::now();
        // Returns once the process is gone: a write before that might still be the old leader's.
        omx.node(&leader)?.kill9()?;
        let (soonest, waited) = probe(&sockets, killed, kill)?;
        println!("{kill:>3} {leader} first {:>5} ms, patient {:>5} ms", soonest.as_millis(), waited.as_millis());
        first.push(soonest);
        patient.push(waited);
        omx.node(&leader)?.start()?;
    }
    for (name, mut times) in [("first", first), ("patient", patient)] {
        times.sort_unstable();
        // The smallest value that so many of a hundred do not exceed.
        let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1].as_millis();
        println!("{name}: p50 {} ms, p90 {} ms, p99 {} ms, most {} ms", at(50), at(90), at(99), at(100));
    }
    println!("load at the end {}", machine::load());
    omx.down().map(drop)
}

/// The leader's name, once every node sees the others up and all name the same leader.
fn whole(omx: &Testnet) -> Result<String> {
    let mut leaders = Vec::new();
    for node in omx.nodes() {
        let (_, status) = http::ask(&node.dir().join("run/omx.sock"), "GET", "/omx/v1/status", None)?;
        let members = status["members"].as_array().context("no members")?;
        let up = members.iter().filter(|member| member["state"] == "up" && member["voter"] == true).count();
        ensure!(up == 3, "{status}");
        leaders.push(status["leader"]["name"].as_str().context("no leader")?.to_owned());
    }
    ensure!(leaders.windows(2).all(|pair| pair[0] == pair[1]), "{leaders:?}");
    leaders.pop().context("no nodes")
}

/// When the first write was acknowledged, and when the last of those that were sent first, counted from the kill.
fn probe(sockets: &[PathBuf], killed: Instant, kill: usize) -> Result<(Duration, Duration)> {
    let (acknowledged, results) = mpsc::channel();
    thread::scope(|scope| {
        let (mut soonest, mut waited) = (None, Vec::new());
        for number in 0_u32.. {
            for (at, socket) in sockets.iter().enumerate().filter(|_| soonest.is_none() && number < PROBES_MAX) {
                let acknowledged = acknowledged.clone();
                let value: Value = json!({"value": format!("kill {kill} probe {number} at {at}")});
                scope.spawn(move || {
                    let answer = http::ask(socket, "PUT", "/omx/v1/config/mesh.name", Some(&value));
                    // Nobody listens once both figures are there.
                    let _ = acknowledged.send((number, answer, killed.elapsed()));
                });
            }
            let next = Instant::now() + PROBE_EVERY;
            while let Ok((number, answer, at)) = results.recv_timeout(next.saturating_duration_since(Instant::now())) {
                let (status, said) = answer?;
                ensure!(status == 200, "write {number} got {status} after {at:?}: {said}");
                soonest = soonest.or(Some(at));
                if number == 0 {
                    waited.push(at);
                }
                if let (Some(soonest), Some(last)) = (soonest, waited.last().filter(|_| waited.len() == sockets.len()))
                {
                    return Ok((soonest, *last));
                }
            }
            ensure!(killed.elapsed() < LEADER_LIMIT, "no write was acknowledged within {LEADER_LIMIT:?}");
        }
        bail!("the numbers ran out")
    })
}
