//! What `/proc` tells of a process in words.

use std::fs;

use anyhow::{Context, Result};

/// A number from `/proc/PID/status`, or from that of one of its threads; memory is in KiB there.
pub(crate) fn field(about: &str, name: &str) -> Result<f64> {
    let line = about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no `{name}` in a process' status"))
}

pub(crate) fn of(pid: u32) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))
}
