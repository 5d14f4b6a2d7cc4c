//! Everything an agent knows and decides, as one value: who waits, who is inside, what it costs, what would be
//! promised. Events and the time go in, what to do comes out; the shell around it does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ollama::{ModelName, seen};
use scheduler::{Class, Estimate, ModelKey, Moment, Place, Promise, Seconds, Tenant, Work};
use serde::{Deserialize, Serialize};

use crate::Ticket;
use crate::queue::{Entered, Entry, Merit, Queue, Tokens};
use crate::rates::{Cost, Machine, Rates, Sample, Seed};
use crate::shadow::Shadow;
use crate::slots::{SLOTS_MAX, Slots};
use crate::state::{Health, Missed, State};

#[derive(Debug, Clone)]
pub struct Config {
    /// Requests that wait; beyond it the queue sheds or refuses.
    pub waiting_max: usize,
    /// Slots of every model where an operator knows them; else they are learned.
    pub slots: Option<u16>,
    pub machine: Machine,
    /// What the backend's prompt cache holds of one model, in tokens.
    pub cached_tokens_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { waiting_max: 512, slots: None, machine: Machine::Cpu, cached_tokens_max: 64 << 10 }
    }
}

/// A request, as far as a decision about it needs to know it.
#[derive(Debug, Clone)]
pub struct Ask {
    pub work: Work,
    /// Its tenant's share as against others in its class; one unless an operator says otherwise.
    pub weight: f32,
    /// It is refused where it would wait or load longer than this: the caller knows other places.
    pub wait_max: Option<Duration>,
    /// The id of the key it came by, where it came by one. Where it runs for another node, that is checked again.
    pub key: Option<String>,
}

/// Of the backend and each model it has, as others may hear of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub state: State,
    /// As the backend gives it; `None` until it was asked.
    pub version: Option<String>,
    pub models: Vec<ModelFacts>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    pub key: ModelKey,
    /// All names it is listed under, tags included.
    pub names: Vec<String>,
    /// Bytes of weights.
    pub size: u64,
    /// `wait` is that of somebody unknown who comes now.
    pub facts: scheduler::Facts,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the model is not here")]
    NoModel,
    #[error("the wait would be {}, longer than was asked for", .0.estimate.wait.max(.0.estimate.load))]
    Nack(Promise),
    #[error("too many wait here, for {wait}")]
    Full { wait: Seconds },
    #[error("it could not start in time")]
    Late,
    #[error("the backend is draining")]
    Draining,
    #[error("the backend is down: {0}")]
    Down(String),
    /// It may have been revoked, or made a moment ago.
    #[error("the key it came by does not allow it")]
    Denied,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Start {
        ticket: Ticket,
        start: Start,
    },
    /// It waited, and will not start here.
    Refuse {
        ticket: Ticket,
        why: Refusal,
    },
    /// It is inside, and nothing more will come of it.
    GiveUp {
        ticket: Ticket,
        why: String,
    },
}

/// What the backend and those that wait before it need, whoever comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// Between two looks at the backend.
    pub pause: Duration,
    /// When the next one that waits can no longer start in time.
    pub expiry: Option<Moment>,
}

impl Care {
    /// Whether somebody who waits for the other would come too late for this.
    pub fn is_sooner_than(&self, other: &Self) -> bool {
        let expires_sooner = self.expiry.is_some_and(|expiry| other.expiry.is_none_or(|other| expiry < other));
        self.pause < other.pause || expires_sooner
    }
}

/// What one met that could not start at once, when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Its turn among those that wait; 1 is next.
    pub place: u32,
    /// How long it would take.
    pub expected: Seconds,
}

/// How a request is sent in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The context that is loaded, larger than what the request would load by itself.
    pub loaded_context: Option<LoadedContext>,
    /// Silence longer than this before the first byte is no work.
    pub first_byte_max: Duration,
    /// And between bytes.
    pub between_max: Duration,
    pub waited: Option<Waited>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedContext {
    pub tokens: u32,
    /// What the backend loads where nothing is asked for, once that was seen.
    pub automatic: Option<u32>,
}

/// How a request that was inside ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// By its last line.
    Done(seen::Last),
    /// Otherwise; so many pieces of an answer had come.
    Cut { written: u32 },
}

