//! How fast bulk bytes may go in one direction, all streams of this node together.
//!
//! Two brakes. A limit in bytes a second, as the operator sets it: a bucket that fills at that rate. And giving way: while
//! models answer here, chunks move one at a time, and after each the direction rests for three times as long as it took. That
//! needs no knowledge of the link: whatever a chunk gets, bulk uses about a quarter of the time, of the link and of the
//! processor both, and the rest is free for tokens; how long a token waits behind bulk is bounded by one chunk.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex as Turns, MutexGuard};
use tokio::time::{Instant, sleep};

/// Of the time it took to move a chunk: how long the direction rests after it while it gives way.
const REST_FACTOR: u32 = 3;
/// A chunk that took long did so because something else was in its way already.
const REST_MAX: Duration = Duration::from_secs(2);
/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(100);
/// How much passes a limit in one piece.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; 0 for none.
    limit: AtomicU64,
    /// When everything let through so far has had its time.
    paid_until: Mutex<Instant>,
    gives_way: AtomicBool,
    turns: Turns<()>,
}

/// The right to move one chunk.
#[must_use = "what takes a turn has to end it"]
pub(crate) struct Turn<'a> {
    alone: Option<(MutexGuard<'a, ()>, Instant)>,
}

impl Pace {
    pub(crate) fn new(limit: Option<NonZeroU64>) -> Self {
        Self {
            limit: AtomicU64::new(limit.map_or(0, NonZeroU64::get)),
            paid_until: Mutex::new(Instant::now()),
            gives_way: AtomicBool::new(false),
            turns: Turns::new(()),
        }
    }

    pub(crate) fn set_limit(&self, limit: Option<NonZeroU64>) {
        self.limit.store(limit.map_or(0, NonZeroU64::get), Ordering::Relaxed);
    }

    pub(crate) fn set_gives_way(&self, gives_way: bool) {
        self.gives_way.store(gives_way, Ordering::Relaxed);
    }

    /// How much may go through `pass` in one piece.
    pub(crate) fn piece(&self, bytes: usize) -> usize {
        match self.limit.load(Ordering::Relaxed) {
            0 => bytes,
            _ => bytes.min(PIECE_BYTES),
        }
    }

    /// Waits until as many bytes may go. Dropped while it waits, it has still used them up.
    pub(crate) async fn pass(&self, bytes: usize) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let now = Instant::now();
        let wait = {
            let mut paid_until = self.paid_until.lock().expect("no holder panics");
            let begins = (*paid_until).max(now.checked_sub(BURST).unwrap_or(now));
            *paid_until = begins + Duration::from_secs_f64(bytes as f64 / limit as f64);
            begins.saturating_duration_since(now)
        };
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    pub(crate) async fn turn(&self) -> Turn<'_> {
        if !self.gives_way.load(Ordering::Relaxed) {
            return Turn { alone: None };
        }
        let alone = self.turns.lock().await;
        Turn { alone: Some((alone, Instant::now())) }
    }
}

impl Turn<'_> {
    /// The chunk has moved.
    pub(crate) async fn end(self) {
        if let Some((_alone, since)) = self.alone {
            sleep((since.elapsed() * REST_FACTOR).min(REST_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_for_all_streams_together_and_can_be_lifted() {
        let pace = Pace::new(NonZeroU64::new(1_000_000));
        let start = Instant::now();
        let stream = || async {
            for _ in 0..10 {
                assert_eq!(pace.piece(1 << 20), PIECE_BYTES);
                pace.pass(PIECE_BYTES).await;
            }
        };
        join_all([stream(), stream(), stream()]).await;
        let least = 30.0 * PIECE_BYTES as f64 / 1e6 - 0.2;
        let took = start.elapsed().as_secs_f64();
        assert!((least..least + 0.3).contains(&took), "{took} s");
        pace.set_limit(None);
        let start = Instant::now();
        stream_of(&pace, 1 << 30).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    async fn stream_of(pace: &Pace, bytes: usize) {
        pace.pass(pace.piece(bytes)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_way_moves_one_chunk_at_a_time_and_uses_a_quarter_of_it() {
        let pace = Pace::new(None);
        pace.set_gives_way(true);
        let chunk = Duration::from_millis(8);
        let start = Instant::now();
        let stream = || async {
            for _ in 0..25 {
                let turn = pace.turn().await;
                sleep(chunk).await;
                turn.end().await;
            }
        };
        join_all([stream(), stream(), stream(), stream()]).await;
        let (took, moved) = (start.elapsed(), chunk * 100);
        assert!(took >= moved * 4 && took < moved * 5, "{took:?}");
        pace.set_gives_way(false);
        let start = Instant::now();
        pace.turn().await.end().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
