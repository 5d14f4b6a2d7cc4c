//! Model versions: what a model is, byte for byte, whoever has it.
//!
//! A version is named by the SHA-256 of its manifest, so that nobody can put another manifest in its place. What nobody
//! can compute from the manifest is the BLAKE3 of its layers, by which they travel: that is taken on the word of the
//! first who says so, checked against everything that was said before, and found out at the first transfer if it was a
//! lie, since a layer is published only where its SHA-256 is right too.

use std::collections::{BTreeMap, BTreeSet};

use ollama::manifest::Manifest;
use ollama::{Digest, ModelName};
use serde::{Deserialize, Serialize};
use types::{BlobHash, NodeId, Role, UnixMillis};

use super::{Actor, Refused, Registry};
use crate::Verbatim;

/// Ollama's own are of one or two KiB. A longer one is refused.
pub const MANIFEST_BYTES_MAX: usize = 24 << 10;
/// A manifest of that length names no more; together they stay below what one command may hold.
pub const LAYERS_MAX: usize = 224;

/// At either limit no version is added until others are forgotten.
const VERSIONS_MAX: usize = 4_096;
const BYTES_MAX: usize = 8 << 20;
/// What the versions that one worker added may take: a worker that makes versions up leaves room for everybody else's.
const WORKER_BYTES_MAX: usize = 512 << 10;

/// What a layer takes in the registry, roughly: two hashes and a size.
const LAYER_BYTES: usize = 73;

/// One layer, under both its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    pub digest: Digest,
    pub hash: BlobHash,
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// As Ollama has it.
    pub manifest: Verbatim,
    /// All blobs the manifest names, its config among them, each once and in the order of their digests.
    pub layers: Vec<Piece>,
    /// Of the change that added it.
    pub index: u64,
    pub added_at: UnixMillis,
    /// Whose word it is what the layers are called; a node's, once any node has said the same as a worker.
    pub by: NodeId,
}

/// All versions, and who was the first to bind a digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Versions {
    all: BTreeMap<Digest, Version>,
    /// The versions that name a layer, by their indices, so that the first is the one that bound it. Follows from the
    /// above, and is neither stored nor hashed.
    naming: BTreeMap<Digest, BTreeMap<u64, Digest>>,
}

impl Version {
    /// Of all layers, as they lie on a disk.
    pub fn size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    pub fn layer(&self, digest: &Digest) -> Option<&Piece> {
        let place = self.layers.binary_search_by_key(digest, |layer| layer.digest).ok()?;
        self.layers.get(place)
    }

    fn weight(&self) -> usize {
        self.manifest.len() + LAYER_BYTES * self.layers.len()
    }
}

impl Versions {
    fn insert(&mut self, digest: Digest, version: Version) {
        for layer in &version.layers {
            self.naming.entry(layer.digest).or_default().insert(version.index, digest);
        }
        self.all.insert(digest, version);
    }

    fn vouch(&mut self, digest: &Digest, by: NodeId) {
        if let Some(version) = self.all.get_mut(digest) {
            version.by = by;
        }
    }

    fn remove(&mut self, digest: &Digest) {
        let Some(version) = self.all.remove(digest) else { return };
        for layer in &version.layers {
            let Some(naming) = self.naming.get_mut(&layer.digest) else { continue };
            naming.remove(&version.index);
            if naming.is_empty() {
                self.naming.remove(&layer.digest);
            }
        }
    }

    /// The version that was the first to name a layer.
    fn binder(&self, layer: &Digest) -> Option<&Version> {
        let (_, version) = self.naming.get(layer)?.first_key_value()?;
        self.all.get(version)
    }
}

impl From<Versions> for BTreeMap<Digest, Version> {
    fn from(versions: Versions) -> Self {
        versions.all
    }
}

impl From<BTreeMap<Digest, Version>> for Versions {
    fn from(all: BTreeMap<Digest, Version>) -> Self {
        let mut versions = Self::default();
        all.into_iter().for_each(|(digest, version)| versions.insert(digest, version));
        versions
    }
}

impl Registry {
    pub fn versions(&self) -> impl Iterator<Item = (&Digest, &Version)> {
        self.ground.versions.all.iter()
    }

    pub fn version(&self, digest: &Digest) -> Option<&Version> {
        self.ground.versions.all.get(digest)
    }

    /// What is known of the content behind a layer's digest.
    pub fn binding(&self, layer: &Digest) -> Option<&Piece> {
        self.ground.versions.binder(layer)?.layer(layer)
    }

    /// Adds a version that is not known yet, and makes a tag of that name where there is none. Neither a version nor a
    /// tag that is there already changes.
    pub(super) fn add_version(
        &mut self,
        index: u64,
        manifest: &Verbatim,
        layers: &[Piece],
        tag: Option<&ModelName>,
        by: &Actor,
        at: UnixMillis,
    ) -> Result<(), Refused> {
        if manifest.len() > MANIFEST_BYTES_MAX {
            return Err(Refused::Full { what: "bytes of a manifest".to_owned(), limit: MANIFEST_BYTES_MAX });
        }
        if layers.len() > LAYERS_MAX {
            return Err(Refused::Full { what: "layers of a version".to_owned(), limit: LAYERS_MAX });
        }
        let mut layers = layers.to_vec();
        layers.sort();
        check_layers(manifest, &layers)?;
        let tag = tag.filter(|name| self.is_free(name));
        if tag.is_some() {
            self.room_for_a_tag()?;
        }
        let digest = Digest::of(manifest);
        let dislodged = self.reconcile_bindings(&layers, by)?;
        let vouches = self.is_node(&by.node());
        match self.ground.versions.all.get(&digest).map(|known| (known.layers == layers, self.is_node(&known.by))) {
            // Now it is a node's word.
            Some((true, false)) if vouches => self.ground.versions.vouch(&digest, by.node()),
            Some((true, _)) => {}
            Some((false, _)) | None => {
                let version = Version { manifest: manifest.clone(), layers, index, added_at: at, by: by.node() };
                self.room_for(&version)?;
                dislodged.iter().for_each(|version| self.drop_version(version));
                self.ground.versions.insert(digest, version);
            }
        }
        if let Some(name) = tag {
            self.make_tag(name.clone(), digest, index, at, by);
        }
        Ok(())
    }

