//! The registry as this node sees it now. Inference reads it without asking anyone.
//!
//! A node comes to its registry in two ways: it takes part in the consensus, or it follows those who do. Each way has
//! its own ledger, since a node may change from one to the other; whoever reads gets the one that is further.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::{Watch, WatchReceiver, WatchSender};
use openraft::{AsyncRuntime, Instant};
use serde::{Deserialize, Serialize};

use crate::registry::{Command, Outcome, Registry, Seats, StateHash};
use crate::runtime::Runtime;
use crate::verbatim::Verbatim;

/// What a ledger keeps of the latest entries, for those who follow. At the limit the oldest goes, and who needs it
/// takes the whole registry instead.
const RECENT_ENTRIES_MAX: usize = 2_048;
const RECENT_BYTES_MAX: usize = 1 << 20;

type Sender<R> = <<<R as Runtime>::Async as AsyncRuntime>::Watch as Watch>::Sender<u64>;
type Receiver<R> = <<<R as Runtime>::Async as AsyncRuntime>::Watch as Watch>::Receiver<u64>;

pub(crate) struct View<R: Runtime> {
    pub(crate) voted: Ledger,
    pub(crate) followed: Ledger,
    /// Behind a lock since the library does not promise that a sender can be shared.
    applied: Mutex<Sender<R>>,
    /// When this node was last sure to be up to date, by the leader's word or that of whom it follows.
    heard_at: Mutex<Option<<R::Async as AsyncRuntime>::Instant>>,
    /// When the leader last fed this node's consensus.
    fed_at: Mutex<Option<<R::Async as AsyncRuntime>::Instant>>,
    pub(crate) built: Tally,
    pub(crate) installed: Tally,
    /// No voter this node knows votes any more, so that it believes nobody.
    pub(crate) estranged: AtomicBool,
}

/// Counts what happens to this node's snapshots.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One entry of the log, as far as the registry is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Blank,
    Command(Verbatim),
    Seats(Seats),
}

/// A registry and the last steps that led to it.
#[derive(Debug, Default)]
pub(crate) struct Ledger(RwLock<Pages>);

#[derive(Debug, Default)]
struct Pages {
    registry: Registry,
    recent: VecDeque<(u64, Step)>,
    recent_bytes: usize,
    /// Of the registry as it is, once somebody has asked.
    hash: Mutex<Option<StateHash>>,
}

/// The way from a follower's index to a ledger's.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) index: u64,
    pub(crate) hash: StateHash,
    pub(crate) what: Way,
}

#[derive(Debug)]
pub(crate) enum Way {
    Steps(Vec<(u64, Step)>),
    Whole(Box<Registry>),
}

impl<R: Runtime> View<R> {
    pub(crate) fn new() -> Self {
        let (applied, _) = <R::Async as AsyncRuntime>::Watch::channel(0);
        Self {
            voted: Ledger::default(),
            followed: Ledger::default(),
            applied: Mutex::new(applied),
            heard_at: Mutex::default(),
            fed_at: Mutex::default(),
            built: Tally::default(),
            installed: Tally::default(),
            estranged: AtomicBool::new(false),
        }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        let (voted, followed) = (self.voted.pages(), self.followed.pages());
        let ahead = if voted.registry.applied() >= followed.registry.applied() { voted } else { followed };
        look(&ahead.registry)
    }

    /// Somebody who was up to date so long ago has told all it had.
    pub(crate) fn heard(&self, ago: Duration) {
        let at = <R::Async as AsyncRuntime>::Instant::now() - ago;
        let mut heard_at = self.heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        *heard_at = Some(heard_at.map_or(at, |known| known.max(at)));
    }

    /// The leader has just fed this node's consensus.
    pub(crate) fn fed(&self) {
        *self.fed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(<R::Async as AsyncRuntime>::Instant::now());
        self.heard(Duration::ZERO);
    }

    pub(crate) fn fed_ago(&self) -> Duration {
        let fed_at = *self.fed_at.lock().unwrap_or_else(PoisonError::into_inner);
        fed_at.map_or(Duration::MAX, |at| at.elapsed())
    }

    pub(crate) fn heard_ago(&self) -> Duration {
        let heard_at = *self.heard_at.lock().unwrap_or_else(PoisonError::into_inner);
        heard_at.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Index and hash of the registry as `read` shows it.
    pub(crate) fn now(&self) -> (u64, StateHash) {
        let (voted, followed) = (self.voted.at(), self.followed.at());
        if voted.0 >= followed.0 { voted } else { followed }
    }

    /// Tells those who wait that the registry has moved.
    pub(crate) fn announce(&self) {
        let applied = self.read(Registry::applied);
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).send_if_greater(applied);
    }

