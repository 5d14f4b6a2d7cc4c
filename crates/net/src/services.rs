//! What this node offers to peers: a table of protocols, each with its limits and its handler.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use types::{NodeId, Role};

use crate::protocol::{
    Allowed, MESSAGE_BYTES_MAX, Protocol, REQUEST_DEADLINE_MAX, Refusal, RequestSpec, StreamSpec, TopicSpec,
};
use crate::stream::ByteStream;

/// Who asks. The id is proven by the transport, the role comes from the member list, never from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub id: NodeId,
    /// `None` for a stranger.
    pub role: Option<Role>,
    /// `None` where it is not known, as behind the mesh connection.
    pub address: Option<SocketAddr>,
}

/// What becomes of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// It breaks the topic's rules: do not pass it on and count it against its author.
    Reject,
}

pub(crate) type OnRequest = Arc<dyn Fn(Caller, Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> + Send + Sync>;
pub(crate) type OnStream = Arc<dyn Fn(Caller, ByteStream) -> BoxFuture<'static, ()> + Send + Sync>;
pub(crate) type OnGossip = Arc<dyn Fn(Caller, Bytes) -> Verdict + Send + Sync>;

/// The table, built once before the network runs. A protocol not in it is refused: default deny.
#[derive(Default)]
pub struct Services {
    requests: BTreeMap<&'static str, (RequestSpec, Option<OnRequest>)>,
    streams: BTreeMap<&'static str, (StreamSpec, OnStream)>,
    topics: BTreeMap<&'static str, (TopicSpec, OnGossip)>,
}

impl Services {
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers requests. The handler's future is dropped at the deadline and when the caller is removed from the mesh.
    ///
    /// # Panics
    /// Where the name is taken or a limit is beyond what is possible; so do the others.
    pub fn on_request(
        mut self,
        spec: RequestSpec,
        handler: impl Fn(Caller, Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> + Send + Sync + 'static,
    ) -> Self {
        self.insert_request(spec, Some(Arc::new(handler)));
        self
    }

    /// Declares requests this node sends and does not answer.
    pub fn sends_request(mut self, spec: RequestSpec) -> Self {
        self.insert_request(spec, None);
        self
    }

    /// Serves streams. The handler's future is dropped when the caller is removed from the mesh.
    pub fn on_stream(
        mut self,
        spec: StreamSpec,
        handler: impl Fn(Caller, ByteStream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        self.claim(spec.protocol.name());
        self.streams.insert(spec.protocol.name(), (spec, Arc::new(handler)));
        self
    }

    /// Judges gossip. The handler must not block: it runs between two events of the mesh.
    pub fn on_topic(
        mut self,
        spec: TopicSpec,
        handler: impl Fn(Caller, Bytes) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.claim(spec.name);
        assert!(spec.message_bytes_max <= MESSAGE_BYTES_MAX, "`{}` allows larger messages than gossip can", spec.name);
        self.topics.insert(spec.name, (spec, Arc::new(handler)));
        self
    }

    /// All that whoever is no member may open. Requests and gossip are for members by their type.
    pub fn open_to_strangers(&self) -> Vec<Protocol> {
        self.streams().filter(|spec| spec.allowed == Allowed::Strangers).map(|spec| spec.protocol).collect()
    }

    /// What is declared, answered or not: for the sending side.
    pub(crate) fn declared(&self, protocol: Protocol) -> Option<&RequestSpec> {
        self.requests.get(protocol.name()).map(|(spec, _)| spec)
    }

    pub(crate) fn request(&self, name: &str) -> Result<(&RequestSpec, &OnRequest), Refusal> {
        match self.requests.get(name) {
            Some((spec, Some(handler))) => Ok((spec, handler)),
            _ => Err(self.unknown(name)),
        }
    }

    pub(crate) fn stream(&self, name: &str) -> Result<(&StreamSpec, &OnStream), Refusal> {
        self.streams.get(name).map(|(spec, handler)| (spec, handler)).ok_or_else(|| self.unknown(name))
    }

    pub(crate) fn topic(&self, name: &str) -> Option<(&TopicSpec, &OnGossip)> {
        self.topics.get(name).map(|(spec, handler)| (spec, handler))
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = &StreamSpec> {
        self.streams.values().map(|(spec, _)| spec)
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &TopicSpec> {
        self.topics.values().map(|(spec, _)| spec)
    }

    pub(crate) fn requests(&self) -> impl Iterator<Item = &RequestSpec> {
        self.requests.values().map(|(spec, _)| spec)
    }

    /// Says which major of the same protocol is spoken here, so that the peer can tell who is to be upgraded.
    fn unknown(&self, name: &str) -> Refusal {
        let majors = |known: &str| match (Protocol::split(known), Protocol::split(name)) {
            (Some((stem, major)), Some((asked, _))) if stem == asked => Some(major),
            _ => None,
        };
        let answered = self.requests.iter().filter(|(_, (_, handler))| handler.is_some()).map(|(name, _)| *name);
        Refusal::UnknownProtocol { speaks: answered.chain(self.streams.keys().copied()).filter_map(majors).max() }
    }

    fn insert_request(&mut self, spec: RequestSpec, handler: Option<OnRequest>) {
        let name = spec.protocol.name();
        self.claim(name);
        assert!(spec.deadline <= REQUEST_DEADLINE_MAX, "`{name}` waits longer than a request may");
        self.requests.insert(name, (spec, handler));
    }

    fn claim(&self, name: &'static str) {
        let taken =
            self.requests.contains_key(name) || self.streams.contains_key(name) || self.topics.contains_key(name);
        assert!(!taken, "`{name}` is declared twice");
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.requests.keys().chain(self.streams.keys()).chain(self.topics.keys());
        f.debug_list().entries(names).finish()
    }
}
