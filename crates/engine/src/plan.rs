//! What goes where: which slots take part in the next step and with how many tokens, which layers go to a GPU. Pure.

use std::time::Duration;

use crate::runner::Need;

/// Tokens one step carries for all slots together.
pub(crate) type Share = Vec<(usize, usize)>;

/// A slot that wants to take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) slot: usize,
    /// Tokens it has to work through before its next token can be chosen: one while it answers, more while it reads.
    pub(crate) left: usize,
}

/// Every slot that answers gets its token; what then is left of `budget` is divided evenly among those that read, so
/// that a long prompt delays neither the answers nor a short prompt beside it.
///
/// `budget` is at least the number of slots.
pub(crate) fn share(turns: &[Turn], budget: usize) -> Share {
    let mut turns = turns.to_vec();
    // The short ones first: what they do not need is the others'.
    turns.sort_by_key(|turn| turn.left);
    let mut room = budget;
    let mut shares = Share::new();
    for (done, turn) in turns.iter().enumerate() {
        let even = room / (turns.len() - done);
        let tokens = turn.left.min(even);
        if tokens > 0 {
            room -= tokens;
            shares.push((turn.slot, tokens));
        }
    }
    // In the order of the slots: llama.cpp joins neighbours.
    shares.sort_unstable();
    shares
}

/// How many prompt tokens a step may carry, learned from how long steps take. A step cannot be interrupted: it is what
/// a cancelled request, and everyone who is being answered, waits for.
#[derive(Debug)]
pub(crate) struct Pace {
    least: usize,
    most: usize,
    /// Seconds per token of a step that carries many, zero before the first.
    per_token: f64,
}

/// While someone is being answered, a step takes about this long at most.
const BESIDE_ANSWERS: Duration = Duration::from_millis(150);
/// Else it is only cancelling that waits.
const ALONE: Duration = Duration::from_millis(600);

/// Smaller steps would read the weights again for too few tokens.
const LEAST: usize = 32;

/// Steps with fewer tokens say more about the weights than about the tokens.
const TELLING: usize = 16;

/// How much of what was learned a new step replaces.
const FRESH: f64 = 0.3;

impl Pace {
    /// `most` is the model's batch, `slots` the requests that run at once.
    pub(crate) fn new(most: usize, slots: usize) -> Self {
        Self { least: LEAST.max(slots).min(most), most, per_token: 0.0 }
    }

    pub(crate) fn budget(&self, someone_is_answered: bool) -> usize {
        let target = if someone_is_answered { BESIDE_ANSWERS } else { ALONE };
        if self.per_token <= 0.0 {
            return self.most;
        }
        // A quotient beyond any budget saturates, which `clamp` then brings down.
        ((target.as_secs_f64() / self.per_token) as usize).clamp(self.least, self.most)
    }

    pub(crate) fn took(&mut self, tokens: usize, time: Duration) {
        if tokens < TELLING {
            return;
        }
        let seen = time.as_secs_f64() / tokens as f64;
        let learned = if self.per_token > 0.0 { self.per_token } else { seen };
        self.per_token = learned + FRESH * (seen - learned);
    }
}

/// Memory of GPUs that is left to others and to what llama.cpp computes with.
const GPU_MARGIN_BYTES: u64 = 1 << 30;

/// How many of a model's layers a GPU with so many free bytes can take, each with its part of the context; `None` is
/// all of them. Layers are taken to be equal, which errs by less than the margin.
pub(crate) fn layers_that_fit(layers: u64, need: Need, free: u64) -> Option<u32> {
    let usable = free.saturating_sub(GPU_MARGIN_BYTES);
    if need.total() <= usable {
        return None;
    }
    let each = (need.total() / layers.max(1)).max(1);
    Some(u32::try_from(usable / each).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(slot: usize, left: usize) -> Turn {
        Turn { slot, left }
    }

    #[test]
    fn a_long_prompt_delays_no_answer() {
        let shares = share(&[turn(0, 1000), turn(1, 1), turn(2, 1)], 512);
        assert_eq!(shares, [(0, 510), (1, 1), (2, 1)]);
    }

    #[test]
    fn two_prompts_share_and_the_short_one_leaves_the_rest() {
        assert_eq!(share(&[turn(0, 1000), turn(1, 1000)], 512), [(0, 256), (1, 256)]);
        assert_eq!(share(&[turn(0, 1000), turn(1, 10)], 512), [(0, 502), (1, 10)]);
    }

    #[test]
    fn layers_go_to_the_gpu_as_far_as_they_fit() {
        let gib = 1 << 30;
        let need = Need { weights: 30 * gib, context: 3 * gib };
        assert_eq!(layers_that_fit(33, need, 40 * gib), None);
        assert_eq!(layers_that_fit(33, need, 34 * gib), None);
        assert_eq!(layers_that_fit(33, need, 12 * gib), Some(11));
        assert_eq!(layers_that_fit(33, need, gib), Some(0));
        assert_eq!(layers_that_fit(0, Need::default(), 0), None);
    }

    #[test]
    fn nobody_is_nothing() {
        assert!(share(&[], 512).is_empty());
    }

    #[test]
    fn slow_steps_become_small_and_quick_ones_full() {
        let mut pace = Pace::new(512, 4);
        assert_eq!(pace.budget(true), 512);
        for _ in 0..20 {
            pace.took(512, Duration::from_secs(5));
        }
        assert!(pace.budget(true) < pace.budget(false));
        assert!(pace.budget(false) < 512);
        assert_eq!(pace.budget(true), LEAST);
        for _ in 0..50 {
            pace.took(32, Duration::from_millis(1));
        }
        assert_eq!(pace.budget(true), 512);
    }

    #[test]
    fn a_step_of_few_tokens_teaches_nothing() {
        let mut pace = Pace::new(512, 4);
        pace.took(4, Duration::from_secs(1));
        assert_eq!(pace.budget(true), 512);
    }

    #[test]
    fn a_batch_smaller_than_the_least_step_is_kept_to() {
        let mut pace = Pace::new(8, 4);
        pace.took(TELLING, Duration::from_secs(60));
        assert_eq!(pace.budget(true), 8);
    }

    proptest! {
        #[test]
        fn everyone_moves_and_the_budget_holds(lefts in proptest::collection::vec(1..5000usize, 1..16), spare in 0..600usize) {
            let budget = lefts.len() + spare;
            let turns: Vec<Turn> = lefts.iter().enumerate().map(|(slot, left)| turn(slot, *left)).collect();
            let shares = share(&turns, budget);
            prop_assert_eq!(shares.len(), turns.len());
            let mut sum = 0;
            for (slot, tokens) in shares {
                prop_assert!(0 < tokens && tokens <= lefts[slot]);
                sum += tokens;
            }
            prop_assert!(sum <= budget);
            // Nothing is left over while someone could use it, but for what does not divide.
            prop_assert!(sum + turns.len() > budget || sum == lefts.iter().sum::<usize>());
        }
    }
}
