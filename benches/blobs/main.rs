//! A blob from one node and from three, over sockets on this machine, beside a plain copy over TLS with the same cipher and
//! beside other programs; and ten nodes that fetch it at once with narrow links.
//!
//!     cargo bench --profile ci --bench blobs -- [part=copies] [mib=4096] [dir=FOLDER] [rounds=3]
//!         [rsync=PROGRAM] [nginx=PROGRAM] [curl=PROGRAM] [sendme=PROGRAM]
//!     cargo bench --profile ci --bench blobs -- part=swarm [mib=256] [receivers=10] [rate=20000000] [dir=FOLDER]
//!
//! The page cache is warm: the file is written right before. Processor time is that of both ends together. `there` is when
//! the program says that it is done, with ours when every chunk was here, checked and written; `lasting` includes the last
//! sync, and with ours the SHA-256 behind it, for Ollama's store. Programs that are not named are left out.

#[path = "../support/child.rs"]
mod child;
#[path = "../support/machine.rs"]
mod machine;
mod others;
mod ours;
mod plain;
#[path = "../support/process.rs"]
mod process;

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;

fn main() -> Result<()> {
    let dir = PathBuf::from(argument("dir").unwrap_or_else(|| std::env::temp_dir().display().to_string()));
    let scratch = tempfile::Builder::new().prefix("omx-bench-").tempdir_in(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let part = argument("part").unwrap_or_else(|| "copies".to_owned());
    let mib: usize = number("mib", if part == "swarm" { 256 } else { 4096 })?;
    println!("{}; {mib} MiB in `{}`", machine::name(), dir.display());
    let file = scratch.path().join("file");
    fill(&file, mib)?;
    match part.as_str() {
        "copies" => copies(&runtime, scratch.path(), &file)?,
        "swarm" => swarm(&runtime, scratch.path(), &file)?,
        _ => bail!("`part` is `copies` or `swarm`"),
    }
    println!("load at the end {}", machine::load());
    Ok(())
}

/// What one way to move the file has taken.
struct Taken {
    there: Duration,
    lasting: Duration,
    cpu_seconds: f64,
}

/// A way to move the file, and the rounds it has run.
struct Row {
    name: &'static str,
    gigabytes: f64,
    taken: Vec<Taken>,
}

fn copies(runtime: &Runtime, scratch: &Path, file: &Path) -> Result<()> {
    let gigabytes = file.metadata()?.len() as f64 / 1e9;
    let mut rows: Vec<Row> = Vec::new();
    println!("| | GB/s there | GB/s lasting | CPU s/GB, both ends | load |");
    println!("|---|--:|--:|--:|--:|");
    for _ in 0..number("rounds", 3)? {
        let mut take = |name, taken: Taken| {
            if rows.iter().all(|row| row.name != name) {
                rows.push(Row { name, gigabytes, taken: Vec::new() });
            }
            let row = rows.iter_mut().find(|row| row.name == name).context("it was just put there")?;
            println!("{} {} |", row.told(&taken), machine::load());
            row.taken.push(taken);
            anyhow::Ok(())
        };
        let to = scratch.join("copy");
        take("rustls, plain copy", runtime.block_on(Box::pin(plain::copy(file, &to)))?)?;
        for (name, sources) in [("ours, 1 source", 1), ("ours, 3 sources", 3)] {
            let folder = scratch.join("nodes");
            take(name, runtime.block_on(Box::pin(ours::fetch(file, &folder, sources)))?)?;
            fs::remove_dir_all(&folder)?;
        }
        for other in others::all()? {
            take(other.name(), other.copy(file, &to)?)?;
        }
        take("import, both hashes", ours::import(runtime, file, &scratch.join("import"))?)?;
        take("SHA-256 alone", ours::sha256(file)?)?;
    }
    println!("\nmedians\n\n| | GB/s there | GB/s lasting | CPU s/GB, both ends |\n|---|--:|--:|--:|");
    rows.iter_mut().for_each(|row| println!("{}", row.median()));
    Ok(())
}

impl Row {
    fn told(&self, taken: &Taken) -> String {
        let rate = |time: Duration| self.gigabytes / time.as_secs_f64();
        let (there, lasting, cpu) = (rate(taken.there), rate(taken.lasting), taken.cpu_seconds / self.gigabytes);
        format!("| {} | {there:.2} | {lasting:.2} | {cpu:.2} |", self.name)
    }

    /// Each figure's by itself.
    fn median(&mut self) -> String {
        let middle = self.taken.len() / 2;
        self.taken.sort_by_key(|taken| taken.there);
        let there = self.taken[middle].there;
        self.taken.sort_by_key(|taken| taken.lasting);
        let lasting = self.taken[middle].lasting;
        self.taken.sort_by(|a, b| a.cpu_seconds.total_cmp(&b.cpu_seconds));
        self.told(&Taken { there, lasting, cpu_seconds: self.taken[middle].cpu_seconds })
    }
}

/// One receiver, then many, each with a link of its own to and from all.
fn swarm(runtime: &Runtime, scratch: &Path, file: &Path) -> Result<()> {
    let rate = NonZeroU64::new(number("rate", 20_000_000)?).context("`rate` is not nought")?;
    let many = number("receivers", 10)?;
    println!("{rate} bytes a second each way");
    println!(
        "| receivers | seconds until the last has it | copies the origin sent | bytes wasted |\n|--:|--:|--:|--:|"
    );
    for receivers in [1, many] {
        let folder = scratch.join("nodes");
        let ours::Spread { last, copies, wasted } =
            runtime.block_on(Box::pin(ours::spread(file, &folder, receivers, rate)))?;
        println!("| {receivers} | {:.1} | {copies:.2} | {wasted} |", last.as_secs_f64());
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

/// `NAME=VALUE`. Cargo adds flags of its own, which are passed over.
fn argument(name: &str) -> Option<String> {
    std::env::args().skip(1).find_map(|text| text.strip_prefix(&format!("{name}=")).map(str::to_owned))
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    argument(name).map_or(Ok(default), |text| text.parse().ok().with_context(|| format!("`{name}` is a number")))
}

/// Bytes that no file system makes shorter.
fn fill(path: &Path, mib: usize) -> Result<()> {
    let mut file = File::create(path)?;
    let mut bytes = vec![0; MIB];
    let mut word = 1_u64;
    for _ in 0..mib {
        for piece in bytes.as_chunks_mut::<8>().0 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            *piece = word.to_le_bytes();
        }
        file.write_all(&bytes)?;
    }
    Ok(())
}
