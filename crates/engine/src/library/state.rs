//! What to load and what to drop, as a function of what happened. No clock and no memory gauge: both come along.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::library::KeepAlive;
use crate::runner::{Facts, LoadOptions, Need, Spec};

/// After this time a request that needs a load lets no later ones pass that would keep models busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request's number. Later ones are higher.
pub(crate) type Ticket = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) context: u32,
    pub(crate) loaded_max: usize,
    pub(crate) waiting_max: usize,
    /// Bytes for all models together.
    pub(crate) memory: u64,
}

#[derive(Debug)]
pub(crate) enum Action {
    /// Find out what this would take; the answer is [`State::probed`].
    Probe(Ticket, Spec),
    /// The answer is [`State::loaded`].
    Load(Spec),
    /// The answer is [`State::unloaded`].
    Unload(PathBuf),
    Grant(Ticket, PathBuf),
    Refuse(Ticket, Error),
}

#[derive(Debug)]
pub(crate) struct State {
    limits: Limits,
    shelves: BTreeMap<PathBuf, Shelf>,
    /// In the order they came.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
enum Shelf {
    Loading { spec: Spec, need: u64 },
    Loaded(Loaded),
    Unloading { size: u64 },
}

#[derive(Debug)]
struct Loaded {
    options: LoadOptions,
    facts: Facts,
    users: usize,
    keep_alive: KeepAlive,
    /// When it became idle; while it is used, when it was last granted.
    since: Instant,
    /// It takes no more requests: it was told to go, or has died.
    leaving: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    spec: Spec,
    keep_alive: KeepAlive,
    since: Instant,
    need: Known,
}

/// What is known of a load.
#[derive(Debug)]
enum Known {
    Nothing,
    Asked,
    Need(u64),
}

/// What `ps` wants to know.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) file: &'a Path,
    pub(crate) options: &'a LoadOptions,
    pub(crate) facts: &'a Facts,
    pub(crate) users: usize,
    pub(crate) expires_in: Option<Duration>,
}

