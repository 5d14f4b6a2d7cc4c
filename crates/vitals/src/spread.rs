//! How records travel, and the one state machine a node runs for its vitals: events in, effects out.
//!
//! A new record goes from its node straight to every member while they are few, and is passed on at random when they are
//! many; what got lost on the way is found by comparing stamps with a random member now and then.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use types::{MeshId, NodeId};

use crate::alive::Alive;
use crate::protocol::{Entry, Message};
use crate::record::{Facts, Record, Signature, Signed, Stamp};
use crate::table::{Refused, Table};

/// Two records of a node are at least so far apart; what changes in between is told with the next.
const APART: Duration = Duration::from_secs(2);
/// A record is told again after it, with the load as it is then.
const REFRESH: Duration = Duration::from_secs(15);
/// Between two comparisons; while nothing at all is known of some member that is up, they come sooner.
const COMPARE: Duration = Duration::from_secs(5);
const COMPARE_SOON: Duration = Duration::from_secs(1);
/// Up to so many members, each node tells all others itself.
const DIRECT_MAX: usize = 256;
/// Beyond them, how many a new record is passed on to.
const FANOUT: usize = 4;
/// Records that wait to be passed on. Beyond it the rest is left to the next comparison.
const RELAYED_MAX: usize = 256;

/// A way to spread vitals. `now` never goes back.
pub trait Spread {
    fn on(&mut self, now: Duration, event: Event) -> Vec<Effect>;
    fn table(&self) -> &Table;
    fn is_up(&self, node: NodeId) -> bool;
}

#[derive(Debug, Clone)]
pub enum Event {
    /// Once per [`BEAT`](crate::BEAT), with something random.
    Tick {
        random: u64,
    },
    /// All members, this node too.
    Members(BTreeSet<NodeId>),
    Connected(NodeId),
    /// No connection to it is left.
    Lost(NodeId),
    /// What this node has to say of itself by now.
    Facts(Box<Facts>),
    /// From a member, as its connection proves.
    Received {
        from: NodeId,
        message: Message,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// May get lost. Nobody waits for it.
    Send {
        to: NodeId,
        message: Message,
    },
    /// There is a newer record of it in the table.
    Fresh(NodeId),
    Up(NodeId),
    Down(NodeId),
    /// It sent what no honest member sends.
    Blame(NodeId, Refused),
}

/// Signs as this node.
pub type Sign = dyn Fn(&[u8]) -> Signature + Send + Sync;
/// Whether a node signed that.
pub type Verify = dyn Fn(NodeId, &[u8], &Signature) -> bool + Send + Sync;

/// How records are signed and checked.
pub struct Keys {
    pub sign: Box<Sign>,
    pub verify: Box<Verify>,
}

/// The way there is.
#[derive(Debug)]
pub struct Gossip {
    me: NodeId,
    mesh: MeshId,
    keys: Keys,
    table: Table,
    alive: Alive,
    stamp: Stamp,
    facts: Option<Facts>,
    /// What was told last, and when.
    told: Option<(Facts, Duration)>,
    compared: Duration,
    to_relay: BTreeSet<NodeId>,
    direct_max: usize,
}

impl Gossip {
    /// `incarnation` is greater than at any start before: milliseconds of the wall clock will do, since a node that
    /// finds itself behind its own past catches up.
    pub fn new(me: NodeId, mesh: MeshId, incarnation: u64, keys: Keys) -> Self {
        Self {
            me,
            mesh,
            keys,
            table: Table::default(),
            alive: Alive::new(me, incarnation),
            stamp: Stamp { incarnation, sequence: 0 },
            facts: None,
            told: None,
            compared: Duration::ZERO,
            to_relay: BTreeSet::new(),
            direct_max: DIRECT_MAX,
        }
    }

    /// Beyond how many members records are passed on instead of told to all.
    pub fn with_direct_max(self, direct_max: usize) -> Self {
        Self { direct_max, ..self }
    }

