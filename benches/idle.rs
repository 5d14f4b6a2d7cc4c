//! What a node uses while nobody asks anything of it: three nodes, looked at over a minute.
//!
//!     cargo bench --bench idle -- [binary=PATH] [dir=FOLDER] [seconds=60] [settle=15]

#[path = "support/arguments.rs"]
mod arguments;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/process.rs"]
mod process;
#[path = "support/status.rs"]
mod status;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use testnet::Testnet;

fn main() -> Result<()> {
    let scratch = arguments::scratch()?;
    let span = Duration::from_secs(arguments::argument("seconds", 60)?);
    let settle = Duration::from_secs(arguments::argument("settle", 15)?);
    let omx = Testnet::up(&arguments::binary()?, &scratch.path().join("omx"), 3, &arguments::node_alone())?;
    let mesh = omx.nodes()[0].status()?;
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
        let about = status::of(pid)?;
        let megabytes = |name| status::field(&about, name).map(|kib| kib * 1024.0 / 1e6);
        let role = if mesh["leader"]["name"] == *node.name() { " (leader)" } else { "" };
        println!(
            "| {}{role} | {cpu:.2} | {:.1} | {:.1} | {:.1} | {} | {woken:.0} |",
            node.name(),
            megabytes("VmRSS")?,
            megabytes("RssAnon")?,
            megabytes("VmHWM")?,
            status::field(&about, "Threads")?,
        );
    }
    println!("load at the end {}", machine::load());
    omx.down().map(drop)
}

/// How often the threads of a process went to sleep by themselves so far.
fn switches(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two looks.
        let Ok(about) = fs::read_to_string(thread?.path().join("status")) else { continue };
        sum += status::field(&about, "voluntary_ctxt_switches")?;
    }
    Ok(sum)
}
