//! Whom to send it to, once they have answered; and what to do when nobody did.

use std::time::Duration;

use types::NodeId;

use crate::candidates::{Candidate, Candidates, Dice};
use crate::estimate::covers;
use crate::{Estimate, Host, Moment, Promise, Seconds, Turn, Work};

/// Somebody is this much better, and more than the share of it, before the node with the cached prompt is left: what is
/// cached there serves the next turn too.
const GATE: Seconds = Seconds::new(0.05);
const GATE_SHARE: f32 = 0.1;
/// One choice in so many goes to any warm node, so that those that were slow once are heard of again.
const EXPLORE_ONE_IN: usize = 100;
/// A node is not asked again so soon after it answered.
const KNOWN: Duration = Duration::from_secs(1);
/// A promise is not refused for less.
const SLACK: Duration = Duration::from_millis(100);

/// A candidate that answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    pub candidate: Candidate,
    pub promise: Promise,
}

impl Answer {
    /// What it promised, by what its promises were worth lately.
    pub fn estimate(&self) -> Estimate {
        self.promise.estimate.scaled(self.candidate.ratio)
    }

    pub fn score(&self, work: &Work) -> Seconds {
        self.estimate().score(work.class, self.candidate.rtt)
    }

    /// The others need not be waited for.
    pub fn is_ideal(&self, work: &Work) -> bool {
        self.promise.estimate.is_ideal(work)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Best,
    /// Another was better, by too little to leave a cached prompt.
    Cached,
    Explored,
    /// Nobody was asked: the conversation was there a moment ago, and its prompt still is.
    Known,
    /// Nobody answered: the better of two by what was heard of them.
    Degraded,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub node: NodeId,
    pub reason: Reason,
    pub score: Seconds,
    /// As promised, which is what the outcome is held against.
    pub promised: Estimate,
    /// The node refuses when it would take longer until the request starts. `None`: it is taken however long it takes.
    pub max_wait: Option<Duration>,
}

/// How long an agent holds a slot for somebody it promised one: the way there and back, and a moment to decide.
pub fn hold(rtt: Seconds) -> Duration {
    Duration::from(rtt * 2.0) + Duration::from_millis(10)
}

/// How long answers are waited for. Nobody waits longer for a far node than a good choice is worth.
pub fn probe_timeout(rtt: Seconds) -> Duration {
    Duration::from(rtt * 3.0).clamp(Duration::from_millis(5), Duration::from_millis(150))
}

/// `refused`: a node refused this request once because its promise no longer held. The second is not asked to: a
/// request must not wander.
pub fn choose(work: &Work, answers: &[Answer], refused: bool, dice: &mut Dice) -> Option<Choice> {
    let best = answers.iter().min_by_key(|answer| answer.score(work))?;
    let cached = answers.iter().max_by_key(|answer| answer.promise.estimate.cached)?;
    let (best_score, cached_score) = (best.score(work), cached.score(work));
    let gate = GATE.max(cached_score * GATE_SHARE);
    let keeps = cached.promise.estimate.cached > best.promise.estimate.cached && cached_score.over(best_score) <= gate;
    let (mut answer, mut reason) = if keeps { (cached, Reason::Cached) } else { (best, Reason::Best) };
    if dice.below(EXPLORE_ONE_IN) == 0 {
        let warm = || answers.iter().filter(|answer| answer.promise.estimate.load == Seconds::ZERO);
        let count = warm().count();
        if let Some(drawn) = (count > 1).then(|| warm().nth(dice.below(count))).flatten()
            && drawn.candidate.node != answer.candidate.node
        {
            (answer, reason) = (drawn, Reason::Explored);
        }
    }
    // A cold node's request waits for its load as well; refusing it after that was promised would help nobody.
    let promised = answer.promise.estimate.wait.max(answer.promise.estimate.load);
    let max_wait = (!refused).then(|| Duration::from(promised * 1.3) + SLACK);
    let (node, score) = (answer.candidate.node, answer.score(work));
    Some(Choice { node, reason, score, promised: answer.promise.estimate, max_wait })
}

/// Whether the conversation's last turn says enough to send the next one there without asking: then the answer to a
/// probe would be ideal, and nobody else could be much better. Should that be wrong, the node refuses.
pub fn choose_known(work: &Work, host: &Host, turn: Turn, now: Moment) -> Option<Choice> {
    let is_fresh = now.since(turn.heard) < KNOWN;
    if !is_fresh || !host.fits(work) || !host.has_free_slot() || !covers(turn.tokens, work.prompt) {
        return None;
    }
    let mut promised = host.stale_estimate(work, now);
    promised.cached = turn.tokens.min(work.prompt);
    promised.prefill = promised.prefill * (1.0 - promised.cached as f32 / work.prompt.max(1) as f32);
    let (node, score) = (host.node, promised.score(work.class, host.rtt));
    Some(Choice { node, reason: Reason::Known, score, promised, max_wait: Some(SLACK) })
}

/// Nobody answered in time: of two drawn ones the better by what was heard. Drawing two keeps gateways with the same
/// old news from all choosing the same node.
pub fn choose_unheard(work: &Work, candidates: &Candidates, dice: &mut Dice) -> Option<Choice> {
    if candidates.is_empty() {
        return None;
    }
    let mut draw = || candidates.iter().nth(dice.below(candidates.len()));
    let score = |candidate: &Candidate| candidate.stale.score(work.class, candidate.rtt);
    let candidate = [draw(), draw()].into_iter().flatten().min_by_key(|candidate| score(candidate))?;
    Some(Choice {
        node: candidate.node,
        reason: Reason::Degraded,
        score: score(candidate),
        promised: candidate.stale,
        // Nothing was promised, so nothing can be held against it.
        max_wait: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::tests::{node, warm};
    use crate::candidates::{Asker, Why};
    use crate::estimate::tests::work;
    use crate::host::Fleet;
    use crate::{Moment, Place};

    fn answer(id: u16, wait: f32, load: f32, cached: u32) -> Answer {
        let place = Place {
            wait: Seconds::new(wait),
            load: Seconds::new(load),
            cached,
            prefill_before: Seconds::ZERO,
            prefill_rate: 1000.0,
            step: Seconds::new(0.01),
            deviation: Seconds::ZERO,
        };
        let estimate = Estimate::of(&work(1000, 100), &place);
        let (rtt, stale) = (Seconds::new(0.001), Estimate::default());
        let candidate = Candidate { node: node(id), why: Why::Everyone, rtt, ratio: 1.0, stale };
        Answer { candidate, promise: Promise { estimate, free_slots: 1 } }
    }

    /// A seed whose first roll explores nothing.
    fn chosen(answers: &[Answer]) -> Choice {
        choose(&work(1000, 100), answers, false, &mut Dice::new(1)).unwrap()
    }

    #[test]
    fn a_warm_node_is_preferred_to_one_that_must_load() {
        assert_eq!(chosen(&[answer(1, 0.0, 8.0, 0), answer(2, 0.0, 0.0, 0)]).node, node(2));
    }

    #[test]
    fn a_conversation_returns_to_its_node() {
        assert_eq!(chosen(&[answer(1, 0.0, 0.0, 0), answer(2, 0.2, 0.0, 900)]).node, node(2));
    }

    #[test]
    fn a_full_node_is_left_even_by_its_conversation() {
        let choice = chosen(&[answer(1, 0.0, 0.0, 0), answer(2, 5.0, 0.0, 900)]);
        assert_eq!((choice.node, choice.reason), (node(1), Reason::Best));
    }

    #[test]
    fn a_cached_prompt_is_not_left_for_a_trifle() {
        // 900 ms of prefill saved against 910 ms of wait: the other is a little better.
        let choice = chosen(&[answer(1, 0.0, 0.0, 0), answer(2, 0.91, 0.0, 900)]);
        assert_eq!((choice.node, choice.reason), (node(2), Reason::Cached));
    }

    #[test]
    fn the_best_cold_node_wins_over_a_long_queue() {
        assert_eq!(chosen(&[answer(1, 60.0, 0.0, 0), answer(2, 0.0, 8.0, 0), answer(3, 0.0, 20.0, 0)]).node, node(2));
    }

    #[test]
    fn who_breaks_its_promises_is_taken_at_its_worth() {
        let mut slow = answer(1, 1.0, 0.0, 0);
        let honest = answer(2, 1.5, 0.0, 0);
        assert_eq!(chosen(&[slow, honest]).node, node(1));
        slow.candidate.ratio = 3.0;
        assert_eq!(chosen(&[slow, honest]).node, node(2));
    }

    #[test]
    fn a_node_may_refuse_a_broken_promise_once() {
        let (answers, dice) = ([answer(1, 1.0, 0.0, 0)], &mut Dice::new(1));
        let max_wait = chosen(&answers).max_wait.unwrap();
        assert!(max_wait.abs_diff(Duration::from_millis(1400)) < Duration::from_millis(1), "{max_wait:?}");
        assert_eq!(choose(&work(1000, 100), &answers, true, dice).unwrap().max_wait, None);
    }

    #[test]
    fn one_choice_in_a_hundred_explores_and_never_a_cold_node() {
        let (answers, mut dice) =
            ([answer(1, 0.0, 0.0, 0), answer(2, 9.0, 0.0, 0), answer(3, 0.0, 9.0, 0)], Dice::new(7));
        let choices = (0..20_000).map(|_| choose(&work(1000, 100), &answers, false, &mut dice).unwrap());
        let explored = choices.filter(|choice| choice.reason == Reason::Explored).inspect(|choice| {
            assert_eq!(choice.node, node(2));
        });
        // Half of 200 draws fall on the best one; the spread of such a count is about 10.
        let explored = explored.count();
        assert!((50..150).contains(&explored), "{explored}");
    }

    #[test]
    fn a_next_turn_goes_unasked_where_the_last_one_was_a_moment_ago() {
        let (mut fleet, start) = (Fleet::default(), Moment::default());
        fleet.hear(node(1), crate::Facts { free_slots: 1, ..warm() }, Seconds::ZERO, start);
        let turn = Turn { node: node(1), tokens: 900, heard: start };
        let known = |fleet: &Fleet, turn: Turn, millis, context| {
            let work = Work { context, ..work(1000, 100) };
            let now = start + Duration::from_millis(millis);
            choose_known(&work, fleet.get(node(1)).unwrap(), turn, now)
        };
        let choice = known(&fleet, turn, 999, None).unwrap();
        assert_eq!((choice.node, choice.reason, choice.max_wait), (node(1), Reason::Known, Some(SLACK)));
        let prefill = choice.promised.prefill.get();
        assert!((prefill - 0.1).abs() < 1e-3, "{prefill}");
        assert!(known(&fleet, turn, 1000, None).is_none(), "too long ago");
        assert!(known(&fleet, turn, 0, Some(8192)).is_none(), "it would have to load");
        assert!(known(&fleet, Turn { tokens: 799, ..turn }, 0, None).is_none(), "most of the prompt is new");
        fleet.sent(node(1));
        assert!(known(&fleet, turn, 0, None).is_none(), "its slot is taken");
        fleet.ended(node(1));
        assert!(known(&fleet, turn, 0, None).is_some());
    }

    #[test]
    fn without_answers_the_better_of_two_is_chosen_and_never_the_same_by_all() {
        let mut fleet = Fleet::default();
        for id in 0..6 {
            let facts = crate::Facts { step: Seconds::new(0.01 * f32::from(id + 1)), ..warm() };
            fleet.hear(node(id), facts, Seconds::ZERO, Moment::default());
        }
        let (work, mut dice) = (work(1000, 100), Dice::new(3));
        let asked = Candidates::choose(&mut fleet, &work, Asker::default(), Moment::default(), &mut dice, |_| true);
        let mut times = [0; 6];
        for _ in 0..3600 {
            let choice = choose_unheard(&work, &asked, &mut dice).unwrap();
            times[usize::from(choice.node.public_key()[0])] += 1;
        }
        // The best is drawn in 11 of 36 pairs, the worst in one.
        assert!(times.windows(2).all(|pair| pair[0] > pair[1]) && times[0] < 1400 && times[5] > 0, "{times:?}");
        assert!(choose_unheard(&work, &Candidates::default(), &mut dice).is_none());
        assert!(choose(&work, &[], false, &mut dice).is_none());
    }
}
