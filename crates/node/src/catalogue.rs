//! The models of this node and of the mesh, as the faces ask for them: the registry, the blobs and the stores beside us
//! behind one door.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blobs::{Blobs, Collected};
use cluster::{Actor, Consistency, Expect, Moved, Replicas, Rule, Verb};
use futures::future::BoxFuture;
use models::store::Beside;
use models::{HolderState, Models};
use ollama::client::Client;
use ollama::{Digest, Endpoint, ModelName, Origin};
use scheduler::placement::{Told, VersionId};
use types::{BlobHash, NodeId, Role};

use crate::api::{Api, now};
use crate::backend::Backend;
use crate::inference::Inference;
use crate::placement::{Holdings, Placed};

/// What is known of one name.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    pub name: ModelName,
    pub digest: Digest,
    pub bytes: u64,
    pub pinned: bool,
    pub aliases: Vec<ModelName>,
    pub rule: Option<Rule>,
    pub assigned: BTreeSet<NodeId>,
    pub layers: Vec<cluster::Piece>,
    pub history: Vec<Moved>,
}

/// Why something with a model was not done.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    #[error(transparent)]
    Registry(#[from] cluster::Error),
    #[error(transparent)]
    Models(#[from] models::Error),
}

/// Whoever adds a version is about to put a tag on it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Where Ollama keeps its models by itself, for whoever runs it.
const USUAL_FOLDERS: [&str; 2] = ["/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models"];

impl Api {
    /// All names of the mesh, by what this node knows.
    pub fn model_infos(&self) -> Vec<ModelInfo> {
        self.cluster().view(|registry| registry.tags().filter_map(|(name, _)| info(registry, name)).collect())
    }

    /// One of them; an alias means what it stands for.
    pub fn model_info(&self, name: &ModelName) -> Option<ModelInfo> {
        self.cluster().view(|registry| info(registry, registry.tag_meant(name)?.0))
    }

    /// Whether a name was removed and can be restored.
    pub fn is_removed(&self, name: &ModelName) -> bool {
        self.cluster().view(|registry| registry.deleted_tags().any(|(removed, _)| removed == name))
    }

    /// The names of the versions a blob is part of.
    pub fn models_of(&self, hash: &BlobHash) -> Vec<ModelName> {
        self.cluster().view(|registry| {
            let is_part = |digest: &Digest| {
                registry.version(digest).is_some_and(|version| version.layers.iter().any(|layer| layer.hash == *hash))
            };
            registry.tags().filter(|(_, tag)| is_part(&tag.version())).map(|(name, _)| name.clone()).collect()
        })
    }

    /// The registries models may be fetched from.
    pub fn registries(&self) -> Vec<Origin> {
        self.cluster().view(|registry| registry.settings().registries())
    }

    /// Gives a version one more name.
    pub async fn copy_model(&self, by: Actor, version: Digest, to: ModelName) -> Result<u64, ModelsError> {
        let set = Verb::SetTag { name: to.clone(), version, expect: Expect::Anything };
        let index = self.change_models(by, set).await?;
        self.models().name(version, &to).await?;
        Ok(index)
    }

    /// Frees what no model needs any more: in the registry where this node may, and on this node's disk.
    pub async fn collect_models(&self, dry: bool) -> Result<Vec<Collected>, ModelsError> {
        let (me, cluster) = (self.cluster().id(), self.cluster());
        // What this node has not heard of yet may need what it is about to remove.
        cluster.read(Consistency::Linearizable, |_| ()).await?;
        let is_node = cluster.view(|registry| registry.member(&me).is_some_and(|member| member.role == Role::Node));
        if is_node && !dry {
            let unneeded: Vec<Digest> = cluster.view(|registry| {
                let is_old = |version: &cluster::Version| {
                    now().0.saturating_sub(version.added_at.0) >= FORGOTTEN_AFTER.as_secs() * 1000
                };
                let old = registry.versions().filter(|(_, version)| is_old(version)).map(|(digest, _)| *digest);
                old.filter(|digest| registry.needed_by(digest).is_none()).collect()
            });
            if !unneeded.is_empty() {
                cluster.write(Actor::Node(me), Verb::ForgetVersions { versions: unneeded }).await?;
            }
        }
        Ok(self.models().collect(dry).await?)
    }

    /// How the leader's last round of placing models went; only the leader knows.
    pub fn placed(&self) -> Placed {
        self.placement().last()
    }

    /// A change of the catalogue. Its index is where it took place.
    pub async fn change_models(&self, by: Actor, verb: Verb) -> Result<u64, ModelsError> {
        let done = self.cluster().write(by, verb).await?;
        self.models().nudge();
        self.placement().nudge();
        Ok(done.index())
    }
}

fn info(registry: &cluster::Registry, name: &ModelName) -> Option<ModelInfo> {
    let tag = registry.tag(name)?;
    let version = registry.version(&tag.version())?;
    Some(ModelInfo {
        name: name.clone(),
        digest: tag.version(),
        bytes: version.size(),
        pinned: tag.pinned,
        aliases: registry.aliases().filter(|(_, to)| *to == name).map(|(alias, _)| alias.clone()).collect(),
        rule: registry.rule(name).cloned(),
        assigned: registry.assigned(&tag.version()).copied().collect(),
        layers: version.layers.clone(),
        history: tag.history().cloned().collect(),
    })
}

/// The stores beside this node. `engine` is the engine's folder; `ollama` where the operator says Ollama's is.
pub(crate) fn beside(backend: &Backend, engine: &Path, ollama: Option<&Path>) -> Vec<Beside> {
    let folders = |at: &Endpoint| {
        let named = ollama.map(Path::to_owned);
        let usual = || {
            let of_user = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ollama").join("models"));
            let said = std::env::var_os("OLLAMA_MODELS").map(PathBuf::from);
            said.into_iter().chain(of_user).chain(USUAL_FOLDERS.map(PathBuf::from)).collect()
        };
        match named {
            Some(named) => vec![named],
            None if is_here(at) => usual(),
            None => Vec::new(),
        }
    };
    backend.stores(engine.to_owned(), folders)
}

/// Whether an Ollama is on this machine, as far as its address tells.
fn is_here(at: &Endpoint) -> bool {
    at.host() == "localhost" || at.host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// For a store's client, from how the backend is spoken to.
pub(crate) fn client(way: crate::backend::Way) -> Client {
    let header = way.secret.map(|(name, value)| (name.to_owned(), value.expose().clone()));
    Client::new(way.at, header)
}

/// What placement asks, of the nodes' own words.
#[derive(Debug)]
pub(crate) struct Said(pub(crate) Models);

impl Holdings for Said {
    fn of(&self, node: NodeId) -> BoxFuture<'_, Option<Told>> {
        Box::pin(async move {
            let models::Holdings { versions, disk_free, memory } = self.0.holdings(node).await?;
            let id = |digest: &Digest| VersionId(*digest.as_bytes());
            let (mut holds, mut partial) = (BTreeSet::new(), BTreeMap::new());
            for (digest, state) in &versions {
                match state {
                    // What a backend lists is there, though nobody may look at its files.
                    HolderState::Verified | HolderState::Stored | HolderState::Listed => drop(holds.insert(id(digest))),
                    HolderState::Fetching { bytes, .. } => drop(partial.insert(id(digest), *bytes)),
                    HolderState::Damaged => {}
                }
            }
            Some(Told { disk_free, memory, holds, partial })
        })
    }
}

/// One copy on each node that may have it, or so many.
pub fn replicas(count: Option<u32>) -> Replicas {
    count.map_or(Replicas::All, Replicas::Count)
}

/// Between two looks at whether models answer here. Who begins to wait for an answer shares the line for so long.
const GIVES_WAY_EVERY: Duration = Duration::from_millis(500);

/// Has transfers give way while models answer here. Runs for ever.
pub(crate) async fn give_way(blobs: Blobs, inference: Inference) {
    let mut is_busy = false;
    loop {
        let now = inference.figures().running > 0;
        if now != is_busy {
            blobs.set_busy(now);
            is_busy = now;
        }
        tokio::time::sleep(GIVES_WAY_EVERY).await;
    }
}

/// Of the machine, in bytes. Where the system does not tell, everything is taken to fit.
pub(crate) fn memory() -> u64 {
    engine::memory_total().unwrap_or(u64::MAX)
}