#[derive(Debug)]
pub struct Desk {
    config: Config,
    shelves: BTreeMap<ModelKey, Shelf>,
    /// As the backend lists them; several may be one model.
    names: BTreeMap<String, ModelKey>,
    queue: Queue,
    /// Waiting and inside; bounded by the queue and the slots.
    jobs: BTreeMap<Ticket, Job>,
    next_ticket: Ticket,
    health: Health,
    version: Option<String>,
    /// Whoever was promised something may come within moments.
    reserved: VecDeque<Reservation>,
}

#[derive(Debug)]
struct Shelf {
    size: u64,
    slots: Slots,
    rates: Rates,
    shadow: Shadow,
    resident: Resident,
    /// What is loaded where nothing is asked for.
    automatic: Option<u32>,
    /// The context that was asked for by whom it was loaded last, if we saw that.
    loaded_for: Option<Option<u64>>,
    /// It runs somewhere else; nothing is loaded here.
    is_remote: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resident {
    No,
    /// Its context, where the backend has said it.
    Yes(Option<u32>),
}

#[derive(Debug)]
struct Job {
    work: Work,
    arrived: Moment,
    asked_context: Option<u64>,
    /// Should it have to.
    waits: Waited,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    at: Moment,
    was_cold: bool,
    batch: u16,
    cached: u32,
    has_spoken: bool,
    /// All of it, by the estimate of its start.
    expected: Cost,
}

#[derive(Debug)]
struct Reservation {
    until: Moment,
    /// What it was promised for. A request says it again when it comes, with another deadline.
    work: Work,
    seconds: f64,
}

impl Reservation {
    fn is_for(&self, work: &Work) -> bool {
        self.work == Work { deadline: self.work.deadline, ..work.clone() }
    }
}

/// A promise made and not yet taken; beyond it the oldest is forgotten.
const RESERVED_MAX: usize = 64;
/// Of a model nobody has measured nothing can be said: Ollama itself gives a load five minutes.
const SILENCE_UNMEASURED: Duration = Duration::from_secs(330);
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// A cold request that has waited this many times its load is passed by warm ones no more.
const PATIENCE_LOADS: f64 = 3.0;
/// While a load is under way its end is of interest.
const LOADING_PAUSE_MAX: Duration = Duration::from_secs(1);

impl Shelf {
    fn is_resident(&self) -> bool {
        self.is_remote || self.resident != Resident::No
    }

    fn is_loading(&self) -> bool {
        !self.is_resident() && !self.slots.running().is_empty()
    }

    /// It is loaded with a window that holds this.
    fn fits(&self, work: &Work) -> bool {
        match self.resident {
            _ if self.is_remote => true,
            Resident::Yes(Some(window)) => work.context.is_none_or(|needed| needed <= window),
            // Its next look tells; a load that was just made was made for what is asked here.
            Resident::Yes(None) => true,
            Resident::No => false,
        }
    }

    fn window(&self) -> Option<u32> {
        match self.resident {
            _ if self.is_remote => Some(u32::MAX),
            Resident::Yes(window) => Some(window.unwrap_or(0)),
            Resident::No => None,
        }
    }

    fn batch(&self) -> u16 {
        u16::try_from(self.slots.running().len()).unwrap_or(u16::MAX)
    }

    fn cost(&self, work: &Work) -> (u32, Cost, Cost) {
        let cached = self.shadow.cached(&work.chain).min(work.prompt.saturating_sub(1));
        let read = self.rates.prefill(work.prompt - cached, work.prompt);
        (cached, read, self.rates.decode(work.output, self.batch() + 1))
    }
}

impl Begun {
    fn left(&self, now: Moment) -> f64 {
        (self.expected.seconds - now.since(self.at).as_secs_f64()).max(0.0)
    }
}

impl Desk {
    pub fn new(config: Config) -> Self {
        let queue = Queue::new(config.waiting_max);
        Self {
            config,
            shelves: BTreeMap::new(),
            names: BTreeMap::new(),
            queue,
            jobs: BTreeMap::new(),
            next_ticket: 0,
            health: Health::default(),
            version: None,
            reserved: VecDeque::new(),
        }
    }

