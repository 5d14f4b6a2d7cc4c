//! The Ollamas on machines without a node that this node stands before, as the registry has it and who is up.

use std::collections::BTreeMap;

use cluster::Cluster;
use ollama::Endpoint;
use tokio::task::{AbortHandle, JoinSet};
use types::NodeName;
use vitals::BackendKind;

use super::here::{Here, Source, Stand};
use super::hosts::Hosts;
use crate::parts::pass_on;

/// A reconciler: compares what should be with what is, and may be asked to at any time.
pub(crate) struct Enrolled {
    cluster: Cluster,
    here: Here,
    hosts: Hosts,
    /// This node's own.
    own: Vec<Stand>,
    stands: BTreeMap<NodeName, Before>,
    looks: JoinSet<()>,
}

struct Before {
    at: Endpoint,
    stand: Stand,
    looks: AbortHandle,
}

impl Enrolled {
    pub(crate) fn new(cluster: Cluster, here: Here, hosts: Hosts) -> Self {
        let own = here.all();
        Self { cluster, here, hosts, own, stands: BTreeMap::new(), looks: JoinSet::new() }
    }

    pub(crate) fn reconcile(&mut self) {
        while let Some(ended) = self.looks.try_join_next() {
            pass_on(ended);
        }
        let me = self.cluster.id();
        let wanted: BTreeMap<NodeName, Endpoint> = self.cluster.view(|registry| {
            let mine = |name: &NodeName| registry.backend_host(name, |node| self.hosts.is_up(*node)) == Some(me);
            let backends = registry.backends().filter(|(name, _)| mine(name));
            // What another version let in and this one cannot read is nobody's.
            backends.filter_map(|(name, backend)| Some((name.clone(), backend.url.parse().ok()?))).collect()
        });
        let is_same = self.stands.len() == wanted.len()
            && wanted.iter().all(|(name, at)| self.stands.get(name).is_some_and(|before| before.at == *at));
        if is_same {
            return;
        }
        self.stands.retain(|name, before| {
            let stays = wanted.get(name) == Some(&before.at);
            if !stays {
                tracing::info!(%name, at = %before.at, "an enrolled backend is no longer this node's");
                // What runs there goes on to its end; nobody looks after it any more.
                before.looks.abort();
            }
            stays
        });
        for (name, at) in wanted {
            if !self.stands.contains_key(&name) {
                tracing::info!(%name, %at, "an enrolled backend is this node's");
                let (stand, looks) = Stand::before(Source::at(BackendKind::Enrolled, at.clone()));
                let looks = self.looks.spawn(looks);
                self.stands.insert(name, Before { at, stand, looks });
            }
        }
        let enrolled = self.stands.values().map(|before| before.stand.clone());
        self.here.set(self.own.iter().cloned().chain(enrolled).collect());
    }
}

impl std::fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolled").field("stands", &self.stands.len()).finish_non_exhaustive()
    }
}
