//! What a node uses while nobody asks anything of it: three nodes, looked at over a minute.
//!
//!     cargo bench --bench idle -- [binary=PATH] [dir=FOLDER] [seconds=60] [settle=15]

#[path = "support/arguments.rs"]
mod arguments;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testnet::Testnet;

fn main() -> Result<()> {
    let scratch = arguments::scratch()?;
    let span = Duration::from_secs(arguments::argument("seconds", 60)?);
    let settle = Duration::from_secs(arguments::argument("settle", 15)?);
    let omx = Testnet::up(&arguments::binary()?, &scratch.path().join("omx"), 3, &arguments::node_alone())?;
    let status = omx.nodes()[0].status()?;
    println!("{}; three nodes idle for {} s, after {} s", machine::name(), span.as_secs(), settle.as_secs());
    // Time itself is what is measured over, so nothing is waited for here.
    thread::sleep(settle);
    let pids: Vec<u32> = omx.nodes().iter().filter_map(testnet::Node::pid).collect();
    let before = pids.iter().map(|pid| process::cpu_seconds(&[*pid])).collect::<Result<Vec<_>>>()?;
    let (start, switches) = (Instant::now(), pids.iter().map(|pid| switches(*pid)).collect::<Result<Vec<_>>>()?);
    thread::sleep(span);
    let took = start.elapsed().as_secs_f64();
    println!("| node | CPU % of a core | RSS MB | of that anonymous | peak RSS MB | threads | wake-ups/s |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (at, node) in omx.nodes().iter().enumerate() {
        let pid = pids[at];
        let cpu = (process::cpu_seconds(&[pid])? - before[at]) / took * 100.0;
        let woken = (self::switches(pid)? - switches[at]) / took;
        let about = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let megabytes = |name| field(&about, name).map(|kib| kib * 1024.0 / 1e6);
        let role = if status["leader"]["name"] == *node.name() { " (leader)" } else { "" };
        println!(
            "| {}{role} | {cpu:.2} | {:.1} | {:.1} | {:.1} | {} | {woken:.0} |",
            node.name(),
            megabytes("VmRSS")?,
            megabytes("RssAnon")?,
            megabytes("VmHWM")?,
            field(&about, "Threads")?,
        );
    }
    println!("load at the end {}", machine::load());
    omx.down().map(drop)
}

/// A number from `/proc/PID/status`; memory is in KiB there.
fn field(about: &str, name: &str) -> Result<f64> {
    let line = about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no `{name}` in a process' status"))
}

/// How often the threads of a process went to sleep by themselves so far.
fn switches(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two looks.
        let Ok(about) = fs::read_to_string(thread?.path().join("status")) else { continue };
        sum += field(&about, "voluntary_ctxt_switches")?;
    }
    Ok(sum)
}
