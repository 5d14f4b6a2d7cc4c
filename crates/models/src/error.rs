//! What can go wrong with a model, by what the caller decides next.

use std::io;
use std::path::PathBuf;

use ollama::compose::TooLong;
use ollama::{Digest, ModelName};

use crate::{store, upstream};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no model `{0}` in this mesh")]
    UnknownModel(Box<ModelName>),
    #[error("the mesh does not know version `{0}`")]
    UnknownVersion(Digest),
    #[error("`{0}` is pinned and does not move")]
    Pinned(Box<ModelName>),
    #[error("failed to fetch `{name}` from its registry")]
    Upstream { name: Box<ModelName>, source: Box<upstream::Error> },
    #[error("failed to fetch a blob from other nodes")]
    Fetch(#[from] blobs::FetchError),
    #[error("no node that has version `{0}` can be reached")]
    NoSources(Digest),
    #[error("nobody but its backend can read the files of version `{0}` here")]
    Unseen(Digest),
    #[error("a worker changes nothing for the mesh")]
    Worker,
    #[error("failed to keep a blob")]
    Blobs(#[from] blobs::Error),
    #[error("failed to put the model into `{store}`")]
    Store { store: String, source: Box<store::Error> },
    #[error("the mesh did not take the model in")]
    Registry(#[source] Box<cluster::Error>),
    #[error("`{}` is not what its name says: its SHA-256 is `{found}`", path.display())]
    Corrupt { path: PathBuf, found: Digest },
    #[error("`{}` cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("`{}` is no model", path.display())]
    NoModel { path: PathBuf, source: gguf::Error },
    #[error("a text of the model is too long")]
    TextTooLong(#[from] TooLong),
    #[error("what lies under `{0}` changed while it was looked at")]
    Changed(Box<ModelName>),
    #[error("nothing on this node runs models")]
    NoStore,
    #[error("the model's manifest has {found} {what}, where a mesh takes {max}")]
    TooMuch { what: &'static str, found: usize, max: usize },
    #[error("there is no room for the model: {needed} bytes are needed, {free} are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("too many pulls are running on this node")]
    TooManyPulls,
    #[error("the node is stopping")]
    Stopping,
}

impl From<cluster::Error> for Error {
    fn from(error: cluster::Error) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownModel(_) => Some("`omx models ls` shows all models, `omx models pull` fetches one".to_owned()),
            Self::Pinned(name) => Some(format!("`omx models pin --off {name}` lets it move again")),
            Self::Upstream { source, .. } => source.hint().map(str::to_owned),
            Self::Blobs(source) => source.hint().map(str::to_owned),
            Self::Registry(source) => source.hint(),
            Self::Corrupt { .. } => {
                Some("`omx models verify NAME --repair` fetches what is damaged from other nodes".to_owned())
            }
            Self::NoStore => Some("start this node with an Ollama or the engine, or ask another node".to_owned()),
            Self::NoSources(_) => {
                Some("`omx models show NAME` tells which nodes have it; one of them must wake".to_owned())
            }
            Self::Worker => Some("ask a node whose role is `node`".to_owned()),
            Self::NoRoom { .. } => Some("make room on this node's disk, or pull it at another node".to_owned()),
            Self::TooManyPulls => Some("wait until one of them is through, or pull it at another node".to_owned()),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            Self::UnknownVersion(_)
            | Self::Unseen(_)
            | Self::Fetch(_)
            | Self::TooMuch { .. }
            | Self::Stopping
            | Self::Unreadable { .. }
            | Self::NoModel { .. }
            | Self::TextTooLong(_)
            | Self::Changed(_) => None,
        }
    }
}
