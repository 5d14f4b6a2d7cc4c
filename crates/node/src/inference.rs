//! Running models on the whole mesh: this node's backends with an agent before each, what the other nodes have, and the
//! dispatcher that brings a request to whoever answers it soonest.
//!
//! A request's text is opaque here. Whoever took it from a client has made a [`Work`] of it.

mod agents;
mod enrolled;
mod here;
mod hosts;
mod lists;
mod spread;
mod telling;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{Route, Waited};
use bytes::Bytes;
use cluster::Cluster;
use dispatch::{Agents as _, Cut, Frames as _, Trace, Unanswered};
use futures::future::{BoxFuture, join_all};
use hyper::header::HeaderValue;
use net::{Keypair, Net, Services};
use ollama::ModelName;
use scheduler::{ChainKey, ModelKey, Moment, Work};
use types::{NodeId, RequestId};

use crate::api::now;
use crate::backend::Backend;
use agents::{Agents, Payload};
use here::{Here, Stand};
use hosts::Hosts;
use lists::Lists;

pub use agents::Failover;
pub(crate) use here::Source;
pub use lists::{List, NotShown};

pub(crate) type Dispatcher = dispatch::Handle<Agents, Hosts>;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inference(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: NodeId,
    here: Here,
    hosts: Hosts,
    agents: Agents,
    lists: Lists,
    dispatcher: Dispatcher,
    chain_key: ChainKey,
}

/// One request, as a client sent it or a gateway wrote it.
#[derive(Debug)]
pub struct Infer {
    pub id: RequestId,
    pub route: Route,
    pub work: Work,
    /// The answer comes token by token, not in one piece when it is done.
    pub streams: bool,
    pub body: Bytes,
    /// The id of the key it came by.
    pub key: Option<String>,
    /// What becomes of it where its node dies after the first byte.
    pub failover: Failover,
}

/// For `/metrics`, each read just now.
#[derive(Debug, Clone, Copy)]
pub struct InferFigures {
    /// Of the requests that came in here.
    pub dispatched: dispatch::Figures,
    /// Of these, on some node now.
    pub under_way: usize,
    /// Nodes that are left alone for some model, once for each.
    pub barred: usize,
    /// In this node's backends now, from wherever they came.
    pub running: usize,
    /// Before this node's backends now.
    pub waiting: usize,
}

/// An answer that has begun. Dropped before its end, it is cancelled on its node.
#[derive(Debug)]
pub struct Inferred(dispatch::Answer<Agents, Hosts>);

/// What a node runs for it, until the node stops.
pub(crate) type Tasks = Vec<BoxFuture<'static, ()>>;

/// An engine that died is back within less.
const COMES_BACK_MAX: Duration = Duration::from_secs(5);
/// Between two looks at what still runs at the end.
const FINISH_LOOK: Duration = Duration::from_millis(50);
/// Whoever takes longer to unload a model is not waited for.
const UNLOAD_MAX: Duration = Duration::from_secs(10);
/// Another name may only just have been given to a model, or a backend just been started.
const LATE_NAME_MAX: Duration = Duration::from_secs(3);

impl Inference {
    /// The parts, what the node offers its peers for them, and what it has to run.
    pub(crate) fn new(cluster: &Cluster, net: &Net, keypair: Keypair, backend: &Backend) -> (Self, Services, Tasks) {
        let me = cluster.id();
        let (here, hosts) = (Here::default(), Hosts::new(me));
        let mut tasks: Tasks = Vec::new();
        let stands = backend.sources().into_iter().map(Stand::before);
        let stands = stands.map(|(stand, task)| {
            tasks.push(task);
            stand
        });
        here.set(stands.collect());
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system has a random source");
        let config = dispatch::Config { own: Some(me), seed: u64::from_ne_bytes(seed) };
        let agents = Agents::new(here.clone(), net.clone());
        let (dispatcher, looks) = dispatch::new(config, agents.clone(), hosts.clone());
        tasks.push(Box::pin(looks.run()));
        let (inbox, spread) = spread::new(spread::Parts {
            cluster: cluster.clone(),
            net: net.clone(),
            keypair,
            here: here.clone(),
            hosts: hosts.clone(),
            dispatcher: dispatcher.clone(),
            incarnation: now().0,
        });
        tasks.push(Box::pin(spread.run()));
        let services = Agents::services(cluster, &here);
        let services = inbox.services(Lists::services(services, &here));
        let lists = Lists::new(here.clone(), hosts.clone(), net.clone());
        let chain_key = ChainKey::derive(cluster.mesh().as_bytes());
        (Self(Arc::new(Inner { me, here, hosts, agents, lists, dispatcher, chain_key })), services, tasks)
    }

    /// The model that a name means in this mesh. Looks again at this node's backends before it says that there is none.
    pub async fn resolve(&self, name: &ModelName) -> Option<ModelKey> {
        if let Some(key) = self.0.hosts.resolve(name) {
            return Some(key);
        }
        let _ = tokio::time::timeout(LATE_NAME_MAX, self.0.here.refresh()).await;
        self.hear_here();
        self.0.hosts.resolve(name)
    }

    /// What this node's backends have, before the next beat tells it.
    fn hear_here(&self) {
        let (backends, models) = self.0.here.facts();
        let facts = vitals::Facts { backends, models, ..vitals::Facts::default() };
        self.0.hosts.hear(self.0.me, &facts, Duration::ZERO, true);
    }

    /// What prompts are hashed with: the same on all nodes, and known to whoever knows the mesh's id.
    pub fn chain_key(&self) -> &ChainKey {
        &self.0.chain_key
    }

