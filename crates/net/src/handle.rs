//! What the rest of the node calls.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use types::NodeId;

use crate::admission::Member;
use crate::error::Error;
use crate::mem;
use crate::protocol::{Protocol, Refusal};
use crate::real;
use crate::reception::Reception;
use crate::services::Services;
use crate::stream::{ByteStream, Carrier};

/// How long `connect` may take, all ways together.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The network of this node. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    reception: Arc<Reception>,
    transport: Arc<dyn Transport>,
}

/// What serves the network. Nothing moves until it runs.
#[must_use = "nothing is served until the task runs"]
pub struct Task(pub(crate) Inner);

pub(crate) enum Inner {
    Mem(mem::Task),
    Real(Box<real::Task>),
}

/// How a member is doing, seen from here.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    pub id: NodeId,
    pub connected: bool,
    /// How it is connected, for people.
    pub via: Option<String>,
    pub round_trip: Option<Duration>,
    /// 0 without fault; at 100 it is cut off for a while.
    pub score: f64,
    pub cut_off: bool,
    /// Time since it was last heard.
    pub last_seen: Option<Duration>,
    pub last_error: Option<String>,
}

/// Where this node can be reached, as far as it can know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// As multiaddresses.
    pub mesh: BTreeSet<String>,
    pub bulk: BTreeSet<SocketAddr>,
}

/// A node seen on the local network that is no member of this mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    pub id: NodeId,
    /// As a multiaddress.
    pub address: String,
}

/// What a way of moving bytes does for a `Net`. Deadlines, limits and membership are the caller's business.
pub(crate) trait Transport: Send + Sync {
    fn request(&self, peer: NodeId, protocol: Protocol, body: Bytes) -> BoxFuture<'_, Result<Answer, Error>>;
    fn connect(&self, peer: NodeId, protocol: Protocol) -> BoxFuture<'_, Result<Box<dyn Carrier>, Error>>;
    fn connect_stranger(
        &self,
        address: SocketAddr,
        expect: NodeId,
        protocol: Protocol,
    ) -> BoxFuture<'_, Result<Box<dyn Carrier>, Error>>;
    fn publish(&self, topic: &'static str, body: Bytes) -> Result<(), Error>;
    fn addresses(&self) -> Addresses;
    fn addresses_changed(&self) -> BoxFuture<'_, ()>;
    fn strangers_seen(&self) -> Vec<Stranger>;
}

/// What a peer said to a request.
pub(crate) type Answer = Result<Bytes, Refusal>;

impl Net {
    pub(crate) fn new(reception: Arc<Reception>, transport: Arc<dyn Transport>) -> Self {
        Self { reception, transport }
    }

    pub fn local(&self) -> NodeId {
        self.reception.local
    }

    /// Asks a member, within the protocol's own deadline.
    ///
    /// Dropping the future does not take the request back; neither does an error that `maybe_done`.
    pub async fn request(&self, peer: NodeId, protocol: Protocol, body: Bytes) -> Result<Bytes, Error> {
        self.request_within(peer, protocol, body, Duration::MAX).await
    }

