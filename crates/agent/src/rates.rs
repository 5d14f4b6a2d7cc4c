//! What one model on one backend costs, in seconds: reading a prompt, writing a token, being loaded.
//!
//! Before the first request the figures come from a table of machines; each finished request corrects them by the
//! timings in its last line. A backend says how many tokens the prompt had, never how many of them it still knew: that
//! is inferred from the time it took, and what was inferred keeps the rate itself from being learned from air.

use std::time::Duration;

/// How much one new sample counts once there are some.
const WEIGHT: f64 = 0.2;
/// Relative spread of a figure that nobody has measured yet.
const SPREAD_UNMEASURED: f64 = 0.5;
/// Prompts and answers shorter than this are all overhead and teach no rate.
const TOKENS_MIN: u32 = 16;
/// Upper ends of the bands in tokens of context; attention makes long prompts slower per token.
const BANDS: [u32; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// Batches beyond this are taken for this.
const BATCH_MAX: usize = 16;

/// What a machine is before anything was measured on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Cpu,
    Metal,
    Gpu,
}

/// A model on a machine, as far as it is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    pub machine: Machine,
    /// Bytes of weights.
    pub size: u64,
}

/// A mean that follows, and how far samples lie from it.
#[derive(Debug, Clone, Copy)]
struct Figure {
    mean: f64,
    spread: f64,
    samples: u32,
}

#[derive(Debug, Clone)]
pub struct Rates {
    /// Seconds per prompt token, by band.
    prefill: [Figure; BANDS.len() + 1],
    /// Seconds per token of one stream alone, however many there were when it was measured.
    step: Figure,
    /// What each further stream adds to a step, as a part of it.
    crowding: f64,
    load: Figure,
}

/// Seconds, and how far off they may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    pub seconds: f64,
    pub spread: f64,
}

/// What the last line of an answer told, with what the agent knew besides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Cached ones included.
    pub prompt_tokens: u32,
    pub prompt: Duration,
    pub output_tokens: u32,
    pub output: Duration,
    pub load: Duration,
    /// Whether the model had to be loaded for it.
    pub was_cold: bool,
    /// Of the prompt, what the backend was thought to know still.
    pub cached_expected: u32,
    /// Streams of this model at its side, itself included: the mean of its beginning and its end.
    pub batch: u16,
}

impl Figure {
    const fn guess(mean: f64) -> Self {
        Self { mean, spread: mean * SPREAD_UNMEASURED, samples: 0 }
    }

    /// The first sample replaces the guess: a table cannot know the machine better than one measurement.
    fn learn(&mut self, sample: f64) {
        if !sample.is_finite() || sample <= 0.0 {
            return;
        }
        self.samples = self.samples.saturating_add(1);
        if self.samples == 1 {
            *self = Self { mean: sample, spread: sample * SPREAD_UNMEASURED, samples: 1 };
            return;
        }
        let weight = WEIGHT.max(1.0 / f64::from(self.samples));
        let off = sample - self.mean;
        self.mean += weight * off;
        self.spread += weight * (off.abs() - self.spread);
    }

    fn times(&self, count: f64) -> Cost {
        Cost { seconds: self.mean * count, spread: self.spread * count }
    }
}

impl Rates {
    /// From public measurements of 4-bit models of 5 GB: decoding reads all weights once per token, so it follows the
    /// memory's speed; reading prompts follows arithmetic.
    pub fn seeded(Seed { machine, size }: Seed) -> Self {
        let size = (size as f64).max(1e6);
        let (bytes_per_second, prompt_bytes_per_second, crowding) = match machine {
            Machine::Cpu => (30e9, 200e9, 0.6),
            Machine::Metal => (120e9, 1.5e12, 0.3),
            Machine::Gpu => (450e9, 10e12, 0.12),
        };
        let prefill = Figure::guess(size / prompt_bytes_per_second);
        Self {
            prefill: [prefill; BANDS.len() + 1],
            step: Figure::guess(size / bytes_per_second),
            crowding,
            load: Figure::guess(2.0 + size / 1e9),
        }
    }

