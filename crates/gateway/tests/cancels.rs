//! Clients that leave: their backend stops, and nothing of them stays behind.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(target_os = "linux")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fakes::{Model, Ollama};
use gateway::{Config, Local};
use node::test_util::Solo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const MODEL: &str = "tiny:latest";
const CANCELS: usize = 10_000;
const AT_ONCE: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    fake: Ollama,
    solo: Solo,
    api: SocketAddr,
    _task: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new(slots: usize, decode: f64) -> Self {
        let model = Model { decode, ..Model::completion(MODEL) };
        let config = fakes::Config { models: vec![model], slots, ..fakes::Config::default() };
        let fake = Ollama::start(config).await.unwrap();
        let solo = Solo::before(fake.address()).await;
        let folder = tempfile::tempdir().unwrap();
        let local = Local::Socket(folder.path().join("run/omx.sock"));
        let config = Config { api: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::new(local) };
        let bound = gateway::bind(config).await.unwrap();
        let api = bound.addresses().api;
        let mut task = JoinSet::new();
        task.spawn(bound.open(solo.api.clone(), CancellationToken::new()).unwrap().run());
        Self { fake, solo, api, _task: task, _folder: folder }
    }
}

/// A request for a long answer, of which the connection is the client.
async fn ask(api: SocketAddr, stream: bool) -> TcpStream {
    let mut connection = TcpStream::connect(api).await.unwrap();
    let body =
        format!(r#"{{"model":"{MODEL}","prompt":"a story","stream":{stream},"options":{{"num_predict":5000}}}}"#);
    let head = format!("POST /api/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).await.unwrap();
    connection
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_backend_within_a_second() {
    let rig = Rig::new(2, 20.0).await;
    for stream in [true, false] {
        let mut client = ask(rig.api, stream).await;
        rig.fake.until(|counts| counts.running == 1, PATIENCE).await.unwrap();
        if stream {
            assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
        }
        let cancelled = rig.fake.counts().cancelled;
        drop(client);
        let stopped = rig.fake.until(|counts| counts.cancelled > cancelled, Duration::from_secs(1)).await;
        assert!(stopped.is_ok_and(|counts| counts.running == 0), "stream: {stream}");
    }
}

/// In whatever state they are: asked, waiting for a slot, answered in part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_that_leave_leave_nothing_behind() {
    let rig = Rig::new(4, 2_000.0).await;
    // What is opened once and kept: connections to the backend, the runtime's own.
    drop(ask(rig.api, true).await);
    rig.fake.until(|counts| counts.requests > 0 && counts.running == 0, PATIENCE).await.unwrap();
    let (descriptors, tasks) = (descriptors(), tasks());
    let mut clients = JoinSet::new();
    for number in 0..CANCELS {
        if clients.len() == AT_ONCE {
            clients.join_next().await.unwrap().unwrap();
        }
        let api = rig.api;
        clients.spawn(async move {
            let mut client = ask(api, !number.is_multiple_of(3)).await;
            match number % 4 {
                0 => {}
                1 => sleep(Duration::from_micros(number as u64 % 7_000)).await,
                _ => drop(timeout(Duration::from_millis(20), client.read(&mut [0; 300])).await),
            }
        });
    }
    while let Some(left) = clients.join_next().await {
        left.unwrap();
    }
    let inference = rig.solo.api.inference();
    let is_quiet = || {
        let figures = inference.figures();
        figures.under_way == 0 && figures.running == 0 && figures.waiting == 0
    };
    until("no request is left", is_quiet).await;
    rig.fake.until(|counts| counts.running == 0 && counts.waiting == 0, PATIENCE).await.unwrap();
    // Connections to the backend are kept, a few more than before at most.
    until("descriptors are given back", || self::descriptors() <= descriptors + 16).await;
    // Connections have threads of their own, whose tasks are not counted here.
    timeout(PATIENCE, async { while !is_alone(rig.api).await {} }).await.expect("connections come to an end");
    until("tasks end", || self::tasks() <= tasks + 32).await;
    // Some left before anybody had read what they asked.
    let dispatched = inference.figures().dispatched;
    assert!(dispatched.requests > CANCELS as u64 / 2 && dispatched.cancelled > CANCELS as u64 / 4, "{dispatched:?}");
}

/// Whether the node serves no connection but the one that asks.
async fn is_alone(api: SocketAddr) -> bool {
    let mut connection = TcpStream::connect(api).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.contains("omx_http_connections 1\n")
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = async {
        while !so() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, waited).await.is_ok(), "{what}: {} descriptors, {} tasks", descriptors(), tasks());
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
