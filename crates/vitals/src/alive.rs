//! Who is there. Each member sends a beat to a few others, its watchers; who misses beats says so to everybody; a
//! member is down when most of its watchers miss it, or when the link to it was lost from here and did not come back.
//!
//! One watcher alone would err often on a bad network. That most err about the same member at the same time is rare,
//! so that watching can be impatient.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::NodeId;

use crate::protocol::{Beat, Opinion};
use crate::record::Stamp;

/// Between two beats, and between two ticks of whoever runs this.
pub const BEAT: Duration = Duration::from_millis(250);
/// A member has at most so many.
pub const WATCHERS_MAX: usize = 8;

/// After which a watcher misses a member. It leaves time to tell everybody, several times, before three seconds are over.
const SILENCE: Duration = Duration::from_secs(2);
/// A lost link may come back; while it is lost, silence need not last as long.
const SILENCE_WHEN_LOST: Duration = Duration::from_millis(750);
/// A member that was missed is heard again only after so many beats.
const BEATS_TO_RETURN: u32 = 4;
/// An opinion is said so often, since messages get lost.
const TOLD: u32 = 6;

#[derive(Debug)]
pub struct Alive {
    me: NodeId,
    incarnation: u64,
    /// Beats and opinions of this start.
    sequence: u64,
    /// Time that passed here. A sleeping machine's does not: what others did meanwhile cannot be held against them.
    clock: Duration,
    last_tick: Option<Duration>,
    members: BTreeMap<NodeId, Member>,
}

#[derive(Debug, Default)]
struct Member {
    watchers: Vec<NodeId>,
    /// If it is watched from here.
    watch: Option<Watch>,
    /// What its other watchers say.
    opinions: BTreeMap<NodeId, (Stamp, bool)>,
    link_lost: Option<Duration>,
    down: bool,
}

#[derive(Debug)]
struct Watch {
    heard: Duration,
    newest: Stamp,
    /// Since it was missed last.
    beats: u32,
    missing: bool,
    said: Stamp,
    to_tell: u32,
}

impl Alive {
    pub fn new(me: NodeId, incarnation: u64) -> Self {
        Self { me, incarnation, sequence: 0, clock: Duration::ZERO, last_tick: None, members: BTreeMap::new() }
    }

    /// Those that are new are taken to be there until it is found otherwise.
    pub fn set_members(&mut self, members: &BTreeSet<NodeId>) {
        self.members.retain(|node, _| members.contains(node));
        for node in members.iter().filter(|node| **node != self.me) {
            let member = self.members.entry(*node).or_default();
            member.watchers = watchers(*node, members);
            member.opinions.retain(|watcher, _| member.watchers.contains(watcher));
            if !member.watchers.contains(&self.me) {
                member.watch = None;
            } else if member.watch.is_none() {
                member.watch = Some(Watch::begun(self.clock));
            }
        }
    }

    /// Counts on as another start of this node: its last one had counted further than this one began.
    pub fn begin(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
    }