    /// Reading `tokens` that are not cached, at the end of a context of `context` tokens.
    pub fn prefill(&self, tokens: u32, context: u32) -> Cost {
        self.prefill_figure(context).times(f64::from(tokens))
    }

    /// Writing `tokens` with `batch` streams at work, this one included.
    pub fn decode(&self, tokens: u32, batch: u16) -> Cost {
        self.step.times(f64::from(tokens) * self.crowd(batch))
    }

    /// Prompt tokens a second in a context of so many.
    pub fn prefill_rate(&self, context: u32) -> f64 {
        1.0 / self.prefill_figure(context).mean
    }

    pub fn step(&self, batch: u16) -> Duration {
        Duration::try_from_secs_f64(self.decode(1, batch).seconds).unwrap_or(Duration::MAX)
    }

    pub fn load(&self) -> Cost {
        self.load.times(1.0)
    }

    /// Whether silence can be judged by these figures: they are measured, not guessed.
    pub fn are_measured(&self) -> bool {
        const ENOUGH: u32 = 3;
        self.step.samples >= ENOUGH && self.prefill.iter().any(|figure| figure.samples >= ENOUGH)
    }

    /// A band without samples of its own follows its neighbour below, then the one above, then the table.
    fn prefill_figure(&self, context: u32) -> &Figure {
        let band = band(context);
        let measured = |figure: &&Figure| figure.samples > 0;
        let below = self.prefill[..=band].iter().rev().find(measured);
        below.or_else(|| self.prefill[band..].iter().find(measured)).unwrap_or(&self.prefill[band])
    }

    fn crowd(&self, batch: u16) -> f64 {
        let others = usize::from(batch).clamp(1, BATCH_MAX) - 1;
        1.0 + self.crowding * others as f64
    }

    /// Returns the tokens of the prompt the backend seems to have known.
    pub fn learn(&mut self, sample: &Sample) -> u32 {
        let cached = self.cached(sample);
        let read = sample.prompt_tokens.saturating_sub(cached);
        if cached == 0 && read >= TOKENS_MIN {
            self.prefill[band(sample.prompt_tokens)].learn(sample.prompt.as_secs_f64() / f64::from(read));
        }
        if sample.output_tokens >= TOKENS_MIN {
            let crowd = self.crowd(sample.batch);
            self.step.learn(sample.output.as_secs_f64() / f64::from(sample.output_tokens) / crowd);
        }
        if sample.was_cold && sample.load > Duration::ZERO {
            self.load.learn(sample.load.as_secs_f64());
        }
        cached
    }

    /// What a prompt took less than its tokens should have taken was not read. Differences within twice the spread are
    /// noise; where no hit was expected it takes a large one, or a rate guessed too slow would call everything a hit
    /// and never be corrected.
    fn cached(&self, sample: &Sample) -> u32 {
        let figure = self.prefill_figure(sample.prompt_tokens);
        if sample.prompt_tokens < TOKENS_MIN {
            return 0;
        }
        let read = sample.prompt.as_secs_f64() / figure.mean;
        let tokens = f64::from(sample.prompt_tokens);
        let relative = figure.spread / figure.mean;
        let is_hit = match (sample.cached_expected, figure.samples) {
            (0, 0..3) => false,
            (0, _) => read < tokens / 4.0,
            (_, 0) => return sample.cached_expected.min(sample.prompt_tokens),
            (..) => tokens - read > tokens * (2.0 * relative).min(0.5),
        };
        // The last token is always read.
        if is_hit { (tokens - read.max(1.0)).max(0.0) as u32 } else { 0 }
    }
}