impl State {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, shelves: BTreeMap::new(), waiting: VecDeque::new() }
    }

    pub(crate) fn asked(&mut self, now: Instant, ticket: Ticket, spec: Spec, keep_alive: KeepAlive) -> Vec<Action> {
        let waiting = Waiting { ticket, spec, keep_alive, since: now, need: Known::Nothing };
        self.waiting.push_back(waiting);
        let mut actions = self.settle(now);
        // Those that need no load have gone; what is left and too much is this one.
        if self.waiting.len() > self.limits.waiting_max && self.drop_waiting(ticket) {
            actions.push(Action::Refuse(ticket, Error::Busy));
        }
        actions
    }

    /// Whoever is not `wanted` any more has left.
    pub(crate) fn left(&mut self, wanted: impl Fn(Ticket) -> bool) {
        self.waiting.retain(|waiting| wanted(waiting.ticket));
    }

    pub(crate) fn probed(&mut self, now: Instant, ticket: Ticket, need: Result<Need, Error>) -> Vec<Action> {
        match need {
            Ok(need) => {
                for waiting in self.waiting.iter_mut().filter(|waiting| waiting.ticket == ticket) {
                    waiting.need = Known::Need(need.total());
                }
                self.settle(now)
            }
            Err(error) => {
                let refused = self.drop_waiting(ticket).then_some(Action::Refuse(ticket, error));
                refused.into_iter().chain(self.settle(now)).collect()
            }
        }
    }

    pub(crate) fn loaded(&mut self, now: Instant, file: &Path, how: Result<Facts, Error>) -> Vec<Action> {
        let Some(Shelf::Loading { spec, .. }) = self.shelves.remove(file) else { return Vec::new() };
        let facts = match how {
            Ok(facts) => facts,
            Err(error) => {
                let limits = self.limits;
                let same = |waiting: &Waiting| limits.resolve(&waiting.spec) == spec;
                let refused = self.waiting.iter().filter(|waiting| same(waiting));
                let refused = refused.map(|waiting| Action::Refuse(waiting.ticket, error.clone())).collect::<Vec<_>>();
                self.waiting.retain(|waiting| !same(waiting));
                return refused.into_iter().chain(self.settle(now)).collect();
            }
        };
        let loaded = Loaded {
            options: spec.options,
            facts,
            users: 0,
            keep_alive: KeepAlive::default(),
            since: now,
            leaving: false,
        };
        self.shelves.insert(spec.file, Shelf::Loaded(loaded));
        self.settle(now)
    }

    pub(crate) fn unloaded(&mut self, now: Instant, file: &Path) -> Vec<Action> {
        self.shelves.remove(file);
        self.settle(now)
    }

    /// One user less.
    pub(crate) fn released(&mut self, now: Instant, file: &Path) -> Vec<Action> {
        if let Some(Shelf::Loaded(loaded)) = self.shelves.get_mut(file) {
            loaded.users = loaded.users.saturating_sub(1);
            loaded.since = now;
        }
        self.settle(now)
    }

    /// It shall go, or is dead already: once its users are gone.
    pub(crate) fn leave(&mut self, now: Instant, file: &Path) -> Vec<Action> {
        if let Some(Shelf::Loaded(loaded)) = self.shelves.get_mut(file) {
            loaded.leaving = true;
        }
        self.settle(now)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        self.settle(now)
    }

    /// When time alone changes something.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.idle().filter_map(|(_, loaded)| loaded.expires()).min()
    }

    pub(crate) fn entries(&self, now: Instant) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        for (file, shelf) in &self.shelves {
            if let Shelf::Loaded(loaded) = shelf {
                let Loaded { options, facts, users, .. } = loaded;
                entries.push(Entry { file, options, facts, users: *users, expires_in: loaded.expires_in(now) });
            }
        }
        entries.sort_by_key(|entry: &Entry<'_>| std::cmp::Reverse(entry.expires_in.unwrap_or(Duration::MAX)));
        entries
    }

    fn drop_waiting(&mut self, ticket: Ticket) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        self.waiting.len() < before
    }

    fn idle(&self) -> impl Iterator<Item = (&PathBuf, &Loaded)> {
        self.shelves.iter().filter_map(|(file, shelf)| match shelf {
            Shelf::Loaded(loaded) if loaded.users == 0 => Some((file, loaded)),
            _ => None,
        })
    }

    /// Does all that can be done now.
    fn settle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.grant(now);
        self.expire(now, &mut actions);
        self.make_way(&mut actions);
        actions
    }

    fn grant(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut waits = VecDeque::new();
        let mut nobody_passes = false;
        for waiting in std::mem::take(&mut self.waiting) {
            let limits = self.limits;
            match self.shelves.get_mut(&waiting.spec.file) {
                Some(Shelf::Loaded(loaded)) if !nobody_passes && loaded.serves(&waiting.spec, limits) => {
                    loaded.users += 1;
                    loaded.keep_alive = waiting.keep_alive;
                    loaded.since = now;
                    actions.push(Action::Grant(waiting.ticket, waiting.spec.file));
                }
                _ => {
                    nobody_passes |= now.duration_since(waiting.since) >= PATIENCE;
                    waits.push_back(waiting);
                }
            }
        }
        self.waiting = waits;
        actions
    }

    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let over = |loaded: &Loaded| loaded.leaving || loaded.expires().is_some_and(|at| at <= now);
        let gone: Vec<PathBuf> = self.idle().filter(|(_, loaded)| over(loaded)).map(|(file, _)| file.clone()).collect();
        for file in gone {
            self.unload(&file, actions);
        }
    }

    /// One step towards the load that has waited longest: loads are serial, since each is measured against what the
    /// others left.
    fn make_way(&mut self, actions: &mut Vec<Action>) {
        let Some(first) = self.waiting.front_mut() else { return };
        let need = match first.need {
            Known::Need(need) => need,
            Known::Asked => return,
            Known::Nothing => {
                first.need = Known::Asked;
                actions.push(Action::Probe(first.ticket, first.spec.clone()));
                return;
            }
        };
        let (ticket, spec) = (first.ticket, first.spec.clone());
        // However much others give up.
        if need > self.limits.memory {
            self.waiting.pop_front();
            actions.push(Action::Refuse(ticket, Error::Memory { need, available: self.limits.memory }));
            return self.make_way(actions);
        }
        if self.shelves.values().any(|shelf| matches!(shelf, Shelf::Loading { .. } | Shelf::Unloading { .. })) {
            return;
        }
        if let Some(Shelf::Loaded(loaded)) = self.shelves.get(&spec.file) {
            // Other options than it was loaded with: it has to go first.
            if loaded.users == 0 {
                self.unload(&spec.file, actions);
            }
            return;
        }
        let taken = self.shelves.values().map(Shelf::size).fold(0, u64::saturating_add);
        let fits = taken.saturating_add(need) <= self.limits.memory && self.shelves.len() < self.limits.loaded_max;
        if fits {
            let spec = self.limits.resolve(&spec);
            self.shelves.insert(spec.file.clone(), Shelf::Loading { spec: spec.clone(), need });
            actions.push(Action::Load(spec));
        } else if let Some(file) = self.victim() {
            self.unload(&file, actions);
        }
    }

    /// Of the idle ones the one that was to be kept for the shortest time.
    fn victim(&self) -> Option<PathBuf> {
        let order = |(_, loaded): &(&PathBuf, &Loaded)| {
            let keep = match loaded.keep_alive {
                KeepAlive::For(time) => time,
                KeepAlive::Forever => Duration::MAX,
            };
            (keep, loaded.since)
        };
        self.idle().min_by_key(order).map(|(file, _)| file.clone())
    }

    fn unload(&mut self, file: &Path, actions: &mut Vec<Action>) {
        if let Some(shelf) = self.shelves.get_mut(file) {
            *shelf = Shelf::Unloading { size: shelf.size() };
            actions.push(Action::Unload(file.to_owned()));
        }
    }
}

