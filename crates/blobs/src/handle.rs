//! What the rest of the node calls.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use net::{Net, Services};
use ollama::Digest;
use tokio::sync::{mpsc, watch};
use types::BlobHash;

use crate::chunks::SIZE_MAX;
use crate::collect::{self, Collected, Mode};
use crate::config::Config;
use crate::disk::{Disk, Os};
use crate::drive::already_whole;
use crate::error::{Error, FetchError};
use crate::fetch::{Fetch, Running, Sources, TransferInfo, Want};
use crate::import;
use crate::protocol::SPEC;
use crate::scrub::{self, Report};
use crate::serve::serve;
use crate::shared::{Figures, Shared, blocking};
use crate::state::{Known, State};
use crate::survey::{self, Survey};
use crate::task::Task;

/// Fetches that run or wait their turn. One more is refused.
const FETCHES_MAX: usize = 4096;

/// The blobs of this node. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    shared: Arc<Shared>,
}

/// A blob that is not collected as long as this is held: for what is here before anything that would keep it is.
#[must_use = "the blob is held as long as this is"]
pub struct Hold {
    shared: Arc<Shared>,
    hash: BlobHash,
}

/// Opens the folder, which no other process may use meanwhile. Blocks while it reads what is known there: a small file for
/// each blob.
pub fn new(config: Config, net: Net) -> Result<(Blobs, Task), Error> {
    with_disk(config, net, Arc::new(Os))
}

pub(crate) fn with_disk(config: Config, net: Net, disk: Arc<dyn Disk>) -> Result<(Blobs, Task), Error> {
    let (starts, started) = mpsc::channel(FETCHES_MAX);
    let shared = Shared::open(config, net, disk, starts)?;
    Ok((Blobs { shared: shared.clone() }, Task { shared, starts: started }))
}

impl Blobs {
    /// Declares what peers may ask of us.
    pub fn services(&self, services: Services) -> Services {
        // The network outlives what it serves, and is held by it.
        let shared = Arc::downgrade(&self.shared);
        services.on_stream(SPEC, move |caller, stream| {
            let shared = shared.upgrade();
            Box::pin(async move {
                if let Some(shared) = shared {
                    serve(shared, caller.id, stream).await;
                }
            })
        })
    }

    /// Takes in a file where it is, by reading it once for both hashes; `tell` hears how many bytes are done. A file that is
    /// known and unchanged is not read again. Dropped, it goes on to its end.
    pub async fn refer(&self, path: impl Into<PathBuf>, tell: impl Fn(u64) + Send + 'static) -> Result<Known, Error> {
        let (shared, path) = (self.shared.clone(), path.into());
        blocking(move || import::refer(&shared, &path, tell)).await
    }

    /// Keeps bytes of our own.
    pub async fn adopt(&self, bytes: impl Into<Vec<u8>>) -> Result<Known, Error> {
        let (shared, bytes) = (self.shared.clone(), bytes.into());
        blocking(move || import::adopt(&shared, &bytes)).await
    }

    /// Takes in a file of ours by moving it, if it is what its SHA-256 says; it lies on the same file system.
    pub async fn take(&self, path: impl Into<PathBuf>, sha256: Digest) -> Result<Known, Error> {
        let (shared, path) = (self.shared.clone(), path.into());
        blocking(move || import::take(&shared, &path, sha256)).await
    }

    /// Tells that a file we refer to lies at this path too. What was linked there is not read again.
    pub async fn also_at(&self, hash: &BlobHash, path: impl Into<PathBuf>) -> Result<(), Error> {
        let (shared, hash, path) = (self.shared.clone(), *hash, path.into());
        blocking(move || import::also_at(&shared, &hash, &path)).await
    }

    /// Whether a file holds this blob. It is read, unless what it holds was seen before and it has not changed since.
    pub async fn lies_at(&self, hash: &BlobHash, path: impl Into<PathBuf>) -> Result<bool, Error> {
        let (shared, hash, path) = (self.shared.clone(), *hash, path.into());
        blocking(move || import::lies_at(&shared, &hash, &path)).await
    }

