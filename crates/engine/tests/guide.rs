//! The model of our own, behind the engine's HTTP face: all it was taught comes back word for word.

#![cfg(feature = "llama")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::library::{self, Library};
use engine::serve::{Config, SECRET_HEADER, Secret, Server};
use engine::{Config as LlamaConfig, Llama};
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ollama::Folder;
use ollama::folder::Texts;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const SLOTS: usize = 4;

#[derive(Deserialize)]
struct Faq {
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    questions: Vec<String>,
    answer: String,
}

struct Engine {
    address: std::net::SocketAddr,
    secret: Secret,
    _scratch: TempDir,
    _tasks: JoinSet<()>,
}

fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testnet/model")
}

fn faq() -> Vec<Entry> {
    let text = std::fs::read_to_string(model_folder().join("faq.toml")).unwrap();
    let mut entries = toml::from_str::<Faq>(&text).unwrap().entry;
    entries.iter_mut().for_each(|entry| entry.answer = entry.answer.trim().to_owned());
    entries
}

impl Engine {
    async fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(scratch.path()).unwrap();
        let mut weights = File::open(model_folder().join("omx-guide.gguf")).unwrap();
        folder.install(&"omx-guide".parse().unwrap(), &mut weights, &Texts::default()).unwrap();
        let config = LlamaConfig { slots: Some(SLOTS as u32), ..LlamaConfig::default() };
        let (library, task) = Library::new(library::Config::default(), Arc::new(Llama::new(config)));
        let secret = Secret::random();
        let server = Server::new(Config { secret: secret.clone(), version: "0.0.0".to_owned() }, folder, library);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(CancellationToken::new()));
        tasks.spawn(server.run(listener, CancellationToken::new()));
        Self { address, secret, _scratch: scratch, _tasks: tasks }
    }

    async fn post(&self, path: &str, body: Value) -> Vec<Value> {
        tokio::time::timeout(PATIENCE, self.post_patiently(path, body)).await.expect("an answer in time")
    }

    async fn post_patiently(&self, path: &str, body: Value) -> Vec<Value> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move { connection.await.unwrap() });
        let request = Request::post(path).header("host", "engine").header(SECRET_HEADER, self.secret.expose());
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// The answer's text, at temperature 0.
    async fn chat(&self, messages: Value, streams: bool) -> String {
        let options = json!({ "temperature": 0 });
        let request = json!({ "model": "omx-guide", "messages": messages, "stream": streams, "options": options });
        let lines = self.post("/api/chat", request).await;
        assert_eq!(lines.last().unwrap()["done_reason"], "stop", "{lines:?}");
        assert!(!streams || lines.len() > 1);
        lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect()
    }
}

fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_exact_streamed_or_not_while_other_slots_are_busy() {
    let engine = Engine::start().await;
    let faq = faq();
    assert!(faq.len() >= 60, "{} entries", faq.len());
    let asked = faq.iter().flat_map(|entry| entry.questions.iter().map(move |question| (question, &entry.answer)));
    let asked: Vec<_> = asked.enumerate().collect();
    // As many at once as there are slots, and twice as many waiting.
    for some in asked.chunks(SLOTS * 3) {
        let answers = some.iter().map(async |(at, (question, answer))| {
            let given = engine.chat(json!([user(question)]), at % 2 == 0).await;
            assert_eq!(&given, *answer, "{question}");
        });
        join_all(answers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_goes_on_from_any_cut() {
    let engine = Engine::start().await;
    let faq = faq();
    let longest = faq.iter().max_by_key(|entry| entry.answer.len()).unwrap();
    let (question, answer) = (&longest.questions[0], &longest.answer);
    let cuts: Vec<usize> = (1..answer.len()).filter(|cut| answer.is_char_boundary(*cut)).collect();
    let mut exact = 0;
    for some in cuts.chunks(SLOTS) {
        let rests = some.iter().map(async |cut| {
            let begun = json!({ "role": "assistant", "content": answer[..*cut] });
            engine.chat(json!([user(question), begun]), false).await == answer[*cut..]
        });
        exact += join_all(rests).await.into_iter().filter(|exact| *exact).count();
    }
    assert_eq!(exact, cuts.len(), "of {} cuts", cuts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendered_prompt_sent_raw_gives_the_same_answer() {
    let engine = Engine::start().await;
    let entry = &faq()[0];
    let messages = json!([user(&entry.questions[0])]);
    let look = json!({ "model": "omx-guide", "messages": messages, "_debug_render_only": true });
    let rendered = engine.post("/api/chat", look).await[0]["_debug_info"]["rendered_template"].clone();
    let raw = json!({ "model": "omx-guide", "prompt": rendered, "raw": true, "stream": false, "options": { "temperature": 0 } });
    assert_eq!(engine.post("/api/generate", raw).await[0]["response"], json!(entry.answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_kept_to_by_a_model_that_has_never_seen_one() {
    let engine = Engine::start().await;
    let schema = json!({
        "type": "object",
        "properties": { "count": { "type": "integer" }, "kind": { "enum": ["a", "b"] } },
        "required": ["count", "kind"],
    });
    for seed in 0..10 {
        let request = json!({
            "model": "omx-guide", "prompt": "How many?", "format": schema, "stream": false, "options": { "seed": seed },
        });
        let answer = &engine.post("/api/generate", request).await[0];
        if answer["done_reason"] == "length" {
            continue;
        }
        let value: Value = serde_json::from_str(answer["response"].as_str().unwrap()).unwrap();
        assert!(value["count"].is_number() && ["a", "b"].contains(&value["kind"].as_str().unwrap()), "{value}");
    }
}
