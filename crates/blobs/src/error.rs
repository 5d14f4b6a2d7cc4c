//! Why something with a blob on this node did not happen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::BlobHash;

use crate::chunks::SIZE_MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {what} `{path}`")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another process uses the blobs in `{path}`")]
    InUse { path: PathBuf },
    #[error("`{path}` is no regular file")]
    NotAFile { path: PathBuf },
    #[error("`{path}` has `{size}` bytes, where `{}` are possible", SIZE_MAX)]
    TooLarge { path: PathBuf, size: u64 },
    #[error("`{path}` was changed while it was read")]
    Changed { path: PathBuf },
    #[error("the path `{path}` cannot be kept: {reason}")]
    Path { path: PathBuf, reason: &'static str },
    #[error("`{path}` does not hold blob `{hash}`")]
    OtherContent { path: PathBuf, hash: BlobHash },
    #[error("blob `{hash}` is not here")]
    Absent { hash: BlobHash },
    #[error("blob `{hash}` is being fetched")]
    Fetching { hash: BlobHash },
    /// The rest of the process goes on; what was asked is not done.
    #[error("a worker of the blobs ended before its time")]
    Worker,
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::InUse { .. } | Self::Changed { .. } | Self::Fetching { .. })
    }

    /// Whether there was no room on the disk.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => Some("stop the other process, or start with another `--data-dir`"),
            Self::Changed { .. } => Some("try again when nobody writes to it"),
            _ if self.is_full() => Some("make room on the disk"),
            _ => None,
        }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a fetch ended without the blob. That nobody has it, or that the disk is full, ends none: it waits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// What was fetched is what its BLAKE3 says. It is not published.
    #[error("blob `{hash}` has another SHA-256 than `{said}`: the binding of the two is wrong")]
    WrongBinding { hash: BlobHash, said: ollama::Digest, found: ollama::Digest },
    /// Proven by the list of chunks and the last of them.
    #[error("blob `{hash}` has `{proven}` bytes, not `{said}`")]
    WrongSize { hash: BlobHash, said: u64, proven: u64 },
    #[error("blob `{hash}` would have `{size}` bytes, where `{}` are possible", SIZE_MAX)]
    TooLarge { hash: BlobHash, size: u64 },
    #[error("failed to keep blob `{hash}`")]
    Here {
        hash: BlobHash,
        #[source]
        cause: Arc<Error>,
    },
    #[error("too many fetches are waiting")]
    TooMany,
    /// What has come is kept for the next time.
    #[error("the fetch of `{hash}` was cancelled")]
    Cancelled { hash: BlobHash },
    #[error("the node is stopping")]
    Stopping,
}

impl FetchError {
    pub fn retry(&self) -> bool {
        match self {
            Self::WrongBinding { .. } | Self::WrongSize { .. } | Self::TooLarge { .. } => false,
            Self::Here { cause, .. } => cause.retry(),
            Self::TooMany | Self::Cancelled { .. } | Self::Stopping => true,
        }
    }
}
