//! The fake behaves as Ollama does where schedulers can tell: slots, queue, loads, caches, ends.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fakes::{Config, End, Fault, Model, Ollama, token};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(20);

async fn start(config: Config) -> Ollama {
    Ollama::start(config).await.unwrap()
}

/// A model of which a request takes as long as wanted: its answers do not end by themselves.
fn endless() -> Model {
    Model { answer_tokens: Some(1_000_000), decode: 200.0, ..Model::completion("fake:1b") }
}

async fn send(address: SocketAddr, path: &str, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

/// Everything up to the end of the connection, and whether that was a clean one for HTTP.
async fn ask(address: SocketAddr, path: &str, body: &Value) -> String {
    let mut answer = Vec::new();
    let mut stream = send(address, path, body).await;
    // A connection that is reset has been read as far as it goes.
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn objects(answer: &str) -> Vec<Value> {
    let objects = answer.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn said(answer: &str) -> String {
    objects(answer).iter().filter_map(|chunk| chunk["response"].as_str().map(str::to_owned)).collect()
}

fn prompt(text: &str) -> Value {
    json!({ "model": "fake:1b", "prompt": text, "raw": true, "options": { "num_predict": 8 } })
}

fn whole(text: &str) -> Value {
    json!({ "model": "fake:1b", "prompt": text, "stream": false, "options": { "num_predict": 2 } })
}

#[tokio::test]
async fn a_cut_answer_is_continued_by_raw_text_without_gap_or_double() {
    let ollama = start(Config { models: vec![endless()], ..Config::default() }).await;
    let begun: String = (0..5).map(token).collect();
    let rest = said(&ask(ollama.address(), "/api/generate", &prompt(&format!("what?\n{begun}"))).await);
    assert_eq!(begun + &rest, (0..13).map(token).collect::<String>());
}

#[tokio::test]
async fn a_trailing_assistant_message_is_repeated_in_the_first_chunk_and_gone_on_with() {
    let ollama = start(Config::default()).await;
    let messages = json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "t0 t1" }]);
    let body = json!({ "model": "fake:1b", "messages": messages, "options": { "num_predict": 2 } });
    let chunks = objects(&ask(ollama.address(), "/api/chat", &body).await);
    let texts: Vec<_> = chunks.iter().map(|chunk| chunk["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["t0 t1 t2", " t3", ""]);
}

#[tokio::test]
async fn one_slot_is_one_request_at_a_time_and_the_others_wait() {
    let ollama = start(Config { models: vec![endless()], ..Config::default() }).await;
    let body = json!({ "model": "fake:1b", "prompt": "x" });
    let first = send(ollama.address(), "/api/generate", &body).await;
    ollama.until(|counts| counts.running == 1, LIMIT).await.unwrap();
    let second = send(ollama.address(), "/api/generate", &body).await;
    ollama.until(|counts| counts.waiting == 1, LIMIT).await.unwrap();
    assert_eq!(ollama.counts().running_max, 1);
    drop(first);
    ollama.until(|counts| counts.cancelled == 1 && counts.running == 1 && counts.waiting == 0, LIMIT).await.unwrap();
    drop(second);
    let counts = ollama.until(|counts| counts.running == 0 && counts.connections_open == 0, LIMIT).await.unwrap();
    assert_eq!((counts.cancelled, counts.finished, counts.loads), (2, 0, 1));
    assert!(ollama.served().iter().all(|served| served.end == End::Cancelled));
}

#[tokio::test]
async fn a_client_that_goes_while_it_waits_leaves_nothing() {
    let ollama = start(Config { models: vec![endless()], ..Config::default() }).await;
    let body = json!({ "model": "fake:1b", "prompt": "x" });
    let running = send(ollama.address(), "/api/generate", &body).await;
    ollama.until(|counts| counts.running == 1, LIMIT).await.unwrap();
    let waiting = send(ollama.address(), "/api/generate", &body).await;
    ollama.until(|counts| counts.waiting == 1, LIMIT).await.unwrap();
    drop(waiting);
    ollama.until(|counts| counts.waiting == 0 && counts.connections_open == 1, LIMIT).await.unwrap();
    drop(running);
    ollama.until(|counts| counts.running == 0 && counts.connections_open == 0, LIMIT).await.unwrap();
}

#[tokio::test]
async fn what_a_slot_remembers_is_not_read_again() {
    let model = Model { prefill: 4_000.0, ..Model::completion("fake:1b") };
    let ollama = start(Config { models: vec![model], ..Config::default() }).await;
    let text = "word ".repeat(160);
    let mut read = Vec::new();
    for _ in 0..2 {
        let answer = objects(&ask(ollama.address(), "/api/generate", &whole(&text)).await).remove(0);
        read.push((answer["prompt_eval_count"].clone(), answer["prompt_eval_duration"].as_u64().unwrap()));
    }
    assert_eq!(read[0].0, read[1].0, "what was remembered is counted all the same");
    assert!(read[0].1 >= 50_000_000 && read[1].1 < read[0].1 / 2, "{read:?}");
}

#[tokio::test]
async fn another_context_length_is_a_reload_and_the_same_is_none() {
    let ollama = start(Config::default()).await;
    let with =
        |context: u32| json!({ "model": "fake:1b", "prompt": "x", "stream": false, "options": { "num_ctx": context } });
    let mut loads = Vec::new();
    for context in [2048, 2048, 4096, 4096] {
        ask(ollama.address(), "/api/generate", &with(context)).await;
        loads.push(ollama.counts().loads);
    }
    ask(ollama.address(), "/api/generate", &json!({ "model": "fake:1b", "keep_alive": 0 })).await;
    ask(ollama.address(), "/api/generate", &with(4096)).await;
    assert_eq!((loads, ollama.counts().loads), (vec![1, 1, 2, 2], 3));
}

#[tokio::test]
async fn too_many_that_wait_for_a_load_are_told_that_it_is_busy() {
    let models = vec![Model { load: Duration::from_secs(3600), ..Model::completion("fake:1b") }];
    let ollama = start(Config { models, pending_max: 1, ..Config::default() }).await;
    let loading = send(ollama.address(), "/api/generate", &whole("x")).await;
    ollama.until(|counts| counts.loads == 1, LIMIT).await.unwrap();
    let answer = ask(ollama.address(), "/api/generate", &whole("x")).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("try again.  maximum"), "{answer}");
    drop(loading);
    ollama.until(|counts| counts.waiting == 0, LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_stream_is_cut_at_the_byte_that_was_told() {
    let ollama = start(Config::default()).await;
    ollama.faults().next(1, Fault::Cut { at: 20 });
    let cut = ask(ollama.address(), "/api/generate", &prompt("x")).await;
    let (_, body) = cut.split_once("\r\n\r\n").unwrap();
    // One chunk of twenty bytes, and no chunk that ends the body.
    assert_eq!(body, "14\r\n{\"model\":\"fake:1b\",\"\r\n");
    let (_, body) = {
        ollama.faults().next(1, Fault::Cut { at: 20 });
        let cut = ask(ollama.address(), "/api/generate", &whole("x")).await;
        (0, cut.split_once("\r\n\r\n").unwrap().1.to_owned())
    };
    assert_eq!(body.len(), 20);
    assert!(ask(ollama.address(), "/api/generate", &prompt("x")).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn streams_end_as_faults_tell_them_to() {
    let ollama = start(Config::default()).await;
    let faults = ollama.faults();
    let address = ollama.address();

    faults.next(1, Fault::ErrorInside { after: 2 });
    let chunks = objects(&ask(address, "/api/generate", &prompt("x")).await);
    assert!(chunks.len() == 3 && chunks[2]["error"].is_string(), "{chunks:?}");

    faults.next(1, Fault::EndEarly { after: 2 });
    let answer = ask(address, "/api/generate", &prompt("x")).await;
    assert!(objects(&answer).len() == 2 && answer.ends_with("0\r\n\r\n"), "{answer}");

    faults.next(1, Fault::Status { status: 500 });
    assert!(ask(address, "/api/generate", &prompt("x")).await.starts_with("HTTP/1.1 500"));

    faults.next(1, Fault::WrongModel);
    assert_eq!(objects(&ask(address, "/api/generate", &prompt("x")).await)[0]["model"], "another:latest");

    faults.next(1, Fault::Refuse);
    assert_eq!(ask(address, "/api/generate", &prompt("x")).await, "");
    assert_eq!(said(&ask(address, "/api/generate", &prompt("x")).await), (0..8).map(token).collect::<String>());
}

#[tokio::test]
async fn a_request_that_hangs_is_over_when_its_client_goes() {
    let ollama = start(Config::default()).await;
    for fault in [Fault::Hang, Fault::HangInside { after: 1 }] {
        ollama.faults().next(1, fault);
        let before = ollama.counts().requests;
        let hanging = send(ollama.address(), "/api/generate", &prompt("x")).await;
        ollama.until(|counts| counts.requests > before, LIMIT).await.unwrap();
        drop(hanging);
        ollama.until(|counts| counts.connections_open == 0 && counts.running == 0, LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_fake_says_nothing_at_all_until_it_thaws() {
    let ollama = start(Config { models: vec![endless()], ..Config::default() }).await;
    let mut stream = send(ollama.address(), "/api/generate", &json!({ "model": "fake:1b", "prompt": "x" })).await;
    ollama.until(|counts| counts.running == 1, LIMIT).await.unwrap();
    ollama.faults().always(Fault::Freeze);
    let mut version = send(ollama.address(), "/api/version", &json!({})).await;
    ollama.until(|counts| counts.requests == 2, LIMIT).await.unwrap();
    let silence = Duration::from_millis(100);
    let mut buffer = vec![0; 1 << 16];
    assert!(tokio::time::timeout(silence, version.read(&mut buffer)).await.is_err());
    // What was under way arrives; then nothing does.
    while tokio::time::timeout(silence, stream.read(&mut buffer)).await.is_ok() {}
    ollama.faults().clear();
    assert!(tokio::time::timeout(LIMIT, version.read(&mut buffer)).await.unwrap().unwrap() > 0);
    assert!(tokio::time::timeout(LIMIT, stream.read(&mut buffer)).await.unwrap().unwrap() > 0);
}

#[tokio::test]
async fn a_slow_one_takes_as_many_times_as_long() {
    let model = Model { decode: 500.0, ..Model::completion("fake:1b") };
    let ollama = start(Config { models: vec![model], ..Config::default() }).await;
    ollama.faults().next(1, Fault::Slow { factor: 20.0 });
    let begun = Instant::now();
    ask(ollama.address(), "/api/generate", &prompt("x")).await;
    assert!(begun.elapsed() >= Duration::from_millis(8 * 2 * 20));
}

#[tokio::test]
async fn faults_can_be_ordered_over_http_where_that_is_allowed() {
    let order = json!({ "fault": "status", "status": 502, "next": 1 });
    let closed = start(Config::default()).await;
    assert!(ask(closed.address(), "/__fault", &order).await.starts_with("HTTP/1.1 404"));
    let open = start(Config { control: true, ..Config::default() }).await;
    assert!(ask(open.address(), "/__fault", &order).await.starts_with("HTTP/1.1 200"));
    assert!(ask(open.address(), "/__fault", &json!({ "fault": "melt" })).await.starts_with("HTTP/1.1 400"));
    assert!(ask(open.address(), "/api/generate", &whole("x")).await.starts_with("HTTP/1.1 502"));
    assert!(ask(open.address(), "/api/generate", &whole("x")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn hosts_and_origins_from_elsewhere_are_forbidden() {
    let ollama = start(Config::default()).await;
    for (headers, status) in [
        ("host: localhost:11434", "200"),
        ("host: node.local", "200"),
        ("host: example.org", "403"),
        ("host: localhost\r\norigin: https://example.org", "403"),
        ("host: localhost\r\norigin: http://localhost:3000", "200"),
    ] {
        let mut stream = TcpStream::connect(ollama.address()).await.unwrap();
        let request = format!("GET /api/tags HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {answer}");
    }
}

#[tokio::test]
async fn stopping_frees_the_port_for_the_next() {
    let ollama = start(Config { models: vec![endless()], ..Config::default() }).await;
    let address = ollama.address();
    let _running = send(address, "/api/generate", &json!({ "model": "fake:1b", "prompt": "x" })).await;
    ollama.until(|counts| counts.running == 1, LIMIT).await.unwrap();
    let counts = ollama.stop().await;
    assert_eq!((counts.running, counts.connections_open, counts.cancelled), (0, 0, 1));
    assert!(TcpStream::connect(address).await.is_err());
    start(Config { address, ..Config::default() }).await;
}
