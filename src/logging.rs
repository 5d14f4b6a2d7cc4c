//! Where a node's log goes: to stderr for whoever watches it start, and as JSON to files in its data folder.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::{MakeWriter, OptionalWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::exit::Exit;
use crate::failure::Failure;

/// A week, since a file is begun each day.
const FILES_MAX: usize = 7;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to make `{}`", .folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("failed to write a log to `{}`", .folder.display())]
    File { folder: PathBuf, source: InitError },
    #[error("failed to start logging")]
    Start(#[from] TryInitError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Folder { .. } | Error::File { .. } => Self::new(Exit::NotPermitted, error)
                .hint("the data folder must be writable; name another with `--data-dir`".to_owned()),
            Error::Start(_) => Self::new(Exit::General, error),
        }
    }
}

/// Logs until it is dropped; then what still waits is written.
#[derive(Debug)]
pub(crate) struct Logging {
    files: Files,
    writing: OnceLock<WorkerGuard>,
}

/// Nowhere, until the data folder is known to be ours: another process's log and a folder of somebody else's stay as
/// they are.
#[derive(Debug, Clone, Default)]
struct Files(Arc<OnceLock<NonBlocking>>);

impl<'a> MakeWriter<'a> for Files {
    type Writer = OptionalWriter<NonBlocking>;

    fn make_writer(&'a self) -> Self::Writer {
        self.0.get().cloned().map_or_else(OptionalWriter::none, OptionalWriter::some)
    }
}

impl Logging {
    /// To stderr only, so far.
    pub(crate) fn start(levels: &str) -> Result<Self, Error> {
        let files = Files::default();
        let to_stderr = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
        let to_files = tracing_subscriber::fmt::layer().json().with_writer(files.clone());
        tracing_subscriber::registry().with(EnvFilter::new(levels)).with(to_stderr).with(to_files).try_init()?;
        Ok(Self { files, writing: OnceLock::new() })
    }

    /// From here on to files in `folder` too; said twice, it is done once. A disk that cannot follow loses lines rather
    /// than hold the node up.
    pub(crate) fn to_files(&self, folder: &Path) -> Result<(), Error> {
        if self.writing.get().is_some() {
            return Ok(());
        }
        // The appender looks into the folder before it makes it, and complains.
        fs::create_dir_all(folder).map_err(|source| Error::Folder { folder: folder.to_owned(), source })?;
        let files = RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix("omx")
            .filename_suffix("json")
            .max_log_files(FILES_MAX)
            .build(folder)
            .map_err(|source| Error::File { folder: folder.to_owned(), source })?;
        let (files, guard) = tracing_appender::non_blocking(files);
        // Both are empty: one thread starts a node.
        let _ = self.writing.set(guard);
        let _ = self.files.0.set(files);
        Ok(())
    }
}
