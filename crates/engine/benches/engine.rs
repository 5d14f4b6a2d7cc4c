//! Tokens per CPU second, one stream and eight, and what a loaded model takes: `docs/results` has the figures.
//!
//! `cargo bench -p engine --features llama --bench engine -- FILE [PROMPT_TOKENS] [ANSWER_TOKENS]`

use std::time::Instant;

use engine::runner::{Answer, Done, Ended, Event, Job, LoadOptions, Loader, Prompt, Runner, Sampling, Spec};
use engine::{Config, Error, Llama};
use futures::future::join_all;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let file = arguments.next().expect("the first argument is a GGUF file");
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (prompt, answer) = (number(256), number(128));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(run(&file, prompt, answer as u32));
}

async fn run(file: &str, prompt: usize, answer: u32) {
    println!("file {file}, prompt of {prompt} tokens, answer of {answer}; t/cpu-s is tokens per CPU second");
    for streams in [1, 8] {
        let before = Cost::now();
        let num_ctx = Some(prompt as u32 + answer + 8);
        let options = LoadOptions { num_ctx, num_thread: Some(1), ..LoadOptions::default() };
        let llama = Llama::new(Config { slots: Some(streams), ..Config::default() });
        let model = llama.load(&Spec { file: file.into(), options }).expect("a model");
        let loaded = Cost::now();
        println!("streams {streams}: loaded in {:.2} s, RSS {} MiB", loaded.wall(&before), resident_mib());

        // Other words for each stream, so that none borrows from another.
        let read = timed(&*model, (0..streams).map(|stream| job(stream, prompt, 1))).await;
        let tokens: u32 = read.0.iter().map(|done| done.prompt_tokens - done.reused_tokens).sum();
        read.1.say("read", tokens);
        let answered = timed(&*model, (0..streams).map(|stream| job(stream, prompt, answer))).await;
        let tokens: u32 = answered.0.iter().map(|done| done.output_tokens).sum();
        assert!(answered.0.iter().all(|done| done.ended == Ended::Length), "an answer ended by itself");
        answered.1.say("answer", tokens);
    }
}

fn job(stream: u32, prompt: usize, answer: u32) -> Job {
    let text: String = (0..)
        .flat_map(|word| format!("{} ", (word * 7919 + stream * 104_729) % 997).into_bytes())
        .map(char::from)
        .take(prompt * 8)
        .collect();
    // The model must not end by itself; any digit will do.
    let format = engine::runner::Format::Schema(serde_json::json!({"type": "string", "minLength": 4000}));
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Job { sampling, format, limit: Some(answer), ..Job::new(Prompt::rendered(text)) }
}

async fn timed(model: &dyn Runner, jobs: impl Iterator<Item = Job>) -> (Vec<Done>, Spent) {
    let began = Cost::now();
    let answers = join_all(jobs.map(|job| model.generate(job))).await;
    let dones = join_all(answers.into_iter().map(|answer| end(answer.expect("taken")))).await;
    let dones = dones.into_iter().map(|done| done.expect("answered")).collect();
    let now = Cost::now();
    (dones, Spent { wall: now.wall(&began), cpu: now.cpu - began.cpu })
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
    fn say(&self, what: &str, tokens: u32) {
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