    fn tick(&mut self, now: Duration, mut random: u64) -> Vec<Effect> {
        let changes = self.alive.tick(now);
        let mut effects: Vec<Effect> =
            changes.into_iter().map(|(node, up)| if up { Effect::Up(node) } else { Effect::Down(node) }).collect();
        let (beat, watchers) = self.alive.beat_to(self.table.members());
        effects.extend(watchers.into_iter().map(|to| Effect::Send { to, message: Message::Beat(beat) }));
        let mut news = self.alive.news();
        news.truncate(Message::ITEMS_MAX);
        if !news.is_empty() {
            let to_all = self.others().map(|to| Effect::Send { to, message: Message::Opinions(news.clone()) });
            effects.extend(to_all);
        }
        effects.extend(self.tell(now, &mut random));
        effects.extend(self.relay(&mut random));
        let lacks = |node: NodeId| self.table.get(node).is_none() && self.alive.is_up(node);
        let pause = if self.others().any(lacks) { COMPARE_SOON } else { COMPARE };
        if now.saturating_sub(self.compared) >= pause {
            self.compared = now;
            effects.extend(self.some(1, &mut random).into_iter().map(|to| self.compare_with(to, random, true)));
        }
        effects
    }

    /// The own record, if it is time for one.
    fn tell(&mut self, now: Duration, random: &mut u64) -> Vec<Effect> {
        let Some(facts) = &self.facts else { return Vec::new() };
        let due = match &self.told {
            None => true,
            Some((told, at)) => {
                let since = now.saturating_sub(*at);
                since >= REFRESH || (since >= APART && facts.differs(told))
            }
        };
        if !due {
            return Vec::new();
        }
        let facts = facts.clone();
        self.stamp.sequence += 1;
        let record = Record { node: self.me, stamp: self.stamp, facts: facts.clone() };
        self.told = Some((facts, now));
        let Ok(signed) = Signed::new(&record, self.mesh, &self.keys.sign) else {
            // Longer than any record may be, though the models are bounded: names must be endless. What was told
            // before stays the last word.
            return Vec::new();
        };
        let taken = self.table.take(now, signed.clone(), self.mesh, &self.keys.verify).is_ok();
        let to = if self.tells_all() { self.others().collect() } else { self.some(FANOUT, random) };
        let message = Message::Records(vec![signed]);
        let fresh = taken.then_some(Effect::Fresh(self.me));
        fresh.into_iter().chain(to.into_iter().map(|to| Effect::Send { to, message: message.clone() })).collect()
    }

    /// What came new since the last tick goes on to a few, together.
    fn relay(&mut self, random: &mut u64) -> Vec<Effect> {
        let nodes = std::mem::take(&mut self.to_relay);
        let messages = self.packed(nodes.into_iter());
        if messages.is_empty() {
            return Vec::new();
        }
        let to = self.some(FANOUT, random);
        to.into_iter()
            .flat_map(|to| messages.iter().map(move |message| Effect::Send { to, message: message.clone() }))
            .collect()
    }

    fn received(&mut self, now: Duration, from: NodeId, message: Message) -> Vec<Effect> {
        match message {
            Message::Beat(beat) => self.alive.beat(from, beat),
            Message::Opinions(opinions) => self.alive.opinions(from, &opinions),
            Message::Records(records) => {
                return records.into_iter().filter_map(|signed| self.take(now, from, signed)).collect();
            }
            Message::Digest { entries, answer } => return self.compared(from, &entries, answer),
        }
        Vec::new()
    }

    fn take(&mut self, now: Duration, from: NodeId, signed: Signed) -> Option<Effect> {
        match self.table.take(now, signed, self.mesh, &self.keys.verify) {
            Ok(known) if known.record.node == self.me => {
                // From a start before this one, that counted further: what is said now has to be newer than it.
                self.stamp = Stamp { incarnation: known.record.stamp.incarnation.saturating_add(1), sequence: 0 };
                self.alive.begin(self.stamp.incarnation);
                self.told = None;
                None
            }
            Ok(known) => {
                let node = known.record.node;
                if !self.tells_all() && self.to_relay.len() < RELAYED_MAX {
                    self.to_relay.insert(node);
                }
                Some(Effect::Fresh(node))
            }
            // A copy of what is known, or one who has not heard yet that somebody joined or left.
            Err(Refused::NotNewer { .. } | Refused::NotAMember { .. }) => None,
            Err(refused @ Refused::Record(_)) => Some(Effect::Blame(from, refused)),
        }
    }

