//! A node as a proxy before Ollama, beside other proxies: what a request and a line of a stream cost, and what clients
//! see when a backend dies or freezes. One backend for the costs, three for the rest; all asked the same.
//!
//!     cargo bench --bench gateway -- [binary=PATH] [dir=FOLDER] [part=all|cost|trouble] [seconds=1] [rounds=3]
//!         [before=10] [after=15] [nginx=PATH] [sglang=PYTHON] [ollamamq=PATH]
//!
//! Others' programs are measured where their paths are given: nginx, a Python with `sglang_router`, ollamaMQ.

#[path = "../support/arguments.rs"]
mod arguments;
mod backend;
#[path = "../support/child.rs"]
mod child;
mod client;
mod cost;
#[path = "../support/machine.rs"]
mod machine;
mod message;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/status.rs"]
mod status;
mod subject;
mod trouble;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use backend::Backend;
use client::Api;
use cost::{Figures, Row};
use subject::{Peers, Subject};
use trouble::Plan;

fn main() -> Result<()> {
    if arguments::argument("role", String::new())? == "backend" {
        return backend::serve();
    }
    let (binary, peers) = (arguments::binary()?, Peers::given()?);
    println!("{}", machine::name());
    for (name, given) in [("nginx", &peers.nginx), ("sglang", &peers.sglang), ("ollamamq", &peers.ollamamq)] {
        if given.is_none() {
            println!("{name} is left out: its path was not given");
        }
    }
    let part = arguments::argument("part", "all".to_owned())?;
    if part != "trouble" {
        costs(&binary, &peers)?;
    }
    if part != "cost" {
        troubles(&binary, &peers)?;
    }
    Ok(())
}

fn costs(binary: &Path, peers: &Peers) -> Result<()> {
    let span = Duration::from_secs_f64(arguments::argument("seconds", 1.0)?);
    let rounds: usize = arguments::argument("rounds", 3)?;
    let scratch = scratch()?;
    let (dir, backend) = (scratch.path(), Backend::start()?);
    let backends = std::slice::from_ref(&backend);
    let mut subjects = vec![Subject::direct(&backend)];
    let mut start = |subject: Result<Subject>| admit(subject, &mut subjects);
    start(Subject::omx("omx", binary, &dir.join("alone"), &[Some(&backend)]));
    start(Subject::omx("omx, one hop", binary, &dir.join("hop"), &[None, Some(&backend)]));
    if let Some(program) = &peers.nginx {
        start(Subject::nginx(program, dir, backends));
    }
    if let Some(python) = &peers.sglang {
        for policy in ["round_robin", "cache_aware"] {
            start(Subject::sglang(python, policy, dir, backends));
        }
    }
    if let Some(program) = &peers.ollamamq {
        start(Subject::ollamamq(program, dir, backends));
    }
    let mut rows = Vec::new();
    for subject in &subjects {
        let machines = subject.machines()?;
        if subject.name == "omx" {
            let name = "omx, OpenAI's API".to_owned();
            rows.push(Row { name, target: subject.at(Api::OpenAi), machines: machines.clone() });
        }
        rows.push(Row { name: subject.name.clone(), target: subject.target, machines });
    }
    println!("| round | | {} load |", cost::CELLS);
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); rows.len()];
    for round in 1..=rounds {
        for (row, figures) in rows.iter().zip(&mut figures) {
            match row.measure(span) {
                Ok(measured) => {
                    println!("| {round} | {} | {} {} |", row.name, measured.cells(), machine::load());
                    figures.push(measured);
                }
                Err(error) => println!("{}: {error:#}", row.name),
            }
        }
    }
    println!("\nmedians\n\n| | {} added p50 µs | RSS MB |", cost::CELLS);
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let direct = figures.first().and_then(|rounds| Figures::median(rounds)).map_or(f64::NAN, |median| median.p50);
    for (row, figures) in rows.iter().zip(&figures) {
        if let Some(median) = Figures::median(figures) {
            let added = median.p50 - direct;
            println!("| {} | {} {added:.0} | {} |", row.name, median.cells(), resident(&row.machines)?);
        }
    }
    Ok(())
}

