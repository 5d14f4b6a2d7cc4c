//! A models folder in Ollama's layout, read anew for every request as Ollama does: what another program puts there by
//! rename is there at once.

mod prune;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::name::Name;
use crate::release::{CONFIG_TYPE, MANIFEST_TYPE, media_type};

/// Beyond it a manifest is none.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Beyond it a configuration or a text is none.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// More entries of one folder are not looked at.
const ENTRIES_MAX: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    prunes: bool,
}

/// A model with a manifest.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// As it is spelt on disk.
    pub(crate) name: Name,
    /// Of the manifest's bytes.
    pub(crate) digest: Digest,
    pub(crate) modified: SystemTime,
    pub(crate) manifest: Manifest,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Layer,
    #[serde(default)]
    pub(crate) layers: Vec<Layer>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(deserialize_with = "digest")]
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The model it was taken from, as far as it is known.
    pub(crate) from: Option<String>,
}

impl Folder {
    /// Makes it where there is none, and deletes what no manifest names unless that is not wanted.
    pub(crate) fn open(root: &Path, prunes: bool) -> io::Result<Self> {
        let folder = Self { root: root.to_owned(), prunes };
        fs::create_dir_all(folder.blobs())?;
        fs::create_dir_all(folder.manifests())?;
        if prunes {
            folder.prune()?;
        }
        Ok(folder)
    }

    /// Every model whose manifest can be read. What is no model is passed over.
    pub(crate) fn list(&self) -> Vec<Kept> {
        self.names().into_iter().filter_map(|name| self.read(name)).collect()
    }

    /// Spelt in this way, or else in any case of letters.
    pub(crate) fn find(&self, name: &Name) -> Option<Kept> {
        self.read(self.spelling(name))
    }

    /// As it is spelt on disk where it is there already.
    pub(crate) fn spelling(&self, name: &Name) -> Name {
        if self.manifest_path(name).is_file() {
            return name.clone();
        }
        self.names().into_iter().find(|known| known.is(name)).unwrap_or_else(|| name.clone())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.file_name())
    }

    /// As it stands.
    pub(crate) fn manifest_bytes(&self, name: &Name) -> Option<Vec<u8>> {
        read_at_most(&self.manifest_path(name), MANIFEST_BYTES_MAX).ok()
    }

    /// In place of what was there before.
    pub(crate) fn write_manifest(&self, name: &Name, bytes: &[u8]) -> io::Result<()> {
        let path = self.manifest_path(name);
        fs::create_dir_all(path.parent().expect("a name has four parts"))?;
        fs::write(path, bytes)
    }

    /// The manifest first, then what only it named.
    pub(crate) fn remove(&self, kept: &Kept) -> io::Result<()> {
        fs::remove_file(self.manifest_path(&kept.name))?;
        self.remove_empty(&self.manifests());
        if self.prunes { self.remove_unused(kept.manifest.blobs().map(|layer| &layer.digest)) } else { Ok(()) }
    }

    pub(crate) fn text(&self, manifest: &Manifest, kind: &str) -> Option<String> {
        let wanted = media_type(kind);
        let layer = manifest.layers.iter().find(|layer| layer.media_type == wanted)?;
        let bytes = read_at_most(&self.blob(&layer.digest), TEXT_BYTES_MAX).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn config(&self, manifest: &Manifest) -> Option<Value> {
        let bytes = read_at_most(&self.blob(&manifest.config.digest), TEXT_BYTES_MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes a blob that is small and in memory; whether it is new.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> io::Result<(Digest, bool)> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        let new = !path.is_file();
        if new {
            fs::write(path, bytes)?;
        }
        Ok((digest, new))
    }

    pub(crate) fn prunes(&self) -> bool {
        self.prunes
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    fn manifest_path(&self, name: &Name) -> PathBuf {
        self.manifests().join(name.path())
    }

    fn read(&self, name: Name) -> Option<Kept> {
        let bytes = self.manifest_bytes(&name)?;
        let modified = fs::metadata(self.manifest_path(&name)).and_then(|metadata| metadata.modified()).ok()?;
        let manifest = Manifest::parse(&bytes).ok()?;
        Some(Kept { name, digest: Digest::of(&bytes), modified, manifest })
    }

    /// Every place where a manifest may be.
    fn names(&self) -> Vec<Name> {
        let mut places = vec![Vec::new()];
        for _ in 0..4 {
            let deeper = |parts: Vec<String>| {
                let path = self.manifests().join(parts.iter().collect::<PathBuf>());
                entries(&path).into_iter().map(move |entry| [&parts[..], &[entry]].concat())
            };
            places = places.into_iter().flat_map(deeper).collect();
        }
        places.iter().filter_map(|parts| Name::parse(&format!("{}:{}", parts[..3].join("/"), parts[3]))).collect()
    }
}

impl Manifest {
    /// The first value, whatever follows it.
    pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        Self::deserialize(&mut serde_json::Deserializer::from_slice(bytes))
    }

    /// As Ollama writes one that was made here, with the end of its line.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let described = |layer: &Layer| {
            let mut described =
                json!({ "mediaType": layer.media_type, "digest": layer.digest.to_string(), "size": layer.size });
            if let Some(from) = &layer.from {
                described["from"] = from.as_str().into();
            }
            described
        };
        let layers: Vec<Value> = self.layers.iter().map(described).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described(&self.config), "layers": layers
        });
        format!("{manifest}\n").into_bytes()
    }

    /// In the order in which they are transferred: the configuration last.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain([&self.config])
    }

    pub(crate) fn size(&self) -> u64 {
        self.blobs().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    pub(crate) fn weights(&self) -> Option<&Layer> {
        let wanted = media_type("model");
        self.layers.iter().find(|layer| layer.media_type == wanted)
    }
}

impl Layer {
    pub(crate) fn new(kind: &str, digest: Digest, size: u64) -> Self {
        let media_type = if kind == "config" { CONFIG_TYPE.to_owned() } else { media_type(kind) };
        Self { media_type, digest, size, from: None }
    }
}

fn digest<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

/// Sorted; nothing where there is no folder.
fn entries(path: &Path) -> Vec<String> {
    let listing = fs::read_dir(path).into_iter().flatten().take(ENTRIES_MAX);
    let mut names: Vec<String> = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// All of a regular file: a pipe might never end.
fn read_at_most(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}
