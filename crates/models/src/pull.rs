//! Pulling a model: from other nodes where they have what the registry offers, else from the registry, by one node at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use blobs::Known;
use cluster::{Actor, Consistency, Expect, LAYERS_MAX, MANIFEST_BYTES_MAX, Verb};
use futures::future::{Either, select};
use ollama::client::Progress;
use ollama::manifest::Layer;
use ollama::{Digest, ModelName, Origin};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use types::Role;

use crate::error::{Error, chain};
use crate::protocol::HolderState;
use crate::site::Site;
use crate::turn::{ALIVE_EVERY, keepers};
use crate::upstream::Offered;

/// What has to be free beyond what is needed: one in as many bytes.
const MARGIN: u64 = 20;
/// What waits to be told to the others who want the same. At the limit older news are as good as none.
const NEWS_MAX: usize = 64;

impl Site {
    /// Done when the mesh knows it under its name and the backend here lists it. Dropped, it ends; what has come is kept.
    /// `tell` hears what Ollama would say, in its words and order, but for the last one.
    pub(crate) async fn pull(
        &self,
        by: Actor,
        name: &ModelName,
        allowed: &[Origin],
        tell: &(impl Fn(Progress) + Sync),
    ) -> Result<Digest, Error> {
        self.may_move(name)?;
        tell(said("pulling manifest"));
        let offered = self.offered(name, allowed).await?;
        let version = Digest::of(&offered.bytes);
        if !self.is_here(version).await {
            fits(&offered)?;
            self.has_room(&offered).await?;
            self.bring(by.clone(), name, &offered, version, allowed, tell).await?;
        }
        tell(said("verifying sha256 digest"));
        tell(said("writing manifest"));
        let set = Verb::SetTag { name: name.clone(), version, expect: Expect::Anything };
        self.cluster.write(by, set).await?;
        if let Some(store) = self.first_store().await {
            self.publish(store, name, version).await?;
        }
        Ok(version)
    }

    async fn offered(&self, name: &ModelName, allowed: &[Origin]) -> Result<Offered, Error> {
        let failed = |source| Error::Upstream { name: Box::new(name.clone()), source: Box::new(source) };
        self.upstream.manifest(name, allowed).await.map_err(failed)
    }

