//! Which nodes are left alone for a model, and when one request may look whether they are well again.

use std::collections::HashMap;
use std::time::Duration;

use scheduler::{ModelKey, Moment};
use types::NodeId;

/// Failures of the connection in a row.
const BROKEN_IN_A_ROW: u8 = 3;
/// Failures of any kind in a row. A node that fails at once is never busy: it looks like the best one there is.
const FAILED_IN_A_ROW: u8 = 5;
/// Outcomes that are remembered; half of them failed is too many.
const REMEMBERED: u32 = 20;
const FIRST_REST: Duration = Duration::from_secs(5);
/// The rest doubles so often: then five minutes.
const DOUBLINGS_MAX: u32 = 6;
/// Of many nodes at most three of ten are barred: beyond that it is not they who are ill.
const BARRED_TENTHS_MAX: usize = 3;
/// Of few nodes, three of ten would be one or none, and requests would keep running into the dead: of six all but one
/// may be barred, and of more as many at least, or a seventh node would set the other ill ones free.
const FEW: usize = 6;
/// Pairs of node and model with a failure not yet forgotten. Further ones are not barred: they are tried.
const PAIRS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody answered, or the connection broke.
    Transport,
    /// The node answered that it could not.
    Served,
}

/// One gateway's, for all nodes and models.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    pairs: HashMap<(ModelKey, NodeId), Pair>,
}

#[derive(Debug, Default)]
struct Pair {
    broken_in_a_row: u8,
    failed_in_a_row: u8,
    /// The last outcomes, the newest in the lowest bit; a failure is a one.
    outcomes: u32,
    seen: u32,
    rests: u32,
    barred: Option<Barred>,
}

#[derive(Debug, Clone, Copy)]
enum Barred {
    Until(Moment),
    /// One request is looking; should it never report, the next may look at that moment.
    Trying(Moment),
}

impl Breakers {
    /// Whether a request may go there. What it says does not change until something happens or time passes.
    pub(crate) fn admits(&self, model: ModelKey, node: NodeId, now: Moment) -> bool {
        self.pairs.get(&(model, node)).is_none_or(|pair| !pair.is_barred(now))
    }

    /// A request goes there. To a node that has rested it is the one that looks; others wait for its outcome.
    pub(crate) fn sent(&mut self, model: ModelKey, node: NodeId, now: Moment) {
        if let Some(pair) = self.pairs.get_mut(&(model, node))
            && pair.barred.is_some()
        {
            pair.barred = Some(Barred::Trying(now + rest(pair.rests)));
        }
    }

    pub(crate) fn succeeded(&mut self, model: ModelKey, node: NodeId) {
        if let Some(pair) = self.pairs.get_mut(&(model, node)) {
            pair.note(false);
            (pair.broken_in_a_row, pair.failed_in_a_row) = (0, 0);
            // Who came back begins anew, or its old failures would bar it at the next one.
            if pair.barred.is_some() || pair.outcomes == 0 {
                self.pairs.remove(&(model, node));
            }
        }
    }

    /// `hosts`: how many nodes hold the model.
    pub(crate) fn failed(&mut self, model: ModelKey, node: NodeId, failure: Failure, hosts: usize, now: Moment) {
        let others =
            |((of, other), pair): (&(ModelKey, NodeId), &Pair)| *of == model && *other != node && pair.is_barred(now);
        let barred = self.pairs.iter().filter(|entry| others(*entry)).count();
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&(model, node)) {
            return;
        }
        let pair = self.pairs.entry((model, node)).or_default();
        pair.note(true);
        pair.broken_in_a_row = if failure == Failure::Transport { pair.broken_in_a_row.saturating_add(1) } else { 0 };
        pair.failed_in_a_row = pair.failed_in_a_row.saturating_add(1);
        let ill = pair.broken_in_a_row >= BROKEN_IN_A_ROW
            || pair.failed_in_a_row >= FAILED_IN_A_ROW
            || pair.seen >= REMEMBERED && pair.outcomes.count_ones() * 2 >= REMEMBERED
            || pair.barred.is_some();
        // Those that were on their way when it was barred, and fail after it, say nothing new.
        let is_resting = matches!(pair.barred, Some(Barred::Until(end)) if now < end);
        if ill && !is_resting && barred < barred_max(hosts) {
            pair.barred = Some(Barred::Until(now + rest(pair.rests)));
            pair.rests = (pair.rests + 1).min(DOUBLINGS_MAX);
        }
    }

    /// Pairs of node and model that are left alone.
    pub(crate) fn barred(&self, now: Moment) -> usize {
        self.pairs.keys().filter(|(model, node)| !self.admits(*model, *node, now)).count()
    }

    /// Of nodes that left the mesh nothing is kept.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.pairs.retain(|(_, known), _| *known != node);
    }
}

impl Pair {
    fn is_barred(&self, now: Moment) -> bool {
        matches!(self.barred, Some(Barred::Until(end) | Barred::Trying(end)) if now < end)
    }

    fn note(&mut self, failed: bool) {
        self.outcomes = (self.outcomes << 1 | u32::from(failed)) & ((1 << REMEMBERED) - 1);
        self.seen = (self.seen + 1).min(REMEMBERED);
    }
}

fn barred_max(hosts: usize) -> usize {
    (hosts * BARRED_TENTHS_MAX / 10).max(hosts.min(FEW).saturating_sub(1))
}