    pub fn state(&self) -> State {
        self.health.state()
    }

    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    pub fn running(&self) -> usize {
        self.jobs.values().filter(|job| job.begun.is_some()).count()
    }

    pub fn slots(&self, model: ModelKey) -> Option<u16> {
        self.shelves.get(&model).map(|shelf| shelf.slots.known())
    }

    /// Of each slot, where the model is loaded and the backend has said it.
    pub fn loaded_context(&self, model: ModelKey) -> Option<u32> {
        match self.shelves.get(&model)?.resident {
            Resident::Yes(context) => context,
            Resident::No => None,
        }
    }

    /// By its full name, tag included.
    pub fn model(&self, name: &str) -> Option<ModelKey> {
        self.names.get(name).copied()
    }

    pub fn facts(&self, now: Moment) -> Facts {
        let models = self.shelves.iter().map(|(key, shelf)| {
            let names = self.names.iter().filter(|(_, named)| *named == key).map(|(name, _)| name.clone()).collect();
            let facts = scheduler::Facts {
                resident: shelf.window(),
                slots: shelf.slots.known(),
                free_slots: self.free_slots(now, *key, shelf),
                wait: span(self.wait(now, *key, Class::default(), Tenant::ANONYMOUS, shelf)),
                load: span(shelf.rates.load().seconds),
                prefill_rate: shelf.rates.prefill_rate(0) as f32,
                step: shelf.rates.step(1).into(),
            };
            ModelFacts { key: *key, names, size: shelf.size, facts }
        });
        Facts { state: self.state(), version: self.version.clone(), models: models.collect() }
    }

    /// What it says it is.
    pub fn identified(&mut self, version: &str) {
        self.version = Some(version.to_owned());
    }

    fn is_loading(&self) -> bool {
        self.shelves.values().any(Shelf::is_loading)
    }

    /// What a request would meet now. Reads memory only.
    pub fn promise(&self, now: Moment, work: &Work) -> Result<Promise, Refusal> {
        let shelf = self.shelves.get(&work.model).ok_or(Refusal::NoModel)?;
        match self.health.state() {
            State::Draining => return Err(Refusal::Draining),
            State::Down(why) => return Err(Refusal::Down(why)),
            State::Up | State::Suspect => {}
        }
        let (cached, read, write) = shelf.cost(work);
        let load = self.load(now, work, shelf);
        let place = Place {
            wait: span(self.wait(now, work.model, work.class, work.tenant, shelf)),
            load: span(load.seconds),
            cached,
            prefill_before: span(self.reading(now, shelf)),
            prefill_rate: shelf.rates.prefill_rate(work.prompt) as f32,
            step: shelf.rates.step(shelf.batch() + 1).into(),
            deviation: span(read.spread + write.spread + load.spread),
        };
        Ok(Promise { estimate: Estimate::of(work, &place), free_slots: self.free_slots(now, work.model, shelf) })
    }

    fn reserved(&self, now: Moment, model: ModelKey) -> impl Iterator<Item = &Reservation> {
        self.reserved.iter().filter(move |reservation| reservation.until >= now && reservation.work.model == model)
    }

    fn free_slots(&self, now: Moment, model: ModelKey, shelf: &Shelf) -> u16 {
        let reserved = u16::try_from(self.reserved(now, model).count()).unwrap_or(u16::MAX);
        shelf.slots.free().saturating_sub(reserved)
    }

    /// As [`Desk::promise`], and counts it as taken until it must have been.
    pub fn probe(&mut self, now: Moment, work: &Work, hold: Duration) -> Result<Promise, Refusal> {
        let promise = self.promise(now, work)?;
        if hold.is_zero() {
            return Ok(promise);
        }
        self.reserved.retain(|reservation| reservation.until >= now);
        if self.reserved.len() == RESERVED_MAX {
            self.reserved.pop_front();
        }
        let seconds = f64::from((promise.estimate.prefill + promise.estimate.decode).get());
        self.reserved.push_back(Reservation { until: now + hold, work: work.clone(), seconds });
        Ok(promise)
    }

