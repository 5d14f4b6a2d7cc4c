//! What handle, task, fetches and streams share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use net::Net;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use types::BlobHash;

use crate::buffers::Buffers;
use crate::chunks::{self, Chunks};
use crate::config::Config;
use crate::disk::{self, Disk};
use crate::error::Error;
use crate::fetch::Running;
use crate::folder::{Entry, Folder, Reference, open_stamped};
use crate::journal::Journal;
use crate::pace::Pace;
use crate::partial::Partial;
use crate::protocol::SPEC;
use crate::space::Space;
use crate::state::{Shelf, State};

/// Chunks that are read before it is their turn to be sent, of all streams together. Each stream has room for one beside
/// these, so that slow peers cannot use up what others need.
const AHEAD_MAX: usize = 24;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) folder: Folder,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) space: Space,
    pub(crate) net: Net,
    pub(crate) up: Pace,
    pub(crate) down: Pace,
    /// For each stream one chunk.
    pub(crate) sending: Buffers,
    /// For the chunks behind it.
    pub(crate) ahead: Buffers,
    pub(crate) fetching: Semaphore,
    pub(crate) counters: Counters,
    pub(crate) starts: mpsc::Sender<Arc<Running>>,
    pub(crate) damage: watch::Sender<BTreeSet<BlobHash>>,
    shelf: Mutex<Shelf>,
    /// Held while records and lists are written: one after the other.
    noting: Mutex<()>,
    /// Blobs that are not to be collected, and by how many.
    held: Mutex<BTreeMap<BlobHash, usize>>,
    running: Mutex<BTreeMap<BlobHash, Arc<Running>>>,
    /// Blobs whose files are being changed, by one at a time.
    taken: Mutex<BTreeSet<BlobHash>>,
    given_back: Notify,
    /// Whole blobs that peers read from now.
    opened: Mutex<BTreeMap<BlobHash, Weak<Opened>>>,
    /// Held as long as anything here may write.
    _lock: File,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) bytes_wasted: AtomicU64,
    pub(crate) chunks_bad: AtomicU64,
    pub(crate) liars: AtomicU64,
    pub(crate) damage_found: AtomicU64,
    pub(crate) chunks_repaired: AtomicU64,
    pub(crate) fetches_done: AtomicU64,
}

/// What this crate has done since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Of chunks that came and were good.
    pub bytes_in: u64,
    /// Of chunks sent to peers.
    pub bytes_out: u64,
    /// Of chunks that were bad, or came twice.
    pub bytes_wasted: u64,
    /// Chunks from peers that were not what they should be.
    pub chunks_bad: u64,
    /// Peers left for good in one fetch, for a proven lie.
    pub liars: u64,
    /// Chunks on this disk found not to be what they were.
    pub damage_found: u64,
    pub chunks_repaired: u64,
    pub fetches_done: u64,
    /// Fetches that run or wait now.
    pub fetches: u64,
}

/// A whole blob, open for reading.
pub(crate) struct Opened {
    file: File,
    /// Where it is not our own.
    reference: Option<Reference>,
    pub(crate) list: Chunks,
}

/// A chunk cannot be had from here.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The bytes are not those of the chunk.
    Damaged,
    Io(io::Error),
}

impl Opened {
    /// Whether somebody has changed the file since it was looked at: then it is no damage.
    pub(crate) fn is_another_now(&self) -> bool {
        self.reference.as_ref().is_some_and(|reference| open_stamped(reference).is_none())
    }

    /// Verified: what does not match is not returned. Blocks.
    pub(crate) fn read(&self, chunk: u32, buffer: &mut [u8]) -> Result<(), Unread> {
        let read = disk::read_at(&self.file, buffer, chunks::offset(chunk)).map_err(Unread::Io)?;
        match read == buffer.len() && self.list.verify(chunk, buffer) {
            true => Ok(()),
            false => Err(Unread::Damaged),
        }
    }
}

/// The right to change a blob's files, as long as it is held.
pub(crate) struct Taken {
    shared: Arc<Shared>,
    hash: BlobHash,
}

