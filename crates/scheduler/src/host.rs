//! What a gateway knows of the nodes that hold one model: hints heard some time ago, corrected by what it did since.

use std::collections::HashMap;
use std::time::Duration;

use types::NodeId;

use crate::rendezvous::{Groups, node_hash};
use crate::{Estimate, Moment, Place, Seconds, Work};

/// The ratio of observed to promised time moves by this share with each outcome.
const RATIO_STEP: f32 = 0.2;
/// One bad minute must not make a node unreachable for ever, nor a good one make it everyone's first choice.
const RATIO_MIN: f32 = 0.5;
const RATIO_MAX: f32 = 4.0;

/// What a node says of itself and one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// The window it is loaded with; `None` where it only lies on the disk.
    pub resident: Option<u32>,
    pub slots: u16,
    pub free_slots: u16,
    /// Until a slot is free.
    pub wait: Seconds,
    /// What loading it takes there.
    pub load: Seconds,
    /// Prompt tokens a second.
    pub prefill_rate: f32,
    /// Between two tokens of an answer.
    pub step: Seconds,
}

impl Facts {
    /// How much of the mesh's work it can take, in answer tokens a second.
    fn weight(&self) -> f32 {
        f32::from(self.slots.max(1)) / self.step.get().max(1e-4)
    }
}

/// One node that holds the model.
#[derive(Debug, Clone)]
pub struct Host {
    pub node: NodeId,
    pub facts: Facts,
    pub rtt: Seconds,
    heard: Moment,
    /// Requests sent there by this gateway since it was heard, which its word does not count yet.
    sent: u16,
    /// Observed time by promised time, smoothed.
    ratio: f32,
}

impl Host {
    pub const fn ratio(&self) -> f32 {
        self.ratio
    }

    pub(crate) fn fits(&self, work: &Work) -> bool {
        self.facts.resident.is_some_and(|window| work.context.is_none_or(|needed| needed <= window))
    }

    /// As far as is known, and what this gateway sent counted.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.sent < self.facts.free_slots
    }

    /// A guess from what was heard: good for finding whom to ask, not for choosing.
    pub fn stale_estimate(&self, work: &Work, now: Moment) -> Estimate {
        let Facts { slots, free_slots, wait, load, prefill_rate, step, .. } = self.facts;
        let alone = Place {
            wait: Seconds::ZERO,
            load: if self.fits(work) { Seconds::ZERO } else { load },
            cached: 0,
            prefill_before: Seconds::ZERO,
            prefill_rate,
            step,
            deviation: Seconds::ZERO,
        };
        let mut estimate = Estimate::of(work, &alone);
        // A cold node's wait is its load; a free slot that this gateway filled meanwhile is not free.
        let beyond = (u32::from(self.sent) + 1).saturating_sub(u32::from(free_slots));
        if beyond > 0 {
            let turn = (estimate.prefill + estimate.decode) * (1.0 / f32::from(slots.max(1)));
            let credit = if free_slots == 0 { f32::from(self.sent) } else { beyond as f32 };
            estimate.wait = wait.over(now.since(self.heard).into()) + turn * credit;
        }
        estimate.scaled(self.ratio)
    }
}

/// All nodes that hold one model. As long as the mesh has members, which the registry bounds.
#[derive(Debug, Default)]
pub struct Fleet {
    hosts: Vec<Host>,
    places: HashMap<NodeId, usize>,
    /// Made again when somebody comes, goes, loads, unloads or changes its weight: the next decision pays for it once,
    /// however many changes there were.
    order: Option<Order>,
}

/// Places in `Fleet::hosts`.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) warm: Vec<usize>,
    pub(crate) cold: Vec<usize>,
    pub(crate) groups: Groups,
}

