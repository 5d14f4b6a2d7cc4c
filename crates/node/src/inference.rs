//! Running models on the whole mesh: this node's backends with an agent before each, what the other nodes have, and the
//! dispatcher that brings a request to whoever answers it soonest.
//!
//! A request's text is opaque here. Whoever took it from a client has made a [`Work`] of it.

mod agents;
mod here;
mod hosts;
mod lists;
mod spread;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agent::Route;
use bytes::Bytes;
use cluster::Cluster;
use dispatch::{Cut, Frames as _, Trace};
use futures::future::BoxFuture;
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
            tasks.push(Box::pin(task.run()));
            stand
        });
        here.set(stands.collect());
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system has a random source");
        let config = dispatch::Config { own: Some(me), seed: u64::from_ne_bytes(seed) };
        let agents = Agents::new(here.clone(), net.clone());
        let (dispatcher, looks) = dispatch::new(config, agents, hosts.clone());
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
        let services = Agents::services(cluster.services(), &here);
        let services = inbox.services(Lists::services(services, &here));
        let lists = Lists::new(here.clone(), hosts.clone(), net.clone());
        let chain_key = ChainKey::derive(cluster.mesh().as_bytes());
        (Self(Arc::new(Inner { me, here, hosts, lists, dispatcher, chain_key })), services, tasks)
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

    /// What prompts are hashed with, so that equal beginnings are known on all nodes and nowhere else.
    pub fn chain_key(&self) -> &ChainKey {
        &self.0.chain_key
    }

    /// Returns with the first piece of the answer in hand. Dropped at any time it is cancelled.
    pub async fn run(&self, request: Infer) -> Result<Inferred, dispatch::Error> {
        let Infer { id, route, work, streams, body } = request;
        let request = dispatch::Request { id, work, streams, payload: Payload { route, body } };
        Ok(Inferred(self.0.dispatcher.run(request).await?))
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

    /// The next piece, a line where the answer is made of lines; `None` at its own end. After an error nothing follows.
    pub async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        self.0.next().await
    }
}
