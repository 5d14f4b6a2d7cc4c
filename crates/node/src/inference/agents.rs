//! The agents of all nodes, for the dispatcher: this node's by a call, others' over the mesh.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::remote::{self, Limits, Remote};
use agent::{Ask, INFER, PROBE, Probe, Reply, Route, SendError, Waited};
use bytes::{Bytes, BytesMut};
use cluster::{Cluster, KeyId};
use dispatch::{Failure, Frames as _, Refusal};
use hyper::header::HeaderValue;
use net::{Allowed, Net, Protocol, RequestSpec, Roles, Services, StreamSpec};
use ollama::transcript::Unfit;
use scheduler::{Promise, Seconds, Work};
use types::{NodeId, Scope};

use super::here::Here;
use super::telling::Telling;
use crate::api::now;

const LOOK: Protocol = Protocol::new("/omx/look/1");

const PROBE_SPEC: RequestSpec = RequestSpec {
    protocol: Protocol::new(PROBE),
    roles: Roles::ALL,
    request_bytes_max: 4 << 10,
    response_bytes_max: 1 << 10,
    deadline: Duration::from_secs(2),
    concurrency_per_peer: 256,
};
/// Nothing is asked and nothing is said: an answer is the answer.
const LOOK_SPEC: RequestSpec = RequestSpec {
    protocol: LOOK,
    roles: Roles::ALL,
    request_bytes_max: 0,
    response_bytes_max: 0,
    deadline: Duration::from_secs(2),
    concurrency_per_peer: 8,
};
/// As many as one gateway may have requests under way here, waiting ones included.
const INFER_SPEC: StreamSpec = StreamSpec {
    protocol: Protocol::new(INFER),
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 1_024,
    concurrency_total: 4_096,
};

/// To reach a node: a direct connection within the local network takes milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Queues may be long, and who hangs is found by looks. This is for a connection that died without a word.
const HEAD_MAX: Duration = Duration::from_secs(3_600);
const BETWEEN_MAX: Duration = Duration::from_secs(360);

/// A conversation as its model sees it: no window holds more.
const RENDERED_MAX: usize = 64 << 20;
/// And why it is not rendered.
const REPORT_MAX: usize = 64 << 10;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    here: Here,
    net: Net,
    remote: Arc<Remote>,
}

/// What a request is to a dispatcher.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) route: Route,
    pub(crate) body: Bytes,
    /// The id of the key it came by.
    pub(crate) key: Option<String>,
    pub(crate) failover: Failover,
    pub(crate) came: Instant,
}

/// What becomes of an answer whose node dies after its first byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Failover {
    /// Another node goes on with it, where that can be done honestly; else it ends with an error.
    #[default]
    Continue,
    /// Only as long as the client has seen nothing of the text, it is begun again.
    Restart,
    /// It ends with an error.
    Error,
}

/// An answer of this node's backend or of another node.
#[derive(Debug)]
pub(crate) struct Frames {
    head: Head,
    /// Nothing after it was cancelled.
    from: Option<From>,
    /// Nothing was read from it yet.
    is_fresh: bool,
}

#[derive(Debug)]
struct Head {
    status: u16,
    content_type: Option<HeaderValue>,
    waited: Option<Waited>,
    raised_context: Option<u32>,
}

#[derive(Debug)]
enum From {
    Here(agent::Answer),
    There(remote::Answer),
}

impl Agents {
    pub(crate) fn new(here: Here, net: Net) -> Self {
        Self { here, net, remote: Arc::default() }
    }

    /// What this node offers to the others' dispatchers.
    pub(crate) fn services(cluster: &Cluster, here: &Here) -> Services {
        let (probed, asked) = (here.clone(), here.clone());
        let keys = cluster.clone();
        let services = cluster.services();
        services
            .on_request(LOOK_SPEC, |_, _| Box::pin(async { Ok(Bytes::new()) }))
            .on_request(PROBE_SPEC, move |_, probe| {
                let answer = agent::answer_probe(|work| probed.find(work), &probe);
                Box::pin(async move { answer.map(Bytes::from).map_err(|_| net::Refusal::Malformed) })
            })
            .on_stream(INFER_SPEC, move |_, stream| {
                let (here, keys) = (asked.clone(), keys.clone());
                Box::pin(async move {
                    // The node it came in at let it in; a key may have been revoked here meanwhile.
                    let may = move |key: &str| may_infer(&keys, key);
                    if let Err(error) = agent::serve(move |work| here.find_promised(work), may, stream).await {
                        tracing::debug!(%error, "a peer's requests ended");
                    }
                })
            })
    }