impl Fleet {
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    pub fn get(&self, node: NodeId) -> Option<&Host> {
        self.places.get(&node).map(|place| &self.hosts[*place])
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The node said this of itself at `now`, and is `rtt` away.
    pub fn hear(&mut self, node: NodeId, facts: Facts, rtt: Seconds, now: Moment) {
        if let Some(place) = self.places.get(&node) {
            let host = &mut self.hosts[*place];
            let moved = host.facts.resident.is_some() != facts.resident.is_some();
            if moved || host.facts.weight() != facts.weight() {
                self.order = None;
            }
            (host.facts, host.rtt, host.heard, host.sent) = (facts, rtt, now, 0);
            return;
        }
        self.order = None;
        self.places.insert(node, self.hosts.len());
        self.hosts.push(Host { node, facts, rtt, heard: now, sent: 0, ratio: 1.0 });
    }

    /// It is gone, or has the model no more.
    pub fn forget(&mut self, node: NodeId) {
        let Some(place) = self.places.remove(&node) else { return };
        self.order = None;
        self.hosts.swap_remove(place);
        if let Some(moved) = self.hosts.get(place) {
            self.places.insert(moved.node, place);
        }
    }

    /// A request was sent there.
    pub fn sent(&mut self, node: NodeId) {
        if let Some(host) = self.get_mut(node) {
            host.sent = host.sent.saturating_add(1);
        }
    }

    /// A request that was sent there is over.
    pub fn ended(&mut self, node: NodeId) {
        if let Some(host) = self.get_mut(node) {
            // Where it was sent before the node was last heard, its word counts it, and this is one too few until the
            // next.
            host.sent = host.sent.saturating_sub(1);
        }
    }

    /// What was promised until the first token, and what it took.
    pub fn observed(&mut self, node: NodeId, promised: Seconds, took: Duration) {
        if let Some(host) = self.get_mut(node) {
            // Below a twentieth of a second both are noise.
            let floor = Seconds::new(0.05);
            let ratio = Seconds::from(took).max(floor).get() / promised.max(floor).get();
            let ratio = ratio.clamp(RATIO_MIN, RATIO_MAX);
            host.ratio += RATIO_STEP * (ratio - host.ratio);
        }
    }

    fn get_mut(&mut self, node: NodeId) -> Option<&mut Host> {
        self.places.get(&node).map(|place| &mut self.hosts[*place])
    }

    pub(crate) fn arranged(&mut self) -> (&[Host], &HashMap<NodeId, usize>, &Order) {
        let hosts = &self.hosts;
        let order = self.order.get_or_insert_with(|| {
            let mut order = Order::default();
            for (place, host) in hosts.iter().enumerate() {
                match host.facts.resident {
                    Some(_) => {
                        order.warm.push(place);
                        order.groups.add(place, node_hash(host.node), host.facts.weight());
                    }
                    None => order.cold.push(place),
                }
            }
            order
        });
        (hosts, &self.places, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::tests::{node, warm};
    use crate::estimate::tests::work;

    #[test]
    fn what_this_gateway_sent_since_counts_as_a_wait() {
        let mut fleet = Fleet::default();
        let facts = Facts { free_slots: 1, ..warm() };
        fleet.hear(node(1), facts, Seconds::ZERO, Moment::default());
        let wait = |fleet: &Fleet| fleet.get(node(1)).unwrap().stale_estimate(&work(100, 100), Moment::default()).wait;
        assert_eq!(wait(&fleet), Seconds::ZERO);
        fleet.sent(node(1));
        let once = wait(&fleet);
        assert!(once > Seconds::ZERO);
        fleet.sent(node(1));
        assert!(wait(&fleet) > once);
        fleet.ended(node(1));
        assert_eq!(wait(&fleet), once);
        fleet.sent(node(1));
        fleet.hear(node(1), facts, Seconds::ZERO, Moment::default());
        assert_eq!(wait(&fleet), Seconds::ZERO);
    }

    #[test]
    fn a_window_too_small_means_a_load() {
        let mut fleet = Fleet::default();
        fleet.hear(node(1), warm(), Seconds::ZERO, Moment::default());
        let load = |context| {
            let work = Work { context, ..work(100, 100) };
            fleet.get(node(1)).unwrap().stale_estimate(&work, Moment::default()).load
        };
        assert_eq!(load(Some(4096)), Seconds::ZERO);
        assert_eq!(load(Some(8192)), warm().load);
    }

    #[test]
    fn who_is_slower_than_promised_is_believed_less_but_not_without_end() {
        let mut fleet = Fleet::default();
        fleet.hear(node(1), warm(), Seconds::ZERO, Moment::default());
        for _ in 0..100 {
            fleet.observed(node(1), Seconds::new(1.0), Duration::from_secs(100));
        }
        let ratio = fleet.get(node(1)).unwrap().ratio();
        assert!((3.9..=RATIO_MAX).contains(&ratio), "{ratio}");
    }

    #[test]
    fn forgetting_one_leaves_the_others_findable() {
        let mut fleet = Fleet::default();
        for id in 0..5 {
            fleet.hear(node(id), warm(), Seconds::ZERO, Moment::default());
        }
        fleet.forget(node(0));
        fleet.forget(node(3));
        let found: Vec<bool> = (0..5).map(|id| fleet.get(node(id)).is_some_and(|host| host.node == node(id))).collect();
        assert_eq!(found, [false, true, true, false, true]);
    }
}
