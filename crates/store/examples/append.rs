//! How fast records become durable, against a plain file on the same disk in the same run.
//!
//! A batch is as many records as the store has in flight.
//!
//!     cargo run --release -p store --example append -- [FOLDER] [SECONDS PER ROUND] [ROUNDS]
//!
//! Rounds alternate, since a disk's sync time drifts. "raw" appends records to a growing file with one `fdatasync` per
//! batch; "raw, allocated" does the same inside a file whose blocks were allocated before.
//!
//! The store alone, so many in flight and so many in all, to be watched by a tracer:
//!
//!     strace -f -c -e trace=fdatasync target/release/examples/append FOLDER store 1 1000

use std::{
    fs::{self, File, OpenOptions},
    future::Future,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    pin::pin,
    sync::mpsc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use store::{Config, Error, Log, Record};

const VALUE_BYTES: usize = 256;
const ALLOCATED_BYTES: u64 = 64 << 20;

const IN_FLIGHT: [usize; 2] = [1, 64];
const NAMES: [&str; 3] = ["raw", "raw, allocated", "store"];

struct Round {
    entries: u64,
    seconds: f64,
    cpu: f64,
}

impl Round {
    fn rate(&self) -> f64 {
        self.entries as f64 / self.seconds
    }

    /// In microseconds.
    fn cpu_per_entry(&self) -> f64 {
        self.cpu * 1e6 / self.entries.max(1) as f64
    }
}

/// All rounds with as many in flight.
#[derive(Default)]
struct Sum {
    rates: [f64; 3],
    cpu: f64,
    /// The store's to raw's, round by round.
    ratios: Vec<f64>,
}

impl Sum {
    fn add(&mut self, round: &[Round; 3]) {
        self.rates.iter_mut().zip(round).for_each(|(sum, round)| *sum += round.rate());
        self.cpu += round[2].cpu_per_entry();
        self.ratios.push(round[2].rate() / round[0].rate());
    }

    /// The mean of rates gives weight to the rounds in which the disk was quick, the median round to none.
    fn summary(&mut self) -> String {
        let rounds = self.ratios.len().max(1);
        self.ratios.sort_by(f64::total_cmp);
        let [raw, allocated, store] = self.rates.map(|sum| sum / rounds as f64);
        let median = self.ratios.get(rounds / 2).copied().unwrap_or_default();
        let (of_raw, of_allocated, cpu) = (store / raw, store / allocated, self.cpu / rounds as f64);
        format!(
            "raw {raw:.0}/s, allocated {allocated:.0}/s, store {store:.0}/s = {of_raw:.2} of raw, {of_allocated:.2} of raw \
             allocated; median round {median:.2} of raw; {cpu:.1} us of CPU a record"
        )
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("omx-append-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let seconds = args.next();
    if seconds.as_deref() == Some("store") {
        let in_flight = args.next().map_or(Ok(1), |text| text.parse())?;
        let wanted: u64 = args.next().map_or(Ok(1000), |text| text.parse())?;
        println!("{} acknowledged", through_store(&dir.join("store"), in_flight, |entries| entries < wanted)?);
        return Ok(fs::remove_dir_all(&dir)?);
    }
    let seconds: f64 = seconds.map_or(Ok(3.0), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    println!("{:<28}{:>12}{:>12}{:>16}", "", "records/s", "of raw", "CPU us/record");
    let mut sums = [Sum::default(), Sum::default()];
    for _ in 0..rounds {
        for (sum, in_flight) in sums.iter_mut().zip(IN_FLIGHT) {
            let span = Duration::from_secs_f64(seconds);
            let round = [
                measure(|| raw(&dir.join("raw"), in_flight, span, false))?,
                measure(|| raw_allocated(&dir.join("raw"), in_flight, span))?,
                measure(|| {
                    let start = Instant::now();
                    through_store(&dir.join("store"), in_flight, |_| start.elapsed() < span)
                })?,
            ];
            for (name, one) in NAMES.iter().zip(&round) {
                let name = format!("{name}, {in_flight} in flight");
                let of_raw = one.rate() / round[0].rate();
                println!("{name:<28}{:>12.0}{of_raw:>12.2}{:>16.1}", one.rate(), one.cpu_per_entry());
            }
            sum.add(&round);
        }
    }
    for (sum, in_flight) in sums.iter_mut().zip(IN_FLIGHT) {
        println!("{in_flight} in flight, {rounds} rounds: {}", sum.summary());
    }
    fs::remove_dir_all(&dir)?;
    Ok(())
}

fn measure(run: impl FnOnce() -> Result<u64, Box<dyn std::error::Error>>) -> Result<Round, Box<dyn std::error::Error>> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let entries = run()?;
    Ok(Round { entries, seconds: start.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu })
}

fn raw(path: &Path, batch: usize, span: Duration, allocated: bool) -> Result<u64, Box<dyn std::error::Error>> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(!allocated).open(path)?;
    let records = vec![7; VALUE_BYTES * batch];
    let (start, mut entries, mut at) = (Instant::now(), 0, 0);
    while start.elapsed() < span {
        if allocated && at + records.len() as u64 > ALLOCATED_BYTES {
            at = file.seek(SeekFrom::Start(0))?;
        }
        file.write_all(&records)?;
        file.sync_data()?;
        at += records.len() as u64;
        entries += batch as u64;
    }
    Ok(entries)
}

fn raw_allocated(path: &Path, batch: usize, span: Duration) -> Result<u64, Box<dyn std::error::Error>> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..ALLOCATED_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    raw(path, batch, span, true)
}

/// Goes on while it is to, which it asks with the number of acknowledgements.
fn through_store(dir: &Path, in_flight: usize, go_on: impl Fn(u64) -> bool) -> Result<u64, Box<dyn std::error::Error>> {
    let (log, worker) = Log::open(Config { reserve: 0, ..Config::new(dir) })?;
    let (sender, acknowledged) = mpsc::channel::<Result<(), Error>>();
    let mut index = log.bounds().last.map_or(0, |last| last.index + 1);
    let mut submit = || {
        let sender = sender.clone();
        let record = Record { index, bytes: vec![7; VALUE_BYTES].into() };
        index += 1;
        // The receiver is gone once the round is over.
        poll_once(log.append(vec![record], move |result| drop(sender.send(result))))
    };
    let (mut entries, mut open) = (0, 0);
    while go_on(entries) {
        while open < in_flight {
            submit()?;
            open += 1;
        }
        // Whoever has been told may write again, as clients do.
        acknowledged.recv()??;
        (entries, open) = (entries + 1, open - 1);
        while let Ok(result) = acknowledged.try_recv() {
            result?;
            (entries, open) = (entries + 1, open - 1);
        }
    }
    drop(log);
    worker.join();
    fs::remove_dir_all(dir)?;
    Ok(entries)
}

/// With so little in flight there is always room, so the future is ready at once.
fn poll_once(future: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the queue is full with `{VALUE_BYTES}` byte records"),
    }
}

/// User and system time of this process; nothing where there is no `/proc`.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    // USER_HZ has been 100 on every Linux since it is fixed to that.
    ticks / 100.0
}
