//! The models of this node: its stores, its blobs, and the single things that are done with them. Each is safe to repeat,
//! and to drop half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use blobs::{Blobs, Known, Stage, State, Survey, Want};
use cluster::{Actor, Cluster, Piece, Verb};
use net::Net;
use ollama::manifest::{Layer, Manifest};
use ollama::{Digest, ModelName};
use tokio::time::{Instant, sleep_until};
use types::{NodeId, Role};

use crate::error::{Error, chain};
use crate::holders::Holders;
use crate::protocol::{HolderState, Holdings};
use crate::reconcile::{Agreed, Deleted, Listed, Local, Seen, Tag};
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
    /// Versions of which a store has a file that is not what its name says. Bounded by what the stores list.
    pub(crate) wrong: Mutex<BTreeSet<Digest>>,
    /// Names as they were seen last while the mesh had tags of them. Bounded by its tags and deleted tags.
    pub(crate) seen: Mutex<Seen>,
    /// Held while damage is repaired: one after the other, each looks at what the one before has left.
    pub(crate) mending: tokio::sync::Mutex<()>,
    /// Held from looking at what is here to having told it: what is told last is what was seen last.
    pub(crate) telling: tokio::sync::Mutex<()>,
}

/// What is here, for deciding what to do and for telling others.
struct Here {
    local: Local,
    survey: Survey,
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
    async fn here(&self) -> Here {
        let mut local = Local::default();
        for (place, store) in self.stores.iter().enumerate() {
            let access = store.access().await;
            let Ok(listed) = store.listed().await else { continue };
            local.stores.insert(place);
            if matches!(access, Access::Folder(_) | Access::ReadOnly { .. }) {
                local.readable.insert(place);
            }
            if store.takes() {
                local.takes.insert(place);
            }
            let listed = listed.into_iter().map(|found| {
                let (name, digest, since) = (found.name, found.digest, found.since);
                Listed { store: place, name, digest, since }
            });
            local.listed.extend(listed);
        }
        local.seen = self.look_at_names(&local.listed);
        let survey = self.blobs.survey().await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "the blobs of this node cannot be looked at");
            Survey::default()
        });
        let wrong = {
            let mut wrong = self.wrong();
            wrong.retain(|version| local.listed.iter().any(|listed| listed.digest == *version));
            wrong.clone()
        };
        self.cluster.view(|registry| {
            for (digest, version) in registry.versions() {
                if version.layers.iter().all(|layer| survey.whole.contains(&layer.hash)) {
                    local.whole.insert(*digest);
                }
                if wrong.contains(digest) || version.layers.iter().any(|layer| survey.damaged.contains(&layer.hash)) {
                    local.damaged.insert(*digest);
                }
            }
        });
        let has_sources =
            |version: &&Digest| local.whole.contains(*version) || !self.holders.sources(version).is_empty();
        local.mendable = local.damaged.iter().filter(has_sources).copied().collect();
        Here { local, survey }
    }

    /// Remembers what is under the names of tags, as long as the mesh has them or remembers their deletion.
    fn look_at_names(&self, listed: &[Listed]) -> Seen {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.cluster.view(|registry| {
            let deleted: BTreeSet<&ModelName> = registry.deleted_tags().map(|(name, _)| name).collect();
            seen.retain(|name, _| deleted.contains(name));
            for (name, _) in registry.tags() {
                let there = listed.iter().filter(|listed| listed.name == *name);
                seen.insert(name.clone(), there.map(|it| (it.store, it.digest, it.since)).collect());
            }
        });
        seen.clone()
    }

    pub(crate) fn wrong(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) async fn say_what_is_here(&self) -> Local {
        let _in_order = self.telling.lock().await;
        let here = self.here().await;
        self.holders.set_mine(self.holdings(&here));
        here.local
    }

    /// How this node has what it has, for the others.
    fn holdings(&self, here: &Here) -> Holdings {
        let versions = self.versions(here);
        // Where nothing runs models that could be put in, or nobody can say how much is free, nothing more should come.
        let disk_free = match self.stores.iter().any(Store::takes) {
            false => 0,
            true => fs4::available_space(&self.incoming).unwrap_or_default(),
        };
        Holdings { versions, disk_free, memory: self.memory }
    }

    fn versions(&self, Here { local, survey }: &Here) -> BTreeMap<Digest, HolderState> {
        let listed: BTreeSet<Digest> = local.listed.iter().map(|listed| listed.digest).collect();
        let mut holdings: BTreeMap<Digest, HolderState> =
            listed.iter().map(|version| (*version, HolderState::Listed)).collect();
        self.cluster.view(|registry| {
            for (digest, version) in registry.versions() {
                let is_damaged = local.damaged.contains(digest);
                if local.whole.contains(digest) {
                    // Ours may be good where a store's is wrong: then others may have it, and it is no copy that runs.
                    let runs = listed.contains(digest) && !is_damaged;
                    holdings.insert(*digest, if runs { HolderState::Verified } else { HolderState::Stored });
                    continue;
                }
                if is_damaged {
                    holdings.insert(*digest, HolderState::Damaged);
                    continue;
                }
                let whole = version.layers.iter().filter(|layer| survey.whole.contains(&layer.hash));
                let mut bytes = whole.map(|layer| layer.size).sum();
                let mut is_coming = false;
                for layer in &version.layers {
                    if let Some(part) = survey.partial.get(&layer.hash) {
                        is_coming = true;
                        bytes += layer.size * u64::from(part.chunks) / u64::from(part.of.max(1));
                    }
                }
                if is_coming {
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
                self.wrong().insert(digest);
                return Err(Error::Corrupt { path, found: known.sha256 });
            }
            layers.push(known);
        }
        self.wrong().remove(&digest);
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
            if self.blobs.locate(&piece.hash).await.is_none() {
                self.fetch_piece(version, piece, tell).await?;
            }
            tell(piece, piece.size);
        }
        Ok(())
    }

    pub(crate) async fn fetch_piece(
        &self,
        version: Digest,
        piece: &Piece,
        tell: &impl Fn(&Piece, u64),
    ) -> Result<(), Error> {
        let holders = self.holders.clone();
        let want = Want { hash: piece.hash, size: piece.size, sha256: piece.digest };
        let fetch = self.blobs.fetch(want, move || holders.sources(&version));
        let mut progress = fetch.progress();
        let mut done = std::pin::pin!(fetch.done());
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                outcome = &mut done => return Ok(outcome.map(drop)?),
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
        // What lies there by the right name and size may hold something else: it was somebody else who put it there.
        store.access().await;
        for (layer, from) in &layers {
            let piece = known.layer(&layer.digest).ok_or(Error::UnknownVersion(version))?;
            if let Some(there) = store.file(layer)
                && !self.blobs.lies_at(&piece.hash, &there).await?
            {
                tracing::warn!(path = %there.display(), "a file is not what its name says; it is replaced");
                store.mend(layer, from.clone()).await.map_err(failed(store))?;
            }
        }
        self.keep_what_it_meant(store, name, version).await;
        let ready = Ready { digest: version, manifest: bytes, layers };
        let published = store.publish(name, &ready).await;
        let published = published.map_err(failed(store))?;
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
        store.access().await;
        self.keep_what_it_meant(store, name, None).await;
        store.unname(name).await.map_err(failed(store))
    }

    /// Files that no name needs are removed by an Ollama at its next start. So what a name is about to mean no more gets a
    /// name of ours too, as long as the mesh knows the version: people roll back, and restore. That needs neither room nor
    /// time, and is not always to be had.
    async fn keep_what_it_meant(&self, store: &Store, name: &ModelName, to: impl Into<Option<Digest>>) {
        let (Some(folder), false) = (store.folder(), store.is_ours()) else { return };
        let Ok(listed) = store.listed().await else { return };
        let Some(before) = listed.iter().find(|found| found.name == *name).map(|found| found.digest) else { return };
        let has_more_names = listed.iter().any(|found| found.digest == before && found.name != *name);
        if has_more_names || to.into() == Some(before) {
            return;
        }
        let version = self.cluster.view(|registry| registry.version(&before).cloned());
        for piece in version.iter().flat_map(|version| &version.layers) {
            match self.blobs.keep(&piece.hash, folder.blob(&piece.digest)).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!(%name, layer = %piece.digest, "a layer of what the name meant stays for as long as its backend keeps it");
                }
                Err(error) => {
                    tracing::warn!(%name, layer = %piece.digest, error = %chain(&error), "an old layer is not kept")
                }
            }
        }
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

fn failed(store: &Store) -> impl Fn(crate::store::Error) -> Error {
    let store = store.label().to_owned();
    move |source| Error::Store { store: store.clone(), source: Box::new(source) }
}