    /// Returns with the first piece of the answer in hand. Dropped at any time it is cancelled. Where the only backend
    /// with the model is this node's own and is just starting, it is waited for, a little.
    pub async fn run(&self, request: Infer) -> Result<Inferred, Unanswered> {
        use dispatch::Error::{NoModel, NobodyUp};
        let again =
            Infer { work: request.work.clone(), body: request.body.clone(), key: request.key.clone(), ..request };
        // Boxed: a request's course is long, and lies in every future above this one.
        match Box::pin(self.dispatch(request)).await {
            Err(Unanswered { error: NoModel(_) | NobodyUp, .. }) if self.comes_back(again.work.model).await => {
                Box::pin(self.dispatch(again)).await
            }
            answered => answered,
        }
    }

    async fn dispatch(&self, request: Infer) -> Result<Inferred, Unanswered> {
        let Infer { id, route, work, streams, body, key, failover } = request;
        let request = dispatch::Request {
            id,
            work,
            streams,
            payload: Payload { route, body, key, failover, came: Instant::now() },
        };
        Ok(Inferred(self.0.dispatcher.run(request).await?))
    }

    /// Waits for this node's own backends, if one of them is down, until somebody offers the model.
    async fn comes_back(&self, model: ModelKey) -> bool {
        let waited = async {
            loop {
                let is_hopeless = !self.0.here.is_partly_down();
                self.hear_here();
                if !self.0.hosts.holders(model).is_empty() {
                    return true;
                }
                if is_hopeless {
                    return false;
                }
                self.0.here.refresh().await;
            }
        };
        tokio::time::timeout(COMES_BACK_MAX, waited).await.unwrap_or(false)
    }

    /// The same for a request that asks for nothing but that the model be unloaded: each node that has it loaded is asked,
    /// and one of them answers.
    pub async fn unload(&self, request: Infer) -> Result<Inferred, Unanswered> {
        let payload = Payload {
            route: request.route,
            body: request.body.clone(),
            key: request.key.clone(),
            failover: request.failover,
            came: Instant::now(),
        };
        let asked = self.0.hosts.loaded(request.work.model).into_iter().map(async |node| {
            let answer = self.0.agents.open(node, &payload, &request.work, None).await;
            let Ok(mut answer) = answer else { return };
            while let Some(Ok(_)) = answer.next().await {}
        });
        let _ = tokio::time::timeout(UNLOAD_MAX, join_all(asked)).await;
        self.run(request).await
    }

    /// Takes nothing new for this node's backends and returns when they have answered what they had, from wherever it
    /// came, or the time is up; whether they have.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.0.here.drain(true);
        let finished = async {
            while self.0.here.all().iter().any(|stand| stand.agent.running() > 0) {
                tokio::time::sleep(FINISH_LOOK).await;
            }
        };
        tokio::time::timeout(limit, finished).await.is_ok()
    }

    /// The backends' own lists, and whose they are.
    pub async fn lists(&self, list: List) -> Vec<(NodeId, Bytes)> {
        self.0.lists.all(list).await
    }

    /// Status and body of a backend that has the model.
    pub async fn show(&self, model: ModelKey, body: Bytes) -> Result<(u16, Bytes), NotShown> {
        self.0.lists.show(model, body).await
    }

    /// One of the last requests that came in here and have ended.
    pub fn trace(&self, id: RequestId) -> Option<Arc<Trace>> {
        self.0.dispatcher.trace(id)
    }

    /// The last requests that came in here and have ended, the last one first.
    pub fn traces(&self, count: usize) -> Vec<Arc<Trace>> {
        self.0.dispatcher.traces(count)
    }

    /// How long ago something was that a trace tells.
    pub fn since(&self, moment: Moment) -> Duration {
        self.0.dispatcher.since(moment)
    }

    /// The names a model goes by.
    pub fn names_of(&self, model: ModelKey) -> BTreeSet<String> {
        self.0.hosts.names_of(model)
    }

    /// What each member said last of itself, this node as it is now.
    pub fn load(&self) -> Vec<(NodeId, vitals::Facts)> {
        self.hear_here();
        self.0.hosts.said()
    }

    pub fn figures(&self) -> InferFigures {
        let stands = self.0.here.all();
        InferFigures {
            dispatched: self.0.dispatcher.figures(),
            under_way: self.0.dispatcher.running(),
            barred: self.0.dispatcher.barred(),
            running: stands.iter().map(|stand| stand.agent.running()).sum(),
            waiting: stands.iter().map(|stand| stand.agent.waiting()).sum(),
        }
    }

    /// Whether any model is known by a name.
    pub fn knows_models(&self) -> bool {
        self.0.hosts.knows_models()
    }

    /// Whether a member is up, as far as the mesh can tell.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.0.hosts.is_up(node)
    }

    /// Of this node's first backend that said one.
    pub fn version(&self) -> Option<String> {
        self.0.here.all().into_iter().find_map(|stand| stand.agent.facts().version)
    }
}

impl Inferred {
    pub fn node(&self) -> NodeId {
        self.0.node()
    }

    /// Times its rest was asked of another node, so far.
    pub fn seams(&self) -> u32 {
        self.0.seams()
    }

    /// Times it was sent to some node.
    pub fn sends(&self) -> u32 {
        self.0.sends()
    }

    pub fn status(&self) -> u16 {
        self.0.head().status()
    }

    pub fn content_type(&self) -> Option<&HeaderValue> {
        self.0.head().content_type()
    }

    /// The `num_ctx` that was set in place of the request's.
    pub fn raised_context(&self) -> Option<u32> {
        self.0.head().raised_context()
    }

    /// What it met that could not start at once.
    pub fn waited(&self) -> Option<Waited> {
        self.0.head().waited()
    }

    /// The next piece, a line where the answer is made of lines; `None` at its own end. After an error nothing follows.
    pub async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        self.0.next().await
    }
}
