//! Clients that are slow, silent, greedy or cut off, on real sockets.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use node::test_util::Solo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;
use crate::config::{Config, Limits, Local};
use crate::host::Hosts;

/// More than anything here takes; whoever waits this long has found a bug.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    address: SocketAddr,
    shutdown: CancellationToken,
    /// Lets `/waits` answer.
    go: Arc<Notify>,
    /// Told when `/waits` was asked.
    asked: Arc<Notify>,
    face: Arc<Face>,
    server: JoinSet<()>,
    solo: Solo,
}

impl Rig {
    async fn new(limits: Limits) -> Self {
        let solo = Solo::start().await;
        let shutdown = CancellationToken::new();
        let config = Config { limits: limits.clone(), ..Config::new(Local::Cookie("unused".into())) };
        let hosts = Hosts::new(&[]).unwrap();
        let face = Arc::new(Face::new(solo.api.clone(), hosts, None, &config, shutdown.clone()));
        let (go, asked) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let waits = {
            let (go, asked) = (go.clone(), asked.clone());
            async move || {
                asked.notify_one();
                go.notified().await;
                "done"
            }
        };
        let endless = async || {
            let block = Ok::<_, Infallible>(vec![0_u8; 65_536]);
            Response::new(Body::from_stream(futures::stream::repeat(block)))
        };
        let router = Router::new()
            .route("/fine", get(async || "fine"))
            .route("/panics", get(async || -> &str { panic!("as the test wants it") }))
            .route("/endless", get(endless))
            .route("/waits", get(waits))
            .merge(table::router(face.clone(), table::routes()));
        let service = Service::new(face.clone(), router);
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let mut server = JoinSet::new();
        let stop = shutdown.clone();
        server.spawn(async move {
            let crowd = Crowd::new(limits.connections, limits.connections_per_ip);
            receive(tcp, crowd, &Lanes::start().await, &service, &stop).await;
        });
        Self { address, shutdown, go, asked, face, server, solo }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn say(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// The answer to one request on a connection of its own.
    async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        to_end(&mut self.say(&request).await).await
    }

    async fn ends(&mut self) {
        within(self.server.join_next()).await.unwrap().unwrap();
    }
}

async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes to an end")
}

/// What the server says until it closes the connection.
async fn to_end(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    match within(stream.read_to_end(&mut said)).await {
        Ok(_) => {}
        // Closed with something of ours unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn short() -> Limits {
    Limits {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        body: Duration::from_millis(300),
        stalled: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_silent_socket_is_closed() {
    let rig = Rig::new(short()).await;
    let mut silent = rig.connect().await;
    assert_eq!(to_end(&mut silent).await, "");
}

#[tokio::test]
async fn dribbled_headers_are_cut_off_while_they_dribble() {
    let rig = Rig::new(short()).await;
    let (mut reading, mut writing) = rig.say("GET /fine HTTP/1.1\r\nhost: localhost\r\n").await.into_split();
    let dribble = async {
        // Ends when the server has closed the connection.
        while writing.write_all(b"x: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut said = Vec::new();
    let closed = async { within(reading.read_to_end(&mut said)).await };
    let (_, closed) = within(async { futures::join!(dribble, closed) }).await;
    assert!(closed.is_err() || said.is_empty(), "nothing was answered: {said:?}");
}

#[tokio::test]
async fn a_connection_kept_for_later_is_closed_when_nothing_comes() {
    let rig = Rig::new(short()).await;
    let mut kept = rig.say("GET /fine HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let said = to_end(&mut kept).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("fine"), "{said}");
    assert!(!said.to_ascii_lowercase().contains("connection: close"), "it was meant to be kept: {said}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_waited_for_no_longer() {
    let rig = Rig::new(short()).await;
    let head = "POST /omx/v1/keys HTTP/1.1\r\nhost: localhost\r\nx-api-key: x\r\ncontent-length: 10\r\n\r\n{";
    // Without a right to ask, nothing of the body is read at all.
    assert!(to_end(&mut rig.say(head).await).await.starts_with("HTTP/1.1 401"));
    let api = &rig.solo.api;
    let scopes = types::Scopes::all();
    let key = api.create_key(api.user(0), "test".to_owned(), scopes, None, node::KeyLimits::NONE).await.unwrap();
    let head = head.replace("x-api-key: x", &format!("x-api-key: {}", key.text.expose()));
    let said = to_end(&mut rig.say(&head).await).await;
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("slow_body"), "{said}");
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let rig = Rig::new(short()).await;
    let mut deaf = rig.say("GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    // The server goes on writing for as long as it is read, and gives up once it is not.
    let mut some = [0; 1_000];
    within(deaf.read_exact(&mut some)).await.unwrap();
    // Seen from inside: a client that does not read does not see the end of what it reads.
    within(async {
        while rig.face.metrics().connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn slow_sockets_keep_nobody_out() {
    let limits = Limits { connections: 8, connections_per_ip: 4, ..Limits::default() };
    let rig = Rig::new(limits).await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(rig.connect().await);
        assert!(rig.get("/fine").await.ends_with("fine"));
    }
    // The first gave way long before its own deadline.
    assert_eq!(to_end(&mut silent[0]).await, "");
}

#[tokio::test]
async fn connections_that_are_being_served_do_not_give_way() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let rig = Rig::new(limits).await;
    let mut served = rig.say("GET /waits HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    within(rig.asked.notified()).await;
    assert_eq!(to_end(&mut rig.connect().await).await, "", "there is no room");
    rig.go.notify_one();
    assert!(to_end(&mut served).await.ends_with("done"));
    within(async { while !rig.get("/fine").await.ends_with("fine") {} }).await;
}

#[tokio::test]
async fn a_panic_costs_its_connection_and_nothing_else() {
    let rig = Rig::new(Limits::default()).await;
    let mut stream = rig.say("GET /panics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let said = to_end(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 500") && said.contains("\"code\":\"internal\""), "{said}");
    assert!(said.contains("omx-request-id: ") && !said.contains("as the test wants it"), "{said}");
    assert!(rig.get("/fine").await.ends_with("fine"));
}

#[tokio::test]
async fn headers_have_limits() {
    let rig = Rig::new(Limits::default()).await;
    let many = "a: b\r\n".repeat(101);
    let long = format!("a: {}\r\n", "b".repeat(16 << 10));
    for headers in [many, long] {
        let request = format!("GET /fine HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let said = to_end(&mut rig.say(&request).await).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
    assert!(rig.get("/fine").await.ends_with("fine"));
}

#[tokio::test]
async fn at_the_end_running_requests_finish_and_waiting_connections_close() {
    let mut rig = Rig::new(Limits::default()).await;
    let mut silent = rig.connect().await;
    let mut kept = rig.say("GET /fine HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let mut first = [0; 12];
    within(kept.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let mut running = rig.say("GET /waits HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    within(rig.asked.notified()).await;
    rig.shutdown.cancel();
    to_end(&mut kept).await;
    to_end(&mut silent).await;
    assert!(TcpStream::connect(rig.address).await.is_err(), "nobody listens any more");
    rig.go.notify_one();
    assert!(to_end(&mut running).await.ends_with("done"));
    rig.ends().await;
}

#[tokio::test]
async fn whoever_runs_the_server_can_end_it_at_once() {
    let mut rig = Rig::new(Limits::default()).await;
    let mut stuck = rig.say("GET /waits HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    within(rig.asked.notified()).await;
    rig.server.abort_all();
    assert_eq!(to_end(&mut stuck).await, "");
    assert!(within(rig.server.join_next()).await.unwrap().unwrap_err().is_cancelled());
}
