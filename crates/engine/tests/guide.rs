//! `omx-guide`, the model of the first start, run by the engine: token for token what llama.cpp's own server makes of
//! it, in any slot and beside any others, and from any place on at which an answer was cut off.
//!
//! `llama_server.json` was written by `llama_server.py`, which says when and how.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::runner::{Done, Ended, Event, Job, Loader, Prompt, Runner, Sampling, Spec};
use engine::{Config, Llama};
use futures::future::join_all;
use serde_json::Value;

/// All of them take minutes; each so-many-th shows the same.
const EACH_CUT: usize = 23;

const PATIENCE: Duration = Duration::from_secs(60);

fn load(slots: u32) -> Arc<dyn Runner> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testnet/model/omx-guide.gguf");
    Llama::new(Config { slots: Some(slots), ..Config::default() }).load(&Spec::new(file)).unwrap()
}

fn table() -> Value {
    serde_json::from_str(include_str!("llama_server.json")).unwrap()
}

struct Expected {
    prompt: String,
    limit: u32,
    text: String,
}

fn expected() -> Vec<Expected> {
    let table = table();
    let answers = table["answers"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let expected = answers.map(|answer| Expected {
        prompt: text(&answer["prompt"]),
        limit: answer["limit"].as_u64().unwrap() as u32,
        text: text(&answer["text"]),
    });
    expected.collect()
}

fn greedy(prompt: String, limit: u32) -> Job {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Job { sampling, limit: Some(limit), ..Job::new(Prompt::rendered(prompt)) }
}

async fn answer(model: &dyn Runner, job: Job) -> (String, Done) {
    let mut answer = model.generate(job).await.unwrap();
    let mut said = String::new();
    loop {
        match tokio::time::timeout(PATIENCE, answer.next()).await.unwrap().unwrap().unwrap() {
            Event::Text { text, .. } => said.push_str(&text),
            Event::Done(done) => return (said, done),
        }
    }
}

#[tokio::test]
async fn its_tokens_are_those_of_llama_server() {
    let model = load(1);
    let table = table();
    let texts = table["tokens"].as_array().unwrap();
    assert!(texts.len() > 10);
    for row in texts {
        let ids: Vec<u32> = row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let text = row["text"].as_str().unwrap();
        assert_eq!(model.tokenize(Prompt::rendered(text)).await.unwrap(), ids, "{text:?}");
    }
}

#[tokio::test]
async fn its_answers_are_those_of_llama_server_alone() {
    let model = load(1);
    let expected = expected();
    assert!(expected.len() > 60);
    let mut long = 0;
    for Expected { prompt, limit, text } in expected {
        let (said, done) = answer(&*model, greedy(prompt.clone(), limit)).await;
        assert_eq!(said, text, "{prompt:?}");
        assert_eq!(done.ended == Ended::Length, done.output_tokens == limit, "{prompt:?}");
        long += u32::from(done.output_tokens >= 120);
    }
    assert!(long >= 5, "{long} answers are long enough to die in the middle of");
}

#[tokio::test]
async fn its_answers_are_the_same_in_every_slot_beside_others() {
    let model = load(8);
    // What it knows by heart; beyond that, two tokens may be nearly as likely, and neighbours change the last digit.
    let known = || expected().into_iter().filter(|expected| expected.limit > 40);
    for round in 0..3 {
        let rest = known().skip(round * 7).chain(known().take(round * 7));
        let answers = join_all(rest.map(|Expected { prompt, limit, text }| {
            let model = model.clone();
            async move { (answer(&*model, greedy(prompt, limit)).await.0, text) }
        }));
        for (said, text) in answers.await {
            assert_eq!(said, text, "round {round}");
        }
    }
}

#[tokio::test]
async fn an_answer_cut_off_anywhere_is_continued_with_its_rest() {
    let model = load(8);
    let mut cuts = Vec::new();
    for Expected { prompt, limit, text } in expected().into_iter().filter(|expected| expected.limit > 40) {
        for (at, _) in text.char_indices().step_by(EACH_CUT) {
            let (so_far, rest) = text.split_at(at);
            let job = Job { reopens_last_word: true, ..greedy(format!("{prompt}{so_far}"), limit) };
            cuts.push((job, so_far.to_owned(), rest.to_owned()));
        }
    }
    assert!(cuts.len() > 500);
    let mut wrong = Vec::new();
    // No more at once than may wait.
    for cuts in cuts.chunks(100) {
        let model = &model;
        let asked = cuts.iter().map(|(job, ..)| async move { answer(&**model, job.clone()).await.0 });
        let said = join_all(asked).await;
        let told = said.into_iter().zip(cuts).filter(|(said, (_, _, rest))| said != rest);
        wrong.extend(told.map(|(said, (_, so_far, _))| format!("behind {so_far:?}: {said:?}")));
    }
    assert!(wrong.is_empty(), "{} of {} cuts: {}", wrong.len(), cuts.len(), wrong.join("\n"));
}