impl Limits {
    /// Whoever leaves the context to us asks for the usual one.
    fn resolve(&self, spec: &Spec) -> Spec {
        let mut spec = spec.clone();
        spec.options.num_ctx.get_or_insert(self.context);
        spec
    }
}

impl Shelf {
    fn size(&self) -> u64 {
        match self {
            Self::Loading { need, .. } => *need,
            Self::Loaded(loaded) => loaded.facts.size,
            Self::Unloading { size } => *size,
        }
    }
}

impl Loaded {
    /// Whether it is what a request with these options asks for. Where a request leaves the choice, what is loaded is
    /// the choice, unless its context is smaller than usual.
    fn serves(&self, spec: &Spec, limits: Limits) -> bool {
        if self.leaving {
            return false;
        }
        // Whatever came of it: loading the same once more would give the same.
        if limits.resolve(spec).options == self.options {
            return true;
        }
        let wanted = &spec.options;
        let same = |wanted: Option<u32>, has: Option<u32>| wanted.is_none() || wanted == has;
        let context = match wanted.num_ctx {
            Some(context) => self.facts.context == context.min(self.facts.context_trained),
            None => self.facts.context >= limits.context.min(self.facts.context_trained),
        };
        context
            && same(wanted.num_batch, self.options.num_batch)
            && same(wanted.num_gpu, self.options.num_gpu)
            && same(wanted.main_gpu, self.options.main_gpu)
            && same(wanted.num_thread, self.options.num_thread)
            && (wanted.use_mmap.is_none() || wanted.use_mmap == self.options.use_mmap)
    }

    /// Of an idle one. A time beyond the clock's range is never.
    fn expires(&self) -> Option<Instant> {
        match self.keep_alive {
            KeepAlive::For(time) => self.since.checked_add(time),
            KeepAlive::Forever => None,
        }
    }

    fn expires_in(&self, now: Instant) -> Option<Duration> {
        let since = if self.users > 0 { now } else { self.since };
        match self.keep_alive {
            KeepAlive::For(time) => Some(since.checked_add(time)?.saturating_duration_since(now)),
            KeepAlive::Forever => None,
        }
    }
}

#[cfg(test)]
mod tests;
