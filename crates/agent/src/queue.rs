//! Who goes next. Four classes, the upper before the lower but for a tenth of the starts; inside a class every tenant
//! gets the same share of the work, by a counter of tokens (the virtual token counter of fair serving); between
//! tenants that are about even, whoever can be served cheapest.
//!
//! The queue knows no model and no cache: what may start and how cheaply is asked of its owner.

use std::collections::{BTreeMap, VecDeque};

use scheduler::{Class, Moment, Tenant};

/// A request's number at this agent. Later ones are higher.
pub type Ticket = u64;

/// Of this many starts past waiting lower classes, one goes to them.
const FLOOR_EVERY: u32 = 10;
/// Tokens two tenants may be apart and still count as even.
const SLACK: f64 = 2_000.0;
/// Entries of one tenant that are compared; those behind wait until one of these has gone.
const LOOK_MAX: usize = 16;
/// Tenants that are ahead and have nothing here; beyond it the least far ahead is forgotten, which costs it nothing.
const IDLE_MAX: usize = 1024;
/// What is written costs so much more than what is read.
const WRITTEN: f64 = 2.0;

#[derive(Debug, Clone)]
pub struct Entry {
    pub ticket: Ticket,
    pub class: Class,
    pub tenant: Tenant,
    /// Its share as against others in its class; one unless an operator says otherwise.
    pub weight: f32,
    /// What it will probably take.
    pub work: Tokens,
    pub arrived: Moment,
    /// Started later it is of no use to anybody.
    pub start_by: Option<Moment>,
}

/// Tokens that have to be computed: read ones without those that are cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub read: u32,
    pub written: u32,
}

/// Why an entry is better than another of a tenant that is about even. Later fields decide ties of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Merit {
    /// It has waited so long that cheaper ones no longer pass it.
    pub is_overdue: bool,
    pub is_resident: bool,
    /// Tokens of its prompt that need not be read.
    pub cached: u32,
}

/// What became of one that wants to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    Waits,
    /// It waits in the place of this one, which is refused.
    Displaces(Ticket),
    Full,
}

#[derive(Debug)]
pub struct Queue {
    waiting_max: usize,
    lines: [Line; Class::ALL.len()],
    /// Starts since a lower class had its turn.
    passed: u32,
    /// Of those that run; bounded by the slots.
    charges: BTreeMap<Ticket, Charge>,
}

#[derive(Debug, Default)]
struct Line {
    accounts: BTreeMap<Tenant, Account>,
    /// The least anybody active has been served; who comes new or back starts here, so that nobody saves up a claim by
    /// staying away.
    clock: f64,
}

#[derive(Debug, Default)]
struct Account {
    /// Tokens by weight.
    served: f64,
    running: u32,
    waiting: VecDeque<Entry>,
}

#[derive(Debug)]
struct Charge {
    class: usize,
    tenant: Tenant,
    weight: f64,
    work: Tokens,
}

/// An entry in its line.
#[derive(Debug, Clone)]
struct Spot {
    class: usize,
    tenant: Tenant,
    at: usize,
}

impl Tokens {
    fn cost(self) -> f64 {
        f64::from(self.read) + WRITTEN * f64::from(self.written)
    }
}

impl Account {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl Line {
    fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.accounts.values().flat_map(|account| &account.waiting)
    }

    /// Who is idle and not ahead of the clock is as good as unknown.
    fn forget_idle(&mut self) {
        let clock = self.clock;
        self.accounts.retain(|_, account| account.is_active() || account.served > clock);
        let idle = |account: &Account| !account.is_active();
        if self.accounts.values().filter(|account| idle(account)).count() > IDLE_MAX {
            let least = self.accounts.iter().filter(|(_, account)| idle(account));
            let least = least.min_by(|(_, a), (_, b)| a.served.total_cmp(&b.served));
            if let Some(tenant) = least.map(|(tenant, _)| *tenant) {
                self.accounts.remove(&tenant);
            }
        }
    }
}

impl Queue {
    pub fn new(waiting_max: usize) -> Self {
        Self { waiting_max, lines: Default::default(), passed: 0, charges: BTreeMap::new() }
    }