    fn compare_with(&self, to: NodeId, random: u64, answer: bool) -> Effect {
        let members = self.table.members();
        let first = random as usize % members.len().max(1);
        let some = members.iter().cycle().skip(first).take(members.len().min(Message::ITEMS_MAX));
        let entries = some.map(|node| Entry { node: *node, stamp: self.table.stamp(*node) }).collect();
        Effect::Send { to, message: Message::Digest { entries, answer } }
    }

    fn compared(&self, from: NodeId, entries: &[Entry], answer: bool) -> Vec<Effect> {
        let entries = &entries[..entries.len().min(Message::ITEMS_MAX)];
        let newer_here = entries.iter().filter(|entry| self.table.stamp(entry.node) > entry.stamp);
        let mut messages = self.packed(newer_here.map(|entry| entry.node));
        let is_member = |node: &NodeId| self.table.members().contains(node);
        let newer_there: Vec<Entry> = entries
            .iter()
            .filter(|entry| is_member(&entry.node) && self.table.stamp(entry.node) < entry.stamp)
            .map(|entry| Entry { node: entry.node, stamp: self.table.stamp(entry.node) })
            .collect();
        if answer && !newer_there.is_empty() {
            messages.push(Message::Digest { entries: newer_there, answer: false });
        }
        messages.extend(self.standing());
        messages.into_iter().map(|message| Effect::Send { to: from, message }).collect()
    }

    fn standing(&self) -> Option<Message> {
        let mut standing = self.alive.standing();
        standing.truncate(Message::ITEMS_MAX);
        (!standing.is_empty()).then_some(Message::Opinions(standing))
    }

    /// The records of these, in as many messages as it takes.
    fn packed(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut batch = Vec::new();
        let mut size = 0;
        for known in nodes.filter_map(|node| self.table.get(node)) {
            if size + known.signed.size() > Message::RECORD_BYTES_MAX && !batch.is_empty() {
                messages.push(Message::Records(std::mem::take(&mut batch)));
                size = 0;
            }
            size += known.signed.size();
            batch.push(known.signed.clone());
        }
        if !batch.is_empty() {
            messages.push(Message::Records(batch));
        }
        messages
    }

    fn tells_all(&self) -> bool {
        self.table.members().len() <= self.direct_max
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.table.members().iter().copied().filter(|node| *node != self.me)
    }

    /// So many of those that are up, by chance.
    fn some(&self, count: usize, random: &mut u64) -> Vec<NodeId> {
        let mut up: Vec<NodeId> = self.others().filter(|node| self.alive.is_up(*node)).collect();
        let count = count.min(up.len());
        for at in 0..count {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let other = at + (*random >> 33) as usize % (up.len() - at);
            up.swap(at, other);
        }
        up.truncate(count);
        up
    }
}

impl Spread for Gossip {
    fn on(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Tick { random } => return self.tick(now, random),
            Event::Members(members) => {
                self.alive.set_members(&members);
                self.to_relay.retain(|node| members.contains(node));
                self.table.set_members(members);
            }
            Event::Connected(node) => {
                self.alive.link_up(node);
                if self.table.members().contains(&node) {
                    let standing = self.standing().map(|message| Effect::Send { to: node, message });
                    return [self.compare_with(node, 0, true)].into_iter().chain(standing).collect();
                }
            }
            Event::Lost(node) => self.alive.link_lost(node),
            Event::Facts(facts) => self.facts = Some(facts.bounded()),
            // The connection was there before the registry's news, or after them.
            Event::Received { from, .. } if !self.table.members().contains(&from) => {}
            Event::Received { from, message } => return self.received(now, from, message),
        }
        Vec::new()
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.alive.is_up(node)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}
