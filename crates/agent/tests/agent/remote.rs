//! The same agent asked from another node, over streams in memory.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::remote::{Answer, Error, Limits};
use agent::{Probe, Refusal, Remote, Reply, Request, Route, answer_probe, serve};
use bytes::Bytes;
use fakes::{Fault, Kind, Model};
use scheduler::{ModelKey, Seconds, Work};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::NodeId;

use crate::bench::{Bench, LIMIT, NAME, bench, model, slots};

/// What stands between two nodes: each dialled stream is served until the node is dropped.
struct Link {
    bench: Bench,
    remote: Remote,
    served: Arc<Mutex<JoinSet<()>>>,
    dialled: AtomicUsize,
}

const LIMITS: Limits = Limits { connect: LIMIT, head: LIMIT, between: LIMIT };

fn node() -> NodeId {
    NodeId::from_public_key([1; 32])
}

async fn link(fake: fakes::Config, config: agent::Config) -> Link {
    let bench = bench(fake, config).await;
    Link { bench, remote: Remote::default(), served: Arc::default(), dialled: AtomicUsize::new(0) }
}

impl Link {
    fn dial(&self) -> DuplexStream {
        let (near, far) = duplex(64 << 10);
        let agent = self.bench.agent.clone();
        let find = move |work: &Work| (work.model == agent.model(NAME)?).then(|| agent.clone());
        self.served.lock().unwrap().spawn(async move { drop(serve(find, |key| key == "good", far).await) });
        self.dialled.fetch_add(1, Ordering::Relaxed);
        near
    }

    async fn run(&self, request: Request) -> Result<Answer, Error> {
        let answer = self.remote.run(node(), request, LIMITS, async { Ok(self.dial()) });
        timeout(LIMIT, answer).await.unwrap()
    }

    async fn run_one(&self) -> Result<Answer, Error> {
        self.run(self.bench.request()).await
    }

    fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }
}

/// All that came, and how it ended.
async fn read(answer: &mut Answer) -> (Vec<Bytes>, Result<(), Error>) {
    let mut pieces = Vec::new();
    while let Some(piece) = timeout(LIMIT, answer.next()).await.unwrap() {
        match piece {
            Ok(piece) => pieces.push(piece),
            Err(error) => return (pieces, Err(error)),
        }
    }
    (pieces, Ok(()))
}

#[tokio::test]
async fn an_answer_comes_line_by_line_and_its_connection_is_used_again() {
    let link = link(model(20, 5000.0), slots(1)).await;
    for _ in 0..3 {
        let mut answer = link.run_one().await.unwrap();
        assert_eq!(answer.status, 200);
        let (lines, end) = read(&mut answer).await;
        end.unwrap();
        assert!(lines.iter().all(|line| line.starts_with(b"{") && line.ends_with(b"}\n")));
        let last: ollama::seen::Last = serde_json::from_slice(lines.last().unwrap()).unwrap();
        assert_eq!((last.done, last.eval_count), (true, 20));
    }
    assert_eq!((link.dialled(), link.bench.fake.counts().finished), (1, 3));
}

#[tokio::test]
async fn what_is_no_stream_and_what_the_backend_refuses_come_as_they_are() {
    let models = vec![Model::completion(NAME), Model { kind: Kind::Embedding, ..Model::completion("embed:1b") }];
    let link = link(fakes::Config { models, ..fakes::Config::default() }, slots(1)).await;
    let ask = |route, body: &'static str| Request { route, body: Bytes::from(body), ..link.bench.request() };
    let mut answer = link.run(ask(Route::Embed, r#"{"model":"embed:1b","input":["a","b"]}"#)).await.unwrap();
    let (pieces, end) = read(&mut answer).await;
    end.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&pieces.concat()).unwrap();
    assert_eq!(body["embeddings"].as_array().unwrap().len(), 2);
    let mut answer = link.run(ask(Route::Chat, r#"{"model":"unknown"}"#)).await.unwrap();
    assert_eq!(answer.status, 404);
    let (pieces, end) = read(&mut answer).await;
    end.unwrap();
    assert!(String::from_utf8_lossy(&pieces.concat()).contains("unknown"));
    assert_eq!(link.dialled(), 1);
}

#[tokio::test]
async fn refusals_come_typed_and_cost_no_connection() {
    let link = link(model(100_000, 1000.0), slots(1)).await;
    let mut request = link.bench.request();
    request.ask.work.model = ModelKey::from_bytes([9; 16]);
    let refused = link.run(request).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::NoModel))), "{refused:?}");
    let inside = link.bench.run().await.unwrap();
    let mut request = link.bench.request();
    request.ask.wait_max = Some(Duration::ZERO);
    let refused = link.run(request).await;
    let is_nack = |refused: &Error| match refused {
        Error::Refused(Refusal::Nack(promise)) => promise.estimate.wait > Seconds::ZERO,
        _ => false,
    };
    assert!(refused.as_ref().is_err_and(is_nack), "{refused:?}");
    let mut request = link.bench.request();
    request.ask.work.deadline = Some(Duration::from_millis(20));
    let refused = link.run(request).await;
    assert!(refused.is_err_and(|refused| !refused.may_differ_elsewhere()));
    link.bench.agent.drain(true);
    let refused = link.run_one().await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::Draining))), "{refused:?}");
    link.bench.agent.drain(false);
    drop(inside);
    link.run_one().await.unwrap();
    assert_eq!(link.dialled(), 1);
}

