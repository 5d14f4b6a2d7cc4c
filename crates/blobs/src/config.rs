//! What the crate is told at its start.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Config {
    /// A folder of this crate alone; made where it is missing.
    pub dir: PathBuf,
    /// Bytes a second to all peers together; `None`: as many as go through.
    pub up: Option<NonZeroU64>,
    /// Bytes a second from all peers together; `None`: as many as go through.
    pub down: Option<NonZeroU64>,
    /// Fetches that run at once; more wait their turn. Each may hold some 20 MiB in memory.
    pub fetches_max: usize,
    /// After this time without a new byte, `collect` removes what a fetch has left unfinished and nobody wants kept.
    pub partial_age_max: Duration,
    /// What became known within this time is not collected: whoever brought it may be about to say that it is needed.
    pub young_max: Duration,
}

impl Config {
    /// Four fetches at once, no limits, unfinished ones kept for a week, and everything for an hour.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            up: None,
            down: None,
            fetches_max: 4,
            partial_age_max: Duration::from_secs(7 * 24 * 3600),
            young_max: Duration::from_secs(3600),
        }
    }
}
