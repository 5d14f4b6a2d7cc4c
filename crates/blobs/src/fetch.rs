//! A fetch as others see it: what is wanted, how far it is, and how it ended.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use ollama::Digest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use types::{BlobHash, NodeId};

use crate::error::FetchError;
use crate::partial::Partial;

/// Members that may have a blob. Asked again and again while it is fetched, since some come and others go.
pub trait Sources: Send + Sync + 'static {
    /// The best first. Who does not have it costs a question, so it may be too many; more than 256 are not looked at.
    /// Must not block.
    fn now(&self) -> Vec<NodeId>;
}

impl<F: Fn() -> Vec<NodeId> + Send + Sync + 'static> Sources for F {
    fn now(&self) -> Vec<NodeId> {
        self()
    }
}

/// A blob to fetch, as the registry binds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub hash: BlobHash,
    pub size: u64,
    pub sha256: Digest,
}

/// What a fetch is doing. None of these ends by itself but for the last two: what is waited for is waited for as long as
/// somebody holds the fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Others are running, or the blob's files are in use.
    Queued,
    /// The disk is full: so much is needed, and so much is free. What has come is kept.
    WaitingForSpace {
        needed: u64,
        free: u64,
    },
    /// Nobody who has what is missing can be reached.
    WaitingForSources,
    Fetching,
    /// All is here; SHA-256, which cannot be taken chunk by chunk, is behind.
    Checking,
    Done,
    Failed,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub stage: Stage,
    /// Verified and written, those of earlier fetches too.
    pub bytes: u64,
    pub total: u64,
    /// Bytes a second now.
    pub rate: f64,
    /// Who has sent something in this fetch.
    pub sources: Vec<SourceInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SourceInfo {
    pub node: NodeId,
    /// Of good chunks.
    pub bytes: u64,
    /// Bytes a second now.
    pub rate: f64,
}

/// One of the fetches of this node.
#[derive(Debug, Clone, PartialEq)]
pub struct TransferInfo {
    pub hash: BlobHash,
    pub progress: Progress,
}

/// A running fetch. All who want the same blob hold the same fetch; it is cancelled when the last of them drops it, and what
/// has come is kept.
#[derive(Clone)]
pub struct Fetch {
    running: Arc<Running>,
    _holder: Arc<Holder>,
}

impl Fetch {
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.running.progress.subscribe()
    }

    /// Where the blob lies, once it is whole, verified by both hashes and on the disk. May be dropped and called again.
    pub async fn done(&self) -> Result<PathBuf, FetchError> {
        let mut outcome = self.running.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().unwrap_or(Err(FetchError::Stopping))
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fetch").field(&self.running.want).finish()
    }
}

/// Sources of one fetch: each who joins it may bring some. More are not looked at.
const SOURCES_MAX: usize = 8;
/// Members tried for one blob.
const CANDIDATES_MAX: usize = 256;

pub(crate) struct Running {
    pub(crate) want: Want,
    pub(crate) progress: watch::Sender<Progress>,
    outcome: watch::Sender<Option<Result<PathBuf, FetchError>>>,
    /// Nobody wants it any more.
    pub(crate) cancel: CancellationToken,
    /// There will be no more of it.
    pub(crate) ended: CancellationToken,
    sources: Mutex<Vec<Arc<dyn Sources>>>,
    partial: OnceLock<Arc<Partial>>,
    holder: Mutex<Weak<Holder>>,
}

/// Cancels the fetch with its end.
struct Holder(CancellationToken);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Running {
    /// With the first to hold it.
    pub(crate) fn new(want: Want, sources: Arc<dyn Sources>) -> (Arc<Self>, Fetch) {
        let progress = Progress { stage: Stage::Queued, bytes: 0, total: want.size, rate: 0.0, sources: Vec::new() };
        let cancel = CancellationToken::new();
        let holder = Arc::new(Holder(cancel.clone()));
        let running = Arc::new(Self {
            want,
            progress: watch::Sender::new(progress),
            outcome: watch::Sender::new(None),
            cancel,
            ended: CancellationToken::new(),
            sources: Mutex::new(vec![sources]),
            partial: OnceLock::new(),
            holder: Mutex::new(Arc::downgrade(&holder)),
        });
        let fetch = Fetch { running: running.clone(), _holder: holder };
        (running, fetch)
    }

    /// `None` where it wants something else, or has ended or been given up.
    pub(crate) fn join(self: &Arc<Self>, want: &Want, sources: &Arc<dyn Sources>) -> Option<Fetch> {
        if self.want != *want || self.ended.is_cancelled() {
            return None;
        }
        let holder = self.holder.lock().expect("no holder panics").upgrade()?;
        let mut all = self.sources();
        if all.len() < SOURCES_MAX {
            all.push(sources.clone());
        }
        drop(all);
        Some(Fetch { running: self.clone(), _holder: holder })
    }

    /// Each once, the best first.
    pub(crate) fn candidates(&self, but: NodeId) -> Vec<NodeId> {
        let sources = self.sources().clone();
        let mut candidates = Vec::new();
        for node in sources.iter().flat_map(|sources| sources.now()).take(4 * CANDIDATES_MAX) {
            if node != but && candidates.len() < CANDIDATES_MAX && !candidates.contains(&node) {
                candidates.push(node);
            }
        }
        candidates
    }

    pub(crate) fn partial(&self) -> Option<Arc<Partial>> {
        self.partial.get().filter(|_| !self.ended.is_cancelled()).cloned()
    }

    /// Peers may have from now on what is there.
    pub(crate) fn set_partial(&self, partial: Arc<Partial>) {
        let _ = self.partial.set(partial);
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.progress.send_if_modified(|progress| {
            let differs = progress.stage != stage;
            progress.stage = stage;
            differs
        });
    }

    pub(crate) fn end(&self, outcome: Result<PathBuf, FetchError>) {
        self.progress.send_modify(|progress| {
            progress.rate = 0.0;
            progress.sources.iter_mut().for_each(|source| source.rate = 0.0);
            match outcome {
                Ok(_) => (progress.stage, progress.bytes) = (Stage::Done, progress.total),
                Err(_) => progress.stage = Stage::Failed,
            }
        });
        self.ended.cancel();
        self.outcome.send_replace(Some(outcome));
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Arc<dyn Sources>>> {
        self.sources.lock().expect("no holder panics")
    }
}