fn band(context: u32) -> usize {
    BANDS.iter().take_while(|end| context > **end).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Seed = Seed { machine: Machine::Gpu, size: 5_000_000_000 };

    fn sample(prompt_tokens: u32, prompt_ms: u64, output_tokens: u32, output_ms: u64) -> Sample {
        Sample {
            prompt_tokens,
            prompt: Duration::from_millis(prompt_ms),
            output_tokens,
            output: Duration::from_millis(output_ms),
            load: Duration::ZERO,
            was_cold: false,
            cached_expected: 0,
            batch: 1,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < expected * 0.05, "{found} is not about {expected}");
    }

    #[test]
    fn guesses_order_machines_and_sizes() {
        let step = |machine, size| Rates::seeded(Seed { machine, size }).decode(1, 1).seconds;
        assert!(step(Machine::Gpu, 5 << 30) < step(Machine::Metal, 5 << 30));
        assert!(step(Machine::Metal, 5 << 30) < step(Machine::Cpu, 5 << 30));
        assert!(step(Machine::Cpu, 5 << 30) < step(Machine::Cpu, 40 << 30));
        assert!(!Rates::seeded(GPU).are_measured());
    }

    #[test]
    fn one_measurement_replaces_the_guess_and_more_follow_it() {
        let mut rates = Rates::seeded(GPU);
        rates.learn(&sample(1000, 500, 100, 2000));
        near(rates.prefill(1000, 1000).seconds, 0.5);
        near(rates.decode(100, 1).seconds, 2.0);
        for _ in 0..40 {
            rates.learn(&sample(1000, 1000, 100, 1000));
        }
        near(rates.prefill(1000, 1000).seconds, 1.0);
        near(rates.decode(100, 1).seconds, 1.0);
        assert!(rates.are_measured());
        assert!(rates.decode(100, 1).spread < 0.1, "{:?}", rates.decode(100, 1));
    }

    #[test]
    fn a_crowd_is_slower_and_what_was_measured_in_one_holds_for_one_alone() {
        let mut rates = Rates::seeded(GPU);
        for _ in 0..3 {
            rates.learn(&Sample { batch: 4, ..sample(0, 0, 100, 1360) });
        }
        near(rates.decode(100, 1).seconds, 1.0);
        near(rates.decode(100, 4).seconds, 1.36);
        assert!(rates.decode(1, 500).seconds < rates.decode(1, 1).seconds * 10.0);
    }

    #[test]
    fn long_contexts_have_figures_of_their_own() {
        let mut rates = Rates::seeded(GPU);
        for _ in 0..3 {
            rates.learn(&sample(1000, 100, 0, 0));
            rates.learn(&sample(30_000, 9_000, 0, 0));
        }
        near(rates.prefill(1000, 1000).seconds, 0.1);
        near(rates.prefill(1000, 30_000).seconds, 0.3);
        near(rates.prefill(1000, 3000).seconds, 0.1);
        near(rates.prefill(1000, 200_000).seconds, 0.3);
    }

    #[test]
    fn tokens_that_were_cached_are_seen_in_the_time_and_teach_nothing() {
        let mut rates = Rates::seeded(GPU);
        for _ in 0..5 {
            assert_eq!(rates.learn(&sample(1000, 1000, 0, 0)), 0);
        }
        let hit = Sample { cached_expected: 900, ..sample(1000, 100, 0, 0) };
        near(f64::from(rates.learn(&hit)), 900.0);
        near(f64::from(rates.learn(&sample(1000, 100, 0, 0))), 900.0);
        near(rates.prefill(1000, 1000).seconds, 1.0);
        let miss = Sample { cached_expected: 900, ..sample(1000, 1000, 0, 0) };
        assert_eq!(rates.learn(&miss), 0, "it was forgotten");
    }

    #[test]
    fn a_guess_too_slow_is_corrected_all_the_same() {
        let mut rates = Rates::seeded(Seed { machine: Machine::Cpu, size: 40_000_000_000 });
        for _ in 0..3 {
            rates.learn(&sample(1000, 100, 0, 0));
        }
        near(rates.prefill(1000, 1000).seconds, 0.1);
    }

    #[test]
    fn loads_count_where_there_was_one() {
        let mut rates = Rates::seeded(GPU);
        rates.learn(&Sample { load: Duration::from_secs(30), was_cold: true, ..sample(0, 0, 0, 0) });
        near(rates.load().seconds, 30.0);
        rates.learn(&Sample { load: Duration::from_millis(2), ..sample(0, 0, 0, 0) });
        near(rates.load().seconds, 30.0);
    }
}
