//! Whom to ask: few nodes, each for another reason.

use std::collections::HashMap;

use types::NodeId;

use crate::host::{Fleet, Host};
use crate::rendezvous::mix;
use crate::{Estimate, Moment, Seconds, Work};

/// Nodes asked for one request, at most. Where no more hold the model, all of them are.
pub const CANDIDATES_MAX: usize = 8;

/// Nodes whose stale estimates are compared. The best are never taken as such: if all gateways took them, they would
/// all go to the same one.
const SAMPLE: usize = 16;
const SAMPLED: usize = 2;
/// The good part of a sample: of sixteen about a third.
const GOOD: usize = 5;
/// A cold node is asked when the warm ones are this much worse than its load.
const COLD_AFTER: Seconds = Seconds::new(5.0);

/// Random numbers for choices that need no secrecy, from a seed the caller brings.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `bound`; the bias of a remainder of 64 bits is nothing here.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// So few hold the model that all are asked.
    Everyone,
    /// It answered the conversation before, or is where its turns meet.
    Conversation,
    Home,
    /// Drawn from the good part.
    Sampled,
    Own,
    /// It would have to load, and may still be sooner.
    Cold,
    /// Nobody better admits.
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub node: NodeId,
    pub why: Why,
    pub rtt: Seconds,
    /// Observed by promised time, by which its promise is taken.
    pub ratio: f32,
    pub stale: Estimate,
}

/// At most [`CANDIDATES_MAX`], none twice.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    list: [Option<Candidate>; CANDIDATES_MAX],
    len: usize,
}

impl Candidates {
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.list.iter().flatten()
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// It answered that it will not, or could not be asked.
    pub fn remove(&mut self, node: NodeId) {
        if let Some(at) = self.list.iter().position(|entry| entry.is_some_and(|known| known.node == node)) {
            self.list[at..self.len].rotate_left(1);
            self.len -= 1;
            self.list[self.len] = None;
        }
    }

    fn add(&mut self, host: &Host, why: Why, stale: Estimate) {
        if self.len < CANDIDATES_MAX && self.iter().all(|known| known.node != host.node) {
            self.list[self.len] = Some(Candidate { node: host.node, why, rtt: host.rtt, ratio: host.ratio(), stale });
            self.len += 1;
        }
    }
}

/// The gateway that asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker {
    pub own: Option<NodeId>,
    /// Who answered this conversation's last turn, where it is remembered.
    pub owner: Option<NodeId>,
}

impl Candidates {
    /// `admits`: not tried yet, and no breaker in the way.
    pub fn choose(
        fleet: &mut Fleet,
        work: &Work,
        asker: Asker,
        now: Moment,
        dice: &mut Dice,
        admits: impl Fn(NodeId) -> bool,
    ) -> Self {
        let (hosts, places, order) = fleet.arranged();
        let mut chosen = Self::default();
        let mut ask = |host: &Host, why| {
            if admits(host.node) {
                chosen.add(host, why, host.stale_estimate(work, now));
            }
        };
        if hosts.len() <= CANDIDATES_MAX {
            hosts.iter().for_each(|host| ask(host, Why::Everyone));
            return chosen;
        }
        let known = |node: Option<NodeId>, places: &HashMap<NodeId, usize>| {
            node.and_then(|node| places.get(&node)).map(|place| &hosts[*place])
        };
        let conversation = known(asker.owner, places)
            .or_else(|| order.groups.homes(work.chain.conversation()).next().map(|place| &hosts[place]));
        conversation.into_iter().for_each(|host| ask(host, Why::Conversation));
        order.groups.homes(work.chain.head()).for_each(|place| ask(&hosts[place], Why::Home));
        known(asker.own, places).into_iter().for_each(|host| ask(host, Why::Own));

        let score = |host: &Host| host.stale_estimate(work, now).score(work.class, host.rtt);
        let warm = Sample::of(&order.warm, dice, |place| score(&hosts[place]));
        let good = &warm.sorted()[..warm.len.min(GOOD)];
        let start = if good.is_empty() { 0 } else { dice.below(good.len()) };
        for (_, place) in good.iter().cycle().skip(start).take(SAMPLED.min(good.len())) {
            ask(&hosts[*place], Why::Sampled);
        }
        let cold = Sample::of(&order.cold, dice, |place| score(&hosts[place]));
        match (warm.sorted().first(), cold.sorted().first()) {
            (None, _) => cold.sorted().iter().take(GOOD).for_each(|(_, place)| ask(&hosts[*place], Why::Cold)),
            (Some((_, warm)), Some((_, cold))) => {
                let wait = hosts[*warm].stale_estimate(work, now).ttft();
                if wait > hosts[*cold].facts.load + COLD_AFTER {
                    ask(&hosts[*cold], Why::Cold);
                }
            }
            (Some(_), None) => {}
        }
        if chosen.is_empty() {
            // All of those were tried or are barred: rare enough to look at everyone.
            for host in hosts.iter().filter(|host| admits(host.node)).take(CANDIDATES_MAX) {
                chosen.add(host, Why::Last, host.stale_estimate(work, now));
            }
        }
        chosen
    }
}

/// Some places with their scores, the best first.
struct Sample {
    list: [(Seconds, usize); SAMPLE],
    len: usize,
}

