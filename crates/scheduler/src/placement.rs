//! Which nodes should have which models: what people want, held against what there is.
//!
//! Copies are tens of gigabytes, so that what matters most is what does not move. A node that has a model keeps it as long
//! as it may; one that is away counts as there for a set time; whatever is given up is given up only once others have it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::{Label, NodeId};

use crate::rendezvous::{mix, node_hash};

/// No version is given to more nodes; they are enough for the others to fetch it from.
const COPIES_MAX: usize = 1_024;

/// One more than any mesh has needed; what is still too much then is found the next time.
const ROUNDS_MAX: usize = 8;

/// A version of a model, by the digest that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(pub [u8; 32]);

/// A rule, and the version it means now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub version: VersionId,
    /// What it takes on a disk, and at least in memory.
    pub bytes: u64,
    pub copies: Copies,
    /// A node must have all of these,
    pub on: BTreeSet<Label>,
    /// and none of these.
    pub never: BTreeSet<Label>,
    /// No node gives it up by itself.
    pub pin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// One on each node that may have it.
    All,
    AtLeast(u32),
}

/// How many copies the requests of late ask for, whatever the rules say; without a wish for it a version gets none.
pub type Demand = BTreeMap<VersionId, u32>;

/// A node, as the one who decides knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub labels: BTreeMap<String, String>,
    pub zone: Option<String>,
    pub presence: Presence,
    /// Its people are about to take it away: it gets nothing new, and what it has is copied elsewhere.
    pub draining: bool,
    /// Nothing as long as the node has not told. Then it gets nothing new, and keeps what was given to it.
    pub told: Option<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Up,
    /// For so long.
    Down(Duration),
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    pub disk_free: u64,
    /// Of the machine and of its graphics cards.
    pub memory: u64,
    /// Versions of which it has every byte, verified.
    pub holds: BTreeSet<VersionId>,
    /// Bytes that are there of those it is fetching.
    pub partial: BTreeMap<VersionId, u64>,
}

/// Which nodes should have which versions. Versions that nobody should have are not in it.
pub type Assignments = BTreeMap<VersionId, BTreeSet<NodeId>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub wanted: Assignments,
    pub unmet: Vec<Unmet>,
}

/// A wish that cannot be granted in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmet {
    /// Its place among the wishes.
    pub wish: usize,
    /// Copies that should be and are given to nobody.
    pub missing: usize,
    pub why: Short,
}

/// How many nodes are out of the question, and for what; each is counted once, by the first that applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Short {
    pub labels: usize,
    pub draining: usize,
    pub down: usize,
    /// Up, and has not told yet what it has.
    pub unheard: usize,
    pub memory: usize,
    pub disk: usize,
}

/// How a node stands to a wish, the best first: whoever stands higher keeps the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// It was given the version and has it, or is given the benefit of the doubt.
    Keeps,
    /// It was given the version and has more than half of it.
    Nearly,
    /// It has the version by itself, or once was given it.
    Has,
    /// It was given the version and has not got far: little is lost where somebody comes back who has it.
    Begins,
}

/// Decides anew what was decided `before`, on what is known now. A node that is down for longer than `after` counts as
/// gone. Deciding again by the result, with nothing changed, gives the same.
///
/// Zones are spread over when a copy is made; none is moved for the sake of them. A copy that is no longer wanted stays
/// assigned until those that are wanted are there. What is not assigned is not deleted by that: its node may give it up
/// when it needs the room. So one that was away, and whose place was taken, keeps its copy without a claim, and takes its
/// place again when another one goes.
pub fn wanted(wishes: &[Wish], demand: &Demand, members: &[Member], before: &Assignments, after: Duration) -> Plan {
    let mut plan = decide(wishes, demand, members, before, after);
    // Each of two rules for one version may have chosen nodes of which one would do for both: decided again, they see it.
    for _ in 0..ROUNDS_MAX {
        let again = decide(wishes, demand, members, &plan.wanted, after);
        if again.wanted == plan.wanted {
            break;
        }
        plan = again;
    }
    plan
}

