//! What a process has used, by `/proc`.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result};

/// User and system time of these processes together, in seconds. One that has ended is an error: its time is gone.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    summed(pids, 11..13)
}

/// What stands in these fields behind the names; 13 and 14 are user and system time of the children it has waited for.
pub(crate) fn summed(pids: &[u32], times: Range<usize>) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        for field in fields.skip(times.start).take(times.len()) {
            ticks += field.parse::<f64>().context("times in `stat` are numbers")?;
        }
    }
    // USER_HZ has been 100 on every Linux since it is fixed to that.
    Ok(ticks / 100.0)
}