    async fn ask(
        &self,
        node: NodeId,
        request: &Payload,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> Result<Frames, Failure> {
        let ask = Ask { work: work.clone(), weight: 1.0, wait_max: max_wait, key: request.key.clone() };
        let sent = agent::Request { route: request.route, ask, body: request.body.clone() };
        if node == self.net.local() {
            let agent = self.here.find_promised(work).ok_or(Failure::Refused(Refusal::NoModel))?;
            return Ok(Frames::here(agent.run(sent).await.map_err(failed_here)?));
        }
        let limits = Limits { connect: CONNECT_MAX, head: HEAD_MAX, between: BETWEEN_MAX };
        let dial = async { self.net.connect(node, INFER_SPEC.protocol).await.map_err(io::Error::other) };
        Ok(Frames::there(self.remote.run(node, sent, limits, dial).await.map_err(not_opened)?))
    }

    async fn probe_there(&self, node: NodeId, work: &Work, hold: Duration) -> Result<Promise, Failure> {
        let probe = codec::encode(&Probe::new(work.clone(), hold)).map_err(unreachable)?;
        let answer = self.net.request(node, PROBE_SPEC.protocol, probe.into()).await.map_err(unasked)?;
        let reply: Reply = codec::decode(&answer).map_err(unreachable)?;
        Result::from(reply).map_err(refused)
    }
}

impl dispatch::Agents for Agents {
    type Request = Payload;
    type Answer = Frames;
    type Transcript = Telling;

    async fn probe(&self, node: NodeId, work: &Work, hold: Duration) -> Result<Promise, Failure> {
        if node != self.net.local() {
            return self.probe_there(node, work, hold).await;
        }
        let agent = self.here.find(work).ok_or(Failure::Refused(Refusal::NoModel))?;
        agent.probe(work, hold).map_err(refused)
    }

    async fn look(&self, node: NodeId) -> bool {
        node == self.net.local() || self.net.request(node, LOOK, Bytes::new()).await.is_ok()
    }

    async fn open(
        &self,
        node: NodeId,
        request: &Payload,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> Result<Frames, Failure> {
        self.ask(node, request, work, max_wait).await
    }

    fn transcript(&self, request: &Payload) -> Option<Telling> {
        Telling::of(request)
    }

    async fn go_on(
        &self,
        node: NodeId,
        request: &Payload,
        telling: &mut Telling,
        work: &Work,
        max_wait: Option<Duration>,
    ) -> Result<Frames, Failure> {
        let first = telling.first(request);
        let mut frames = self.ask(node, &first, work, max_wait).await?;
        if !telling.is_to_be_rendered() {
            return Ok(frames);
        }
        let status = frames.status();
        let limit = if status == 200 { RENDERED_MAX } else { REPORT_MAX };
        let body = whole(&mut frames, limit).await?;
        drop(frames);
        if status != 200 {
            return Err(Failure::Served { status, body });
        }
        let second = telling.rendered(request, &body).map_err(|unfit| match unfit {
            Unfit::NotRendered => Failure::Incapable(unfit.into()),
            unfit => Failure::Unable(unfit.into()),
        })?;
        self.ask(node, &second, work, None).await
    }
}

/// An answer in one piece, a rendered prompt.
async fn whole(frames: &mut Frames, limit: usize) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(piece) = frames.next().await {
        body.extend_from_slice(&piece?);
        if body.len() > limit {
            return Err(Failure::Unable("the rendered conversation is too long".into()));
        }
    }
    Ok(body.freeze())
}

impl Frames {
    fn here(answer: agent::Answer) -> Self {
        let head = Head {
            status: answer.status.as_u16(),
            content_type: answer.content_type.clone(),
            waited: answer.waited,
            raised_context: answer.raised_context,
        };
        Self { head, from: Some(From::Here(answer)), is_fresh: true }
    }

    fn there(answer: remote::Answer) -> Self {
        let head = Head {
            status: answer.status.as_u16(),
            content_type: answer.content_type.clone(),
            waited: answer.waited,
            raised_context: answer.raised_context,
        };
        Self { head, from: Some(From::There(answer)), is_fresh: true }
    }

