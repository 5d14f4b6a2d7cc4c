//! Which nodes have which versions: what each said last. Hints: a fetch finds out what is true.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use net::{Net, Services};
use ollama::Digest;
use types::NodeId;

use crate::protocol::{HOLDINGS, HolderState, Holdings};

/// A node that takes longer is asked again next time.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Holders(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    net: Net,
    /// This node's own among them. Bounded by the members.
    known: Mutex<BTreeMap<NodeId, Holdings>>,
}

impl Holders {
    pub(crate) fn new(net: Net) -> Self {
        Self(Arc::new(Inner { net, known: Mutex::default() }))
    }

    pub(crate) fn services(&self, services: Services) -> Services {
        let holders = self.clone();
        services.on_request(HOLDINGS, move |_, _| {
            let mine = holders.lock().get(&holders.0.net.local()).cloned().unwrap_or_default();
            let said = codec::encode(&mine).map(Into::into);
            Box::pin(async move { said.map_err(|error| net::Refusal::Failed(error.to_string())) })
        })
    }

    pub(crate) fn set_mine(&self, mine: Holdings) {
        self.lock().insert(self.0.net.local(), mine);
    }

    /// What one node says now.
    pub(crate) async fn ask(&self, node: NodeId) -> Option<Holdings> {
        if node == self.0.net.local() {
            return self.lock().get(&node).cloned();
        }
        let asked = self.0.net.request_within(node, HOLDINGS.protocol, bytes::Bytes::new(), ASK_MAX).await.ok()?;
        codec::decode(&asked).ok()
    }

    /// Asks everybody who can be asked, and forgets what those said who cannot.
    pub(crate) async fn refresh(&self) {
        let net = &self.0.net;
        let up: Vec<NodeId> = net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id).collect();
        let said = join_all(up.into_iter().map(async |node| Some((node, self.ask(node).await?)))).await;
        let mine = net.local();
        let mut known = self.lock();
        known.retain(|node, _| *node == mine);
        known.extend(said.into_iter().flatten());
    }

    /// Who has a version, and how, by what was said last.
    pub(crate) fn of(&self, version: &Digest) -> Vec<(NodeId, HolderState)> {
        let known = self.lock();
        known.iter().filter_map(|(node, said)| Some((*node, *said.versions.get(version)?))).collect()
    }

    /// Others to fetch it from, those who have all of it first.
    pub(crate) fn sources(&self, version: &Digest) -> Vec<NodeId> {
        let me = self.0.net.local();
        let mut sources: Vec<_> =
            self.of(version).into_iter().filter(|(node, state)| *node != me && state.is_source()).collect();
        sources.sort_by_key(|(_, state)| matches!(state, HolderState::Fetching { .. }));
        sources.into_iter().map(|(node, _)| node).collect()
    }

    /// All that was said last.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, BTreeMap<Digest, HolderState>> {
        self.lock().iter().map(|(node, said)| (*node, said.versions.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Holdings>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