/// In MB of 10^6 bytes, of each machine.
fn resident(machines: &[Vec<u32>]) -> Result<String> {
    let mut each = Vec::new();
    for pids in machines {
        let mut kib = 0.0;
        for pid in pids {
            kib += status::field(&status::of(*pid)?, "VmRSS")?;
        }
        each.push(format!("{:.0}", kib * 1024.0 / 1e6));
    }
    Ok(if each.is_empty() { "–".to_owned() } else { each.join(" + ") })
}

/// Where trouble strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Backend,
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
}

/// Which of three is struck: not the one that is asked.
const VICTIM: usize = 3;

fn troubles(binary: &Path, peers: &Peers) -> Result<()> {
    let plan = Plan {
        clients: 9,
        before: Duration::from_secs_f64(arguments::argument("before", 10.0)?),
        after: Duration::from_secs_f64(arguments::argument("after", 15.0)?),
    };
    println!("\n9 clients, 3 backends, one of which is struck; from then on\n\n| | {} load |", trouble::CELLS);
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    type Start<'a> = Box<dyn Fn(&Path, &[Backend]) -> Result<Subject> + 'a>;
    let mut starts: Vec<(At, Start<'_>)> = Vec::new();
    for at in [At::Backend, At::Node] {
        starts.push((
            at,
            Box::new(|dir, backends| {
                let each: Vec<_> = backends.iter().map(Some).collect();
                Subject::omx("omx, three nodes", binary, dir, &each)
            }),
        ));
    }
    if let Some(program) = &peers.nginx {
        starts.push((At::Backend, Box::new(|dir, backends| Subject::nginx(program, dir, backends))));
    }
    if let Some(python) = &peers.sglang {
        starts.push((At::Backend, Box::new(|dir, backends| Subject::sglang(python, "round_robin", dir, backends))));
    }
    if let Some(program) = &peers.ollamamq {
        starts.push((At::Backend, Box::new(|dir, backends| Subject::ollamamq(program, dir, backends))));
    }
    for (at, start) in &starts {
        for fault in [Fault::Killed, Fault::Frozen] {
            if let Err(error) = trouble(plan, start, *at, fault) {
                println!("left out: {error:#}");
            }
        }
    }
    Ok(())
}

fn trouble(plan: Plan, start: impl Fn(&Path, &[Backend]) -> Result<Subject>, at: At, fault: Fault) -> Result<()> {
    let scratch = scratch()?;
    let mut backends = (0..3).map(|_| Backend::start()).collect::<Result<Vec<_>>>()?;
    let mut subject = start(scratch.path(), &backends)?;
    subject.ready()?;
    let name =
        format!("{}: {} {}", subject.name, format!("{at:?}").to_lowercase(), format!("{fault:?}").to_lowercase());
    let seen = plan.run(subject.target, || match (at, fault) {
        (At::Backend, Fault::Killed) => backends[VICTIM - 1].kill(),
        (At::Backend, Fault::Frozen) => backends[VICTIM - 1].freeze(),
        (At::Node, Fault::Killed) => subject.node(VICTIM)?.kill9(),
        (At::Node, Fault::Frozen) => subject.node(VICTIM)?.freeze(),
    })?;
    println!("| {name} | {} {} |", seen.cells(), machine::load());
    if let Some(refusal) = seen.first_refusal() {
        println!("  first refusal: {refusal}");
    }
    Ok(())
}

fn admit(subject: Result<Subject>, into: &mut Vec<Subject>) {
    match subject.and_then(|mut subject| subject.ready().map(|()| subject)) {
        Ok(subject) => into.push(subject),
        Err(error) => println!("left out: {error:#}"),
    }
}

/// All may enter it: nginx' workers are of another user.
fn scratch() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let dir = arguments::scratch()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).context("failed to open a folder")?;
    Ok(dir)
}