    /// `false` for strangers too.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.members.get(&node).is_some_and(|member| !member.down)
    }

    pub fn link_lost(&mut self, node: NodeId) {
        let clock = self.clock;
        if let Some(member) = self.members.get_mut(&node) {
            member.link_lost.get_or_insert(clock);
        }
    }

    pub fn link_up(&mut self, node: NodeId) {
        if let Some(member) = self.members.get_mut(&node) {
            member.link_lost = None;
        }
    }

    pub fn beat(&mut self, from: NodeId, beat: Beat) {
        let clock = self.clock;
        let Some(member) = self.members.get_mut(&from) else { return };
        let Some(watch) = member.watch.as_mut().filter(|watch| watch.newest < beat.stamp) else { return };
        watch.newest = beat.stamp;
        if watch.missing && clock.saturating_sub(watch.heard) > SILENCE {
            watch.beats = 0;
        }
        watch.heard = clock;
        watch.beats = watch.beats.saturating_add(1);
    }

    /// Only watchers of a member have an opinion of it.
    pub fn opinions(&mut self, from: NodeId, opinions: &[Opinion]) {
        for opinion in opinions {
            let Some(member) = self.members.get_mut(&opinion.of) else { continue };
            if from == self.me || !member.watchers.contains(&from) {
                continue;
            }
            let known = member.opinions.entry(from).or_default();
            if known.0 < opinion.stamp {
                *known = (opinion.stamp, opinion.missing);
            }
        }
    }

    /// To be called every [`BEAT`]. Who went up or down since.
    pub fn tick(&mut self, now: Duration) -> Vec<(NodeId, bool)> {
        let passed = self.last_tick.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        self.last_tick = Some(now);
        self.clock += passed.min(BEAT * 2);
        let mut sequence = self.sequence;
        for member in self.members.values_mut() {
            let silence = member.silence();
            let Some(watch) = &mut member.watch else { continue };
            let silent = self.clock.saturating_sub(watch.heard) >= silence;
            // The first opinion of a start is told either way: one from the start before may still be held.
            let undecided = watch.said == Stamp::default();
            if (undecided || silent != watch.missing) && (silent || watch.beats >= BEATS_TO_RETURN) {
                sequence += 1;
                watch.missing = silent;
                watch.beats = 0;
                watch.said = Stamp { incarnation: self.incarnation, sequence };
                watch.to_tell = TOLD;
            }
        }
        self.sequence = sequence;
        self.judge()
    }

    /// Where this tick's beat goes.
    pub fn beat_to(&mut self, members: &BTreeSet<NodeId>) -> (Beat, Vec<NodeId>) {
        self.sequence += 1;
        let beat = Beat { stamp: Stamp { incarnation: self.incarnation, sequence: self.sequence } };
        (beat, watchers(self.me, members))
    }

    /// What everybody is to be told in this tick.
    pub fn news(&mut self) -> Vec<Opinion> {
        let mut news = Vec::new();
        for (node, member) in &mut self.members {
            if let Some(watch) = member.watch.as_mut().filter(|watch| watch.to_tell > 0) {
                watch.to_tell -= 1;
                news.push(watch.opinion(*node));
            }
        }
        news
    }

    /// For one who may have missed some: all that were ever said and still hold.
    pub fn standing(&self) -> Vec<Opinion> {
        let said = |(node, member): (&NodeId, &Member)| {
            let watch = member.watch.as_ref().filter(|watch| watch.said != Stamp::default())?;
            Some(watch.opinion(*node))
        };
        self.members.iter().filter_map(said).collect()
    }

    fn judge(&mut self) -> Vec<(NodeId, bool)> {
        let down: BTreeSet<NodeId> =
            self.members.iter().filter(|(_, member)| member.down).map(|(node, _)| *node).collect();
        let mut changes = Vec::new();
        for (node, member) in &mut self.members {
            // A watcher that is down itself says nothing new.
            let awake = || member.watchers.iter().filter(|watcher| !down.contains(watcher));
            let missed = awake().filter(|watcher| member.is_missed_by(**watcher, self.me)).count();
            let needed = awake().count() / 2 + 1;
            let lost = member.link_lost.is_some_and(|since| self.clock.saturating_sub(since) >= SILENCE);
            let is_down = match (awake().count(), member.down) {
                _ if lost => true,
                // Nobody is left to ask: what was found stays found.
                (0, down) => down,
                // Fewer have to miss it for it to stay down than it takes to go down: it does not waver.
                (_, true) => missed * 2 >= needed,
                (_, false) => missed >= needed,
            };
            if is_down != member.down {
                member.down = is_down;
                changes.push((*node, !is_down));
            }
        }
        changes
    }
}

impl Member {
    fn silence(&self) -> Duration {
        if self.link_lost.is_some() { SILENCE_WHEN_LOST } else { SILENCE }
    }

    fn is_missed_by(&self, watcher: NodeId, me: NodeId) -> bool {
        if watcher == me {
            return self.watch.as_ref().is_some_and(|watch| watch.missing);
        }
        self.opinions.get(&watcher).is_some_and(|(_, missing)| *missing)
    }
}

impl Watch {
    fn begun(clock: Duration) -> Self {
        Self { heard: clock, newest: Stamp::default(), beats: 0, missing: false, said: Stamp::default(), to_tell: 0 }
    }

    fn opinion(&self, of: NodeId) -> Opinion {
        Opinion { of, missing: self.missing, stamp: self.said }
    }
}

