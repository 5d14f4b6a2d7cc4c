//! What a proxy costs: its processor time per request and per line of a stream, and what it adds to the time of one who
//! asks alone.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::backend::Script;
use crate::client::{Client, End, Target};
use crate::process;

/// What one proxy is measured at, and by whom it is asked.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) target: Target,
    /// The processes of each machine.
    pub(crate) machines: Vec<Vec<u32>>,
}

/// The figures of one round. Times are microseconds, of the processor for each machine.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Per request, one client after another answer.
    pub(crate) alone: Vec<f64>,
    /// Per request, of many clients at once.
    pub(crate) together: Vec<f64>,
    pub(crate) together_per_second: f64,
    /// The whole round trip of one client.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Per line, of many streams whose lines come one by one.
    pub(crate) line_paced: Vec<f64>,
    /// Per line of one stream whose lines come as fast as they can.
    pub(crate) line_hurried: Vec<f64>,
}

/// At once, where many ask.
pub(crate) const MANY: usize = 16;
const ANSWER: Script = Script { streams: false, tokens: 40, reading: Duration::ZERO, pace: Duration::ZERO };
const PACE: Duration = Duration::from_millis(1);
const SHORT: u32 = 20;
const LONG_PACED: u32 = 500;
const LONG_HURRIED: u32 = 2000;
const PATIENCE: Duration = Duration::from_secs(10);

impl Row {
    pub(crate) fn measure(&self, span: Duration) -> Result<Figures> {
        // What learns from load has had some before the clock starts.
        self.load(MANY, span / 2, ANSWER)?;
        let alone = self.load(1, span, ANSWER)?;
        let together = self.load(MANY, span, ANSWER)?;
        let line = |clients: usize, pace: Duration, tokens: u32| -> Result<Vec<f64>> {
            let stream = |tokens| Script { streams: true, tokens, pace, ..ANSWER };
            let short = self.load(clients, span, stream(SHORT))?.per_request();
            let long = self.load(clients, span, stream(tokens))?.per_request();
            Ok(long.iter().zip(&short).map(|(long, short)| (long - short) / f64::from(tokens - SHORT)).collect())
        };
        let at = |share: f64| alone.times[(alone.times.len() as f64 * share) as usize].as_secs_f64() * 1e6;
        Ok(Figures {
            alone: alone.per_request(),
            together: together.per_request(),
            together_per_second: together.times.len() as f64 / together.seconds,
            p50: at(0.5),
            p99: at(0.99),
            line_paced: line(MANY, PACE, LONG_PACED)?,
            line_hurried: line(1, Duration::ZERO, LONG_HURRIED)?,
        })
    }

    fn cpu(&self) -> Result<Vec<f64>> {
        self.machines.iter().map(|pids| process::cpu_seconds(pids)).collect()
    }

    /// So many clients ask for so long, each its next question once the last one is answered. One wrong answer ends it
    /// all: its costs would be of something else.
    fn load(&self, clients: usize, span: Duration, script: Script) -> Result<Load> {
        let ready = Barrier::new(clients + 1);
        thread::scope(|scope| {
            let askers: Vec<_> = (0..clients)
                .map(|who| {
                    let ready = &ready;
                    scope.spawn(move || ask(self.target, who, span, script, ready))
                })
                .collect();
            ready.wait();
            let (start, before) = (Instant::now(), self.cpu()?);
            let mut times = Vec::new();
            for asker in askers {
                times.extend(asker.join().expect("no asker panics")?);
            }
            let seconds = start.elapsed().as_secs_f64();
            let cpu = self.cpu()?.iter().zip(before).map(|(after, before)| after - before).collect();
            times.sort_unstable();
            Ok(Load { times, seconds, cpu })
        })
    }
}

/// How long each answer took. There is at least one.
fn ask(target: Target, who: usize, span: Duration, script: Script, ready: &Barrier) -> Result<Vec<Duration>> {
    let mut client = Client::new(target, PATIENCE);
    // Connected, and known to work, before the clock starts.
    let first = client.ask(Script { tokens: 1, ..script }, who, 0).end;
    ready.wait();
    if first != End::Whole {
        bail!("the first of {script:?} ended as {first:?}");
    }
    let start = Instant::now();
    let mut times = Vec::new();
    for number in 1.. {
        let asked = client.ask(script, who, number);
        if asked.end != End::Whole {
            bail!("one of {script:?} ended as {:?}", asked.end);
        }
        times.push(asked.ended - asked.began);
        if start.elapsed() >= span {
            break;
        }
    }
    Ok(times)
}

struct Load {
    /// Sorted.
    times: Vec<Duration>,
    seconds: f64,
    /// Of each machine, in seconds.
    cpu: Vec<f64>,
}

impl Load {
    fn per_request(&self) -> Vec<f64> {
        self.cpu.iter().map(|cpu| cpu * 1e6 / self.times.len() as f64).collect()
    }
}

impl Figures {
    /// Of rounds whose machine did other things too, the middle ones.
    pub(crate) fn median(rounds: &[Self]) -> Option<Self> {
        let number = |pick: &dyn Fn(&Self) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(pick).collect();
            all.sort_unstable_by(f64::total_cmp);
            let middle = all.len() / 2;
            if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) }
        };
        let each = |pick: &dyn Fn(&Self) -> &[f64]| {
            let machines = pick(&rounds[0]).len();
            (0..machines).map(|at| number(&|round| pick(round)[at])).collect()
        };
        (!rounds.is_empty()).then(|| Self {
            alone: each(&|round| &round.alone),
            together: each(&|round| &round.together),
            together_per_second: number(&|round| round.together_per_second),
            p50: number(&|round| round.p50),
            p99: number(&|round| round.p99),
            line_paced: each(&|round| &round.line_paced),
            line_hurried: each(&|round| &round.line_hurried),
        })
    }

    pub(crate) fn cells(&self) -> String {
        format!(
            "{} | {} | {:.0} | {:.0} | {:.0} | {} | {} |",
            sum(&self.alone),
            sum(&self.together),
            self.together_per_second,
            self.p50,
            self.p99,
            sum(&self.line_paced),
            sum(&self.line_hurried),
        )
    }
}

pub(crate) const CELLS: &str = "CPU µs/request, 1 client | 16 clients | requests/s, 16 clients | p50 µs, 1 client | \
    p99 µs | CPU µs/line, 16 streams of a line a ms | one stream, hurried |";

/// Of all machines, and where there are several, of each.
fn sum(machines: &[f64]) -> String {
    let digits = |value: f64| if value.abs() < 20.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    match machines {
        [] => "–".to_owned(),
        [one] => digits(*one),
        several => {
            let each: Vec<String> = several.iter().map(|one| digits(*one)).collect();
            format!("{} ({})", digits(several.iter().sum()), each.join(" + "))
        }
    }
}