impl Shared {
    /// Reads what is in the folder. Blocks.
    pub(crate) fn open(
        config: Config,
        net: Net,
        disk: Arc<dyn Disk>,
        starts: mpsc::Sender<Arc<Running>>,
    ) -> Result<Arc<Self>, Error> {
        let folder = Folder::prepare(&config.dir)?;
        let lock = lock(&config.dir)?;
        let mut shelf = Shelf::default();
        for hash in folder.scan("known")? {
            match folder.read_known(&hash) {
                Some(entry) => shelf.put(hash, present(entry.clone()), own(&folder, &hash, &entry)),
                None => tracing::warn!(%hash, "what is kept of a blob cannot be read; it counts as absent"),
            }
        }
        for part in ["whole", "partial", "lists"] {
            folder.scan(part)?;
        }
        Ok(Arc::new(Self {
            space: Space::new(config.dir.clone(), disk.clone()),
            up: Pace::new(config.up),
            down: Pace::new(config.down),
            sending: Buffers::new(SPEC.concurrency_total),
            ahead: Buffers::new(AHEAD_MAX),
            fetching: Semaphore::new(config.fetches_max.max(1)),
            counters: Counters::default(),
            damage: watch::Sender::default(),
            shelf: Mutex::new(shelf),
            noting: Mutex::default(),
            held: Mutex::default(),
            running: Mutex::default(),
            taken: Mutex::default(),
            given_back: Notify::new(),
            opened: Mutex::default(),
            _lock: lock,
            config,
            folder,
            disk,
            net,
            starts,
        }))
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("no holder panics")
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, BTreeMap<BlobHash, Arc<Running>>> {
        self.running.lock().expect("no holder panics")
    }

    pub(crate) fn state(&self, hash: &BlobHash) -> State {
        if let Some(state) = self.shelf().state(hash) {
            return state;
        }
        let partial = self.running().get(hash).and_then(|running| running.partial());
        if let Some(partial) = partial {
            return State::Partial { chunks: partial.here().count(), of: partial.here().len() };
        }
        match Journal::look(&self.folder.journal(hash), hash) {
            Some(found) => State::Partial { chunks: found.sure.count() + found.likely.count(), of: found.sure.len() },
            None => State::Absent,
        }
    }

    /// Waits until nobody else changes this blob's files.
    pub(crate) async fn take(self: &Arc<Self>, hash: BlobHash) -> Taken {
        loop {
            // Asked for first: one given back between looking and waiting is not missed.
            let given_back = self.given_back.notified();
            if self.taken.lock().expect("no holder panics").insert(hash) {
                return Taken { shared: self.clone(), hash };
            }
            given_back.await;
        }
    }

    /// Changes what is kept of a blob, on disk and on the shelf. Blocks, for a short time.
    pub(crate) fn note(&self, hash: BlobHash, change: impl FnOnce(Option<&Entry>) -> Entry) -> Result<(), Error> {
        let _alone = self.noting.lock().expect("no holder panics");
        let before = self.shelf().entry(&hash).cloned();
        let entry = change(before.as_ref());
        if before.as_ref() != Some(&entry) {
            self.folder.write_known(&hash, &entry)?;
        }
        let own = own(&self.folder, &hash, &entry);
        self.shelf().put(hash, entry, own);
        self.tell_damage();
        Ok(())
    }

    /// Blocks.
    pub(crate) fn keep_list(&self, list: &Chunks) -> Result<(), Error> {
        let _alone = self.noting.lock().expect("no holder panics");
        self.folder.write_list(list)
    }

    /// Bytes of our own, complete at once. Blocks.
    pub(crate) fn keep_bytes(&self, hash: &BlobHash, bytes: &[u8]) -> Result<(), Error> {
        let _alone = self.noting.lock().expect("no holder panics");
        let path = self.folder.whole(hash);
        disk::write_atomically(&path, &[bytes]).map_err(Error::io("write", &path))
    }

    /// Everything of ours about a blob is gone after this. Blocks.
    pub(crate) fn drop_all(&self, hash: &BlobHash) -> Result<(), Error> {
        self.shelf().remove(hash);
        self.opened.lock().expect("no holder panics").remove(hash);
        self.tell_damage();
        self.folder.remove_all(hash)
    }

    /// A whole blob, from our own file or from the first file we refer to that is still the one we saw; references that are
    /// not are dropped. Blocks.
    pub(crate) fn open_whole(&self, hash: &BlobHash) -> Option<Arc<Opened>> {
        let mut opened = self.opened.lock().expect("no holder panics");
        if let Some(open) = opened.get(hash).and_then(Weak::upgrade) {
            return Some(open);
        }
        opened.retain(|_, open| open.strong_count() > 0);
        let (entry, own) = {
            let shelf = self.shelf();
            (shelf.entry(hash)?.clone(), shelf.own(hash).map(Path::to_owned))
        };
        let ours = own.and_then(|path| Some((File::open(path).ok()?, None)));
        let referred = |reference: &Reference| Some((open_stamped(reference)?, Some(reference.clone())));
        let Some((file, reference)) = ours.or_else(|| entry.references.iter().find_map(referred)) else {
            self.refresh(hash);
            return None;
        };
        let Some(list) = self.folder.read_list(hash, entry.size) else {
            tracing::warn!(%hash, "the list of a blob's chunks cannot be read; verifying the blob makes it anew");
            return None;
        };
        let open = Arc::new(Opened { file, reference, list });
        opened.insert(*hash, Arc::downgrade(&open));
        Some(open)
    }

    /// What is open is opened anew by the next who asks.
    pub(crate) fn close(&self, hash: &BlobHash) {
        self.opened.lock().expect("no holder panics").remove(hash);
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, BTreeMap<BlobHash, usize>> {
        self.held.lock().expect("no holder panics")
    }

    /// Looks whether the files are still there. Blocks.
    pub(crate) fn refresh(&self, hash: &BlobHash) {
        let mut shelf = self.shelf();
        let Some(entry) = shelf.entry(hash).cloned() else { return };
        let own = own(&self.folder, hash, &entry);
        shelf.put(*hash, present(entry), own);
    }

    /// A chunk on this disk is not what it was: whoever watches is told.
    pub(crate) fn found_damaged(&self, hash: &BlobHash, chunk: u32) {
        let is_news = self.shelf().damaged(hash, chunk);
        if is_news {
            self.counters.damage_found.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%hash, chunk, "a chunk on this disk is not what it was; it is not served");
            self.tell_damage();
        }
    }

    pub(crate) fn tell_damage(&self) {
        let damaged = self.shelf().all_damaged();
        self.damage.send_if_modified(|known| {
            let differs = *known != damaged;
            *known = damaged;
            differs
        });
    }

    pub(crate) fn figures(&self) -> Figures {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { bytes_in, bytes_out, bytes_wasted, chunks_bad, liars, .. } = &self.counters;
        Figures {
            bytes_in: of(bytes_in),
            bytes_out: of(bytes_out),
            bytes_wasted: of(bytes_wasted),
            chunks_bad: of(chunks_bad),
            liars: of(liars),
            damage_found: of(&self.counters.damage_found),
            chunks_repaired: of(&self.counters.chunks_repaired),
            fetches_done: of(&self.counters.fetches_done),
            fetches: self.running().len() as u64,
        }
    }

    pub(crate) fn open_partial(
        &self,
        hash: BlobHash,
        size: u64,
    ) -> Result<(Partial, mpsc::UnboundedReceiver<u32>), Error> {
        Partial::open(&self.folder, self.disk.clone(), hash, size)
    }
}

/// Without the references whose files are no longer what they were.
fn present(mut entry: Entry) -> Entry {
    entry.references.retain(|reference| open_stamped(reference).is_some());
    entry
}

fn own(folder: &Folder, hash: &BlobHash, entry: &Entry) -> Option<PathBuf> {
    let path = folder.whole(hash);
    path.metadata().is_ok_and(|found| found.is_file() && found.len() == entry.size).then_some(path)
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: dir.to_owned() }),
        // A file system without locks: the node's own lock has to do.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(source)) => Err(Error::Io { what: "lock", path, source }),
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shared.taken.lock().expect("no holder panics").remove(&self.hash);
        self.shared.given_back.notify_waiters();
    }
}

/// Runs what blocks away from the runtime's own threads. It runs to its end even where the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Worker))
}