impl Sample {
    fn of(places: &[usize], dice: &mut Dice, score: impl Fn(usize) -> Seconds) -> Self {
        let mut sample = Self { list: [(Seconds::MAX, 0); SAMPLE], len: places.len().min(SAMPLE) };
        // One from each of equal parts: none is drawn twice, and where there are few, all are.
        for (at, entry) in sample.list[..sample.len].iter_mut().enumerate() {
            let (from, to) = (at * places.len() / sample.len, (at + 1) * places.len() / sample.len);
            let place = places[from + dice.below(to - from)];
            *entry = (score(place), place);
        }
        sample.list[..sample.len].sort_unstable();
        sample
    }

    fn sorted(&self) -> &[(Seconds, usize)] {
        &self.list[..self.len]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::estimate::tests::work;
    use crate::host::Facts;

    pub(crate) fn node(id: u16) -> NodeId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&id.to_le_bytes());
        NodeId::from_public_key(key)
    }

    pub(crate) fn warm() -> Facts {
        Facts {
            resident: Some(4096),
            slots: 2,
            free_slots: 2,
            wait: Seconds::ZERO,
            load: Seconds::new(8.0),
            prefill_rate: 1000.0,
            step: Seconds::new(0.01),
        }
    }

    fn cold() -> Facts {
        Facts { resident: None, ..warm() }
    }

    fn fleet(facts: impl Iterator<Item = Facts>) -> Fleet {
        let mut fleet = Fleet::default();
        for (id, facts) in facts.enumerate() {
            fleet.hear(node(id as u16), facts, Seconds::ZERO, Moment::default());
        }
        fleet
    }

    fn ask(fleet: &mut Fleet, asker: Asker, seed: u64, admits: impl Fn(NodeId) -> bool) -> Candidates {
        Candidates::choose(fleet, &work(1000, 100), asker, Moment::default(), &mut Dice::new(seed), admits)
    }

    #[test]
    fn few_hosts_are_all_asked_but_for_those_tried() {
        let mut fleet = fleet((0..8).map(|_| warm()));
        assert_eq!(ask(&mut fleet, Asker::default(), 1, |_| true).len(), 8);
        let rest = ask(&mut fleet, Asker::default(), 1, |asked| asked != node(3));
        assert!(rest.len() == 7 && rest.iter().all(|candidate| candidate.node != node(3)));
    }

    #[test]
    fn who_is_removed_is_no_candidate_and_the_others_stay() {
        let mut chosen = ask(&mut fleet((0..3).map(|_| warm())), Asker::default(), 1, |_| true);
        chosen.remove(node(0));
        chosen.remove(node(0));
        chosen.remove(node(9));
        assert_eq!(chosen.len(), 2);
        assert!(chosen.iter().map(|candidate| candidate.node).eq([node(1), node(2)]));
        chosen.remove(node(2));
        chosen.remove(node(1));
        assert!(chosen.is_empty() && chosen.iter().next().is_none());
    }

    #[test]
    fn owner_own_node_and_homes_are_asked_among_many() {
        let mut fleet = fleet((0..1000).map(|_| warm()));
        let asker = Asker { own: Some(node(5)), owner: Some(node(6)) };
        let mut homes = Vec::new();
        for seed in 0..50 {
            let chosen = ask(&mut fleet, asker, seed, |_| true);
            let of = |why| chosen.iter().filter(move |candidate| candidate.why == why).map(|candidate| candidate.node);
            assert!(of(Why::Own).eq([node(5)]) && of(Why::Conversation).eq([node(6)]), "{chosen:?}");
            homes.push(of(Why::Home).collect::<Vec<_>>());
            assert!((5..=CANDIDATES_MAX).contains(&chosen.len()));
        }
        assert!(homes[0].len() == 3 && homes.iter().all(|others| *others == homes[0]), "homes hang on the head alone");
    }

    #[test]
    fn draws_come_from_the_good_part_and_do_not_herd() {
        let busy = Facts { free_slots: 0, wait: Seconds::new(60.0), ..warm() };
        let mut fleet = fleet((0..1000).map(|id| if id % 4 == 0 { busy } else { warm() }));
        let mut drawn = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let chosen = ask(&mut fleet, Asker::default(), seed, |_| true);
            for candidate in chosen.iter().filter(|candidate| candidate.why == Why::Sampled) {
                assert_eq!(candidate.stale.wait, Seconds::ZERO);
                drawn.insert(candidate.node);
            }
        }
        assert!(drawn.len() > 100, "{}", drawn.len());
    }

    #[test]
    fn a_cold_node_is_asked_only_when_the_warm_ones_are_much_later() {
        let asked_cold = |wait: f32| {
            let busy = Facts { free_slots: 0, wait: Seconds::new(wait), ..warm() };
            let mut fleet = fleet((0..40).map(|id| if id < 20 { busy } else { cold() }));
            ask(&mut fleet, Asker::default(), 1, |_| true).iter().any(|candidate| candidate.why == Why::Cold)
        };
        assert!(!asked_cold(1.0));
        assert!(!asked_cold(11.0));
        assert!(asked_cold(15.0));
    }

    #[test]
    fn where_nobody_is_warm_several_cold_ones_are_asked() {
        let mut fleet = fleet((0..40).map(|_| cold()));
        assert!(ask(&mut fleet, Asker::default(), 1, |_| true).len() >= 4);
    }

    #[test]
    fn the_last_one_that_admits_is_found_among_thousands() {
        let mut fleet = fleet((0..3000).map(|_| warm()));
        let chosen = ask(&mut fleet, Asker::default(), 1, |asked| asked == node(1234));
        assert!(chosen.len() == 1 && chosen.iter().all(|candidate| candidate.node == node(1234)));
        assert!(ask(&mut fleet, Asker::default(), 1, |_| false).is_empty());
    }
}