    /// Gives a file we refer to a name of ours as well, so that it stays when its owner removes it: one file, nothing is
    /// copied. Says whether the blob is ours now; it is not where the file system or the file's owner do not allow that.
    pub async fn keep(&self, hash: &BlobHash, path: impl Into<PathBuf>) -> Result<bool, Error> {
        let taken = self.shared.take(*hash).await;
        let (shared, hash, path) = (self.shared.clone(), *hash, path.into());
        blocking(move || {
            let _taken = taken;
            import::keep(&shared, &hash, &path)
        })
        .await
    }

    /// Looks at all files anew.
    pub async fn survey(&self) -> Result<Survey, Error> {
        let shared = self.shared.clone();
        blocking(move || survey::survey(&shared)).await
    }

    /// All that are here.
    pub fn all(&self) -> Vec<Known> {
        let shelf = self.shared.shelf();
        shelf.all().iter().filter_map(|hash| shelf.known(hash)).collect()
    }

    /// As it was known last. A file we refer to may have gone since: see `locate`.
    pub fn state(&self, hash: &BlobHash) -> State {
        self.shared.state(hash)
    }

    /// Looks whether the files are still there, and says where the blob lies: our own copy, else the newest reference.
    pub async fn locate(&self, hash: &BlobHash) -> Option<PathBuf> {
        let (shared, hash) = (self.shared.clone(), *hash);
        let located = blocking(move || {
            shared.refresh(&hash);
            Ok(shared.state(&hash))
        });
        match located.await {
            Ok(State::Whole { path, .. }) => Some(path),
            _ => None,
        }
    }

    pub fn known(&self, hash: &BlobHash) -> Option<Known> {
        self.shared.shelf().known(hash)
    }

    pub fn known_by_sha256(&self, sha256: &Digest) -> Option<Known> {
        self.shared.shelf().by_sha256(sha256)
    }

    /// Complete here, and not known to be damaged.
    pub fn whole(&self) -> Vec<BlobHash> {
        self.shared.shelf().whole()
    }