    /// Asks a member, within the shorter of this and the protocol's own deadline.
    pub async fn request_within(
        &self,
        peer: NodeId,
        protocol: Protocol,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, Error> {
        let (spec, cut) = self.reception.outgoing(peer, protocol, body.len())?;
        let after = within.min(spec.deadline);
        let asked = self.transport.request(peer, protocol, body);
        let answer =
            self.until(&cut, peer, protocol, after, asked).await.inspect_err(|error| self.note(peer, error))?;
        match answer {
            Ok(answer) if answer.len() > spec.response_bytes_max => {
                self.reception.offended(peer, crate::score::Offence::Oversize);
                Err(Error::AnswerTooLarge { peer, protocol })
            }
            Ok(answer) => {
                self.reception.heard(&peer, None);
                Ok(answer)
            }
            Err(refusal) => Err(Error::Refused { peer, protocol, refusal }),
        }
    }

    /// Opens a stream to a member: directly where that is possible, else through the mesh connection. When this returns,
    /// the peer has agreed.
    pub async fn connect(&self, peer: NodeId, protocol: Protocol) -> Result<ByteStream, Error> {
        self.reception.services()?;
        let cut = self.reception.member_token(peer)?;
        let connected = self.transport.connect(peer, protocol);
        let connected = self.until(&cut, peer, protocol, CONNECT_MAX, connected).await;
        let carrier = connected.inspect_err(|error| self.note(peer, error))?;
        Ok(ByteStream::new(carrier, &cut))
    }

    /// Opens a stream to a node that need not be a member, at its bulk listener. Nothing is said, not even who we are,
    /// before the other end has proven to be `expect`.
    pub async fn connect_stranger(
        &self,
        address: SocketAddr,
        expect: NodeId,
        protocol: Protocol,
    ) -> Result<ByteStream, Error> {
        self.reception.services()?;
        let cut = self.reception.closed();
        let connected = self.transport.connect_stranger(address, expect, protocol);
        let carrier = self.until(cut, expect, protocol, CONNECT_MAX, connected).await?;
        Ok(ByteStream::new(carrier, cut))
    }

    /// Tells all members that listen. May reach none of them: gossip carries hints.
    pub fn publish(&self, topic: &'static str, body: Bytes) -> Result<(), Error> {
        let (spec, _) = self.reception.services()?.topic(topic).ok_or(Error::UndeclaredTopic(topic))?;
        let max = spec.message_bytes_max;
        if body.len() > max {
            return Err(Error::TooLarge { name: topic, bytes: body.len(), max });
        }
        self.transport.publish(topic, body)
    }

    /// Sets who is a member: the whole set. Whoever is no longer in it, or has another role now, loses its streams and
    /// requests before this returns, and its connections right after.
    pub fn admit(&self, members: Vec<Member>) {
        self.reception.admit(members);
    }

    /// Every member but this node.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.reception.peers()
    }

    /// Whether a request to this peer would go out without a dial first.
    pub fn is_connected(&self, peer: &NodeId) -> bool {
        self.reception.is_linked(peer)
    }

    pub fn addresses(&self) -> Addresses {
        self.transport.addresses()
    }

    /// Waits until the addresses differ from these.
    pub async fn addresses_other_than(&self, known: &Addresses) -> Addresses {
        loop {
            // Asked for first: a change between reading and waiting is not missed.
            let changed = self.transport.addresses_changed();
            let now = self.addresses();
            if now != *known {
                return now;
            }
            changed.await;
        }
    }

    /// Nodes of other meshes on the local network.
    pub fn strangers_seen(&self) -> Vec<Stranger> {
        self.transport.strangers_seen()
    }

    /// Ends at the deadline, at the peer's removal, and with the network.
    async fn until<T>(
        &self,
        cut: &CancellationToken,
        peer: NodeId,
        protocol: Protocol,
        after: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(match self.reception.closed().is_cancelled() {
                true => Error::NotRunning,
                false => Error::Broken { peer, reason: "it was removed or cut off".to_owned() },
            }),
            done = work => done,
            () = self.reception.clock.sleep(after) => Err(Error::Deadline { peer, protocol, after }),
        }
    }

    fn note(&self, peer: NodeId, error: &Error) {
        self.reception.failed(&peer, error.to_string());
    }
}

impl Task {
    /// Opens for business when called, and serves while the future is polled, until `shutdown`; then cuts what is still
    /// open. Dropped before its end, it takes everything down at once, as a crash would.
    pub fn run(self, services: Services, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        match self.0 {
            Inner::Mem(task) => {
                task.open(services);
                Box::pin(task.run(shutdown))
            }
            Inner::Real(task) => {
                task.open(services);
                Box::pin(task.run(shutdown))
            }
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Net").field(&self.local()).finish()
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}
