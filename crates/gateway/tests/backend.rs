//! Ollama's and OpenAI's API as clients find them, before an Ollama without a model.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use fakes::golden::{Subject, Table};
use fakes::{Fault, Model, token};
use gateway::{Config, Local};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use node::test_util::Solo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

struct Rig {
    fake: fakes::Ollama,
    api: SocketAddr,
    _solo: Solo,
    _task: JoinSet<()>,
    _folder: TempDir,
}

#[derive(Debug)]
struct Said {
    status: StatusCode,
    head: HeaderMap,
    kind: String,
    text: String,
}

const MODEL: &str = "tiny:latest";

impl Rig {
    async fn new() -> Self {
        let models = vec![Model::completion(MODEL), Model::embedding("vectors:latest")];
        let fake = fakes::Ollama::start(fakes::Config { models, ..fakes::Config::default() }).await.unwrap();
        let solo = Solo::before(fake.address()).await;
        let folder = tempfile::tempdir().unwrap();
        let local = Local::Socket(folder.path().join("run/omx.sock"));
        let config = Config { api: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::new(local) };
        let bound = gateway::bind(config).await.unwrap();
        let api = bound.addresses().api;
        let mut task = JoinSet::new();
        task.spawn(bound.open(solo.api.clone(), CancellationToken::new()).unwrap().run());
        Self { fake, api, _solo: solo, _task: task, _folder: folder }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Said {
        let stream = TcpStream::connect(self.api).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(path).header("host", "localhost").body(Body::from(body));
        let (head, body) = sender.send_request(request.unwrap()).await.unwrap().into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Said { status: head.status, head: head.headers, kind, text }
    }

    async fn post(&self, path: &str, body: Value) -> Said {
        self.ask("POST", path, &body).await
    }
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// What stands behind each `data:`.
    fn events(&self) -> Vec<&str> {
        assert_eq!(self.kind, "text/event-stream");
        assert!(self.text.ends_with("\n\n"), "{:?}", self.text);
        let events = self.text.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"))).collect()
    }
}

fn question(stream: bool) -> Value {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": "?" }], "max_tokens": 20, "stream": stream })
}

fn tokens(count: u32) -> String {
    (0..count).map(token).collect()
}

fn content(events: &[&str]) -> String {
    let chunk = |event: &&str| serde_json::from_str::<Value>(event).ok();
    let chunks = events.iter().filter_map(chunk);
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

/// What clients of one Ollama find, they find here.
#[tokio::test]
async fn the_gateway_answers_as_the_tables_of_ollama_say() {
    let rig = Rig::new().await;
    let subject = Subject {
        address: rig.api,
        headers: Vec::new(),
        model: MODEL.to_owned(),
        embedder: Some("vectors:latest".to_owned()),
        registry: None,
        differs: Vec::new(),
    };
    // A field of a wrong type is told in our own words.
    for (table, differs) in [(Table::ollama(), vec![]), (Table::openai(), vec!["a prompt is a text"])] {
        let report = table.check(&Subject { differs, ..subject.clone() }).await;
        assert!(report.findings.is_empty(), "\n{}", report.text());
    }
}

#[tokio::test]
async fn a_conversation_is_answered_as_openai_does() {
    let rig = Rig::new().await;
    let said = rig.post("/v1/chat/completions", question(false)).await;
    assert_eq!((said.status, said.kind.as_str()), (StatusCode::OK, "application/json"));
    let answer = said.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], tokens(20));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 20);

    let said = rig.post("/v1/chat/completions", question(true)).await;
    let events = said.events();
    assert_eq!(events.last(), Some(&"[DONE]"));
    assert_eq!(content(&events), tokens(20));
}

#[tokio::test]
async fn prompts_vectors_and_lists_are_answered_as_openai_does() {
    let rig = Rig::new().await;
    let prompt = json!({ "model": MODEL, "prompt": "?", "max_tokens": 5 });
    let answer = rig.post("/v1/completions", prompt).await.json();
    assert_eq!((&answer["object"], &answer["choices"][0]["text"]), (&json!("text_completion"), &json!(tokens(5))));
    let answer = rig.post("/v1/embeddings", json!({ "model": "vectors", "input": ["a", "b"] })).await.json();
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2), "{answer}");
    let answer = rig.ask("GET", "/v1/models", &Value::Null).await.json();
    let mut names: Vec<_> =
        answer["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, [MODEL, "vectors:latest"]);
    let answer = rig.ask("GET", "/v1/models/tiny", &Value::Null).await.json();
    assert_eq!((&answer["id"], &answer["owned_by"]), (&json!("tiny"), &json!("library")));
}

