//! Files that were damaged or made with intent never bring down who loads them. llama.cpp is C++ and trusts files more
//! than we do, so the loader runs in a child process, as it does in a node. A child that dies shows what the header should
//! have been refused for.
//!
//! `broken_files child FOLDER FROM` is that child: it tries the files one by one and says what came of each.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use engine::runner::{Event, Job, LoadOptions, Loader, Prompt, Sampling, Spec};
use engine::{Config, Error, Llama};

#[path = "../src/llama/tests/tiny.rs"]
mod tiny;

const FILES: usize = 300;
const SEED: u64 = 0x6d75_7461_7465;
/// One file takes milliseconds; a machine with much else to do takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, child, folder, from] = arguments.as_slice()
        && child == "child"
    {
        try_files(Path::new(folder), from.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    // What a test harness is asked for by tools that look for tests.
    if arguments.iter().any(|argument| argument == "--list") {
        println!("broken_files_bring_nobody_down: test");
        return ExitCode::SUCCESS;
    }
    broken_files_bring_nobody_down();
    ExitCode::SUCCESS
}

fn broken_files_bring_nobody_down() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let whole = fs::read(tiny::write(folder.path())).expect("just written");
    let mut random = Random(SEED);
    for number in 0..FILES {
        fs::write(file(folder.path(), number), mutated(&whole, &mut random)).expect("a file");
    }
    let mut outcomes = Vec::new();
    let mut deaths = Vec::new();
    while outcomes.len() < FILES {
        outcomes.extend(outcomes_of_one_child(folder.path(), outcomes.len()));
        if outcomes.len() < FILES {
            deaths.push(outcomes.len());
            outcomes.push("died".to_owned());
        }
    }
    let count = |what: &str| outcomes.iter().filter(|outcome| *outcome == what).count();
    println!(
        "broken_files_bring_nobody_down (seed {SEED:#x}): {} refused by the header, {} by llama.cpp, {} ran, \
         {} failed while they ran, died at {deaths:?}",
        count("header"),
        count("load"),
        count("ran"),
        count("failed"),
    );
    assert_eq!(outcomes.len(), FILES, "each file has an outcome");
    assert!(count("header") > 0 && count("ran") > 0, "the damage was too small or too large to show anything");
    assert!(deaths.is_empty(), "llama.cpp stopped its process at files that the header should have refused");
}

fn file(folder: &Path, number: usize) -> std::path::PathBuf {
    folder.join(format!("{number}.gguf"))
}

/// What a child says until it dies or is through. One that says nothing for too long is a failure.
fn outcomes_of_one_child(folder: &Path, from: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("this very program"))
        .args(["child".as_ref(), folder.as_os_str(), from.to_string().as_ref()])
        // ggml would call a debugger to describe its end.
        .env("GGML_NO_BACKTRACE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let said = BufReader::new(child.stdout.take().expect("piped above"));
    let (lines, heard) = mpsc::channel();
    let listener = std::thread::spawn(move || {
        for line in said.lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let mut outcomes = Vec::new();
    loop {
        match heard.recv_timeout(PATIENCE) {
            Ok(line) => outcomes.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                panic!("file {} hangs", from + outcomes.len());
            }
        }
    }
    child.wait().expect("it was started");
    listener.join().expect("it only reads");
    outcomes
}

fn try_files(folder: &Path, from: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let llama = Llama::new(Config { slots: Some(2), ..Config::default() });
    for number in from..FILES {
        let options = LoadOptions { num_ctx: Some(64), ..LoadOptions::default() };
        let outcome = match llama.load(&Spec { file: file(folder, number), options }) {
            Err(Error::CannotRun { .. }) => "header",
            Err(_) => "load",
            Ok(model) => runtime.block_on(async {
                let sampling = Sampling { seed: Some(1), ..Sampling::default() };
                let job = Job { sampling, limit: Some(8), ..Job::new(Prompt::rendered("What is this?")) };
                let Ok(mut answer) = model.generate(job).await else { return "failed" };
                loop {
                    match answer.next().await {
                        Some(Ok(Event::Text { .. })) => {}
                        Some(Ok(Event::Done(_))) => return "ran",
                        Some(Err(_)) | None => return "failed",
                    }
                }
            }),
        };
        println!("{outcome}");
        std::io::stdout().flush().expect("the parent listens");
    }
}

/// Some bytes changed, lengths made large, pieces cut out or off: mostly in the header, where the parsers are.
fn mutated(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let header = 8_000;
    for _ in 0..=random.below(4) {
        let reach = if random.below(4) == 0 { bytes.len() } else { header.min(bytes.len()) };
        let at = random.below(reach.saturating_sub(8).max(1));
        let end = (at + 8).min(bytes.len());
        match random.below(8) {
            0 | 1 => bytes[at] = random.next() as u8,
            2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes[at..end].copy_from_slice(&u64::MAX.to_le_bytes()[..end - at]),
            4 => bytes[at..end].copy_from_slice(&random.next().to_le_bytes()[..end - at]),
            5 => bytes[at..end].fill(0),
            6 => drop(bytes.drain(at..at + random.below(end - at + 1))),
            _ => bytes.truncate(at.max(32)),
        }
    }
    bytes
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