#[tokio::test]
async fn whoever_had_to_wait_hears_behind_whom_and_how_long_it_would_take() {
    let link = link(model(100_000, 1000.0), slots(1)).await;
    let first = link.run_one().await.unwrap();
    assert_eq!(first.waited, None);
    let leave = async {
        link.bench.until(|agent| agent.waiting() == 1).await;
        drop(first);
    };
    let (second, ()) = tokio::join!(link.run_one(), leave);
    let waited = second.unwrap().waited.unwrap();
    assert_eq!(waited.place, 1);
    assert!(waited.expected > Seconds::ZERO, "{waited:?}");
}

#[tokio::test]
async fn whoever_goes_stops_the_backend_and_leaves_the_queue() {
    let link = link(model(100_000, 1000.0), slots(1)).await;
    let mut answer = link.run_one().await.unwrap();
    answer.next().await.unwrap().unwrap();
    let waits = link.run_one();
    let seen = link.bench.until(|agent| agent.waiting() == 1);
    tokio::select! {
        _ = waits => panic!("the slot is taken"),
        () = seen => {}
    }
    link.bench.until(|agent| agent.waiting() == 0).await;
    drop(answer);
    link.bench.fake.until(|counts| counts.cancelled == 1 && counts.running == 0, LIMIT).await.unwrap();
    link.bench.until(|agent| agent.running() == 0).await;
    link.run_one().await.unwrap().next().await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_there_breaks_off_here() {
    let link = link(model(200, 5000.0), slots(1)).await;
    link.bench.fake.faults().next(1, Fault::Cut { at: 700 });
    let (lines, end) = read(&mut link.run_one().await.unwrap()).await;
    assert!(matches!(end, Err(Error::Broken(_))), "{end:?}");
    assert!(!lines.is_empty() && lines.iter().all(|line| line.ends_with(b"\n")), "whole lines only");
    read(&mut link.run_one().await.unwrap()).await.1.unwrap();
}

#[tokio::test]
async fn a_node_that_dies_leaves_no_answer_that_looks_whole() {
    let link = link(model(100_000, 1000.0), slots(1)).await;
    let mut answer = link.run_one().await.unwrap();
    answer.next().await.unwrap().unwrap();
    link.served.lock().unwrap().abort_all();
    let (_, end) = read(&mut answer).await;
    assert!(matches!(end, Err(Error::Broken(_))), "{end:?}");
    link.bench.until(|agent| agent.running() == 0).await;
}

#[tokio::test]
async fn what_came_by_a_key_that_does_not_allow_it_there_is_refused_and_costs_nothing() {
    let link = link(model(3, 1000.0), slots(1)).await;
    let by = |key: &str| {
        let mut request = link.bench.request();
        request.ask.key = Some(key.to_owned());
        request
    };
    read(&mut link.run(by("good")).await.unwrap()).await.1.unwrap();
    let refused = link.run(by("revoked")).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::Denied))), "{refused:?}");
    assert_eq!(link.bench.fake.counts().inferences, 1);
}

/// What a client makes of these bytes as an answer.
async fn told(bytes: &'static str) -> Result<Vec<Bytes>, Error> {
    let (near, mut far) = duplex(64 << 10);
    let mut peer = JoinSet::new();
    peer.spawn(async move {
        // It ends with the body.
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            far.read_buf(&mut request).await.unwrap();
        }
        far.write_all(bytes.as_bytes()).await.unwrap();
    });
    let bench = bench(model(1, 1000.0), slots(1)).await;
    let mut answer = Remote::default().run(node(), bench.request(), LIMITS, async { Ok(near) }).await?;
    let (pieces, end) = read(&mut answer).await;
    assert!(answer.next().await.is_none(), "nothing follows the end");
    end.map(|()| pieces)
}

