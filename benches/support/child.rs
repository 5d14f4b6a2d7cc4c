//! Processes of the measurement: signals to them, all that belong to one, and their end.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::wait_until;

/// Some servers wait for their clients when they are asked to end.
const END_LIMIT: Duration = Duration::from_secs(3);

/// Only to a process that this one has started and not yet waited for: its number is nobody else's.
pub(crate) fn send(pid: u32, signal: &str) -> Result<()> {
    let status =
        Command::new("kill").args(["-s", signal, &pid.to_string()]).status().context("failed to run `kill`")?;
    ensure!(status.success(), "failed to signal process {pid}");
    Ok(())
}

/// The process and those it has started, and they.
pub(crate) fn family(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended since.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        if let Some(Ok(parent)) = fields.nth(1).map(str::parse::<u32>) {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(of) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(family)
}

/// Asks it to end, with its own children, and makes it end where it does not.
pub(crate) fn end(child: &mut Child) {
    // It may have ended by itself, and there is nobody left to tell.
    let _ = send(child.id(), "TERM");
    let ended = wait_until("the end of a program", END_LIMIT, || child.try_wait()?.context("it runs"));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
