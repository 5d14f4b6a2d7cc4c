//! What clients see when a backend, or the node before it, is killed or freezes under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::backend::Script;
use crate::client::{Asked, Client, End, Target};

/// How long there is load before and after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) before: Duration,
    pub(crate) after: Duration,
}

/// Seconds after the fault where they are times.
#[derive(Debug)]
pub(crate) struct Seen {
    whole: usize,
    refused: usize,
    unanswered: usize,
    hung: usize,
    broken: usize,
    told: usize,
    feigned: usize,
    /// Of those that were whole in the end and under way at the fault or later.
    longest_silence: f64,
    /// When the last request that was touched began.
    last_begun: f64,
    /// When the last request that was touched got on, or was lost.
    last_over: f64,
    whole_per_second: [f64; 2],
    first_refusal: Option<String>,
}

/// As a small model answers; an answer takes some one and a half seconds.
const STREAM: Script =
    Script { streams: true, tokens: 40, reading: Duration::from_millis(200), pace: Duration::from_millis(30) };
/// A client that sees nothing for so long goes away.
const PATIENCE: Duration = Duration::from_secs(10);
/// And so long passes before somebody who got no whole answer asks again.
const RETRY: Duration = Duration::from_millis(250);
/// Whole answers are counted over so long before the fault, and at the end.
const COUNTED: Duration = Duration::from_secs(5);
/// Silence that may have other reasons than the fault.
const SILENCE_USUAL: Duration = Duration::from_secs(1);

impl Plan {
    /// `fault` happens between.
    pub(crate) fn run(self, target: Target, fault: impl FnOnce() -> Result<()>) -> Result<Seen> {
        let over = AtomicBool::new(false);
        let (all, at, end) = thread::scope(|scope| {
            let askers: Vec<_> = (0..self.clients)
                .map(|who| {
                    let over = &over;
                    scope.spawn(move || {
                        let mut client = Client::new(target, PATIENCE);
                        let mut all = Vec::new();
                        while !over.load(Ordering::Relaxed) {
                            let asked = client.ask(STREAM, who, all.len() as u64);
                            if asked.end != End::Whole {
                                thread::sleep(RETRY);
                            }
                            all.push(asked);
                        }
                        all
                    })
                })
                .collect();
            // Time under load is what is given here, so nothing is waited for.
            thread::sleep(self.before);
            let at = Instant::now();
            let done = fault();
            if done.is_ok() {
                thread::sleep(self.after);
            }
            let end = Instant::now();
            over.store(true, Ordering::Relaxed);
            let all: Vec<Asked> = askers.into_iter().flat_map(|asker| asker.join().expect("no asker panics")).collect();
            done.map(|()| (all, at, end))
        })?;
        Ok(Seen::new(&all, at, end))
    }
}

impl Seen {
    fn new(all: &[Asked], fault: Instant, end: Instant) -> Self {
        let later: Vec<&Asked> = all.iter().filter(|asked| asked.ended >= fault).collect();
        let count = |is: &dyn Fn(&End) -> bool| later.iter().filter(|asked| is(&asked.end)).count();
        let usual = all.iter().filter(|asked| asked.ended < fault).map(|asked| asked.silence.0).max();
        let usual = usual.unwrap_or_default().max(SILENCE_USUAL);
        let touched = |asked: &&&Asked| asked.end != End::Whole || asked.silence.0 > usual;
        let since = |at: Instant| at.saturating_duration_since(fault).as_secs_f64();
        let largest = |times: &mut dyn Iterator<Item = f64>| times.fold(f64::NAN, f64::max);
        let over = |asked: &&Asked| if asked.end == End::Whole { asked.silence.1 } else { asked.ended };
        let whole_within = |from: Instant, to: Instant| {
            let within = |asked: &&Asked| asked.end == End::Whole && asked.ended >= from && asked.ended < to;
            all.iter().filter(within).count() as f64 / (to - from).as_secs_f64()
        };
        Self {
            whole: count(&|end| *end == End::Whole),
            refused: count(&|end| matches!(end, End::Refused(_))),
            unanswered: count(&|end| *end == End::Unanswered),
            hung: count(&|end| *end == End::Hung),
            broken: count(&|end| *end == End::Broken),
            told: count(&|end| *end == End::Told),
            feigned: count(&|end| *end == End::Feigned),
            longest_silence: largest(
                &mut later.iter().filter(|asked| asked.end == End::Whole).map(|asked| asked.silence.0.as_secs_f64()),
            ),
            last_begun: largest(&mut later.iter().filter(touched).map(|asked| since(asked.began))),
            last_over: largest(&mut later.iter().filter(touched).map(|asked| since(over(asked)))),
            whole_per_second: [whole_within(fault - COUNTED, fault), whole_within(end - COUNTED, end)],
            first_refusal: later.iter().find_map(|asked| match &asked.end {
                End::Refused(text) => Some(text.clone()),
                _ => None,
            }),
        }
    }

    pub(crate) fn cells(&self) -> String {
        let seconds = |value: f64| if value.is_nan() { "–".to_owned() } else { format!("{value:.1}") };
        let [before, after] = self.whole_per_second;
        format!(
            "{} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {before:.1} → {after:.1} |",
            self.whole,
            self.refused,
            self.unanswered,
            self.hung,
            self.broken,
            self.told,
            self.feigned,
            seconds(self.longest_silence),
            seconds(self.last_begun),
            seconds(self.last_over),
        )
    }

    pub(crate) fn first_refusal(&self) -> Option<&str> {
        self.first_refusal.as_deref()
    }
}

pub(crate) const CELLS: &str = "whole | refused | lost unanswered | hung | broken off | told | feigned | \
    longest silence of a whole one, s | last touched one began, s | got on or was lost, s | whole/s before → after |";
