//! What a fake is like: its models, how quick they are, how many requests each takes at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::digest::Digest;
use crate::name::Name;

#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0 is any free one.
    pub address: SocketAddr,
    /// What `/api/version` says.
    pub version: String,
    pub models: Vec<Model>,
    /// Requests a model answers at once; those beyond wait without limit, as in Ollama.
    pub slots: usize,
    /// Models in memory at once.
    pub loaded_max: usize,
    /// Requests that may wait for a load; those beyond are answered 503.
    pub pending_max: usize,
    /// How long a model stays loaded when its request does not say.
    pub keep_alive: Duration,
    /// Whether faults can be ordered by `POST /__fault`.
    pub control: bool,
    /// A models folder in Ollama's layout. Its models are whatever lies there, each as quick as the first of `models`,
    /// and they can be pulled, pushed and created.
    pub folder: Option<PathBuf>,
    /// Whether what no manifest names is deleted from the folder.
    pub prune: bool,
    /// Who answers as `registry.ollama.ai`, over plain HTTP. Other registries are asked on this machine alone.
    pub upstream: Option<SocketAddr>,
    pub transfer: Transfer,
}

/// How blobs are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// A part of a blob is a sixteenth of it, but not less,
    pub part_bytes_min: u64,
    /// and not more.
    pub part_bytes_max: u64,
    /// After which silence a part is asked for again.
    pub stall: Duration,
    /// How long to wait before a failed part is asked for again; each time twice as long.
    pub retry: Duration,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub name: String,
    pub kind: Kind,
    pub thinking: bool,
    pub tools: bool,
    /// Decides the digest: fakes that give the same text hold the same model.
    pub content: String,
    pub size: u64,
    pub context_length: u32,
    pub embedding_length: usize,
    pub load: Duration,
    /// Tokens a second.
    pub prefill: f64,
    /// Tokens a second.
    pub decode: f64,
    /// Tokens of an answer that nothing cuts short; by model and seed where there is none.
    pub answer_tokens: Option<u32>,
    /// What its manifest and configuration say, where it has those.
    pub written: Option<Written>,
}

/// Of a model in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// SHA-256 of the manifest's bytes.
    pub digest: Digest,
    pub family: String,
    pub families: Vec<String>,
    pub parameter_size: String,
    pub quantization_level: String,
    pub context_length: Option<u32>,
    pub embedding_length: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Embedding,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no model: write `name` or `name=trait+trait` with `embedding`, `thinking` or `tools`")]
pub struct InvalidModel(String);

impl Default for Config {
    /// One model of each kind, one slot, and no control over HTTP.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            version: "0.33.0".to_owned(),
            models: vec![Model::completion("fake:1b"), Model::embedding("fake-embed")],
            slots: 1,
            loaded_max: 3,
            pending_max: 512,
            keep_alive: Duration::from_mins(5),
            control: false,
            folder: None,
            prune: true,
            upstream: None,
            transfer: Transfer::default(),
        }
    }
}

impl Default for Transfer {
    /// As Ollama has it.
    fn default() -> Self {
        Self {
            part_bytes_min: 100_000_000,
            part_bytes_max: 1_000_000_000,
            stall: Duration::from_secs(30),
            retry: Duration::from_secs(1),
        }
    }
}

impl Model {
    /// Quick enough for tests, and slow enough that each of its durations can be told from nothing.
    pub fn completion(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Completion,
            thinking: false,
            tools: false,
            content: name.to_owned(),
            size: 1 << 30,
            context_length: 8192,
            embedding_length: 64,
            load: Duration::from_millis(5),
            prefill: 100_000.0,
            decode: 5_000.0,
            answer_tokens: None,
            written: None,
        }
    }

    pub fn embedding(name: &str) -> Self {
        Self { kind: Kind::Embedding, ..Self::completion(name) }
    }

    /// Sixty-four hex digits that equal contents share: the manifest's SHA-256, where there is a manifest.
    pub(crate) fn digest(&self) -> String {
        if let Some(written) = &self.written {
            return written.digest.hex().to_owned();
        }
        (0..4)
            .map(|part| {
                format!("{:016x}", mix(self.content.bytes().fold(part, |hash, byte| mix(hash ^ u64::from(byte)))))
            })
            .collect()
    }

    pub(crate) fn capabilities(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Embedding => vec!["embedding"],
            Kind::Completion => [("completion", true), ("tools", self.tools), ("thinking", self.thinking)]
                .into_iter()
                .filter_map(|(name, has)| has.then_some(name))
                .collect(),
        }
    }
}

impl FromStr for Model {
    type Err = InvalidModel;

    fn from_str(text: &str) -> Result<Self, InvalidModel> {
        let (name, traits) = text.split_once('=').unwrap_or((text, ""));
        if Name::parse(name).is_none() {
            return Err(InvalidModel(text.to_owned()));
        }
        let mut model = Self::completion(name);
        for given in traits.split('+').filter(|given| !given.is_empty()) {
            match given {
                "embedding" => model.kind = Kind::Embedding,
                "thinking" => model.thinking = true,
                "tools" => model.tools = true,
                _ => return Err(InvalidModel(text.to_owned())),
            }
        }
        Ok(model)
    }
}

/// Spreads the bits of `seed`: the end of splitmix64.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_have_equal_digests_and_others_do_not() {
        let named = |name: &str, content: &str| Model { content: content.to_owned(), ..Model::completion(name) };
        assert_eq!(named("a", "x").digest(), named("b", "x").digest());
        assert_ne!(named("a", "x").digest(), named("a", "y").digest());
        assert_eq!(named("a", "x").digest().len(), 64);
    }

    #[test]
    fn a_model_is_written_as_its_name_and_traits() {
        let model: Model = "qwen3:1b=thinking+tools".parse().unwrap();
        assert_eq!((model.name.as_str(), model.capabilities()), ("qwen3:1b", vec!["completion", "tools", "thinking"]));
        assert_eq!("e=embedding".parse::<Model>().unwrap().kind, Kind::Embedding);
        for wrong in ["", "a b", "m=quick"] {
            assert!(wrong.parse::<Model>().is_err(), "{wrong}");
        }
    }
}