#[tokio::test]
async fn only_an_end_that_is_marked_is_one() {
    let whole = told(
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\n{}\n{}\r\n1\r\n\n\r\n0\r\n\r\n",
    );
    assert_eq!(whole.await.unwrap(), ["{}\n", "{}\n"]);
    let no_last_chunk = told(
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n",
    );
    let end = no_last_chunk.await;
    assert!(matches!(end, Err(Error::Broken(_))), "{end:?}");
    let half_a_line = told(
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n\
         4\r\n{}\n{\r\n0\r\n\r\n",
    );
    let end = half_a_line.await;
    assert!(matches!(end, Err(Error::Garbage(_))), "{end:?}");
    let until_closed = told("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n{}\n");
    let end = until_closed.await;
    assert!(matches!(end, Err(Error::Garbage(_))), "{end:?}");
    let no_reason = told("HTTP/1.1 503 No\r\nomx-failure: 99\r\ncontent-length: 0\r\n\r\n");
    let end = no_reason.await;
    assert!(matches!(end, Err(Error::Garbage(_))), "{end:?}");
}

#[tokio::test]
async fn a_node_that_says_nothing_is_left_in_time() {
    let bench = bench(model(1, 1000.0), slots(1)).await;
    let (near, far) = duplex(64 << 10);
    let limits = Limits { connect: Duration::from_millis(10), head: Duration::from_millis(20), between: LIMIT };
    let remote = Remote::default();
    let silent = remote.run(node(), bench.request(), limits, async { Ok(near) });
    let silent = timeout(LIMIT, silent).await.unwrap();
    assert!(matches!(silent, Err(Error::Silent(_))), "{silent:?}");
    let no_way = remote.run(node(), bench.request(), limits, std::future::pending::<io::Result<DuplexStream>>());
    let no_way = timeout(LIMIT, no_way).await.unwrap();
    assert!(matches!(no_way, Err(Error::Unreachable(_))), "{no_way:?}");
    drop(far);
}

/// The head of what a node answers to these bytes; nothing where it only closes.
async fn asked(link: &Link, bytes: &str) -> String {
    let mut stream = link.dial();
    // It may close before it has read all of it.
    drop(stream.write_all(bytes.as_bytes()).await);
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn what_a_peer_may_not_ask_is_refused_and_reaches_no_backend() {
    let link = link(model(1, 1000.0), slots(1)).await;
    let before = link.bench.fake.counts();
    for head in [
        "GET /api/generate HTTP/1.1",
        "POST /api/delete HTTP/1.1",
        "POST /api/generate HTTP/1.1",
        "POST /api/chat HTTP/1.1\r\nomx-ask: 0102",
        "POST /api/chat HTTP/1.1\r\nomx-ask: zz",
    ] {
        let request = format!("{head}\r\nhost: omx\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
        let answer = asked(&link, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("omx-failure: 0102"), "{head}: {answer}");
    }
    let long = format!("POST /api/chat HTTP/1.1\r\nomx-ask: {}\r\n\r\n", "0".repeat(100_000));
    assert!(!asked(&link, &long).await.starts_with("HTTP/1.1 2"));
    assert!(!asked(&link, "\0\0\0\0\r\n\r\n").await.starts_with("HTTP/1.1 2"));
    assert_eq!(link.bench.fake.counts().finished, before.finished);
    read(&mut link.run_one().await.unwrap()).await.1.unwrap();
}

#[tokio::test]
async fn a_probe_is_answered_with_what_a_request_would_meet() {
    let link = link(model(100_000, 1000.0), slots(1)).await;
    let agent = link.bench.agent.clone();
    let find = |work: &Work| (work.model == agent.model(NAME).unwrap()).then(|| agent.clone());
    let probed = |work: Work| {
        let probe = codec::encode(&Probe::new(work, Duration::from_secs(1))).unwrap();
        codec::decode::<Reply>(&answer_probe(find, &probe).unwrap()).unwrap()
    };
    let work = link.bench.ask().work;
    let Reply::Promise(promise) = probed(work.clone()) else { panic!("it was refused") };
    assert_eq!((promise.free_slots, promise.estimate.wait), (1, Seconds::ZERO));
    let Reply::Promise(second) = probed(work.clone()) else { panic!("it was refused") };
    assert_eq!(second.free_slots, 0, "the first was promised the slot");
    assert!(second.estimate.wait > Seconds::ZERO);
    let elsewhere = Work { model: ModelKey::from_bytes([9; 16]), ..work };
    assert_eq!(probed(elsewhere), Reply::Refused(Refusal::NoModel));
    assert!(answer_probe(find, b"junk").is_err());
}