    /// Begins to fetch a blob, or joins a fetch of the same that runs already and adds these sources to its own.
    pub fn fetch(&self, want: Want, sources: impl Sources) -> Fetch {
        let sources: Arc<dyn Sources> = Arc::new(sources);
        let mut all = self.shared.running();
        if let Some(joined) = all.get(&want.hash).and_then(|running| running.join(&want, &sources)) {
            return joined;
        }
        let (running, fetch) = Running::new(want, sources);
        let at_once = match already_whole(&self.shared, &want) {
            _ if want.size > SIZE_MAX => Some(Err(FetchError::TooLarge { hash: want.hash, size: want.size })),
            Ok(Some(path)) => Some(Ok(path)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        };
        match (at_once, self.shared.starts.try_send(running.clone())) {
            (Some(outcome), _) => running.end(outcome),
            (None, Ok(())) => _ = all.insert(want.hash, running),
            (None, Err(mpsc::error::TrySendError::Full(_))) => running.end(Err(FetchError::TooMany)),
            (None, Err(mpsc::error::TrySendError::Closed(_))) => running.end(Err(FetchError::Stopping)),
        }
        fetch
    }

    /// Reads every chunk again. What is damaged is marked so, and not served.
    pub async fn verify(&self, hash: &BlobHash) -> Result<Report, Error> {
        let (shared, hash) = (self.shared.clone(), *hash);
        blocking(move || scrub::verify(&shared, &hash)).await
    }

    /// The same, and fetches what is damaged. A file of our own is repaired; one we only refer to is not touched: the blob
    /// comes to lie in our own folder, from its good chunks and fetched ones, and the reference is dropped. Dropped half-way
    /// it leaves a partial blob, which any fetch of it goes on with.
    pub async fn repair(&self, hash: &BlobHash, sources: impl Sources) -> Result<Report, RepairError> {
        let report = self.verify(hash).await?;
        if report.damaged.is_empty() {
            return Ok(report);
        }
        let want = self.set_aside(&report).await?;
        let hash = want.hash;
        let path = self.fetch(want, sources).done().await?;
        if path != self.shared.folder.whole(&hash) {
            // Another file we refer to stands in for the damaged one, and has not been looked at.
            let other = self.verify(&hash).await?;
            return Ok(Report { repaired: other.damaged.is_empty(), ..report });
        }
        self.shared.counters.chunks_repaired.fetch_add(report.damaged.len() as u64, Ordering::Relaxed);
        Ok(Report { repaired: true, ..report })
    }

    /// The first half of a repair: what is good of a damaged blob is a partial one from then on, and this is what a fetch of
    /// the rest wants.
    pub async fn set_aside(&self, damage: &Report) -> Result<Want, Error> {
        let Known { hash, sha256, size } = self.known(&damage.hash).ok_or(Error::Absent { hash: damage.hash })?;
        if self.shared.running().contains_key(&hash) {
            return Err(Error::Fetching { hash });
        }
        let taken = Arc::new(self.shared.take(hash).await);
        let (shared, damage) = (self.shared.clone(), damage.clone());
        blocking(move || scrub::demote(&shared, &taken, &damage)).await?;
        Ok(Want { hash, size, sha256 })
    }

    /// Our own copy gives way to the file at this path, which holds the same: after it was linked, moved or copied there. It
    /// is on the disk before ours is removed.
    pub async fn release(&self, hash: &BlobHash, now_at: impl AsRef<Path>) -> Result<(), Error> {
        let taken = self.shared.take(*hash).await;
        let (shared, hash, path) = (self.shared.clone(), *hash, now_at.as_ref().to_owned());
        blocking(move || {
            let _taken = taken;
            import::release(&shared, &hash, &path)
        })
        .await
    }

    /// Ends a fetch of it and removes everything of ours about it. Files we only refer to stay.
    pub async fn forget(&self, hash: &BlobHash) -> Result<(), Error> {
        let running = self.shared.running().get(hash).cloned();
        if let Some(running) = running {
            running.cancel.cancel();
        }
        let taken = self.shared.take(*hash).await;
        let (shared, hash) = (self.shared.clone(), *hash);
        blocking(move || {
            let _taken = taken;
            shared.drop_all(&hash)
        })
        .await
    }

    /// Keeps a blob from being collected.
    pub fn hold(&self, hash: BlobHash) -> Hold {
        *self.shared.held().entry(hash).or_default() += 1;
        Hold { shared: self.shared.clone(), hash }
    }

    /// Forgets all blobs but these, and removes what of them is ours; also what fetches have left and nobody has gone on with
    /// for `Config::partial_age_max`. What is being fetched or held stays.
    pub async fn collect(&self, keep: &BTreeSet<BlobHash>) -> Result<Vec<Collected>, Error> {
        collect::collect(&self.shared, keep, Mode::Real).await
    }

    /// What `collect` would do.
    pub async fn collect_dry(&self, keep: &BTreeSet<BlobHash>) -> Result<Vec<Collected>, Error> {
        collect::collect(&self.shared, keep, Mode::Dry).await
    }

    /// What runs or waits now.
    pub fn transfers(&self) -> Vec<TransferInfo> {
        let running = self.shared.running();
        let info = |hash: &BlobHash, running: &Running| TransferInfo {
            hash: *hash,
            progress: running.progress.borrow().clone(),
        };
        running.iter().map(|(hash, running)| info(hash, running)).collect()
    }

    /// The blobs that are known to be damaged here, and each change of it: for whoever has them repaired.
    pub fn damaged(&self) -> watch::Receiver<BTreeSet<BlobHash>> {
        self.shared.damage.subscribe()
    }

    pub fn figures(&self) -> Figures {
        self.shared.figures()
    }

    /// Bytes a second to and from all peers together, from now on.
    pub fn set_limits(&self, up: Option<NonZeroU64>, down: Option<NonZeroU64>) {
        self.shared.up.set_limit(up);
        self.shared.down.set_limit(down);
    }

    /// Whether models answer here now. While they do, chunks move one at a time each way, and each way rests for three times
    /// as long as each took.
    pub fn set_busy(&self, busy: bool) {
        self.shared.up.set_gives_way(busy);
        self.shared.down.set_gives_way(busy);
    }
}

/// Why a blob was not repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("failed to look at the blob")]
    Here(#[from] Error),
    #[error("failed to fetch what is damaged")]
    Fetch(#[from] FetchError),
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.shared.held();
        if let Some(count) = held.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.hash);
            }
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.hash).finish()
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blobs").field(&self.shared.folder.dir).finish()
    }
}
