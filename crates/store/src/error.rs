use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why the store cannot do what it was asked. Cloneable, since one failed write fails everything queued behind it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("failed to {action} `{path}`")]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("no space left for `{path}`")]
    NoSpace { path: PathBuf },
    #[error("data in `{path}` is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("data in `{path}` has format `{found}`, this release knows `{known}`")]
    TooNew { path: PathBuf, found: u32, known: u32 },
    #[error("`{path}` is in use by another process")]
    InUse { path: PathBuf },
    #[error("`{path}` is not empty")]
    NotEmpty { path: PathBuf },
    #[error("`{what}` of `{len}` bytes is longer than its limit of `{limit}`")]
    TooLong { what: &'static str, len: usize, limit: usize },
    #[error("record `{index}` cannot follow `{last:?}`")]
    NotNext { index: u64, last: Option<u64> },
    #[error("`{name}` cannot be the name of a snapshot")]
    BadName { name: String },
    #[error("store has stopped after a failure")]
    Stopped(#[source] Arc<Error>),
    #[error("store is closed")]
    Closed,
}

impl Error {
    /// What a person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoSpace { .. } => Some("free some disk space; the store goes on by itself"),
            Error::Damaged { .. } => Some("keep the folder for inspection; let this node rejoin with an empty one"),
            Error::TooNew { .. } => Some("update this node"),
            Error::InUse { .. } => Some("stop the other process, or use another folder"),
            Error::Stopped(cause) => cause.hint(),
            _ => None,
        }
    }

    /// Keeps a full disk apart from a broken one: the first is for the user to mend, the second is not.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path: path.into() },
            _ => Error::Io { action, path: path.into(), source: Arc::new(source) },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Error {
        Error::Damaged { path: path.into(), what: what.into() }
    }

    /// What an operation gets that comes after `self` stopped the store.
    pub(crate) fn after(self) -> Error {
        match self {
            Error::Stopped(_) | Error::Closed => self,
            cause => Error::Stopped(Arc::new(cause)),
        }
    }
}