    fn is_node(&self, id: &NodeId) -> bool {
        self.member(id).is_some_and(|member| member.role == Role::Node)
    }

    /// Which versions have to give way to these layers, where one contradicts what is known.
    ///
    /// The first word counts, but that of a worker, or of one who has left, does not count against a node's: a worker
    /// could bind the layers of a model that everybody is about to fetch to something else, and nobody could have that
    /// model. So what a worker said gives way to what a node says, as long as no tag was put on it.
    fn reconcile_bindings(&self, layers: &[Piece], by: &Actor) -> Result<BTreeSet<Digest>, Refused> {
        let mut dislodged = BTreeSet::new();
        for layer in layers {
            let Some(binder) = self.ground.versions.binder(&layer.digest) else { continue };
            if binder.layer(&layer.digest) == Some(layer) {
                continue;
            }
            let refused = Refused::Contradicts { layer: layer.digest, by: binder.by };
            let naming = self.ground.versions.naming.get(&layer.digest).into_iter().flat_map(BTreeMap::values);
            for version in naming {
                let yields = self.version(version).is_some_and(|known| !self.is_node(&known.by));
                if !yields || !self.is_node(&by.node()) || self.needed_by(version).is_some() {
                    return Err(refused);
                }
                dislodged.insert(*version);
            }
        }
        Ok(dislodged)
    }

    fn room_for(&self, version: &Version) -> Result<(), Refused> {
        if self.ground.versions.all.len() >= VERSIONS_MAX {
            return Err(Refused::Full { what: "model versions".to_owned(), limit: VERSIONS_MAX });
        }
        let known = self.ground.versions.all.values();
        let all: usize = known.clone().map(Version::weight).sum();
        if all + version.weight() > BYTES_MAX {
            return Err(Refused::Full { what: "bytes of all model versions".to_owned(), limit: BYTES_MAX });
        }
        let from_worker = self.member(&version.by).is_some_and(|member| member.role == Role::Worker);
        let own: usize = known.filter(|known| known.by == version.by).map(Version::weight).sum();
        if from_worker && own + version.weight() > WORKER_BYTES_MAX {
            return Err(Refused::Full {
                what: "bytes of a worker's model versions".to_owned(),
                limit: WORKER_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// Forgets versions that nobody needs; ones that are gone already are no matter. With a version go the deleted tags
    /// that were on it, since nothing could restore them.
    pub(super) fn forget_versions(&mut self, versions: &[Digest]) -> Result<(), Refused> {
        for version in versions {
            if let Some(tag) = self.needed_by(version) {
                return Err(Refused::InUse { version: *version, tag: Box::new(tag.clone()) });
            }
        }
        versions.iter().for_each(|version| self.drop_version(version));
        Ok(())
    }

    fn drop_version(&mut self, version: &Digest) {
        self.ground.versions.remove(version);
        self.ground.assignments.remove(version);
        self.ground.deleted_tags.retain(|_, deleted| deleted.tag.version() != *version);
    }

    /// A tag that a version must stay for: one that is on it, or one that is held fast and was on it once.
    pub fn needed_by(&self, version: &Digest) -> Option<&ModelName> {
        let needs = |(name, tag): &(&ModelName, &super::Tag)| {
            let keeps_history = tag.pinned || self.rule(name).is_some_and(|rule| rule.pin);
            tag.version() == *version || keeps_history && tag.history().any(|moved| moved.version == *version)
        };
        self.tags().find(needs).map(|(name, _)| name)
    }
}

/// Whether these are the blobs a manifest names, all of them and no other.
///
/// What counts as a manifest is part of what the log means: a release that read one where another did not would come to
/// another state.
fn check_layers(manifest: &[u8], layers: &[Piece]) -> Result<(), Refused> {
    let bad = |why: String| Err(Refused::BadVersion { why });
    let Ok(manifest) = Manifest::parse(manifest) else { return bad("its manifest cannot be read".to_owned()) };
    let mut named = BTreeMap::new();
    for blob in manifest.blobs() {
        if named.insert(blob.digest, blob.size).is_some_and(|other| other != blob.size) {
            return bad(format!("its manifest gives `{}` two sizes", blob.digest));
        }
    }
    for pair in layers.windows(2) {
        if let [one, other] = pair
            && one.digest == other.digest
        {
            return bad(format!("layer `{}` comes twice", one.digest));
        }
    }
    for layer in layers {
        match named.remove(&layer.digest) {
            Some(size) if size == layer.size => {}
            Some(size) => return bad(format!("layer `{}` has {} bytes, not {size}", layer.digest, layer.size)),
            None => return bad(format!("its manifest does not name layer `{}`", layer.digest)),
        }
    }
    match named.first_key_value() {
        Some((missing, _)) => bad(format!("layer `{missing}` of its manifest is missing")),
        None => Ok(()),
    }
}