    pub fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.waiting().count()).sum()
    }

    /// Where the queue is full, somebody of a lower class goes first, then the last of whoever waits with most.
    pub fn enter(&mut self, entry: Entry) -> Entered {
        let place = if self.waiting() < self.waiting_max {
            Entered::Waits
        } else {
            match self.displaced_by(&entry) {
                Some(ticket) => {
                    self.leave(ticket);
                    Entered::Displaces(ticket)
                }
                None => return Entered::Full,
            }
        };
        let line = &mut self.lines[rank(entry.class)];
        let clock = line.clock;
        let account = line.accounts.entry(entry.tenant).or_default();
        if !account.is_active() {
            account.served = account.served.max(clock);
        }
        account.waiting.push_back(entry);
        place
    }

    fn displaced_by(&self, entry: &Entry) -> Option<Ticket> {
        let class = rank(entry.class);
        let lower = self.lines[class + 1..].iter().rev();
        let youngest = |line: &Line| line.waiting().max_by_key(|entry| (entry.arrived, entry.ticket)).map(|e| e.ticket);
        lower.filter_map(youngest).next().or_else(|| {
            let accounts = &self.lines[class].accounts;
            let own = accounts.get(&entry.tenant).map_or(0, |account| account.waiting.len());
            let hog = accounts.values().max_by_key(|account| account.waiting.len())?;
            (hog.waiting.len() > own + 1).then(|| hog.waiting.back().map(|entry| entry.ticket))?
        })
    }

    /// Whoever waited and gave up. Costs nothing. Returns whether it waited.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        for line in &mut self.lines {
            for account in line.accounts.values_mut() {
                if let Some(at) = account.waiting.iter().position(|entry| entry.ticket == ticket) {
                    account.waiting.remove(at);
                    line.forget_idle();
                    return true;
                }
            }
        }
        false
    }

    /// Takes out those that can no longer start in time.
    pub fn expire(&mut self, now: Moment) -> Vec<Ticket> {
        let late = |entry: &&Entry| entry.start_by.is_some_and(|start_by| start_by < now);
        let late: Vec<Ticket> =
            self.lines.iter().flat_map(|line| line.waiting().filter(late)).map(|entry| entry.ticket).collect();
        for ticket in &late {
            self.leave(*ticket);
        }
        late
    }

    /// When the next one will be late.
    pub fn next_expiry(&self) -> Option<Moment> {
        self.lines.iter().flat_map(Line::waiting).filter_map(|entry| entry.start_by).min()
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lines.iter().flat_map(Line::waiting)
    }

    /// Takes out who starts now; `merit` is `None` for what may not. Charged is what the entry will probably take, until
    /// [`Queue::finish`] knows better.
    pub fn take(&mut self, merit: impl Fn(&Entry) -> Option<Merit>) -> Option<Entry> {
        let mut spots = (0..Class::ALL.len()).filter_map(|class| self.best(class, &merit));
        let upper = spots.next()?;
        // Who has waited longest has it, so that the lowest is not starved by the second lowest.
        let lower = spots.min_by_key(|spot| self.entry(spot).map(|entry| entry.arrived));
        let spot = match lower {
            Some(lower) if self.passed + 1 >= FLOOR_EVERY => {
                self.passed = 0;
                lower
            }
            Some(_) => {
                self.passed += 1;
                upper
            }
            None => upper,
        };
        self.start(&spot)
    }

    fn entry(&self, spot: &Spot) -> Option<&Entry> {
        self.lines[spot.class].accounts.get(&spot.tenant)?.waiting.get(spot.at)
    }

    fn best(&self, class: usize, merit: &impl Fn(&Entry) -> Option<Merit>) -> Option<Spot> {
        let accounts = &self.lines[class].accounts;
        let can_start = |account: &&Account| account.waiting.iter().any(|entry| merit(entry).is_some());
        let served = |account: &Account| account.served;
        let least = accounts.values().filter(can_start).map(served).min_by(f64::total_cmp)?;
        let even = accounts.iter().filter(|(_, account)| account.served <= least + SLACK);
        let spots = even.flat_map(|(tenant, account)| {
            let startable = account.waiting.iter().enumerate();
            let startable = startable.filter_map(|(at, entry)| Some((merit(entry)?, at, entry))).take(LOOK_MAX);
            startable.map(move |(merit, at, entry)| (merit, account.served, entry.ticket, tenant, at))
        });
        // The higher merit, then whoever was served less, then whoever came first.
        let best = spots.min_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        best.map(|(_, _, _, tenant, at)| Spot { class, tenant: *tenant, at })
    }

    fn start(&mut self, spot: &Spot) -> Option<Entry> {
        let line = &mut self.lines[spot.class];
        let active = line.accounts.values().filter(|account| account.is_active()).map(|account| account.served);
        if let Some(least) = active.min_by(f64::total_cmp) {
            line.clock = line.clock.max(least);
        }
        let account = line.accounts.get_mut(&spot.tenant)?;
        let entry = account.waiting.remove(spot.at)?;
        let weight = f64::from(entry.weight).max(0.01);
        account.served += entry.work.cost() / weight;
        account.running += 1;
        let charge = Charge { class: spot.class, tenant: entry.tenant, weight, work: entry.work };
        self.charges.insert(entry.ticket, charge);
        Some(entry)
    }

    /// It ran and is over, however it ended: its tenant pays for what it took and no more.
    pub fn finish(&mut self, ticket: Ticket, took: Tokens) {
        let Some(charge) = self.charges.remove(&ticket) else { return };
        let line = &mut self.lines[charge.class];
        if let Some(account) = line.accounts.get_mut(&charge.tenant) {
            account.served = (account.served + (took.cost() - charge.work.cost()) / charge.weight).max(0.0);
            account.running = account.running.saturating_sub(1);
        }
        line.forget_idle();
    }

    /// Those that start before one who came now, in no order: all of the upper classes, and in its own those whose
    /// turn comes before its own by the counters.
    pub fn ahead_of(&self, class: Class, tenant: &Tenant, mut each: impl FnMut(&Entry)) {
        let class = rank(class);
        self.lines[..class].iter().flat_map(Line::waiting).for_each(&mut each);
        let line = &self.lines[class];
        let turns = |account: &Account| account.waiting.iter().map(turn_cost).sum::<f64>();
        let mine = line.accounts.get(tenant);
        let my_turn = mine.map_or(0.0, |account| account.served).max(line.clock) + mine.map_or(0.0, turns);
        for account in line.accounts.values() {
            let mut turn = account.served;
            for entry in &account.waiting {
                if turn > my_turn {
                    break;
                }
                each(entry);
                turn += turn_cost(entry);
            }
        }
    }
}

fn turn_cost(entry: &Entry) -> f64 {
    entry.work.cost() / f64::from(entry.weight).max(0.01)
}

fn rank(class: Class) -> usize {
    match class {
        Class::Realtime => 0,
        Class::Interactive => 1,
        Class::Batch => 2,
        Class::Background => 3,
    }
}

#[cfg(test)]
mod tests;
