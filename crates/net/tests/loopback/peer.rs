//! One node of a test: its network, what it serves, and what it has seen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use net::{
    Allowed, ByteStream, Caller, Config, Error, Keypair, Limits, Member, Net, PeerStatus, Protocol, RequestSpec, Roles,
    Services, StreamSpec, TopicSpec, Verdict,
};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{NodeId, Role};

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) const ECHO: RequestSpec = RequestSpec {
    protocol: Protocol::new("/test/echo/2"),
    roles: Roles::ALL,
    request_bytes_max: 100_000,
    response_bytes_max: 100_000,
    deadline: Duration::from_secs(10),
    concurrency_per_peer: 16,
};
pub(crate) const SLOW: RequestSpec =
    RequestSpec { protocol: Protocol::new("/test/slow/1"), deadline: Duration::from_secs(5), ..ECHO };
pub(crate) const VOTE: RequestSpec =
    RequestSpec { protocol: Protocol::new("/test/vote/1"), roles: Roles::NODES, ..ECHO };
pub(crate) const COPY: StreamSpec = StreamSpec {
    protocol: Protocol::new("/test/copy/1"),
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 500,
    concurrency_total: 500,
};
pub(crate) const SNAPSHOT: StreamSpec =
    StreamSpec { protocol: Protocol::new("/test/snapshot/1"), allowed: Allowed::Members(Roles::NODES), ..COPY };
pub(crate) const JOIN: StreamSpec =
    StreamSpec { protocol: Protocol::new("/test/join/1"), allowed: Allowed::Strangers, ..COPY };
pub(crate) const NEWS: TopicSpec = TopicSpec { name: "news", roles: Roles::NODES, message_bytes_max: 1000 };

#[derive(Default)]
pub(crate) struct Seen {
    heard: Mutex<Vec<(Caller, Bytes)>>,
    joined: Mutex<Vec<Caller>>,
    slow: AtomicUsize,
}

pub(crate) struct Peer {
    pub(crate) net: Net,
    seen: Arc<Seen>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Peer {
    /// Serves everything above.
    pub(crate) async fn start(seed: u8) -> Self {
        Self::with(seed, echoing, Limits::default()).await
    }

    pub(crate) async fn serving(seed: u8, services: Services) -> Self {
        Self::with(seed, |_| services, Limits::default()).await
    }

    pub(crate) async fn with(seed: u8, services: impl FnOnce(Arc<Seen>) -> Services, limits: Limits) -> Self {
        let keypair = Keypair::from_seed([seed; 32]);
        let config = Config { keypair, mesh: LOOPBACK, bulk: LOOPBACK, mdns: false, limits };
        let (net, task) = net::new(config).await.unwrap();
        let (seen, shutdown) = (Arc::new(Seen::default()), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(services(seen.clone()), shutdown.clone()));
        Self { net, seen, shutdown, tasks }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        within(self.tasks.join_next()).await.unwrap().unwrap();
    }

    pub(crate) fn id(&self) -> NodeId {
        self.net.local()
    }

    pub(crate) fn bulk(&self) -> SocketAddr {
        *self.net.addresses().bulk.first().unwrap()
    }

    /// The port of its TCP listener.
    pub(crate) fn mesh_port(&self) -> SocketAddr {
        let mesh = self.net.addresses().mesh;
        let port = mesh.iter().find_map(|address| address.split_once("/tcp/")).unwrap().1;
        (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into()
    }

    pub(crate) fn member(&self, role: Role) -> Member {
        let addresses = self.net.addresses();
        let (mesh, bulk) = (addresses.mesh.into_iter().collect(), addresses.bulk.into_iter().collect());
        Member { id: self.id(), role, mesh, bulk }
    }

    pub(crate) async fn echo(&self, to: &Self, body: &'static [u8]) -> Result<Bytes, Error> {
        self.net.request(to.id(), ECHO.protocol, Bytes::from_static(body)).await
    }

    pub(crate) fn status(&self, of: &Self) -> PeerStatus {
        self.net.peers().into_iter().find(|peer| peer.id == of.id()).unwrap()
    }

    pub(crate) fn heard(&self) -> Vec<(Caller, Bytes)> {
        self.seen.heard.lock().unwrap().clone()
    }

    pub(crate) fn joined(&self) -> Vec<Caller> {
        self.seen.joined.lock().unwrap().clone()
    }

    /// Slow requests being answered now.
    pub(crate) fn slow(&self) -> usize {
        self.seen.slow.load(Ordering::SeqCst)
    }
}

pub(crate) fn echoing(seen: Arc<Seen>) -> Services {
    struct Busy(Arc<Seen>);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.slow.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (slow, joined, heard) = (seen.clone(), seen.clone(), seen);
    Services::new()
        .on_request(ECHO, |_, body| Box::pin(async { Ok(body) }))
        .on_request(VOTE, |_, body| Box::pin(async { Ok(body) }))
        .on_request(SLOW, move |_, _| {
            slow.slow.fetch_add(1, Ordering::SeqCst);
            let busy = Busy(slow.clone());
            Box::pin(async move {
                let _busy = busy;
                std::future::pending().await
            })
        })
        .on_stream(COPY, |_, stream| Box::pin(copy(stream)))
        .on_stream(SNAPSHOT, |_, stream| Box::pin(copy(stream)))
        .on_stream(JOIN, move |caller, stream| {
            joined.joined.lock().unwrap().push(caller);
            Box::pin(copy(stream))
        })
        .on_topic(NEWS, move |caller, body| {
            heard.heard.lock().unwrap().push((caller, body));
            Verdict::Accept
        })
}

async fn copy(stream: ByteStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        let _ = writer.shutdown().await;
    }
}

/// Two connected members, the second in this role.
pub(crate) async fn pair(second: Role) -> [Peer; 2] {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b], second).await;
    [a, b]
}

/// Makes them members of one mesh, the last in this role, and waits until all are connected.
pub(crate) async fn introduce(peers: &[&Peer], last: Role) {
    let role = |n| if n + 1 == peers.len() { last } else { Role::Node };
    let members: Vec<_> = peers.iter().enumerate().map(|(n, peer)| peer.member(role(n))).collect();
    for peer in peers {
        peer.net.admit(members.clone());
    }
    eventually("all are connected", || peers.iter().all(|peer| peer.net.peers().iter().all(|other| other.connected)))
        .await;
}

/// A port nobody listens on.
pub(crate) fn closed_port() -> SocketAddr {
    TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap()
}

/// Waits for a condition, not for ever.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("not so in time: {what}"));
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it takes too long")
}