fn rest(rests: u32) -> Duration {
    FIRST_REST * (1 << rests.min(DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelKey = ModelKey::from_bytes([1; 16]);

    fn node(id: u8) -> NodeId {
        NodeId::from_public_key([id; 32])
    }

    fn at(seconds: u64) -> Moment {
        Moment::since_start(Duration::from_secs(seconds))
    }

    fn fail(breakers: &mut Breakers, id: u8, times: usize, failure: Failure, seconds: u64) {
        (0..times).for_each(|_| breakers.failed(MODEL, node(id), failure, 10, at(seconds)));
    }

    #[test]
    fn three_broken_connections_in_a_row_bar_a_node_for_this_model_alone() {
        let mut breakers = Breakers::default();
        fail(&mut breakers, 1, 2, Failure::Transport, 0);
        assert!(breakers.admits(MODEL, node(1), at(0)));
        breakers.succeeded(MODEL, node(1));
        fail(&mut breakers, 1, 2, Failure::Transport, 0);
        assert!(breakers.admits(MODEL, node(1), at(0)), "they were not in a row");
        fail(&mut breakers, 1, 1, Failure::Transport, 0);
        assert!(!breakers.admits(MODEL, node(1), at(4)));
        assert!(breakers.admits(ModelKey::from_bytes([2; 16]), node(1), at(4)));
    }

    #[test]
    fn five_failures_in_a_row_bar_it_whatever_they_are() {
        let mut breakers = Breakers::default();
        fail(&mut breakers, 1, 4, Failure::Served, 0);
        assert!(breakers.admits(MODEL, node(1), at(0)));
        breakers.succeeded(MODEL, node(1));
        fail(&mut breakers, 1, 2, Failure::Transport, 0);
        fail(&mut breakers, 1, 2, Failure::Served, 0);
        assert!(breakers.admits(MODEL, node(1), at(0)), "they were not in a row");
        fail(&mut breakers, 1, 1, Failure::Served, 0);
        assert!(!breakers.admits(MODEL, node(1), at(0)));
    }

    #[test]
    fn half_of_twenty_answers_failed_bars_it() {
        let mut breakers = Breakers::default();
        for _ in 0..9 {
            fail(&mut breakers, 1, 1, Failure::Served, 0);
            breakers.succeeded(MODEL, node(1));
        }
        fail(&mut breakers, 1, 1, Failure::Served, 0);
        assert!(breakers.admits(MODEL, node(1), at(0)), "nineteen are not twenty");
        fail(&mut breakers, 1, 1, Failure::Served, 0);
        assert!(!breakers.admits(MODEL, node(1), at(0)));
    }

    #[test]
    fn after_its_rest_one_request_looks_and_the_rest_doubles_or_ends() {
        let mut breakers = Breakers::default();
        fail(&mut breakers, 1, 3, Failure::Transport, 0);
        assert!(breakers.admits(MODEL, node(1), at(5)));
        breakers.sent(MODEL, node(1), at(5));
        assert!(!breakers.admits(MODEL, node(1), at(5)), "one is looking already");
        fail(&mut breakers, 1, 1, Failure::Transport, 6);
        assert!(!breakers.admits(MODEL, node(1), at(15)));
        assert!(breakers.admits(MODEL, node(1), at(16)));
        breakers.sent(MODEL, node(1), at(16));
        breakers.succeeded(MODEL, node(1));
        assert!(breakers.admits(MODEL, node(1), at(16)));
    }

    #[test]
    fn many_that_fail_at_once_double_the_rest_once() {
        let mut breakers = Breakers::default();
        fail(&mut breakers, 1, 50, Failure::Transport, 0);
        assert!(!breakers.admits(MODEL, node(1), at(4)) && breakers.admits(MODEL, node(1), at(5)));
        fail(&mut breakers, 1, 50, Failure::Transport, 5);
        assert!(!breakers.admits(MODEL, node(1), at(14)) && breakers.admits(MODEL, node(1), at(15)));
    }

    #[test]
    fn where_all_fail_no_more_than_three_of_ten_are_barred_and_five_at_least() {
        for (hosts, barred) in [(40, 12), (20, 6), (10, 5), (7, 5)] {
            let mut breakers = Breakers::default();
            for id in 0..hosts {
                for _ in 0..5 {
                    breakers.failed(MODEL, node(id), Failure::Transport, hosts.into(), at(0));
                }
            }
            assert_eq!((0..hosts).filter(|id| !breakers.admits(MODEL, node(*id), at(1))).count(), barred);
        }
    }

    #[test]
    fn who_has_rested_takes_nobodys_place() {
        let mut breakers = Breakers::default();
        (0..5).for_each(|id| fail(&mut breakers, id, 3, Failure::Transport, 0));
        fail(&mut breakers, 5, 3, Failure::Transport, 1);
        assert!(breakers.admits(MODEL, node(5), at(1)), "five are barred");
        fail(&mut breakers, 5, 1, Failure::Transport, 5);
        assert!(!breakers.admits(MODEL, node(5), at(5)) && breakers.admits(MODEL, node(0), at(5)));
    }

    #[test]
    fn of_few_all_but_the_last_are_barred() {
        for hosts in 1..=6_u8 {
            let mut breakers = Breakers::default();
            for id in 0..hosts {
                for _ in 0..5 {
                    breakers.failed(MODEL, node(id), Failure::Transport, hosts.into(), at(0));
                }
            }
            let admitted: Vec<u8> = (0..hosts).filter(|id| breakers.admits(MODEL, node(*id), at(1))).collect();
            assert_eq!(admitted, [hosts - 1]);
        }
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut breakers = Breakers::default();
        for id in 0..2 * PAIRS_MAX as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&id.to_le_bytes());
            breakers.failed(MODEL, NodeId::from_public_key(key), Failure::Transport, 10, at(0));
        }
        assert_eq!(breakers.pairs.len(), PAIRS_MAX);
        breakers.forget(NodeId::from_public_key([0; 32]));
        assert_eq!(breakers.pairs.len(), PAIRS_MAX - 1);
    }
}
