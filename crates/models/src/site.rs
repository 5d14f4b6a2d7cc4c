//! The models of this node: its stores, its blobs, and the single things that are done with them. Each is safe to repeat,
//! and to drop half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use blobs::{Blobs, Known, Stage, State, Want};
use cluster::{Actor, Cluster, Piece, Verb};
use net::Net;
use ollama::manifest::{Layer, Manifest};
use ollama::{Digest, ModelName};
use tokio::time::{Instant, sleep_until};
use types::{BlobHash, NodeId, Role};

use crate::error::Error;
use crate::holders::Holders;
use crate::protocol::{HolderState, Holdings};
use crate::reconcile::{Agreed, Deleted, Listed, Local, Tag};
use crate::store::{Access, Ready, Store};
use crate::turn::Turns;
use crate::upstream::Upstream;

/// Who has a model may be asleep: then another one is fetched first.
const SOURCES_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) net: Net,
    pub(crate) blobs: Blobs,
    pub(crate) stores: Vec<Store>,
    pub(crate) holders: Holders,
    pub(crate) turns: Turns,
    pub(crate) upstream: Upstream,
    /// Where what comes from registries lies until it is whole.
    pub(crate) incoming: PathBuf,
    /// Of the machine, in bytes.
    pub(crate) memory: u64,
    /// Layers that come from a registry now: each is written by one alone.
    pub(crate) layers: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Site {
    /// Held by whoever fetches a layer from a registry.
    pub(crate) fn layer_lock(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = layers.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        layers.insert(digest, Arc::downgrade(&lock));
        lock
    }

    pub(crate) fn me(&self) -> NodeId {
        self.cluster.id()
    }

    pub(crate) fn role(&self) -> Role {
        let me = self.me();
        self.cluster.view(|registry| registry.member(&me).map_or(Role::Worker, |member| member.role))
    }

    /// What is here now.
    pub(crate) async fn local(&self) -> Local {
        let mut local = Local::default();
        for (place, store) in self.stores.iter().enumerate() {
            let access = store.access().await;
            let Ok(listed) = store.listed().await else { continue };
            local.stores.insert(place);
            if matches!(access, Access::Folder(_) | Access::ReadOnly { .. }) {
                local.readable.insert(place);
            }
            let listed = listed.into_iter().map(|found| {
                let (name, digest, since) = (found.name, found.digest, found.since);
                Listed { store: place, name, digest, since }
            });
            local.listed.extend(listed);
        }
        let here: BTreeSet<BlobHash> = self.blobs.whole().into_iter().collect();
        local.whole = self.cluster.view(|registry| {
            let whole =
                registry.versions().filter(|(_, version)| version.layers.iter().all(|l| here.contains(&l.hash)));
            whole.map(|(digest, _)| *digest).collect()
        });
        let damaged = self.blobs.damaged().borrow().clone();
        if !damaged.is_empty() {
            local.damaged = self.cluster.view(|registry| {
                let is_damaged = |version: &cluster::Version| version.layers.iter().any(|l| damaged.contains(&l.hash));
                let all = registry.versions().filter(|(_, version)| is_damaged(version));
                all.map(|(digest, _)| *digest).collect()
            });
        }
        local
    }

    /// What all agree on, as this node sees it.
    pub(crate) fn agreed(&self) -> Agreed {
        let me = self.me();
        self.cluster.view(|registry| {
            let meant = |tag: &cluster::Tag| tag.history().map(|moved| moved.version).collect::<BTreeSet<_>>();
            let tags = registry.tags().map(|(name, tag)| {
                let past = meant(tag);
                (name.clone(), Tag { version: tag.version(), past })
            });
            let deleted = registry
                .deleted_tags()
                .map(|(name, deleted)| (name.clone(), Deleted { at: deleted.at, meant: meant(&deleted.tag) }));
            let assigned = registry.assignments().filter(|(_, nodes)| nodes.contains(&me));
            Agreed {
                tags: tags.collect(),
                deleted: deleted.collect(),
                aliases: registry.aliases().map(|(alias, _)| alias.clone()).collect(),
                versions: registry.versions().map(|(digest, _)| *digest).collect(),
                assigned: assigned.map(|(digest, _)| *digest).collect(),
            }
        })
    }

    /// Has the others hear what is here now, when they ask.
    pub(crate) async fn say_what_is_here(&self) {
        let local = self.local().await;
        self.holders.set_mine(self.holdings(&local));
    }

    /// How this node has what it has, for the others.
    pub(crate) fn holdings(&self, local: &Local) -> Holdings {
        let versions = self.versions(local);
        // Where nothing runs models, or nobody can say how much is free, nothing more should come.
        let disk_free = match self.stores.is_empty() {
            true => 0,
            false => fs4::available_space(&self.incoming).unwrap_or_default(),
        };
        Holdings { versions, disk_free, memory: self.memory }
    }

    fn versions(&self, local: &Local) -> BTreeMap<Digest, HolderState> {
        let listed: BTreeSet<Digest> = local.listed.iter().map(|listed| listed.digest).collect();
        let mut holdings: BTreeMap<Digest, HolderState> =
            listed.iter().map(|version| (*version, HolderState::Listed)).collect();
        self.cluster.view(|registry| {
            for (digest, version) in registry.versions() {
                if local.whole.contains(digest) {
                    let state = if listed.contains(digest) { HolderState::Verified } else { HolderState::Stored };
                    holdings.insert(*digest, state);
                    continue;
                }
                let (mut bytes, mut coming, mut damaged) = (0, false, false);
                for layer in &version.layers {
                    match self.blobs.state(&layer.hash) {
                        State::Whole { .. } => bytes += layer.size,
                        State::Partial { chunks, of } => {
                            coming = true;
                            bytes += layer.size * u64::from(chunks) / u64::from(of.max(1));
                        }
                        State::Damaged { .. } => damaged = true,
                        State::Absent => {}
                    }
                }
                if damaged {
                    holdings.insert(*digest, HolderState::Damaged);
                } else if coming {
                    holdings.insert(*digest, HolderState::Fetching { bytes, total: version.size() });
                }
            }
        });
        holdings
    }

    /// Reads what a store has under a name, and tells the others that it is here.
    pub(crate) async fn notice(&self, store: usize, name: &ModelName, digest: Digest) -> Result<(), Error> {
        let Some(folder) = self.stores.get(store).and_then(Store::folder) else { return Err(Error::NoStore) };
        let changed = || Error::Changed(Box::new(name.clone()));
        let bytes = folder.manifest_bytes(name).map_err(|_| changed())?;
        let manifest = Manifest::parse(&bytes).map_err(|_| changed())?;
        if Digest::of(&bytes) != digest {
            return Err(changed());
        }
        let mut layers = Vec::new();
        for layer in manifest.blobs() {
            let path = folder.blob(&layer.digest);
            let known = self.blobs.refer(&path, |_| ()).await?;
            if known.sha256 != layer.digest {
                return Err(Error::Corrupt { path, found: known.sha256 });
            }
            layers.push(known);
        }
        let tag = (self.role() == Role::Node).then(|| name.clone());
        self.register(Actor::Node(self.me()), bytes, &layers, tag).await
    }

    /// Tells the mesh what a model is made of; under a name, where nothing has it.
    pub(crate) async fn register(
        &self,
        by: Actor,
        manifest: Vec<u8>,
        layers: &[Known],
        tag: Option<ModelName>,
    ) -> Result<(), Error> {
        let pieces: BTreeMap<Digest, Piece> = layers
            .iter()
            .map(|known| (known.sha256, Piece { digest: known.sha256, hash: known.hash, size: known.size }))
            .collect();
        let layers = pieces.into_values().collect();
        self.cluster.write(by, Verb::AddVersion { manifest: manifest.into(), layers, tag }).await?;
        Ok(())
    }

    /// Fetches all that is missing of a version from other nodes; the small things first.
    pub(crate) async fn fetch(&self, version: Digest, tell: &impl Fn(&Piece, u64)) -> Result<(), Error> {
        let pieces = self.cluster.view(|registry| registry.version(&version).map(|version| version.layers.clone()));
        let mut pieces = pieces.ok_or(Error::UnknownVersion(version))?;
        pieces.sort_by_key(|piece| piece.size);
        for piece in &pieces {
            if self.blobs.locate(&piece.hash).await.is_some() {
                tell(piece, piece.size);
                continue;
            }
            let holders = self.holders.clone();
            let want = Want { hash: piece.hash, size: piece.size, sha256: piece.digest };
            let fetch = self.blobs.fetch(want, move || holders.sources(&version));
            let mut progress = fetch.progress();
            let mut done = std::pin::pin!(fetch.done());
            let mut heard = Instant::now();
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut done => {
                        outcome?;
                        break;
                    }
                    Ok(()) = progress.changed() => {
                        let now = progress.borrow_and_update().clone();
                        if now.stage != Stage::WaitingForSources {
                            heard = Instant::now();
                        }
                        tell(piece, now.bytes);
                    }
                    // Others may be had meanwhile; what has come is kept.
                    () = sleep_until(heard + SOURCES_MAX) => {
                        if progress.borrow().stage == Stage::WaitingForSources {
                            return Err(Error::NoSources(version));
                        }
                        heard = Instant::now();
                    }
                }
            }
            tell(piece, piece.size);
        }
        Ok(())
    }

    /// Puts a version that is here into a store under a name.
    pub(crate) async fn publish(&self, store: usize, name: &ModelName, version: Digest) -> Result<(), Error> {
        let Some(store) = self.stores.get(store) else { return Err(Error::NoStore) };
        let known = self.cluster.view(|registry| registry.version(&version).cloned());
        let known = known.ok_or(Error::UnknownVersion(version))?;
        let bytes = known.manifest.to_vec();
        let manifest = Manifest::parse(&bytes).map_err(|_| Error::UnknownVersion(version))?;
        let mut layers: Vec<(Layer, PathBuf)> = Vec::new();
        for layer in manifest.blobs() {
            let piece = known.layer(&layer.digest).ok_or(Error::UnknownVersion(version))?;
            let path = self.blobs.locate(&piece.hash).await;
            let path = path.ok_or(blobs::Error::Absent { hash: piece.hash })?;
            layers.push((layer.clone(), path));
        }
        let ready = Ready { digest: version, manifest: bytes, layers };
        let published = store.publish(name, &ready).await;
        let published =
            published.map_err(|source| Error::Store { store: store.label().to_owned(), source: Box::new(source) })?;
        tracing::info!(%name, digest = %version, store = store.label(), linked = published.linked, "a model is in place");
        // What lies in the store need not lie with us a second time, whether we may look into it or not.
        // Unless nobody else could be asked for it then.
        if published.files.is_empty() && !self.holders.sources(&version).is_empty() {
            for piece in &known.layers {
                if let State::Whole { ours: true, .. } = self.blobs.state(&piece.hash) {
                    self.blobs.forget(&piece.hash).await?;
                }
            }
        }
        for (digest, path) in published.files {
            let Some(piece) = known.layer(&digest) else { continue };
            match self.blobs.state(&piece.hash) {
                State::Whole { ours: true, .. } => self.blobs.release(&piece.hash, &path).await?,
                _ => self.blobs.also_at(&piece.hash, path).await?,
            }
        }
        self.say_what_is_here().await;
        Ok(())
    }

    pub(crate) async fn unname(&self, store: usize, name: &ModelName) -> Result<(), Error> {
        let Some(store) = self.stores.get(store) else { return Err(Error::NoStore) };
        store
            .unname(name)
            .await
            .map_err(|source| Error::Store { store: store.label().to_owned(), source: Box::new(source) })
    }

    /// The first store that lists a name.
    pub(crate) async fn store_with(&self, name: &ModelName) -> Option<&Store> {
        for store in &self.stores {
            if store.listed().await.is_ok_and(|listed| listed.iter().any(|found| found.name == *name)) {
                return Some(store);
            }
        }
        None
    }

    /// The first store that answers.
    pub(crate) async fn first_store(&self) -> Option<usize> {
        for (place, store) in self.stores.iter().enumerate() {
            if store.listed().await.is_ok() {
                return Some(place);
            }
        }
        None
    }
}