    /// Whether a place is kept for this since a probe.
    pub fn has_promised(&self, now: Moment, work: &Work) -> bool {
        self.reserved(now, work.model).any(|reservation| reservation.is_for(work))
    }

    /// Until a slot is free: what is inside, what goes before it, and what was promised, each put on the slot that is
    /// free first.
    fn wait(&self, now: Moment, model: ModelKey, class: Class, tenant: Tenant, shelf: &Shelf) -> f64 {
        let mut free = [0.0_f64; SLOTS_MAX as usize];
        let count = usize::from(shelf.slots.known()).min(free.len());
        let free = &mut free[..count];
        let mut put = |seconds: f64| {
            if let Some(first) = free.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *first += seconds;
            }
        };
        let inside = shelf.slots.running().iter().filter_map(|ticket| self.jobs.get(ticket)?.begun.as_ref());
        // One that overstays its estimate is not gone: a slot is free when it is.
        inside.for_each(|begun| put(begun.left(now).max(0.05)));
        self.queue.ahead_of(class, &tenant, |entry| {
            if let Some(job) = self.jobs.get(&entry.ticket).filter(|job| job.work.model == model) {
                let read = shelf.rates.prefill(entry.work.read, job.work.prompt);
                put(read.seconds + shelf.rates.decode(entry.work.written, shelf.slots.known()).seconds);
            }
        });
        self.reserved(now, model).for_each(|reservation| put(reservation.seconds));
        free.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
    }

    /// Loads happen one after the other: the rest of the one under way, those that wait, and its own.
    fn load(&self, now: Moment, work: &Work, shelf: &Shelf) -> Cost {
        if shelf.fits(work) {
            return Cost { seconds: 0.0, spread: 0.0 };
        }
        let own = shelf.rates.load();
        let mut cold = BTreeMap::new();
        for job in self.jobs.values() {
            let Some(other) = self.shelves.get(&job.work.model).filter(|shelf| !shelf.is_resident()) else { continue };
            let since = job.begun.as_ref().map_or(0.0, |begun| now.since(begun.at).as_secs_f64());
            let left = (other.rates.load().seconds - since).max(0.0);
            cold.entry(job.work.model).and_modify(|known| *known = left.min(*known)).or_insert(left);
        }
        let own_left = cold.remove(&work.model).unwrap_or(own.seconds);
        let before: f64 = if shelf.is_loading() { 0.0 } else { cold.values().sum() };
        Cost { seconds: before + own_left, spread: own.spread }
    }

    /// Prompts of this model that are being read already.
    fn reading(&self, now: Moment, shelf: &Shelf) -> f64 {
        let silent = |ticket: &Ticket| {
            let job = self.jobs.get(ticket)?;
            let begun = job.begun.as_ref().filter(|begun| !begun.has_spoken && !begun.was_cold)?;
            let all = shelf.rates.prefill(job.work.prompt.saturating_sub(begun.cached), job.work.prompt);
            Some((all.seconds - now.since(begun.at).as_secs_f64()).max(0.0))
        };
        shelf.slots.running().iter().filter_map(silent).sum()
    }

    /// A request wants in. Its fate comes as an action, at once or later. `asked_context` is its own `num_ctx`.
    pub fn enter(
        &mut self,
        now: Moment,
        ask: Ask,
        asked_context: Option<u64>,
    ) -> Result<(Ticket, Vec<Action>), Refusal> {
        // Whoever was promised a place has come: its own reservation must not stand in its way.
        let Ask { work, weight, wait_max, key: _ } = ask;
        if let Some(at) = self.reserved.iter().position(|reservation| reservation.is_for(&work)) {
            self.reserved.remove(at);
        }
        let promise = self.promise(now, &work)?;
        let estimate = promise.estimate;
        if wait_max.is_some_and(|max| estimate.wait.max(estimate.load) > max.into()) {
            return Err(Refusal::Nack(promise));
        }
        let ticket = self.next_ticket;
        let takes = Tokens { read: work.prompt - estimate.cached, written: work.output };
        let (class, tenant) = (work.class, work.tenant);
        let start_by = work.deadline.map(|deadline| now + deadline);
        let mut waits = Waited { place: 1, expected: estimate.wait.max(estimate.load) };
        self.queue.ahead_of(class, &tenant, |_| waits.place += 1);
        let entered = self.queue.enter(Entry { ticket, class, tenant, weight, work: takes, arrived: now, start_by });
        let mut actions = match entered {
            Entered::Waits => Vec::new(),
            Entered::Displaces(ticket) => {
                self.jobs.remove(&ticket);
                vec![Action::Refuse { ticket, why: Refusal::Full { wait: estimate.wait } }]
            }
            Entered::Full => return Err(Refusal::Full { wait: estimate.wait }),
        };
        self.next_ticket += 1;
        self.jobs.insert(ticket, Job { work, arrived: now, asked_context, waits, begun: None });
        actions.extend(self.settle(now));
        Ok((ticket, actions))
    }

