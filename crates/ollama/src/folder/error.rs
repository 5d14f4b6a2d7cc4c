//! What can go wrong with a models folder.

use std::io;
use std::path::PathBuf;

use crate::{Digest, ModelName};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("model `{model}` is not in this folder")]
    NotFound { model: ModelName },
    #[error("model `{model}` has no weights that could be run here")]
    NoWeights { model: ModelName },
    #[error("the model cannot be named: its blob `{digest}` is not in this folder")]
    Missing { digest: Digest },
    #[error("`{}` has {bytes} bytes where its name says {expected}", path.display())]
    OtherSize { path: PathBuf, bytes: u64, expected: u64 },
    #[error("failed to use `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("failed to read `{}`", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the file to install is no model that could be read")]
    Gguf { source: gguf::Error },
    #[error("there are too many entries in `{}`", path.display())]
    TooManyEntries { path: PathBuf },
    #[error("a layer of {bytes} bytes is longer than {max}")]
    TextTooLong { bytes: u64, max: u64 },
}