    pub(crate) const fn content_type(&self) -> Option<&HeaderValue> {
        self.head.content_type.as_ref()
    }

    pub(crate) const fn waited(&self) -> Option<Waited> {
        self.head.waited
    }

    /// The `num_ctx` that was set in place of the request's.
    pub(crate) const fn raised_context(&self) -> Option<u32> {
        self.head.raised_context
    }
}

impl dispatch::Frames for Frames {
    fn status(&self) -> u16 {
        self.head.status
    }

    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        let next = match &mut self.from {
            Some(From::Here(answer)) => answer.next().await.map(|next| next.map_err(failed_here)),
            Some(From::There(answer)) => answer.next().await.map(|next| next.map_err(failed_there)),
            None => None,
        };
        let is_first = std::mem::replace(&mut self.is_fresh, false);
        match next {
            // A runner that dies before its first token says so in a stream that had begun well.
            Some(Ok(line)) if is_first && self.head.status == 200 && line.starts_with(b"{\"error\":") => {
                Some(Err(Failure::Served { status: 500, body: line }))
            }
            next => next,
        }
    }

    fn cancel(&mut self) {
        self.from = None;
    }
}

fn may_infer(cluster: &Cluster, key: &str) -> bool {
    let Ok(id) = key.parse::<KeyId>() else { return false };
    cluster.view(|registry| {
        registry
            .key(&id)
            .is_some_and(|key| key.scopes.allows(Scope::Infer) && key.expires_at.is_none_or(|expiry| now() < expiry))
    })
}

fn unreachable(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Unreachable(error.into())
}

/// Why a node could not even be asked. Too much under way is no illness, and what is wrong here is not its fault.
fn unasked(error: net::Error) -> Failure {
    const SOON: Seconds = Seconds::new(1.0);
    match &error {
        net::Error::Busy { .. } | net::Error::Refused { refusal: net::Refusal::Busy, .. } => {
            Failure::Refused(Refusal::Full { wait: SOON })
        }
        net::Error::Refused { refusal: net::Refusal::Stopping, .. } => Failure::Refused(Refusal::Draining),
        error if error.fault() == net::Fault::Here => Failure::Refused(Refusal::Full { wait: SOON }),
        _ => unreachable(error),
    }
}

fn not_opened(error: remote::Error) -> Failure {
    match error {
        remote::Error::Unreachable(SendError::Connect(error)) => match error.downcast::<net::Error>() {
            Ok(error) => unasked(error),
            Err(error) => unreachable(error),
        },
        error => failed_there(error),
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Broken(error.into())
}

fn refused(refusal: agent::Refusal) -> Failure {
    Failure::Refused(match refusal {
        agent::Refusal::NoModel => Refusal::NoModel,
        agent::Refusal::Nack(promise) => Refusal::Wait(promise),
        agent::Refusal::Full { wait } => Refusal::Full { wait },
        agent::Refusal::Late => Refusal::Late,
        agent::Refusal::Draining => Refusal::Draining,
        agent::Refusal::Down(_) => Refusal::Down,
        agent::Refusal::Denied => Refusal::Denied,
    })
}

fn failed_here(error: agent::Error) -> Failure {
    match error {
        agent::Error::Refused(refusal) => refused(refusal),
        error @ (agent::Error::Unreachable(SendError::Late(_) | SendError::Connect(_)) | agent::Error::NoWay(_)) => {
            unreachable(error)
        }
        error @ (agent::Error::Unreachable(SendError::Broken(_))
        | agent::Error::GivenUp(_)
        | agent::Error::Silent(_)
        | agent::Error::Broken(_)
        | agent::Error::Garbage(_)) => broken(error),
    }
}

fn failed_there(error: remote::Error) -> Failure {
    match error {
        remote::Error::Refused(refusal) => refused(refusal),
        error @ (remote::Error::Unreachable(SendError::Late(_) | SendError::Connect(_))
        | remote::Error::Unsendable(_)) => unreachable(error),
        error @ (remote::Error::Unreachable(SendError::Broken(_))
        | remote::Error::Backend(_)
        | remote::Error::Malformed(_)
        | remote::Error::Silent(_)
        | remote::Error::Broken(_)
        | remote::Error::Garbage(_)) => broken(error),
    }
}