    /// Its first bytes came.
    pub fn spoke(&mut self, now: Moment, ticket: Ticket) -> Vec<Action> {
        self.health.answered();
        if let Some(job) = self.jobs.get_mut(&ticket)
            && let Some(begun) = &mut job.begun
            && let Some(shelf) = self.shelves.get_mut(&job.work.model)
        {
            begun.has_spoken = true;
            shelf.slots.spoke(now, ticket);
            shelf.shadow.remember(now, &job.work.chain);
            if !shelf.is_resident() {
                shelf.resident = Resident::Yes(None);
            }
        }
        self.settle(now)
    }

    /// More bytes came, from whomever: it works.
    pub fn heard(&mut self) {
        self.health.answered();
    }

    /// Whoever asked has what it wanted, or has gone, waiting or not. Unknown tickets have ended already.
    pub fn end(&mut self, now: Moment, ticket: Ticket, ending: &Ending) -> Vec<Action> {
        let Some(job) = self.jobs.remove(&ticket) else { return Vec::new() };
        let Some(begun) = job.begun else {
            self.queue.leave(ticket);
            return self.settle(now);
        };
        let Some(shelf) = self.shelves.get_mut(&job.work.model) else { return self.settle(now) };
        let (took, worked_until) = match ending {
            Ending::Done(last) => {
                let sample = Sample {
                    prompt_tokens: last.prompt_eval_count,
                    prompt: last.prompt_eval_duration,
                    output_tokens: last.eval_count,
                    output: last.eval_duration,
                    load: last.load_duration,
                    was_cold: begun.was_cold,
                    cached_expected: begun.cached,
                    batch: (begun.batch + shelf.batch()).div_ceil(2),
                };
                let cached = shelf.rates.learn(&sample);
                if begun.cached > 0 && cached == 0 && shelf.rates.are_measured() {
                    shelf.shadow.missed(&job.work.chain);
                }
                shelf.shadow.remember(now, &job.work.chain);
                let read = last.prompt_eval_count.saturating_sub(cached);
                (Tokens { read, written: last.eval_count }, Some(begun.at + last.total_duration))
            }
            Ending::Cut { written } => {
                let read = if begun.has_spoken { job.work.prompt.saturating_sub(begun.cached) } else { 0 };
                (Tokens { read, written: *written }, None)
            }
        };
        shelf.slots.end(now, ticket, worked_until);
        self.queue.finish(ticket, took);
        self.settle(now)
    }

    /// A look was answered.
    pub fn answered(&mut self, now: Moment) -> Vec<Action> {
        self.health.answered();
        self.settle(now)
    }

    /// A look was not. Who is inside a backend that is down is given up, and who waits is sent away.
    pub fn missed(&mut self, how: Missed) -> Vec<Action> {
        if !self.health.missed(how) {
            return Vec::new();
        }
        let why = match self.health.state() {
            State::Down(why) => why,
            State::Up | State::Suspect | State::Draining => return Vec::new(),
        };
        for shelf in self.shelves.values_mut() {
            shelf.resident = Resident::No;
            shelf.shadow.clear();
            shelf.slots.forget();
        }
        let lost = |(ticket, job): (&Ticket, &Job)| match job.begun {
            Some(_) => Action::GiveUp { ticket: *ticket, why: why.clone() },
            None => Action::Refuse { ticket: *ticket, why: Refusal::Down(why.clone()) },
        };
        let actions: Vec<Action> = self.jobs.iter().map(lost).collect();
        // Those inside are ended by whoever reads them.
        let waiting: Vec<Ticket> = self.queue.entries().map(|entry| entry.ticket).collect();
        for ticket in waiting {
            self.queue.leave(ticket);
            self.jobs.remove(&ticket);
        }
        actions
    }