#[tokio::test]
async fn what_fails_is_told_in_openai_s_shape() {
    let rig = Rig::new().await;
    for (path, body, status, kind) in [
        (
            "/v1/chat/completions",
            json!({ "model": "absent", "messages": [{ "role": "user", "content": "?" }] }),
            404,
            "not_found_error",
        ),
        ("/v1/chat/completions", json!({ "model": MODEL, "messages": [] }), 400, "invalid_request_error"),
        ("/v1/chat/completions", json!([]), 400, "invalid_request_error"),
        ("/v1/completions", json!({ "model": "absent", "prompt": "?" }), 404, "not_found_error"),
        ("/v1/embeddings", json!({ "model": MODEL, "input": 7 }), 400, "invalid_request_error"),
    ] {
        let said = rig.post(path, body.clone()).await;
        assert_eq!(said.status.as_u16(), status, "{path} {body}: {}", said.text);
        let error = &said.json()["error"];
        assert_eq!(error["type"], kind, "{path} {body}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    }
    let said = rig.ask("GET", "/v1/models/absent", &Value::Null).await;
    assert_eq!((said.status.as_u16(), &said.json()["error"]["type"]), (404, &json!("not_found_error")));
}

/// An operator who reads of an error wants to know where to look.
#[tokio::test]
async fn an_error_says_whose_it_is_as_an_answer_does() {
    let rig = Rig::new().await;
    let said_of = |said: &Said| ["omx-node", "omx-attempts"].map(|name| said.head.get(name).cloned());
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "?" }], "stream": false });
    let answer = rig.post("/api/chat", body.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let [Some(node), Some(attempts)] = said_of(&answer) else { panic!("{answer:?}") };
    assert_eq!((node, attempts), ("solo".parse().unwrap(), "1".parse().unwrap()));
    for fault in [Fault::Status { status: 500 }, Fault::Status { status: 418 }] {
        rig.fake.faults().always(fault);
        for path in ["/api/chat", "/v1/chat/completions"] {
            let error = rig.post(path, body.clone()).await;
            assert!(error.status.as_u16() >= 400 && said_of(&error) == said_of(&answer), "{path}: {error:?}");
        }
    }
}

/// Clients take a stream that just ends for a whole answer. What broke off or crashed is gone on with, by the same backend
/// where there is no other; an end without a last line is the backend's own doing.
#[tokio::test]
async fn an_answer_that_breaks_off_goes_on_or_ends_with_an_error_and_never_as_done() {
    let mut rig = Rig::new().await;
    for fault in [Fault::Cut { at: 900 }, Fault::EndEarly { after: 5 }, Fault::ErrorInside { after: 5 }] {
        rig.fake.faults().next(1, fault.clone());
        let said = rig.post("/v1/chat/completions", question(true)).await;
        let events = said.events();
        if !matches!(fault, Fault::EndEarly { .. }) {
            assert!(events.last() == Some(&"[DONE]") && content(&events) == tokens(20), "{fault:?}: {said:?}");
            continue;
        }
        let last: Value =
            serde_json::from_str(events.last().unwrap()).unwrap_or_else(|_| panic!("{fault:?} {events:?}"));
        assert!(last["error"]["message"].is_string(), "{fault:?}: {last}");
        let begun = content(&events);
        assert!(!begun.is_empty() && tokens(20).starts_with(&begun), "{fault:?}: {begun}");
    }
    rig.fake.faults().always(Fault::Status { status: 500 });
    let said = rig.post("/v1/chat/completions", question(true)).await;
    assert_eq!((said.status.as_u16(), &said.json()["error"]["type"]), (500, &json!("api_error")));
    let other = fakes::Ollama::start(fakes::Config::default()).await.unwrap();
    std::mem::replace(&mut rig.fake, other).stop().await;
    let said = rig.post("/v1/chat/completions", question(true)).await;
    // The agent may have noticed by then.
    assert!(matches!(said.status.as_u16(), 502 | 503), "{said:?}");
    assert_eq!(said.json()["error"]["type"], "api_error");
}