fn decide(wishes: &[Wish], demand: &Demand, members: &[Member], before: &Assignments, after: Duration) -> Plan {
    let mut desk = Desk::new(members, before, after);
    // Whoever has a copy, or is fetching one, comes before all new ones: these must not take the room of those.
    let mut kept: Vec<_> = wishes.iter().map(|wish| desk.keep(wish, copies(wish, demand))).collect();
    let mut plan = Plan::default();
    for (place, (wish, kept)) in wishes.iter().zip(&mut kept).enumerate() {
        let (missing, why) = desk.fill(wish, copies(wish, demand), kept);
        if missing > 0 {
            plan.unmet.push(Unmet { wish: place, missing, why });
        }
        let handed_over = desk.handing_over(wish, kept);
        let nodes = kept.iter().chain(&handed_over).map(|place| desk.members[*place].id);
        plan.wanted.entry(wish.version).or_default().extend(nodes);
    }
    plan.wanted.retain(|_, nodes| !nodes.is_empty());
    plan
}

/// Nothing for as many as there may be.
fn copies(wish: &Wish, demand: &Demand) -> Option<usize> {
    match wish.copies {
        Copies::All => None,
        Copies::AtLeast(count) => {
            let count = demand.get(&wish.version).map_or(count, |asked| count.max(*asked));
            Some(usize::try_from(count).unwrap_or(COPIES_MAX).min(COPIES_MAX))
        }
    }
}

/// With a twentieth more, for what neither a file system nor a runner tells beforehand.
fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 20)
}

/// Machines of which nobody has said where they stand, stand together.
type Zone<'a> = Option<&'a str>;

/// The members, and what is left of their disks as versions are given out. A member is known by its place.
struct Desk<'a> {
    members: &'a [Member],
    before: &'a Assignments,
    after: Duration,
    room: Vec<u64>,
    /// What was given out already: a second wish for the same version costs its nodes nothing.
    given: BTreeSet<(VersionId, usize)>,
}

impl<'a> Desk<'a> {
    fn new(members: &'a [Member], before: &'a Assignments, after: Duration) -> Self {
        let room = members.iter().map(|member| member.told.as_ref().map_or(0, |told| told.disk_free)).collect();
        Self { members, before, after, room, given: BTreeSet::new() }
    }

    /// Who of those that have a copy, or are getting one, goes on to.
    fn keep(&mut self, wish: &Wish, copies: Option<usize>) -> BTreeSet<usize> {
        let claims = (0..self.members.len()).filter_map(|place| Some((self.claim(wish, place)?, place)));
        let mut claims: Vec<_> = claims.map(|(claim, place)| (claim, self.draw(wish, place), place)).collect();
        claims.sort();
        let mut kept = BTreeSet::new();
        for (claim, _, place) in claims {
            // What is held fast stays, however many there are.
            let held_fast = wish.pin && claim == Claim::Keeps;
            if (held_fast || kept.len() < copies.unwrap_or(COPIES_MAX)) && self.give(wish, place) {
                kept.insert(place);
            }
        }
        kept
    }

    /// Finds nodes for the copies that are missing. How many could not be given to anybody, and why.
    fn fill(&mut self, wish: &Wish, copies: Option<usize>, kept: &mut BTreeSet<usize>) -> (usize, Short) {
        let mut short = Short::default();
        let mut able = BTreeSet::new();
        for place in (0..self.members.len()).filter(|place| !kept.contains(place)) {
            match self.obstacle(wish, place) {
                None => drop(able.insert(place)),
                Some(counter) => *counter(&mut short) += 1,
            }
        }
        // Whoever is away for a while, or cannot hold it, is missing where all should have it; whoever may not, is not.
        let all = kept.len() + able.len() + short.unheard + short.memory + short.disk;
        let copies = copies.unwrap_or(all).min(COPIES_MAX);
        let mut zones = BTreeMap::new();
        kept.iter().for_each(|place| *zones.entry(self.zone(*place)).or_default() += 1);
        while kept.len() < copies {
            let Some(best) = able.iter().copied().min_by_key(|place| self.order(wish, &zones, *place)) else { break };
            able.remove(&best);
            if self.give(wish, best) {
                kept.insert(best);
                *zones.entry(self.zone(best)).or_default() += 1;
            } else {
                short.disk += 1;
            }
        }
        (copies.saturating_sub(kept.len()), short)
    }

    /// Nodes that were given the version, have it, and should no longer, as long as not all of those have it that should.
    fn handing_over(&self, wish: &Wish, kept: &BTreeSet<usize>) -> BTreeSet<usize> {
        if kept.iter().all(|place| self.holds(wish, *place)) {
            return BTreeSet::new();
        }
        let leaves = |place: &usize| {
            let up = self.members[*place].presence == Presence::Up;
            up && !kept.contains(place) && self.was_given(wish, *place) && self.holds(wish, *place)
        };
        (0..self.members.len()).filter(leaves).collect()
    }

