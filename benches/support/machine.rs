//! Where figures were taken, for the line above them.

use std::fs;

/// The processor's name and how many of them there are.
pub(crate) fn name() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let name = name.trim_start_matches(|c: char| c == ':' || c.is_whitespace());
    format!("{} x {name}, load {}", std::thread::available_parallelism().map_or(0, usize::from), load())
}

/// What else runs: figures taken on a busy machine say so.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("unknown").to_owned()
}
