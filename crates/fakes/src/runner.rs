//! What is loaded, who waits for it, and what its slots remember: Ollama's scheduler as seen from outside.
//!
//! Loads are strictly one after the other, and who waits to load holds up all that wait behind it. Requests for what is
//! loaded already pass them by and wait for a slot, first come first served and without limit.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::config::Model;
use crate::counts::{Ledger, While};
use crate::refusal::Refusal;

#[derive(Debug)]
pub(crate) struct Runners {
    slots: usize,
    loaded_max: usize,
    pending: Arc<Semaphore>,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Told whenever a runner comes, goes or falls idle.
    changed: watch::Sender<()>,
    ledger: Arc<Ledger>,
}

/// What a request wants to be loaded. A runner with other options has to go first.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) model: Model,
    /// As `ps` is to show it.
    pub(crate) name: String,
    pub(crate) options: LoadOptions,
    /// `None` is for ever.
    pub(crate) keep_alive: Option<Duration>,
    /// How many times as long everything takes.
    pub(crate) slow: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoadOptions {
    pub(crate) context: u32,
    /// The others that were given, in the order of their names.
    pub(crate) others: Vec<(&'static str, Value)>,
}

/// As `ps` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) context: u32,
    /// `None` is for ever.
    pub(crate) left: Option<Duration>,
}

/// The use of a runner. While one is there, the runner stays.
#[derive(Debug)]
pub(crate) struct Stay {
    runners: Arc<Runners>,
    runner: u64,
    slots: Arc<Semaphore>,
}

/// A slot of a runner, and what it remembers of the prompt.
#[derive(Debug)]
pub(crate) struct Slot {
    place: usize,
    /// Bytes of the prompt that need no work.
    pub(crate) remembered: usize,
    /// What the slot will remember.
    pub(crate) text: String,
    stay: Stay,
    _permit: OwnedSemaphorePermit,
    _running: While,
}

#[derive(Debug, Default)]
struct State {
    runners: Vec<Runner>,
    last_id: u64,
}

#[derive(Debug)]
struct Runner {
    id: u64,
    wanted: Wanted,
    loading: bool,
    users: usize,
    expires: Option<Instant>,
    slots: Arc<Semaphore>,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Default)]
struct Place {
    busy: bool,
    text: String,
}

impl Runners {
    pub(crate) fn new(slots: usize, loaded_max: usize, pending_max: usize, ledger: Arc<Ledger>) -> Self {
        Self {
            slots: slots.max(1),
            loaded_max: loaded_max.max(1),
            pending: Arc::new(Semaphore::new(pending_max)),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            ledger,
        }
    }

