//! Making a model of a GGUF file: nothing is copied, the file is referred to where it lies.

use std::path::{Path, PathBuf};

use cluster::{Actor, Expect, Verb};
use ollama::compose::{Composed, Texts, compose, describe};
use ollama::manifest::{Config, Layer, LayerKind};
use ollama::{Digest, Head, ModelName};
use types::Role;

use crate::error::Error;
use crate::site::Site;

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub version: Digest,
    pub bytes: u64,
    /// The backend that has it now; none where this node has none.
    pub store: Option<String>,
}

impl Site {
    /// Done when the mesh knows it under its name and the backend here lists it. `tell` hears how many bytes were read.
    pub(crate) async fn import(
        &self,
        by: Actor,
        path: &Path,
        name: &ModelName,
        texts: &Texts,
        tell: impl Fn(u64) + Send + 'static,
    ) -> Result<Imported, Error> {
        self.may_move(name)?;
        let config = describe_file(path.to_owned()).await?;
        let weights = self.blobs.refer(path, tell).await?;
        let layer = Layer { media_type: LayerKind::Model.media_type(), digest: weights.sha256, size: weights.size };
        let Composed { bytes, small, .. } = compose(vec![layer], &config, texts)?;
        let version = Digest::of(&bytes);
        let mut layers = vec![weights];
        for (_, text) in small {
            layers.push(self.blobs.adopt(text).await?);
        }
        // Nobody has a reason to keep them yet.
        let _held: Vec<_> = layers.iter().map(|known| self.blobs.hold(known.hash)).collect();
        self.register(by.clone(), bytes, &layers, None).await?;
        let set = Verb::SetTag { name: name.clone(), version, expect: Expect::Anything };
        self.cluster.write(by, set).await?;
        let store = self.first_store().await;
        if let Some(store) = store {
            self.publish(store, name, version).await?;
        }
        let store = store.map(|place| self.stores[place].label().to_owned());
        Ok(Imported { version, bytes: weights.size, store })
    }

    /// Refused early: much work would be for nothing.
    pub(crate) fn may_move(&self, name: &ModelName) -> Result<(), Error> {
        if self.role() == Role::Worker {
            return Err(Error::Worker);
        }
        let pinned = self.cluster.view(|registry| registry.tag(name).is_some_and(|tag| tag.pinned));
        if pinned { Err(Error::Pinned(Box::new(name.clone()))) } else { Ok(()) }
    }
}

async fn describe_file(path: PathBuf) -> Result<Config, Error> {
    let reading = move || {
        let head = Head::read(&path).map_err(|source| Error::Unreadable { path: path.clone(), source })?;
        let header = head.header().map_err(|source| Error::NoModel { path: path.clone(), source })?;
        Ok(describe(&header))
    };
    tokio::task::spawn_blocking(reading)
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}