    pub(crate) fn changes(&self) -> Changes<R> {
        Changes(self.applied.lock().unwrap_or_else(PoisonError::into_inner).subscribe())
    }
}

/// Waits for the registry to move.
pub struct Changes<R: Runtime>(Receiver<R>);

impl<R: Runtime> std::fmt::Debug for Changes<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl<R: Runtime> Changes<R> {
    /// Returns once the registry includes the entry at `index`. May be dropped at any time.
    pub async fn reach(&mut self, index: u64) {
        // The sender lives as long as the view; when that is gone there is nothing to wait for.
        let _ = self.0.wait_until_ge(&index).await;
    }

    /// Returns the index once it differs from the last one returned. May be dropped at any time.
    pub async fn next(&mut self) -> Option<u64> {
        self.0.changed().await.ok()?;
        Some(*self.0.borrow_and_update())
    }
}

impl Ledger {
    fn pages(&self) -> RwLockReadGuard<'_, Pages> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a follower that holds `index` has to hear to be where this ledger is.
    pub(crate) fn page_after(&self, index: u64) -> Page {
        let pages = self.pages();
        let mut known = pages.hash.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = *known.get_or_insert_with(|| pages.registry.hash());
        let now = pages.registry.applied();
        let missing = pages.recent.iter().filter(|(at, _)| *at > index).cloned();
        let gap = || pages.recent.front().is_none_or(|(oldest, _)| *oldest > index + 1);
        let whole = index > now || index < now && gap();
        let what = if whole { Way::Whole(Box::new(pages.registry.clone())) } else { Way::Steps(missing.collect()) };
        Page { index: now, hash, what }
    }

    /// Index and hash of the registry.
    pub(crate) fn at(&self) -> (u64, StateHash) {
        let pages = self.pages();
        let mut known = pages.hash.lock().unwrap_or_else(PoisonError::into_inner);
        (pages.registry.applied(), *known.get_or_insert_with(|| pages.registry.hash()))
    }

    pub(crate) fn registry<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.pages().registry)
    }

    /// Takes a whole registry in place of what was there.
    pub(crate) fn replace(&self, registry: Registry) {
        let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *pages = Pages { registry, ..Pages::default() };
    }

    /// Carries out the step at `index`. Fails only where the step holds a command this node does not know.
    pub(crate) fn take(&self, index: u64, step: Step) -> Result<Option<Outcome>, codec::Error> {
        let command = match &step {
            Step::Command(Verbatim(bytes)) => Some(codec::decode::<Command>(bytes)?),
            Step::Blank | Step::Seats(_) => None,
        };
        let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let outcome = match (&step, command) {
            (_, Some(command)) => Some(pages.registry.apply(index, &command)),
            (Step::Seats(seats), None) => {
                pages.registry.seat(index, seats.clone());
                None
            }
            (_, None) => {
                pages.registry.pass(index);
                None
            }
        };
        pages.remember(index, step);
        *pages.hash.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(outcome)
    }

    /// Carries out steps that lead to a known index and hash, all of them or none.
    pub(crate) fn take_all(&self, steps: Vec<(u64, Step)>, index: u64, hash: StateHash) -> Result<(), Astray> {
        let (registry, recent) = {
            let pages = self.pages();
            (pages.registry.clone(), pages.recent.clone())
        };
        let next = Self(RwLock::new(Pages {
            registry,
            recent_bytes: recent.iter().map(|(_, step)| step.bytes()).sum(),
            recent,
            hash: Mutex::default(),
        }));
        for (at, step) in steps {
            if at != next.pages().registry.applied() + 1 {
                return Err(Astray::Gap { at });
            }
            next.take(at, step)?;
        }
        let found = next.pages().registry.hash();
        if next.pages().registry.applied() != index || found != hash {
            return Err(Astray::Hash { index });
        }
        let pages = next.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pages;
        Ok(())
    }
}

/// Why steps were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Astray {
    #[error("entry {at} does not follow")]
    Gap { at: u64 },
    #[error("the entries do not lead to the signed hash at {index}")]
    Hash { index: u64 },
    #[error("an entry cannot be read")]
    Unreadable(#[from] codec::Error),
}

impl Pages {
    fn remember(&mut self, index: u64, step: Step) {
        self.recent_bytes += step.bytes();
        self.recent.push_back((index, step));
        while self.recent.len() > RECENT_ENTRIES_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some((_, oldest)) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.bytes();
        }
    }
}

impl Step {
    pub(crate) fn command(bytes: Bytes) -> Self {
        Self::Command(Verbatim(bytes))
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Blank => 16,
            Self::Command(Verbatim(bytes)) => 16 + bytes.len(),
            Self::Seats(seats) => 16 + 8 * (seats.voters.len() + seats.learners.len()),
        }
    }
}