    pub fn drain(&mut self, draining: bool) {
        self.health.drain(draining);
    }

    pub fn care(&self) -> Care {
        let is_busy = self.shelves.values().any(|shelf| !shelf.slots.running().is_empty());
        let pause = self.health.pause(is_busy);
        let pause = if self.is_loading() { pause.min(LOADING_PAUSE_MAX) } else { pause };
        Care { pause, expiry: self.queue.next_expiry() }
    }

    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        self.settle(now)
    }

    /// What the backend has. What is gone is forgotten once nobody uses it.
    pub fn listed(&mut self, tags: &[seen::Listed]) {
        // A name for the moment of a pull is nobody's to ask for.
        let lasting = tags.iter().filter(|tag| !tag.name.parse::<ModelName>().is_ok_and(|name| name.is_passing()));
        let tags: Vec<(ModelKey, &seen::Listed)> =
            lasting.filter_map(|tag| Some((key_of(&tag.digest)?, tag))).collect();
        let listed: BTreeSet<ModelKey> = tags.iter().map(|(key, _)| *key).collect();
        let used: BTreeSet<ModelKey> = self.jobs.values().map(|job| job.work.model).collect();
        self.names = tags.iter().map(|(key, tag)| (tag.name.clone(), *key)).collect();
        self.shelves.retain(|model, _| listed.contains(model) || used.contains(model));
        for (model, listed) in tags {
            if self.shelves.contains_key(&model) {
                continue;
            }
            let is_remote = !listed.remote_host.is_empty() || seen::is_cloud(&listed.name);
            let slots = match self.config.slots {
                _ if is_remote => Slots::fixed(SLOTS_MAX),
                _ if runs_alone(&listed.details) => Slots::fixed(1),
                Some(known) => Slots::fixed(known),
                None => Slots::learned(),
            };
            let rates = Rates::seeded(Seed { machine: self.config.machine, size: listed.size });
            let shadow = Shadow::new(self.config.cached_tokens_max);
            let shelf = Shelf {
                size: listed.size,
                slots,
                rates,
                shadow,
                resident: Resident::No,
                automatic: None,
                loaded_for: None,
                is_remote,
            };
            self.shelves.insert(model, shelf);
        }
    }

    /// What the backend has loaded. It lists what is only being loaded too, so that what nobody has heard of yet stays
    /// as it was until its first bytes.
    pub fn loaded(&mut self, now: Moment, loaded: &[seen::Loaded]) -> Vec<Action> {
        for (model, shelf) in &mut self.shelves {
            let of_model = |loaded: &&seen::Loaded| key_of(&loaded.digest) == Some(*model);
            let context = loaded.iter().find(of_model).map(|loaded| loaded.context_length);
            match context {
                None if shelf.is_loading() => {}
                None => {
                    if shelf.resident != Resident::No {
                        shelf.shadow.clear();
                    }
                    shelf.resident = Resident::No;
                    shelf.loaded_for = None;
                }
                Some(_) if shelf.is_loading() => {}
                Some(context) => {
                    let context = Some(context).filter(|context| *context > 0);
                    if shelf.resident == Resident::Yes(None) && shelf.loaded_for == Some(None) {
                        shelf.automatic = context;
                    }
                    shelf.resident = Resident::Yes(context);
                }
            }
        }
        self.settle(now)
    }

    /// Drops what is dead and starts what can start.
    fn settle(&mut self, now: Moment) -> Vec<Action> {
        let late = self.queue.expire(now);
        let refuse = |ticket: Ticket| Action::Refuse { ticket, why: Refusal::Late };
        let mut actions: Vec<Action> = late.iter().copied().map(refuse).collect();
        for ticket in late {
            self.jobs.remove(&ticket);
        }
        while self.health.takes_requests() {
            let Self { queue, jobs, shelves, .. } = self;
            let loading = shelves.iter().find(|(_, shelf)| shelf.is_loading()).map(|(model, _)| *model);
            let merit = |entry: &Entry| {
                let job = jobs.get(&entry.ticket)?;
                let shelf = shelves.get(&job.work.model).filter(|shelf| shelf.slots.has_room(now))?;
                let is_resident = shelf.is_resident();
                // Loads are made one after the other by the backend anyway, and there nobody can pass.
                if !is_resident && loading.as_ref().is_some_and(|loading| *loading != job.work.model) {
                    return None;
                }
                let patience = shelf.rates.load().seconds * PATIENCE_LOADS;
                let is_overdue = now.since(job.arrived).as_secs_f64() > patience;
                Some(Merit { is_overdue, is_resident, cached: shelf.shadow.cached(&job.work.chain) })
            };
            let Some(entry) = queue.take(merit) else { break };
            actions.extend(self.begin(now, entry.ticket));
        }
        actions
    }

    fn begin(&mut self, now: Moment, ticket: Ticket) -> Option<Action> {
        let job = self.jobs.get_mut(&ticket)?;
        let shelf = self.shelves.get_mut(&job.work.model)?;
        let (cached, read, write) = shelf.cost(&job.work);
        let is_cold = !shelf.fits(&job.work);
        if !shelf.is_resident() {
            shelf.loaded_for.get_or_insert(job.asked_context);
        }
        let load = if is_cold { shelf.rates.load() } else { Cost { seconds: 0.0, spread: 0.0 } };
        shelf.slots.begin(now, ticket);
        let first = read.seconds + load.seconds;
        let expected = Cost { seconds: first + write.seconds, spread: read.spread + write.spread + load.spread };
        let silence = |seconds: f64| {
            let measured = Duration::try_from_secs_f64(seconds).unwrap_or(SILENCE_UNMEASURED).max(SILENCE_MIN);
            if shelf.rates.are_measured() && !is_cold && !shelf.is_remote { measured } else { SILENCE_UNMEASURED }
        };
        // A long prompt that comes in beside it makes a stream wait for all of it.
        let longest_read = shelf.rates.prefill(64 << 10, 64 << 10).seconds;
        let start = Start {
            loaded_context: match shelf.resident {
                Resident::Yes(Some(tokens)) if !shelf.is_remote => {
                    Some(LoadedContext { tokens, automatic: shelf.automatic })
                }
                Resident::Yes(_) | Resident::No => None,
            },
            first_byte_max: silence(4.0 * first + 8.0 * (read.spread + load.spread)),
            between_max: silence(longest_read + 8.0 * shelf.rates.step(shelf.batch()).as_secs_f64()),
            waited: (now > job.arrived).then_some(job.waits),
        };
        let batch = shelf.batch();
        job.begun = Some(Begun { at: now, was_cold: is_cold, batch, cached, has_spoken: false, expected });
        Some(Action::Start { ticket, start })
    }
}

fn span(seconds: f64) -> Seconds {
    Seconds::new(seconds as f32)
}

/// `None` for what is no SHA-256: such a model cannot be asked for here.
fn key_of(digest: &str) -> Option<ModelKey> {
    let digest = digest.strip_prefix("sha256:").unwrap_or(digest).as_bytes();
    let digest: &[u8; 64] = digest.try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digest.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some(ModelKey::of_manifest(&bytes))
}

/// What Ollama never runs in parallel, whatever it is told.
fn runs_alone(details: &seen::Details) -> bool {
    const FAMILIES: [&str; 10] = [
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "bert",
        "nomic-bert",
    ];
    let alone = |family: &str| FAMILIES.contains(&family) || family.starts_with("nemotron_h");
    alone(&details.family) || details.families.iter().any(|family| alone(family))
}

impl LoadedContext {
    /// The `num_ctx` to send so that nothing is loaded anew, where the request would have got less. `None` where it is
    /// sent as it came: it gets what is loaded anyway, or needs more.
    pub fn raises(self, asked: Option<u64>) -> Option<u32> {
        let would_get = asked.or(self.automatic.map(u64::from))?;
        (would_get < u64::from(self.tokens)).then_some(self.tokens)
    }
}

#[cfg(test)]
mod tests;
