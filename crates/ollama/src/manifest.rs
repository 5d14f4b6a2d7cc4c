//! A manifest: which blobs make a model, and what each of them is.

use std::io;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Beyond it a manifest is refused. One of thousands of layers, as some formats have, takes some hundred KiB.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    pub config: Layer,
    #[serde(default)]
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// What a layer holds. Kinds that only other engines read are not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// GGUF weights.
    Model,
    /// Pictures to text, for the model beside it.
    Projector,
    Adapter,
    /// A template in Go's language.
    Template,
    System,
    License,
    /// A JSON object of options.
    Params,
    /// A JSON array of messages.
    Messages,
    Other,
}

const PREFIX: &str = "application/vnd.ollama.image.";
const KINDS: [(LayerKind, &str); 9] = [
    (LayerKind::Model, "model"),
    (LayerKind::Projector, "projector"),
    (LayerKind::Adapter, "adapter"),
    (LayerKind::Template, "template"),
    // What `template` was called once; written never.
    (LayerKind::Template, "prompt"),
    (LayerKind::System, "system"),
    (LayerKind::License, "license"),
    (LayerKind::Params, "params"),
    (LayerKind::Messages, "messages"),
];

/// The blob that says what the model is. Fields of other formats than GGUF are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub model_format: String,
    pub model_family: String,
    pub model_families: Option<Vec<String>>,
    /// Shown as the parameter size.
    pub model_type: String,
    /// Shown as the quantisation level.
    pub file_type: String,
    /// Programs of Ollama's own that write the prompt and read the answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub renderer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parser: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requires: String,
    /// Where the model really is, when it is not here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_model: String,
    pub architecture: String,
    pub os: String,
}

impl LayerKind {
    pub fn media_type(self) -> String {
        let word = KINDS.iter().find(|(kind, _)| *kind == self).map_or("other", |(_, word)| word);
        format!("{PREFIX}{word}")
    }
}

impl Layer {
    pub fn kind(&self) -> LayerKind {
        let word = self.media_type.strip_prefix(PREFIX);
        KINDS.iter().find(|(_, known)| Some(*known) == word).map_or(LayerKind::Other, |(kind, _)| *kind)
    }
}

impl Manifest {
    pub fn new(mut config: Layer, layers: Vec<Layer>) -> Self {
        config.media_type = "application/vnd.docker.container.image.v1+json".to_owned();
        Self { schema_version: 2, media_type: MANIFEST_TYPE.to_owned(), config, layers }
    }

    /// What a registry of a mesh takes for a manifest is part of what its log means, and it asks here: what is read, and
    /// what is not, must stay so.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        // Ollama reads the first value, whatever follows it.
        Self::deserialize(&mut serde_json::Deserializer::from_slice(bytes))
    }

    /// As Ollama writes it, with the end of the line.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain([&self.config])
    }

    /// Of everything it names; a hostile one may name more than there is.
    pub fn size(&self) -> u64 {
        self.blobs().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    pub fn layer(&self, kind: LayerKind) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.kind() == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn text(media_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{DIGEST}","size":3}},"layers":[{{"mediaType":"{media_type}","digest":"{DIGEST}","size":4}}]}}"#
        )
    }

    #[test]
    fn a_manifest_writes_what_it_read() {
        let text = text("application/vnd.ollama.image.model");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(manifest.bytes().unwrap()).unwrap(), format!("{text}\n"));
        assert_eq!((manifest.size(), manifest.layers[0].kind()), (7, LayerKind::Model));
        assert_eq!(Manifest::new(manifest.config.clone(), manifest.layers.clone()), manifest);
    }

    #[test]
    fn layers_are_known_by_their_type() {
        for (kind, word) in KINDS {
            let media_type = format!("{PREFIX}{word}");
            let manifest = Manifest::parse(text(&media_type).as_bytes()).unwrap();
            assert_eq!(manifest.layers[0].kind(), kind);
            assert!(word == "prompt" || kind.media_type() == media_type);
        }
        assert_eq!(Manifest::parse(text("image/png").as_bytes()).unwrap().layers[0].kind(), LayerKind::Other);
    }

    #[test]
    fn a_manifest_with_a_hostile_digest_is_none() {
        for digest in ["sha256:../../x", "", "sha256-", "../../../etc/passwd"] {
            let hostile = text("x").replace(DIGEST, digest);
            assert!(Manifest::parse(hostile.as_bytes()).is_err(), "{digest}");
        }
        let endless = text("x").replace("\"size\":4", "\"size\":18446744073709551615");
        assert_eq!(Manifest::parse(endless.as_bytes()).unwrap().size(), u64::MAX);
        assert!(Manifest::parse(text("x").replace("\"size\":4", "\"size\":-4").as_bytes()).is_err());
    }
}