    /// Fetches it from whoever has it; waits its turn for the registry where no node has.
    async fn bring(
        &self,
        by: Actor,
        name: &ModelName,
        offered: &Offered,
        version: Digest,
        allowed: &[Origin],
        tell: &(impl Fn(Progress) + Sync),
    ) -> Result<(), Error> {
        if self.is_elsewhere(version).await && self.came_from_nodes(offered, version, tell).await {
            return Ok(());
        }
        let keepers = self.cluster.view(|registry| keepers(name, registry.members().map(|member| member.id)));
        let mut turn = self.turns.wait(&self.net, &keepers, name, tell).await;
        // Whoever had the turn before may have brought it into the mesh, just now. Without a quorum nobody did.
        let _ = self.cluster.read(Consistency::Linearizable, |_| ()).await;
        if self.is_elsewhere(version).await && self.came_from_nodes(offered, version, tell).await {
            return Ok(());
        }
        let (news, mut heard) = mpsc::channel(NEWS_MAX);
        let tell_all = |progress: Progress| {
            let _ = news.try_send(progress.clone());
            tell(progress);
        };
        let fetching = std::pin::pin!(self.bring_from_registry(by, name, offered, allowed, &tell_all));
        let passing_on = std::pin::pin!(async {
            let mut last = said("pulling manifest");
            let mut alive = interval(ALIVE_EVERY);
            alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    Some(progress) = heard.recv() => last = progress,
                    _ = alive.tick() => {}
                }
                turn.tell(last.clone()).await;
            }
        });
        match select(fetching, passing_on).await {
            Either::Left((brought, _)) => brought,
            Either::Right((never, _)) => never,
        }
    }

    /// Where it does not, the registry still has it.
    async fn came_from_nodes(&self, offered: &Offered, version: Digest, tell: &(impl Fn(Progress) + Sync)) -> bool {
        let brought = self.bring_from_nodes(offered, version, tell).await;
        if let Err(error) = &brought {
            tracing::warn!(%version, error = %chain(error), "other nodes do not bring a model; its registry is asked");
        }
        brought.is_ok()
    }

    async fn bring_from_nodes(
        &self,
        offered: &Offered,
        version: Digest,
        tell: &(impl Fn(Progress) + Sync),
    ) -> Result<(), Error> {
        // Told in the manifest's order, whatever comes first.
        let last = Mutex::new(None);
        self.fetch(version, &|piece, bytes| {
            let Some(layer) = offered.manifest.blobs().find(|layer| layer.digest == piece.digest) else { return };
            let now = Some((piece.digest, bytes));
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *last != now {
                *last = now;
                tell(pulling(layer, bytes));
            }
        })
        .await
    }

    async fn bring_from_registry(
        &self,
        by: Actor,
        name: &ModelName,
        offered: &Offered,
        allowed: &[Origin],
        tell: &(impl Fn(Progress) + Sync),
    ) -> Result<(), Error> {
        let mut layers: Vec<Known> = Vec::new();
        let mut held = Vec::new();
        for layer in offered.manifest.blobs() {
            let known = match self.layer_here(layer).await {
                Some(known) => known,
                None => {
                    let lock = self.layer_lock(layer.digest);
                    let _alone = lock.lock().await;
                    if let Some(known) = self.layer_here(layer).await {
                        held.push(self.blobs.hold(known.hash));
                        layers.push(known);
                        continue;
                    }
                    let path = self.layer_from_registry(name, layer, allowed, tell).await?;
                    let known = self.blobs.take(&path, layer.digest).await?;
                    let _ = tokio::fs::remove_dir_all(path.parent().unwrap_or(&path)).await;
                    known
                }
            };
            held.push(self.blobs.hold(known.hash));
            tell(pulling(layer, layer.size));
            layers.push(known);
        }
        self.register(by, offered.bytes.clone(), &layers, None).await?;
        // Before the turn is over: who has it next asks who has what.
        self.say_what_is_here().await;
        Ok(())
    }

    async fn layer_from_registry(
        &self,
        name: &ModelName,
        layer: &Layer,
        allowed: &[Origin],
        tell: &(impl Fn(Progress) + Sync),
    ) -> Result<PathBuf, Error> {
        let told = |bytes| tell(pulling(layer, bytes));
        let fetched = self.upstream.layer(name, layer, allowed, &self.incoming, &told).await;
        fetched.map_err(|source| Error::Upstream { name: Box::new(name.clone()), source: Box::new(source) })
    }

    /// Looked at once: who fills the disk meanwhile is told of by the write that fails.
    async fn has_room(&self, offered: &Offered) -> Result<(), Error> {
        let mut needed = 0_u64;
        let missing: BTreeMap<Digest, &Layer> = offered.manifest.blobs().map(|layer| (layer.digest, layer)).collect();
        for layer in missing.values() {
            if self.layer_here(layer).await.is_none() {
                needed = needed.saturating_add(self.upstream.missing(layer, &self.incoming));
            }
        }
        needed = needed.saturating_add(needed / MARGIN);
        // Where the system does not tell, it is tried.
        let free = fs4::available_space(&self.incoming).unwrap_or(u64::MAX);
        if needed > free { Err(Error::NoRoom { needed, free }) } else { Ok(()) }
    }

    async fn layer_here(&self, layer: &Layer) -> Option<Known> {
        let known = self.blobs.known_by_sha256(&layer.digest)?;
        self.blobs.locate(&known.hash).await.map(|_| known)
    }

    async fn is_here(&self, version: Digest) -> bool {
        let pieces = self.cluster.view(|registry| registry.version(&version).map(|version| version.layers.clone()));
        let Some(pieces) = pieces else { return false };
        for piece in pieces {
            if self.blobs.locate(&piece.hash).await.is_none() {
                return false;
            }
        }
        true
    }

    /// Whether the mesh knows it and some other node has it.
    async fn is_elsewhere(&self, version: Digest) -> bool {
        // A worker's word on what a layer is called is not taken where the registry can be asked.
        let is_vouched = self.cluster.view(|registry| {
            let by = registry.version(&version).map(|found| found.by);
            by.and_then(|by| registry.member(&by)).is_some_and(|member| member.role == Role::Node)
        });
        if !is_vouched {
            return false;
        }
        self.holders.refresh().await;
        let me = self.me();
        let is_whole = |state| matches!(state, HolderState::Verified | HolderState::Stored);
        self.holders.of(&version).into_iter().any(|(node, state)| node != me && is_whole(state))
    }
}

/// Whether a registry of ours can take it: said before gigabytes are fetched, not after.
fn fits(offered: &Offered) -> Result<(), Error> {
    let bytes = offered.bytes.len();
    if bytes > MANIFEST_BYTES_MAX {
        return Err(Error::TooMuch { what: "bytes", found: bytes, max: MANIFEST_BYTES_MAX });
    }
    let layers = offered.manifest.blobs().map(|layer| layer.digest).collect::<BTreeSet<_>>().len();
    if layers > LAYERS_MAX {
        return Err(Error::TooMuch { what: "layers", found: layers, max: LAYERS_MAX });
    }
    Ok(())
}

fn said(status: &str) -> Progress {
    Progress { status: status.to_owned(), ..Progress::default() }
}

/// As Ollama says it: the first digits of the digest stand for the layer.
fn pulling(layer: &Layer, completed: u64) -> Progress {
    let status = format!("pulling {}", &layer.digest.hex()[..12]);
    Progress { status, digest: layer.digest.to_string(), total: layer.size, completed, error: String::new() }
}
