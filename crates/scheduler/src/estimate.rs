//! How long a request would take at one place, in its parts.
//!
//! An agent computes it from what it knows at that moment and promises it; a gateway computes it from gossip to find
//! whom to ask. Both use the same sum.

use serde::{Deserialize, Serialize};

use crate::{Class, Seconds, Work};

/// A place as far as a request needs it known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Until one of the model's slots is free for this tenant and class.
    pub wait: Seconds,
    /// Until the model is loaded; nothing where it is.
    pub load: Seconds,
    /// Prompt tokens whose evaluation an earlier prompt has already paid for.
    pub cached: u32,
    /// Prompts under evaluation go first.
    pub prefill_before: Seconds,
    /// Prompt tokens a second; what is not known is none.
    pub prefill_rate: f32,
    /// Between two tokens of an answer, once this request runs beside the others.
    pub step: Seconds,
    /// By how much such estimates were wrong lately.
    pub deviation: Seconds,
}

/// The parts of one request's time at one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub wait: Seconds,
    pub load: Seconds,
    /// Evaluating what of the prompt is not cached.
    pub prefill: Seconds,
    /// From the first token to the last.
    pub decode: Seconds,
    pub deviation: Seconds,
    /// Prompt tokens that need no evaluation.
    pub cached: u32,
}

impl Estimate {
    pub fn of(work: &Work, place: &Place) -> Self {
        let cached = place.cached.min(work.prompt);
        let fresh = (work.prompt - cached) as f32;
        // A cached prompt still has its last token evaluated; that is within the noise. Nothing to do takes no time even
        // where the rate is not known.
        let prefill = if fresh == 0.0 { Seconds::ZERO } else { Seconds::new(fresh / place.prefill_rate.max(0.0)) };
        Self {
            wait: place.wait,
            load: place.load,
            prefill: prefill + place.prefill_before,
            decode: place.step * work.output as f32,
            deviation: place.deviation,
            cached,
        }
    }

    /// Until the first token leaves that place. A slot may come free while the model loads.
    pub fn ttft(&self) -> Seconds {
        self.wait.max(self.load) + self.prefill
    }

    /// What this is worth to a caller who is `rtt` away; less is better.
    pub fn score(&self, class: Class, rtt: Seconds) -> Seconds {
        class.score(rtt + self.ttft(), self.decode, self.deviation)
    }

    /// The same place, if it is as much slower (or faster) than it says as it was lately.
    pub fn scaled(mut self, ratio: f32) -> Self {
        for part in [&mut self.wait, &mut self.load, &mut self.prefill, &mut self.decode] {
            *part = *part * ratio;
        }
        self
    }

    /// It would start at once, and hardly a token is lost: nobody else can be much better.
    pub fn is_ideal(&self, work: &Work) -> bool {
        self.wait == Seconds::ZERO && self.load == Seconds::ZERO && covers(self.cached, work.prompt)
    }
}

/// At least four of five prompt tokens are cached.
pub(crate) fn covers(cached: u32, prompt: u32) -> bool {
    u64::from(cached) * 5 >= u64::from(prompt) * 4
}

/// An agent's answer to a probe. It holds for a moment only: others are asking too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    pub estimate: Estimate,
    /// Slots of the model that nobody uses or was promised.
    pub free_slots: u16,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{Chain, ModelKey, Tenant};

    pub(crate) fn work(prompt: u32, output: u32) -> Work {
        Work {
            model: ModelKey::of_manifest(&[1; 32]),
            chain: Chain::default(),
            prompt,
            output,
            context: None,
            class: Class::Interactive,
            tenant: Tenant::ANONYMOUS,
            deadline: Some(Duration::from_secs(60)),
        }
    }

    fn place() -> Place {
        Place {
            wait: Seconds::ZERO,
            load: Seconds::ZERO,
            cached: 0,
            prefill_before: Seconds::ZERO,
            prefill_rate: 1000.0,
            step: Seconds::new(0.01),
            deviation: Seconds::ZERO,
        }
    }

    #[test]
    fn waiting_and_loading_overlap_and_the_rest_adds_up() {
        let place = Place { wait: Seconds::new(3.0), load: Seconds::new(5.0), cached: 500, ..place() };
        let estimate = Estimate::of(&work(2000, 100), &place);
        assert_eq!(estimate.ttft(), Seconds::new(6.5));
        assert_eq!(estimate.decode, Seconds::new(1.0));
        let score = estimate.score(Class::Batch, Seconds::new(0.5));
        assert!((score.get() - 8.0).abs() < 1e-4, "{score}");
    }

    #[test]
    fn a_rate_nobody_knows_is_the_worst_unless_there_is_nothing_to_do() {
        let unknown = Place { prefill_rate: f32::NAN, ..place() };
        assert_eq!(Estimate::of(&work(10, 1), &unknown).prefill, Seconds::MAX);
        assert_eq!(Estimate::of(&work(10, 1), &Place { cached: 99, ..unknown }).prefill, Seconds::ZERO);
        assert_eq!(Estimate::of(&work(10, 1), &Place { prefill_rate: -1.0, ..place() }).prefill, Seconds::MAX);
    }

    #[test]
    fn only_a_place_that_starts_at_once_with_the_prompt_known_is_ideal() {
        let ideal = |place: &Place| Estimate::of(&work(1000, 10), place).is_ideal(&work(1000, 10));
        assert!(ideal(&Place { cached: 800, ..place() }));
        assert!(!ideal(&Place { cached: 799, ..place() }));
        assert!(!ideal(&Place { cached: 1000, wait: Seconds::new(0.1), ..place() }));
        assert!(!ideal(&Place { cached: 1000, load: Seconds::new(0.1), ..place() }));
    }

    #[test]
    fn an_answer_to_a_probe_is_small() {
        let worst = Seconds::MAX;
        let estimate =
            Estimate { wait: worst, load: worst, prefill: worst, decode: worst, deviation: worst, cached: u32::MAX };
        let promise = Promise { estimate, free_slots: u16::MAX };
        let bytes = codec::to_bytes(&promise).unwrap();
        assert!(bytes.len() <= 300, "{}", bytes.len());
        assert_eq!(codec::from_bytes::<Promise>(&bytes).unwrap(), promise);
    }

    proptest! {
        /// A lie of a peer cannot make a score that compares with nothing.
        #[test]
        fn every_score_is_a_span(parts in proptest::array::uniform6(any::<f32>()), prompt: u32, output: u32, cached: u32) {
            let [wait, load, before, prefill_rate, step, deviation] = parts;
            let place = Place {
                wait: wait.into(),
                load: load.into(),
                cached,
                prefill_before: before.into(),
                prefill_rate,
                step: step.into(),
                deviation: deviation.into(),
            };
            let score = Estimate::of(&work(prompt, output), &place).scaled(step).score(Class::Realtime, wait.into());
            prop_assert!(score.get().is_finite() && score >= Seconds::ZERO);
        }

        #[test]
        fn more_cached_is_never_worse(prompt in 0_u32..100_000, cached in 0_u32..100_000, more in 0_u32..1000) {
            let score = |cached| Estimate::of(&work(prompt, 10), &Place { cached, ..place() }).score(Class::Batch, Seconds::ZERO);
            prop_assert!(score(cached + more) <= score(cached));
        }
    }
}
