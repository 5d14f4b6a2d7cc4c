//! What the rest of the node calls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use blobs::{Blobs, Collected, TransferInfo};
use cluster::{Actor, Cluster};
use net::{Net, Services};
use ollama::client::Progress;
use ollama::compose::Texts;
use ollama::{Digest, ModelName, Origin};
use tokio::sync::{Notify, mpsc};
use types::{BlobHash, NodeId};

use crate::error::Error;
use crate::holders::Holders;
use crate::import::Imported;
use crate::protocol::{HolderState, Holdings, Verified};
use crate::pulls::{self, Pull};
use crate::site::Site;
use crate::store::{Access, Beside, Store};
use crate::task::Task;
use crate::turn::Turns;
use crate::upstream::Upstream;

/// Pulls that wait to begin, beside those that run. One more is refused.
const PULLS_WAITING_MAX: usize = 32;

/// What the crate stands on.
#[derive(Debug)]
pub struct Parts {
    pub cluster: Cluster,
    pub net: Net,
    pub blobs: Blobs,
    /// The backends beside this node, in the order they are preferred.
    pub beside: Vec<Beside>,
    /// A folder for what comes from registries, until it is whole.
    pub incoming: PathBuf,
    /// Of the machine, in bytes: placement wants to know what fits.
    pub memory: u64,
}

/// The models of this node and of the mesh. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Models {
    site: Arc<Site>,
    nudge: Arc<Notify>,
    pulls: mpsc::Sender<Pull>,
}

pub fn new(parts: Parts) -> (Models, Task) {
    let Parts { cluster, net, blobs, beside, incoming, memory } = parts;
    let site = Arc::new(Site {
        holders: Holders::new(net.clone()),
        stores: beside.into_iter().map(Store::new).collect(),
        turns: Turns::default(),
        upstream: Upstream::default(),
        cluster,
        net,
        blobs,
        incoming,
        memory,
        layers: Mutex::default(),
        wrong: Mutex::default(),
        seen: Mutex::default(),
        mending: tokio::sync::Mutex::default(),
        telling: tokio::sync::Mutex::default(),
    });
    let nudge = Arc::new(Notify::new());
    let (pulls, pulled) = mpsc::channel(PULLS_WAITING_MAX);
    (Models { site: site.clone(), nudge: nudge.clone(), pulls }, Task::new(site, nudge, pulled))
}

impl Models {
    pub fn services(&self, services: Services) -> Services {
        crate::verify::services(&self.site, self.site.turns.services(self.site.holders.services(services)))
    }

    /// Looks for what is to be done at once, not with the next beat.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Makes a model of a GGUF file of this machine. Done when the backend here lists it.
    pub async fn import(
        &self,
        by: Actor,
        path: &Path,
        name: &ModelName,
        texts: &Texts,
        tell: impl Fn(u64) + Send + 'static,
    ) -> Result<Imported, Error> {
        let imported = self.site.import(by, path, name, texts, tell).await;
        self.nudge();
        imported
    }

    /// Brings a model into the mesh from the registry its name begins with. Done when the backend here lists it. Dropped,
    /// the pull goes on: others may have joined it by then. `tell` hears what Ollama would say, in its words and order.
    pub async fn pull(
        &self,
        by: Actor,
        name: &ModelName,
        allowed: &[Origin],
        tell: &impl Fn(Progress),
    ) -> Result<Digest, Error> {
        let (pull, heard) = pulls::new(by, name.clone(), allowed.to_vec());
        self.pulls.try_send(pull).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::TooManyPulls,
            mpsc::error::TrySendError::Closed(_) => Error::Stopping,
        })?;
        let pulled = heard.until_over(tell).await;
        self.nudge();
        pulled
    }

    /// Who has a version, asked just now.
    pub async fn holders(&self, version: &Digest) -> Vec<(NodeId, HolderState)> {
        self.look().await;
        self.site.holders.of(version)
    }

    /// Who has what, asked just now.
    pub async fn all_holders(&self) -> BTreeMap<NodeId, BTreeMap<Digest, HolderState>> {
        self.look().await;
        self.site.holders.all()
    }

    /// What one node has, and has room for; nothing where it does not say.
    pub async fn holdings(&self, node: NodeId) -> Option<Holdings> {
        self.site.holders.ask(node).await
    }

    async fn look(&self) {
        self.site.say_what_is_here().await;
        self.site.holders.refresh().await;
    }

    /// Reads all files of a version again on every node that has them, and fetches what is damaged from other nodes if that is
    /// asked for.
    pub async fn verify_everywhere(&self, version: &Digest, repair: bool) -> Vec<(NodeId, Result<Verified, String>)> {
        let verified = self.site.verify_everywhere(*version, repair).await;
        self.nudge();
        verified
    }

    /// Names a version here, where this node has it. The others follow by themselves.
    pub async fn name(&self, version: Digest, name: &ModelName) -> Result<(), Error> {
        self.nudge();
        let local = self.site.say_what_is_here().await;
        let stores: BTreeSet<usize> =
            local.listed.iter().filter(|listed| listed.digest == version).map(|listed| listed.store).collect();
        if local.whole.contains(&version) {
            for store in stores {
                self.site.publish(store, name, version).await?;
            }
        }
        Ok(())
    }

    /// Copies what a backend here has and the mesh has not catalogued, since nobody may read it or it has only just come.
    /// `false` where none has it.
    pub async fn copy_here(&self, from: &ModelName, to: &ModelName) -> Result<bool, Error> {
        let Some(store) = self.site.store_with(from).await else { return Ok(false) };
        let failed = |source| Error::Store { store: store.label().to_owned(), source: Box::new(source) };
        store.copy(from, to).await.map_err(failed)?;
        self.nudge();
        Ok(true)
    }

    /// Deletes it, likewise.
    pub async fn delete_here(&self, name: &ModelName) -> Result<bool, Error> {
        let Some(store) = self.site.store_with(name).await else { return Ok(false) };
        let failed = |source| Error::Store { store: store.label().to_owned(), source: Box::new(source) };
        store.delete(name).await.map_err(failed)?;
        self.nudge();
        Ok(true)
    }

    /// Frees what no version needs any more, on this node.
    pub async fn collect(&self, dry: bool) -> Result<Vec<Collected>, Error> {
        let kept = self.kept();
        if dry {
            return Ok(self.site.blobs.collect_dry(&kept).await?);
        }
        let collected = self.site.blobs.collect(&kept).await?;
        let gone: Vec<Digest> = collected.iter().filter_map(|gone| gone.sha256).collect();
        for store in &self.site.stores {
            store
                .prune(gone.clone())
                .await
                .map_err(|source| Error::Store { store: store.label().to_owned(), source: Box::new(source) })?;
        }
        Ok(collected)
    }

    /// How models get to the backends beside this node.
    pub fn ways(&self) -> Vec<(String, Access)> {
        self.site.stores.iter().map(|store| (store.label().to_owned(), store.known())).collect()
    }

    /// What comes in now.
    pub fn transfers(&self) -> Vec<TransferInfo> {
        self.site.blobs.transfers()
    }

    pub fn blobs(&self) -> &Blobs {
        &self.site.blobs
    }

    /// What must not be collected: all that a version the registry knows is made of.
    pub fn kept(&self) -> BTreeSet<BlobHash> {
        self.site.cluster.view(|registry| {
            registry.versions().flat_map(|(_, version)| version.layers.iter().map(|layer| layer.hash)).collect()
        })
    }
}