/// The same at every member: those whose hash with it is greatest.
fn watchers(of: NodeId, members: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let mut ranked: Vec<(u64, NodeId)> =
        members.iter().filter(|node| **node != of).map(|node| (rank(of, *node), *node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.truncate(WATCHERS_MAX);
    ranked.into_iter().map(|(_, node)| node).collect()
}

/// Public keys are random already; this only makes another order for each member.
fn rank(of: NodeId, by: NodeId) -> u64 {
    let bytes = of.public_key().iter().chain(by.public_key());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        let hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        hash ^ (hash >> 29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::node;

    fn of(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
        numbers.into_iter().map(node).collect()
    }

    fn alive(members: &BTreeSet<NodeId>) -> Alive {
        let mut alive = Alive::new(node(0), 1);
        alive.set_members(members);
        alive
    }

    fn beat(number: u64) -> Beat {
        Beat { stamp: Stamp { incarnation: 1, sequence: number } }
    }

    /// Ticks until something changes, at most `beats` of them.
    fn run(alive: &mut Alive, from: &mut Duration, beats: u32) -> Vec<(NodeId, bool)> {
        for _ in 0..beats {
            *from += BEAT;
            let changes = alive.tick(*from);
            if !changes.is_empty() {
                return changes;
            }
        }
        Vec::new()
    }

    #[test]
    fn of_two_the_other_is_down_within_three_seconds_of_its_last_beat() {
        let mut alive = alive(&of([0, 1]));
        let mut now = Duration::ZERO;
        alive.tick(now);
        alive.beat(node(1), beat(1));
        assert_eq!(run(&mut alive, &mut now, 20), [(node(1), false)]);
        assert!(now <= Duration::from_secs(3), "{now:?}");
    }

    #[test]
    fn it_takes_some_beats_to_be_back() {
        let mut alive = alive(&of([0, 1]));
        let mut now = Duration::ZERO;
        run(&mut alive, &mut now, 20);
        assert!(!alive.is_up(node(1)));
        for number in 1..=BEATS_TO_RETURN {
            assert!(!alive.is_up(node(1)), "back after {} beats", number - 1);
            alive.beat(node(1), beat(u64::from(number)));
            run(&mut alive, &mut now, 1);
        }
        assert!(alive.is_up(node(1)));
    }

    #[test]
    fn a_beat_said_before_counts_once() {
        let mut alive = alive(&of([0, 1]));
        let mut now = Duration::ZERO;
        alive.beat(node(1), beat(9));
        for _ in 0..20 {
            alive.beat(node(1), beat(9));
            run(&mut alive, &mut now, 1);
        }
        assert!(!alive.is_up(node(1)));
    }

    #[test]
    fn time_slept_through_is_nobody_s_silence() {
        let mut alive = alive(&of([0, 1]));
        let mut now = Duration::ZERO;
        alive.tick(now);
        now += Duration::from_hours(8);
        assert_eq!(alive.tick(now), []);
        assert_eq!(alive.tick(Duration::ZERO), [], "a clock that goes back proves nothing either");
        assert!(alive.is_up(node(1)));
    }

    #[test]
    fn most_watchers_decide_and_nobody_else() {
        let members = of(0..50);
        let mut alive = alive(&members);
        let subject = members
            .iter()
            .copied()
            .find(|node| !watchers(*node, &members).contains(&self::node(0)) && *node != self::node(0));
        let subject = subject.unwrap();
        let watchers = watchers(subject, &members);
        let says = |missing: bool, sequence: u64| {
            [Opinion { of: subject, missing, stamp: Stamp { incarnation: 1, sequence } }]
        };
        let mut now = Duration::ZERO;
        let mut judged = |alive: &mut Alive| {
            now += Duration::from_millis(1);
            alive.tick(now);
            alive.is_up(subject)
        };
        for bystander in members.iter().filter(|node| !watchers.contains(node)) {
            alive.opinions(*bystander, &says(true, 1));
        }
        for watcher in &watchers[..4] {
            alive.opinions(*watcher, &says(true, 1));
        }
        assert!(judged(&mut alive), "four of eight are not most");
        alive.opinions(watchers[4], &says(true, 1));
        assert!(!judged(&mut alive));
        alive.opinions(watchers[4], &says(false, 2));
        alive.opinions(watchers[4], &says(true, 1));
        assert!(!judged(&mut alive), "one that changes its mind does not bring it back");
        alive.opinions(watchers[3], &says(false, 2));
        alive.opinions(watchers[2], &says(false, 2));
        assert!(judged(&mut alive));
    }

    #[test]
    fn a_link_that_is_lost_from_here_and_stays_so_is_enough() {
        let members = of(0..50);
        let mut alive = alive(&members);
        let mut now = Duration::ZERO;
        alive.tick(now);
        let subject = members
            .iter()
            .copied()
            .find(|node| !watchers(*node, &members).contains(&self::node(0)) && *node != self::node(0));
        let subject = subject.unwrap();
        alive.link_lost(subject);
        alive.link_up(subject);
        alive.link_lost(subject);
        while alive.is_up(subject) {
            now += BEAT;
            assert!(now <= Duration::from_secs(3));
            alive.tick(now);
        }
        alive.link_up(subject);
        alive.tick(now);
        assert!(alive.is_up(subject));
    }

    #[test]
    fn watching_is_spread_evenly() {
        let members: BTreeSet<NodeId> = (0..50_u8)
            .map(|number| {
                NodeId::from_public_key(std::array::from_fn(|at| {
                    number.wrapping_mul(37) ^ (at as u8).wrapping_mul(number)
                }))
            })
            .collect();
        let mut watched: BTreeMap<NodeId, usize> = BTreeMap::new();
        for member in &members {
            for watcher in watchers(*member, &members) {
                *watched.entry(watcher).or_default() += 1;
            }
        }
        assert!(watched.len() == 50 && watched.values().all(|count| *count <= 24), "{watched:?}");
    }
}
