//! What the backends of all nodes list and show, as they say it themselves: whoever asks puts it together.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::Question;
use bytes::Bytes;
use futures::future::join_all;
use net::{Net, Protocol, RequestSpec, Roles, Services};
use scheduler::ModelKey;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use types::NodeId;

use super::here::Here;
use super::hosts::Hosts;

const SPEC: RequestSpec = RequestSpec {
    protocol: Protocol::new("/omx/models/1"),
    roles: Roles::ALL,
    request_bytes_max: Asked::BYTES_MAX,
    response_bytes_max: Told::BYTES_MAX,
    deadline: Duration::from_secs(25),
    concurrency_per_peer: 16,
};
/// A list that takes longer is not waited for: the node's last one stands in for it.
const LIST_MAX: Duration = Duration::from_secs(2);

const FRESH: Duration = Duration::from_millis(500);
/// Of one node's backends.
const LISTS_MAX: usize = 16;
/// Some thousand models.
const LIST_BYTES_MAX: usize = 2 << 20;
/// A model is shown from memory or its file's header; a node that takes longer is not the one to ask.
const SHOW_MAX: Duration = Duration::from_secs(5);
/// Of what another node says went wrong.
const WHY_CHARS_MAX: usize = 200;

/// What a backend lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum List {
    Tags,
    Loaded,
}

#[derive(Debug, Serialize, Deserialize)]
enum Asked {
    List(List),
    Show { model: ModelKey, body: Vec<u8> },
}

#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// One of each backend that answered.
    Lists(Vec<Vec<u8>>),
    Shown {
        status: u16,
        body: Vec<u8>,
    },
    /// No backend there could be asked.
    Nobody(String),
}

impl Asked {
    const BYTES_MAX: usize = 128 << 10;
}

impl Told {
    /// All the words of a large vocabulary.
    const BYTES_MAX: usize = 16 << 20;
}

impl codec::Record for Asked {
    const VERSION: u8 = 1;
    const LIMIT: usize = Self::BYTES_MAX;
}

impl codec::Record for Told {
    const VERSION: u8 = 1;
    const LIMIT: usize = Self::BYTES_MAX;
}

/// Why a model could not be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotShown {
    #[error("no node that has the model can be asked now")]
    Nobody,
    #[error("the nodes that have the model did not answer: {0}")]
    Failed(String),
    #[error("a question about a model takes at most {0} bytes")]
    TooLong(usize),
}

/// Whose backend lists what.
type Listed = Vec<(NodeId, Bytes)>;

#[derive(Debug)]
pub(crate) struct Lists {
    here: Here,
    hosts: Hosts,
    net: Net,
    /// What each peer listed last.
    last: Mutex<BTreeMap<(NodeId, List), Vec<Bytes>>>,
    /// What was put together a moment ago. Whoever asks meanwhile waits for it instead of asking everybody again.
    fresh: tokio::sync::Mutex<BTreeMap<List, (Instant, Listed)>>,
}

impl Lists {
    /// What names a model, and a few options.
    const QUESTION_BYTES_MAX: usize = 64 << 10;

    pub(crate) fn new(here: Here, hosts: Hosts, net: Net) -> Self {
        Self { here, hosts, net, last: Mutex::default(), fresh: tokio::sync::Mutex::default() }
    }

    pub(crate) fn services(services: Services, here: &Here) -> Services {
        let here = here.clone();
        services.on_request(SPEC, move |_, asked| {
            let here = here.clone();
            Box::pin(async move {
                let asked = codec::decode(&asked).map_err(|_| net::Refusal::Malformed)?;
                let told = match asked {
                    Asked::List(list) => {
                        Told::Lists(here.lists(list.question()).await.into_iter().map(Vec::from).collect())
                    }
                    Asked::Show { model, body } => match here.show(model, body.into()).await {
                        Some(Ok((status, body))) => Told::Shown { status, body: body.into() },
                        Some(Err(error)) => Told::Nobody(error.to_string()),
                        None => Told::Nobody("it has no such model".to_owned()),
                    },
                };
                let told = codec::encode(&told).or_else(|_| {
                    codec::encode(&Told::Nobody(format!("the answer is longer than {} bytes", Told::BYTES_MAX)))
                });
                told.map(Bytes::from).map_err(|error| net::Refusal::Failed(error.to_string()))
            })
        })
    }

