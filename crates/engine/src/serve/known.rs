//! What is known of a model before it is loaded: read from its files once, kept by the digest of its manifest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gguf::Facts;
use ollama::folder::{self, Installed, Model};
use ollama::wire::Details;
use ollama::{Digest, ModelName};

use super::Server;
use super::failure::Failure;
use crate::chat::Dialogue;

/// Models remembered at a time; beyond, all are forgotten and read again when asked for. Each takes some kilobytes,
/// most of it the template.
const REMEMBERED_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Known {
    pub weights: PathBuf,
    pub facts: Facts,
    pub model: Model,
    pub dialogue: Dialogue,
}

#[derive(Debug, Default)]
pub(super) struct Shelf {
    known: Mutex<BTreeMap<Digest, Arc<Known>>>,
    /// Under which name a file was asked for last, for `ps`.
    names: Mutex<BTreeMap<PathBuf, ModelName>>,
}

impl Shelf {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<PathBuf, ModelName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn called(&self, weights: PathBuf, name: ModelName) {
        let mut names = self.names();
        if names.len() >= REMEMBERED_MAX {
            names.clear();
        }
        names.insert(weights, name);
    }

    pub(super) fn name_of(&self, weights: &PathBuf) -> Option<ModelName> {
        self.names().get(weights).cloned()
    }
}

impl Known {
    fn read(server: &Server, installed: &Installed) -> Result<Self, Failure> {
        let folder = &server.folder;
        let unreadable = |why: String| Failure::here(format!("unable to load model: {why}"));
        let head = folder.head(installed)?;
        let header = head.header().map_err(|error| unreadable(error.to_string()))?;
        let facts = Facts::of(&header).ok_or_else(|| unreadable(gguf::Cannot::NoArchitecture.to_string()))?;
        let model = folder.model(installed)?;
        let dialogue = Dialogue::new(&facts, model.template.as_deref());
        Ok(Self { weights: folder.weights(installed)?, facts, model, dialogue })
    }

    /// In Ollama's order.
    pub(super) fn capabilities(&self) -> Vec<&'static str> {
        let kind = if self.facts.embeds { "embedding" } else { "completion" };
        let (tools, thinks) = (self.dialogue.can_call_tools(), self.dialogue.can_think());
        // Without a template of its own a model has no place for either.
        tools.then_some("tools").into_iter().chain(thinks.then_some("thinking")).chain([kind]).collect()
    }

    pub(super) fn details(&self) -> Details {
        let config = &self.model.config;
        let known = |stated: &str, read: &str| if matches!(stated, "" | "unknown") { read } else { stated }.to_owned();
        Details {
            parent_model: String::new(),
            format: config.model_format.clone(),
            family: config.model_family.clone(),
            families: config.model_families.clone(),
            parameter_size: config.model_type.clone(),
            quantization_level: known(&config.file_type, self.facts.file_type),
            context_length: None,
            embedding_length: None,
        }
    }
}

impl Server {
    /// Reads files: to be called where that may block.
    pub(super) fn known(&self, installed: &Installed) -> Result<Arc<Known>, Failure> {
        if let Some(known) = self.shelf.known().get(&installed.digest) {
            return Ok(known.clone());
        }
        // Two who ask at once both read; one of the results stays.
        let read = Arc::new(Known::read(self, installed)?);
        let mut known = self.shelf.known();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(installed.digest, read.clone());
        Ok(read)
    }

    /// Does what blocks, such as reading files, beside the tasks that must not.
    pub(super) async fn beside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let server = self.clone();
        match tokio::task::spawn_blocking(move || work(&server)).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// A name that was asked for, as the routes tell it apart.
pub(super) enum Asked {
    Nothing,
    /// Ends in `:cloud` or `-cloud`, which no engine here runs.
    Cloud,
    Invalid,
    Named(ModelName),
}

impl Asked {
    pub(super) fn read(text: &str) -> Self {
        let ends_in = |end: &str| {
            let start = text.len().checked_sub(end.len())?;
            text.get(start..).filter(|tail| tail.eq_ignore_ascii_case(end)).map(|_| &text[..start])
        };
        if text.is_empty() {
            return Self::Nothing;
        }
        let tag_is_cloud = || ends_in("-cloud").is_some_and(|before| before.contains(':'));
        if ends_in(":cloud").is_some() || tag_is_cloud() {
            return Self::Cloud;
        }
        ends_in(":local").unwrap_or(text).parse().map_or(Self::Invalid, Self::Named)
    }
}

pub(super) fn is_missing(error: &folder::Error) -> bool {
    matches!(error, folder::Error::NotFound { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_say_where_its_model_is() {
        let named = |text: &str| match Asked::read(text) {
            Asked::Named(name) => name.to_string(),
            Asked::Nothing => "nothing".to_owned(),
            Asked::Cloud => "cloud".to_owned(),
            Asked::Invalid => "invalid".to_owned(),
        };
        for (text, meaning) in [
            ("m", "m:latest"),
            ("m:local", "m:latest"),
            ("m:8b:LOCAL", "m:8b"),
            ("m:cloud", "cloud"),
            ("m:120b-Cloud", "cloud"),
            ("my-cloud", "my-cloud:latest"),
            ("", "nothing"),
            (":local", "invalid"),
            ("../m", "invalid"),
            ("é:local", "invalid"),
            ("aé", "invalid"),
        ] {
            assert_eq!(named(text), meaning, "{text}");
        }
    }
}