    fn was_given(&self, wish: &Wish, place: usize) -> bool {
        self.before.get(&wish.version).is_some_and(|nodes| nodes.contains(&self.members[place].id))
    }

    fn holds(&self, wish: &Wish, place: usize) -> bool {
        self.members[place].told.as_ref().is_some_and(|told| told.holds.contains(&wish.version))
    }

    fn partial(&self, wish: &Wish, place: usize) -> u64 {
        let told = self.members[place].told.as_ref();
        told.and_then(|told| told.partial.get(&wish.version)).map_or(0, |bytes| (*bytes).min(wish.bytes))
    }

    fn claim(&self, wish: &Wish, place: usize) -> Option<Claim> {
        let member = &self.members[place];
        let gone = match member.presence {
            Presence::Up => false,
            // Where all nodes should have it nobody takes the place of one that is away.
            Presence::Down(span) => span >= self.after && wish.copies != Copies::All,
        };
        if gone || member.draining || !may(wish, member) || !self.fits_memory(wish, place) {
            return None;
        }
        let (given, up) = (self.was_given(wish, place), member.presence == Presence::Up);
        match (given, self.holds(wish, place)) {
            (true, true) => Some(Claim::Keeps),
            // Of one that is away, or has not told yet, nobody knows better.
            (true, false) if !up || member.told.is_none() => Some(Claim::Keeps),
            (true, false) if self.partial(wish, place) > wish.bytes / 2 => Some(Claim::Nearly),
            (false, true) if up => Some(Claim::Has),
            (true, false) => Some(Claim::Begins),
            (false, _) => None,
        }
    }

    /// What keeps a node from getting a copy: which count it goes to.
    fn obstacle(&self, wish: &Wish, place: usize) -> Option<fn(&mut Short) -> &mut usize> {
        let member = &self.members[place];
        if !may(wish, member) {
            return Some(|short| &mut short.labels);
        }
        if member.draining {
            return Some(|short| &mut short.draining);
        }
        if member.presence != Presence::Up {
            return Some(|short| &mut short.down);
        }
        if member.told.is_none() {
            return Some(|short| &mut short.unheard);
        }
        if !self.fits_memory(wish, place) {
            return Some(|short| &mut short.memory);
        }
        None
    }

    /// One that has not told is not put out for what nobody knows.
    fn fits_memory(&self, wish: &Wish, place: usize) -> bool {
        self.members[place].told.as_ref().is_none_or(|told| told.memory >= with_margin(wish.bytes))
    }

    /// What it would still take of the node's disk.
    fn cost(&self, wish: &Wish, place: usize) -> u64 {
        // Of one that has not told it is not known what is there already.
        let there = self.members[place].told.is_none() || self.holds(wish, place);
        match there || self.given.contains(&(wish.version, place)) {
            true => 0,
            false => with_margin(wish.bytes).saturating_sub(self.partial(wish, place)),
        }
    }

    /// Takes what it needs of the node's disk; not, where there is too little.
    fn give(&mut self, wish: &Wish, place: usize) -> bool {
        let cost = self.cost(wish, place);
        let Some(left) = self.room[place].checked_sub(cost) else { return false };
        self.room[place] = left;
        self.given.insert((wish.version, place));
        true
    }

    /// Whom a new copy goes to first: where another wish has brought it already, then into the zone with the fewest
    /// copies, then where the most room is, in steps, so that nodes of one kind are told apart by a draw that is the
    /// model's own.
    fn order(&self, wish: &Wish, zones: &BTreeMap<Zone<'_>, usize>, place: usize) -> (bool, usize, Reverse<u32>, u64) {
        let beside = zones.get(&self.zone(place)).copied().unwrap_or_default();
        let cost = self.cost(wish, place);
        let left = self.room[place].saturating_sub(cost);
        (cost > 0, beside, Reverse(left.checked_ilog2().unwrap_or(0)), self.draw(wish, place))
    }

    fn zone(&self, place: usize) -> Zone<'a> {
        self.members[place].zone.as_deref()
    }

    fn draw(&self, wish: &Wish, place: usize) -> u64 {
        let key = wish.version.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        mix(key ^ node_hash(self.members[place].id))
    }
}

fn may(wish: &Wish, member: &Member) -> bool {
    let has = |label: &Label| member.labels.get(&label.key) == Some(&label.value);
    wish.on.iter().all(has) && !wish.never.iter().any(has)
}

#[cfg(test)]
mod tests;
