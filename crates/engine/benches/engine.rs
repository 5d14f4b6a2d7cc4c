//! Tokens per CPU second, one stream and eight, and what a loaded model takes: `docs/results` has the figures.
//!
//! `cargo bench -p engine --features llama --bench engine -- FILE [PROMPT_WORDS] [ANSWER_TOKENS]` measures inside this
//! process. With `against` for a file it is measured beside llama.cpp's own server, both over HTTP, by the Python script
//! that lies here; that one starts this program again with `serve`.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use engine::library::{self, Library};
use engine::runner::{Answer, Done, Event, Job, LoadOptions, Loader, Prompt, Runner, Sampling, Spec};
use engine::serve::{self, Secret, Server};
use engine::{Config, Error, Llama};
use futures::future::join_all;
use ollama::Folder;
use ollama::folder::Texts;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ROUNDS: u32 = 20;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let file = arguments.next().expect("the first argument is a GGUF file");
    match file.as_str() {
        "against" => return against(),
        "serve" => {
            let [file, slots, secret] = [(); 3].map(|()| arguments.next().expect("a file, a number and a secret"));
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            return runtime.expect("a runtime").block_on(serve(&file, slots.parse().expect("a number"), secret));
        }
        _ => {}
    }
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (prompt, answer) = (number(100), number(128));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(run(&file, prompt, answer as u32));
}

fn against() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/against_llama_server.py");
    let program = std::env::current_exe().expect("this program has a file");
    let status = Command::new("python3").arg(script).arg("against").arg(program).status().expect("python3 is there");
    assert!(status.success(), "{status}");
}

/// As `omx engine` does, with as many slots as asked for, until stdin ends.
async fn serve(file: &str, slots: u32, secret: String) {
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = Folder::open(scratch.path()).expect("a models folder");
    let mut weights = std::fs::File::open(file).expect("a model");
    folder.install(&"model".parse().expect("a name"), &mut weights, &Texts::default()).expect("installed");
    let llama = Llama::new(Config { slots: Some(slots), ..Config::default() });
    let (library, task) = Library::new(library::Config::default(), Arc::new(llama));
    let config = serve::Config { secret: Secret::from_text(secret), version: "bench".to_owned() };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    println!("{}", listener.local_addr().expect("it is bound"));
    std::io::stdout().flush().expect("somebody reads");
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(stop.clone()));
    tasks.spawn(Server::new(config, folder, library).run(listener, stop));
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await.expect("reading does not panic").expect("stdin is a pipe");
}

async fn run(file: &str, prompt: usize, answer: u32) {
    println!(
        "file {file}, prompts of {prompt} words, answers of {answer} tokens at most; t/cpu-s is tokens per CPU second"
    );
    for streams in [1, 8] {
        let before = Cost::now();
        let options = LoadOptions { num_thread: Some(1), ..LoadOptions::default() };
        let llama = Llama::new(Config { slots: Some(streams), ..Config::default() });
        let model = llama.load(&Spec { file: file.into(), options }).expect("a model");
        let loaded = Cost::now();
        println!("streams {streams}: loaded in {:.2} s, RSS {} MiB", loaded.wall(&before), resident_mib());

        let read = timed(&*model, streams, |stream, round| job(stream, round, prompt, 1)).await;
        read.say("read", |done| done.prompt_tokens - done.reused_tokens);
        let answered = timed(&*model, streams, |stream, round| job(stream, round, 1, answer)).await;
        answered.say("answer", |done| done.output_tokens);
    }
}

/// Other words for each request, so that none borrows from another. Where the model ends by itself, it ends.
fn job(stream: u32, round: u32, words: usize, answer: u32) -> Job {
    let words = (0..words as u32).map(|word| (word * 7919 + stream * 104_729 + round * 1_299_709) % 997);
    let text: String = words.map(|word| format!("{word} ")).collect();
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Job { sampling, limit: Some(answer), ..Job::new(Prompt::rendered(text)) }
}

/// Each stream asks for one thing after another.
async fn timed(model: &dyn Runner, streams: u32, job: impl Fn(u32, u32) -> Job) -> Spent {
    let began = Cost::now();
    let job = &job;
    let dones = join_all((0..streams).map(|stream| async move {
        let mut dones = Vec::new();
        for round in 0..ROUNDS {
            let answer = model.generate(job(stream, round)).await.expect("taken");
            dones.push(end(answer).await.expect("answered"));
        }
        dones
    }));
    let dones = dones.await.concat();
    let now = Cost::now();
    Spent { wall: now.wall(&began), cpu: now.cpu - began.cpu, dones }
}

async fn end(mut answer: Answer) -> Result<Done, Error> {
    loop {
        match answer.next().await.expect("an answer ends with its last event")? {
            Event::Done(done) => return Ok(done),
            Event::Text { .. } => {}
        }
    }
}

struct Cost {
    at: Instant,
    cpu: f64,
}

struct Spent {
    wall: f64,
    cpu: f64,
    dones: Vec<Done>,
}

impl Cost {
    fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu_seconds() }
    }

    fn wall(&self, since: &Self) -> f64 {
        (self.at - since.at).as_secs_f64()
    }
}

impl Spent {
    fn say(&self, what: &str, count: impl Fn(&Done) -> u32) {
        let tokens: u32 = self.dones.iter().map(count).sum();
        let rate = f64::from(tokens) / self.cpu;
        println!("  {what}: {tokens} tokens, {:.3} s wall, {:.3} s CPU, {rate:.0} t/cpu-s", self.wall, self.cpu);
    }
}

/// Of this process and all its threads, from Linux; elsewhere zero.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold blanks: user and system time are the 12th and 13th, in hundredths of a second.
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}
