//! A model as it is published: its manifest, and the blobs that names.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::digest::{Digest, Hasher};
use crate::name::Name;
use crate::weights::Weights;

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const IMAGE: &str = "application/vnd.ollama.image";
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct Release {
    manifest: Bytes,
    blobs: Vec<Blob>,
}

#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: Digest,
    /// As its manifest says, such as `model` or `template`; `config` is the one that is no layer.
    pub kind: String,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub enum Content {
    Bytes(Bytes),
    Weights(Weights),
}

impl Release {
    /// Weights of about `size` bytes, with a template, parameters and a licence. The same seed gives the same bytes.
    pub fn made(seed: u64, size: u64) -> Self {
        Self::new(Content::Weights(Weights::new(seed, size)), &["completion"])
    }

    /// One that embeds.
    pub fn embedding(seed: u64, size: u64) -> Self {
        Self::new(Content::Weights(Weights::new(seed, size)), &["embedding"])
    }

    /// With weights of one's own.
    pub fn of(weights: impl Into<Bytes>) -> Self {
        Self::new(Content::Bytes(weights.into()), &["completion"])
    }

    fn new(weights: Content, capabilities: &[&str]) -> Self {
        let config = json!({
            "model_format": "gguf",
            "model_family": "llama",
            "model_families": ["llama"],
            "model_type": "1.0B",
            "file_type": "F32",
            "capabilities": capabilities,
            "context_length": 8192,
            "embedding_length": 64,
            "architecture": "amd64",
            "os": "linux",
        });
        let text = |text: &str| Content::Bytes(Bytes::copy_from_slice(text.as_bytes()));
        let layers = vec![
            ("model", weights),
            ("template", text("{{ .Prompt }}")),
            ("license", text("Apache-2.0")),
            ("params", text("{\"stop\":[\"<|end|>\"]}")),
        ];
        Self::assembled(&config, layers)
    }

    /// Of any layers, by kind; the manifest ends without a line's end, as a registry's does.
    pub fn assembled(config: &Value, layers: Vec<(&str, Content)>) -> Self {
        let config = ("config", Content::Bytes(config.to_string().into()));
        let blobs: Vec<Blob> = layers
            .into_iter()
            .chain([config])
            .map(|(kind, content)| Blob { digest: content.digest(), kind: kind.to_owned(), content })
            .collect();
        let described = |blob: &Blob| {
            let kind = if blob.kind == "config" { CONFIG_TYPE.to_owned() } else { media_type(&blob.kind) };
            json!({ "mediaType": kind, "digest": blob.digest.to_string(), "size": blob.content.size() })
        };
        let (config, layers) = blobs.split_last().expect("the configuration is one");
        let layers: Vec<Value> = layers.iter().map(described).collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described(config), "layers": layers });
        Self { manifest: manifest.to_string().into(), blobs }
    }

    pub fn manifest(&self) -> &Bytes {
        &self.manifest
    }

    /// By which the model is known: that of its manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// In the order of the manifest, the configuration last.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    pub fn weights(&self) -> &Blob {
        self.blobs.iter().find(|blob| blob.kind == "model").expect("a release has weights")
    }

    /// Puts it into a models folder as another program may: blobs first, each written beside and renamed to its place,
    /// then the manifest in the same way.
    pub fn install(&self, folder: &Path, name: &str) -> io::Result<()> {
        let name =
            Name::parse(name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no name of a model"))?;
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs)?;
        let aside = folder.join(format!("incoming-{}", self.digest().hex()));
        for blob in &self.blobs {
            let mut file = fs::File::create(&aside)?;
            blob.content.chunks(|chunk| file.write_all(chunk))?;
            fs::rename(&aside, blobs.join(blob.digest.file_name()))?;
        }
        let manifest = folder.join("manifests").join(name.path());
        fs::create_dir_all(manifest.parent().expect("a name has four parts"))?;
        fs::write(&aside, &self.manifest)?;
        fs::rename(&aside, manifest)
    }
}

impl Content {
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Weights(weights) => weights.size(),
        }
    }

    /// At most `length` bytes from `offset` on; nothing behind the end.
    pub fn read(&self, offset: u64, length: usize) -> Bytes {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        match self {
            Self::Bytes(bytes) => {
                let from = bytes.len() - left;
                bytes.slice(from..from + left.min(length))
            }
            Self::Weights(weights) => weights.read(offset, left.min(length)),
        }
    }

    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        let hashed = self.chunks(|chunk| {
            hasher.update(chunk);
            Ok(())
        });
        hashed.expect("hashing does not fail");
        hasher.finish()
    }

    fn chunks(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.size() {
            let chunk = self.read(offset, CHUNK_BYTES);
            offset += chunk.len() as u64;
            each(&chunk)?;
        }
        Ok(())
    }
}

pub(crate) fn media_type(kind: &str) -> String {
    format!("{IMAGE}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_every_byte() {
        let (one, same, other) = (Release::made(1, 80_000), Release::made(1, 80_000), Release::made(2, 80_000));
        assert_eq!(one.digest(), same.digest());
        assert_ne!(one.weights().digest, other.weights().digest);
        let kinds: Vec<_> = one.blobs().iter().map(|blob| blob.kind.as_str()).collect();
        assert_eq!(kinds, ["model", "template", "license", "params", "config"]);
        for Blob { digest, content, .. } in one.blobs() {
            let whole = content.read(0, usize::MAX >> 1);
            assert_eq!((Digest::of(&whole), whole.len() as u64), (digest.clone(), content.size()));
            assert!(content.read(content.size() + 1, 5).is_empty());
        }
    }

    #[test]
    fn it_is_installed_where_ollama_looks() {
        let folder = tempfile::tempdir().unwrap();
        let release = Release::made(1, 80_000);
        release.install(folder.path(), "tiny:1b").unwrap();
        let manifest = folder.path().join("manifests/registry.ollama.ai/library/tiny/1b");
        assert_eq!(fs::read(manifest).unwrap(), **release.manifest());
        for blob in release.blobs() {
            let bytes = fs::read(folder.path().join("blobs").join(blob.digest.file_name())).unwrap();
            assert_eq!(Digest::of(&bytes), blob.digest);
        }
        assert!(release.install(folder.path(), "../x").is_err());
    }
}