    /// The lists of all backends of all nodes that are up, this node's first.
    pub(crate) async fn all(&self, list: List) -> Listed {
        let mut fresh = self.fresh.lock().await;
        if let Some((at, all)) = fresh.get(&list)
            && at.elapsed() < FRESH
        {
            return all.clone();
        }
        let all = self.ask_all(list).await;
        fresh.insert(list, (Instant::now(), all.clone()));
        all
    }

    async fn ask_all(&self, list: List) -> Listed {
        let me = self.net.local();
        let peers: Vec<NodeId> = self.net.peers().iter().map(|peer| peer.id).collect();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).retain(|(node, _), _| peers.contains(node));
        let of_peers = join_all(peers.into_iter().filter(|node| self.hosts.is_up(*node)).map(async |node| {
            let lists = self.of_peer(node, list).await;
            lists.into_iter().map(|body| (node, body)).collect::<Vec<_>>()
        }));
        let (own, of_peers) = futures::join!(self.here.lists(list.question()), of_peers);
        own.into_iter().map(|body| (me, body)).chain(of_peers.into_iter().flatten()).collect()
    }

    async fn of_peer(&self, node: NodeId, list: List) -> Vec<Bytes> {
        let told = self.ask(node, &Asked::List(list), LIST_MAX).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(Told::Lists(lists)) => {
                let lists = lists.into_iter().take(LISTS_MAX).filter(|list| list.len() <= LIST_BYTES_MAX);
                let lists: Vec<Bytes> = lists.map(Bytes::from).collect();
                last.insert((node, list), lists.clone());
                lists
            }
            Ok(Told::Shown { .. } | Told::Nobody(_)) | Err(_) => last.get(&(node, list)).cloned().unwrap_or_default(),
        }
    }

    async fn ask(&self, node: NodeId, asked: &Asked, within: Duration) -> Result<Told, String> {
        let asked = codec::encode(asked).map_err(|error| error.to_string())?;
        let told = self.net.request_within(node, SPEC.protocol, asked.into(), within).await;
        let told = told.map_err(|error| error.to_string())?;
        codec::decode(&told).map_err(|error| error.to_string())
    }

    /// What a node that has the model shows of it, this one if it has it.
    pub(crate) async fn show(&self, model: ModelKey, body: Bytes) -> Result<(u16, Bytes), NotShown> {
        if body.len() > Self::QUESTION_BYTES_MAX {
            return Err(NotShown::TooLong(Self::QUESTION_BYTES_MAX));
        }
        let mut last = NotShown::Nobody;
        match tokio::time::timeout(SHOW_MAX, self.here.show(model, body.clone())).await {
            Ok(Some(Ok((status, body)))) if status < 500 => return Ok((status, body)),
            Ok(Some(Ok((status, _)))) => last = NotShown::Failed(format!("status {status}")),
            Ok(Some(Err(error))) => last = NotShown::Failed(error.to_string()),
            Err(_) => last = NotShown::Failed(format!("no answer within {SHOW_MAX:?}")),
            Ok(None) => {}
        }
        let me = self.net.local();
        for node in self.hosts.holders(model).into_iter().filter(|node| *node != me) {
            match self.ask(node, &Asked::Show { model, body: body.clone().into() }, SHOW_MAX).await {
                Ok(Told::Shown { status, body }) if status < 500 => return Ok((status, body.into())),
                Ok(Told::Shown { status, .. }) => last = NotShown::Failed(format!("status {status}")),
                Ok(Told::Nobody(why)) | Err(why) => {
                    last = NotShown::Failed(why.chars().take(WHY_CHARS_MAX).collect());
                }
                Ok(Told::Lists(_)) => last = NotShown::Failed("it answered something else".to_owned()),
            }
        }
        Err(last)
    }
}

impl List {
    fn question(self) -> Question {
        match self {
            Self::Tags => Question::Tags,
            Self::Loaded => Question::Loaded,
        }
    }
}