    /// Waits for a load and loads. Dropping the future ends both.
    pub(crate) async fn load(self: &Arc<Self>, wanted: &Wanted) -> Result<Stay, Refusal> {
        if let Some(stay) = self.stay_with(wanted) {
            return Ok(stay);
        }
        let _waiting = self.ledger.hold(|counts| counts.waiting += 1, |counts| counts.waiting -= 1);
        let _pending = self.pending.clone().try_acquire_owned().map_err(|_| Refusal::busy())?;
        let _turn = self.turn.lock().await;
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(stay) = self.stay_with(wanted) {
                return Ok(stay);
            }
            if self.make_room(wanted) {
                break;
            }
            changed.changed().await.map_err(|_| Refusal::here("the fake is gone"))?;
        }
        let stay = self.begin(wanted);
        tokio::time::sleep(wanted.model.load.mul_f64(wanted.slow)).await;
        self.state().of(stay.runner).loading = false;
        Ok(stay)
    }

    /// Unloads it as soon as nobody uses it.
    pub(crate) fn unload(&self, model: &Model) {
        let mut state = self.state();
        for runner in state.runners.iter_mut().filter(|runner| runner.wanted.model.content == model.content) {
            runner.wanted.keep_alive = Some(Duration::ZERO);
            runner.expires = Some(Instant::now());
        }
        state.sweep();
        drop(state);
        self.changed.send_replace(());
    }

    /// Those that stay longest first.
    pub(crate) fn loaded(&self) -> Vec<Loaded> {
        let mut state = self.state();
        state.sweep();
        let now = Instant::now();
        let mut loaded: Vec<_> = state
            .runners
            .iter()
            .map(|runner| Loaded {
                name: runner.wanted.name.clone(),
                model: runner.wanted.model.clone(),
                context: runner.wanted.options.context,
                left: runner.left(now),
            })
            .collect();
        loaded.sort_by_key(|loaded| std::cmp::Reverse(loaded.left.unwrap_or(Duration::MAX)));
        loaded
    }

    fn stay_with(self: &Arc<Self>, wanted: &Wanted) -> Option<Stay> {
        let mut state = self.state();
        state.sweep();
        let runner = state.runners.iter_mut().find(|runner| !runner.loading && runner.serves(wanted))?;
        runner.users += 1;
        runner.wanted.keep_alive = wanted.keep_alive;
        Some(Stay { runners: self.clone(), runner: runner.id, slots: runner.slots.clone() })
    }

    /// Whether there is room now: what stands in the way and is idle goes, what is busy is waited for.
    fn make_room(&self, wanted: &Wanted) -> bool {
        let mut state = self.state();
        let of_this_model = |runner: &Runner| runner.wanted.model.content == wanted.model.content;
        if let Some(at) = state.runners.iter().position(of_this_model) {
            if state.runners[at].users > 0 {
                return false;
            }
            state.runners.remove(at);
        }
        while state.runners.len() >= self.loaded_max {
            let idle = state.runners.iter().enumerate().filter(|(_, runner)| runner.users == 0);
            let first = idle.min_by_key(|(_, runner)| runner.wanted.keep_alive.unwrap_or(Duration::MAX));
            let Some((at, _)) = first else { return false };
            state.runners.remove(at);
        }
        true
    }

    fn begin(self: &Arc<Self>, wanted: &Wanted) -> Stay {
        self.ledger.add(|counts| counts.loads += 1);
        let slots = Arc::new(Semaphore::new(self.slots));
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        state.runners.push(Runner {
            id,
            wanted: wanted.clone(),
            loading: true,
            users: 1,
            expires: None,
            slots: slots.clone(),
            places: vec![Place::default(); self.slots],
        });
        Stay { runners: self.clone(), runner: id, slots }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }
}

impl Stay {
    /// Waits for a slot; of those that are free, the one that remembers most of the prompt.
    pub(crate) async fn slot(self, prompt: &str) -> Result<Slot, Refusal> {
        let ledger = self.runners.ledger.clone();
        let waiting = ledger.hold(|counts| counts.waiting += 1, |counts| counts.waiting -= 1);
        let permit = self.slots.clone().acquire_owned().await.map_err(|_| Refusal::here("the fake is gone"))?;
        drop(waiting);
        let running = ledger.hold(
            |counts| {
                counts.running += 1;
                counts.running_max = counts.running_max.max(counts.running);
            },
            |counts| counts.running -= 1,
        );
        let mut state = self.runners.state();
        let free = state.of(self.runner).places.iter_mut().enumerate().filter(|(_, place)| !place.busy);
        let (place, chosen) = free
            .max_by_key(|(at, place)| (common(&place.text, prompt), std::cmp::Reverse(*at)))
            .expect("there are as many places as permits");
        chosen.busy = true;
        let remembered = common(&chosen.text, prompt);
        drop(state);
        Ok(Slot { place, remembered, text: prompt.to_owned(), stay: self, _permit: permit, _running: running })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut state = self.runners.state();
        let runner = state.of(self.runner);
        runner.users -= 1;
        runner.expires = runner.wanted.keep_alive.map(|length| Instant::now() + length);
        if runner.loading {
            // Who asked went while it was loading, and nobody else can have come.
            let id = self.runner;
            state.runners.retain(|runner| runner.id != id);
        }
        state.sweep();
        drop(state);
        self.runners.changed.send_replace(());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.stay.runners.state().of(self.stay.runner).places[self.place] = Place { busy: false, text };
    }
}

impl State {
    fn of(&mut self, id: u64) -> &mut Runner {
        self.runners.iter_mut().find(|runner| runner.id == id).expect("a runner that is used stays")
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.runners.retain(|runner| runner.users > 0 || runner.expires.is_none_or(|expires| expires > now));
    }
}

impl Runner {
    fn serves(&self, wanted: &Wanted) -> bool {
        self.wanted.model.content == wanted.model.content && self.wanted.options == wanted.options
    }

    /// While it is used its time has not begun.
    fn left(&self, now: Instant) -> Option<Duration> {
        if self.users > 0 {
            return self.wanted.keep_alive;
        }
        self.expires.map(|expires| expires.saturating_duration_since(now))
    }
}

fn common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
