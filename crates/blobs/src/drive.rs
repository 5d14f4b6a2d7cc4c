//! One fetch from its beginning to its end: carries out what the plan says.
//!
//! A chunk goes from the link that read and verified it to the writer, and counts when it is written and noted. Writing,
//! syncing and SHA-256 each have at most one piece of work away on a blocking thread, and take what has gathered meanwhile
//! as the next: so nothing is handed over chunk by chunk where the disk is slower than the network, and memory is bounded by
//! the buffers. `run` may be dropped at any time; what is away ends by itself and holds the blob's files until then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ollama::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use types::{BlobHash, NodeId};

use crate::buffers::{Buffer, Buffers};
use crate::chunks::{self, CHUNK_BYTES, Chunks};
use crate::disk;
use crate::error::{Error, FetchError, is_full};
use crate::fetch::{Running, SourceInfo, Stage, Want};
use crate::folder::Entry;
use crate::link::{self, Heard, Order};
use crate::partial::Partial;
use crate::plan::{Action, Event, Link, Plan};
use crate::shared::{Shared, Taken, Unread, blocking};
use crate::state::State;

/// Chunks in memory of one fetch: one on each link, and some for the writer.
const BUFFERS_MAX: usize = 20;
/// What links have said and was not looked at.
const HEARD_MAX: usize = 64;
const TICK: Duration = Duration::from_millis(250);
const ASK_SOURCES_EVERY: Duration = Duration::from_secs(2);
/// How often a full disk is looked at.
const ROOM_EVERY: Duration = Duration::from_secs(2);
/// Where the disk refused a write though all seemed allocated: so much has to be free before it is tried again.
const ROOM_MIN: u64 = 8 << 20;
/// Chunks written before they are synced: after a power cut, no more than these and those written meanwhile are fetched
/// again.
const SYNC_CHUNKS: u32 = 8;
/// Chunks hashed by SHA-256 in one piece of work.
const HASH_CHUNKS: u32 = 32;
/// How much of a new rate counts, for each tick.
const RATE_WEIGHT: f64 = 0.25;

/// Runs the fetch and tells how it ended.
pub(crate) async fn run(shared: Arc<Shared>, running: Arc<Running>) {
    let hash = running.want.hash;
    let outcome = tokio::select! {
        biased;
        () = running.cancel.cancelled() => Err(FetchError::Cancelled { hash }),
        outcome = attempt(&shared, &running) => outcome,
    };
    if let Err(error) = &outcome {
        tracing::debug!(%hash, %error, "a fetch ended without its blob");
    }
    let mut fetches = shared.running();
    if fetches.get(&hash).is_some_and(|other| Arc::ptr_eq(other, &running)) {
        fetches.remove(&hash);
    }
    drop(fetches);
    running.end(outcome);
}

async fn attempt(shared: &Arc<Shared>, running: &Arc<Running>) -> Result<PathBuf, FetchError> {
    let want = running.want;
    let here = |cause| FetchError::Here { hash: want.hash, cause: Arc::new(cause) };
    let _slot = shared.fetching.acquire().await.expect("the semaphore is never closed");
    let taken = Arc::new(shared.take(want.hash).await);
    if let Some(path) = already_whole(shared, &want)? {
        return Ok(path);
    }
    let (with, holding) = (shared.clone(), taken.clone());
    let opened = blocking(move || {
        let _taken = holding;
        with.open_partial(want.hash, want.size)
    });
    let (partial, losses) = opened.await.map_err(here)?;
    let partial = Arc::new(partial);
    let _promise = Promise { shared, hash: want.hash };
    make_room(shared, running, &partial).await.map_err(here)?;
    running.set_partial(partial.clone());
    Drive::new(shared, running, partial, taken).run(losses).await
}

/// Whether the blob is here, by this very binding.
pub(crate) fn already_whole(shared: &Shared, want: &Want) -> Result<Option<PathBuf>, FetchError> {
    let hash = want.hash;
    let shelf = shared.shelf();
    let (Some(State::Whole { path, .. }), Some(known)) = (shelf.state(&hash), shelf.known(&hash)) else {
        return Ok(None);
    };
    match known {
        known if known.size != want.size => Err(FetchError::WrongSize { hash, said: want.size, proven: known.size }),
        known if known.sha256 != want.sha256 => {
            Err(FetchError::WrongBinding { hash, said: want.sha256, found: known.sha256 })
        }
        _ => Ok(Some(path)),
    }
}

/// Ends what the blob was promised of the disk.
struct Promise<'a> {
    shared: &'a Shared,
    hash: BlobHash,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.shared.space.settle(&self.hash, 0);
    }
}

/// Waits until there is room for all of it, and takes it.
async fn make_room(shared: &Arc<Shared>, running: &Running, partial: &Arc<Partial>) -> Result<(), Error> {
    loop {
        let (with, file) = (shared.clone(), partial.clone());
        let short = blocking(move || {
            let path = file.path.clone();
            let missing = file.unallocated().map_err(Error::io("look at", &path))?;
            if let Err(short) =
                with.space.promise(file.hash, missing).map_err(Error::io("measure the room of", &path))?
            {
                return Ok(Some(short));
            }
            match file.allocate() {
                Ok(is_taken) => {
                    if is_taken {
                        with.space.settle(&file.hash, 0);
                    }
                    Ok(None)
                }
                Err(error) if is_full(&error) => {
                    with.space.settle(&file.hash, 0);
                    Ok(Some(crate::space::Short { needed: missing, free: 0 }))
                }
                Err(source) => Err(Error::Io { what: "make room for", path, source }),
            }
        });
        let Some(short) = short.await? else { return Ok(()) };
        running.set_stage(Stage::WaitingForSpace { needed: short.needed, free: short.free });
        sleep(ROOM_EVERY).await;
    }
}

struct Drive<'a> {
    shared: &'a Arc<Shared>,
    running: &'a Arc<Running>,
    want: Want,
    partial: Arc<Partial>,
    taken: Arc<Taken>,
    start: Instant,
    plan: Plan,
    buffers: Buffers,
    tasks: JoinSet<()>,
    links: BTreeMap<Link, Wire>,
    heard: mpsc::Sender<(Link, Heard)>,
    /// Read and verified, to be written.
    to_write: Vec<(u32, Buffer)>,
    writing: Option<JoinHandle<Vec<Written>>>,
    /// Written since the last sync.
    unsynced: u32,
    syncing: Option<JoinHandle<io::Result<()>>>,
    hashing: Option<JoinHandle<io::Result<Sha>>>,
    sha: Option<Sha>,
    /// Since when the disk has no room.
    full: Option<Instant>,
    sources: BTreeMap<NodeId, Sent>,
    bytes_before: u64,
    rate: f64,
}

struct Wire {
    orders: mpsc::UnboundedSender<Order>,
    task: AbortHandle,
}

#[derive(Default)]
struct Sent {
    bytes: u64,
    before: u64,
    rate: f64,
}

/// What became of a chunk that was to be written.
type Written = (u32, io::Result<()>);

/// SHA-256 of the chunks before `next`.
struct Sha {
    state: Sha256,
    next: u32,
}

enum Wake {
    Heard(Link, Heard),
    Written(Vec<Written>),
    Synced(io::Result<()>),
    Hashed(io::Result<Sha>),
    Lost(u32),
    Tick,
}

impl<'a> Drive<'a> {
    fn new(shared: &'a Arc<Shared>, running: &'a Arc<Running>, partial: Arc<Partial>, taken: Arc<Taken>) -> Self {
        let (heard, _) = mpsc::channel(1);
        let here = partial.here();
        let own = shared.net.local();
        let salt = u64::from_le_bytes(own.public_key()[..8].try_into().expect("a key has 32 bytes"));
        Self {
            // That of a single chunk is empty and proves nothing.
            plan: Plan::new(running.want.size, here, partial.list().is_some_and(|list| list.count() > 1), salt),
            want: running.want,
            start: Instant::now(),
            buffers: Buffers::new(BUFFERS_MAX),
            tasks: JoinSet::new(),
            links: BTreeMap::new(),
            heard,
            to_write: Vec::new(),
            writing: None,
            unsynced: 0,
            syncing: None,
            hashing: None,
            sha: Some(Sha { state: Sha256::new(), next: 0 }),
            full: None,
            sources: BTreeMap::new(),
            bytes_before: 0,
            rate: 0.0,
            shared,
            running,
            partial,
            taken,
        }
    }

    async fn run(mut self, mut losses: mpsc::UnboundedReceiver<u32>) -> Result<PathBuf, FetchError> {
        let (sender, mut heard) = mpsc::channel(HEARD_MAX);
        self.heard = sender;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.bytes_before = self.bytes();
        let mut asked_sources: Option<Instant> = None;
        loop {
            if asked_sources.is_none_or(|at| at.elapsed() >= ASK_SOURCES_EVERY) {
                asked_sources = Some(Instant::now());
                let candidates = self.running.candidates(self.shared.net.local());
                self.plan(Event::Sources(candidates));
            }
            self.begin_work();
            if let Some(digest) = self.is_through() {
                if digest == self.want.sha256 {
                    return self.publish().await;
                }
                self.find_what_is_wrong(digest).await?;
                continue;
            }
            let wake = tokio::select! {
                Some((link, heard)) = heard.recv() => Wake::Heard(link, heard),
                written = away(&mut self.writing) => Wake::Written(written.map_err(|_| self.here(Error::Worker))?),
                synced = away(&mut self.syncing) => Wake::Synced(synced.map_err(|_| self.here(Error::Worker))?),
                hashed = away(&mut self.hashing) => Wake::Hashed(hashed.map_err(|_| self.here(Error::Worker))?),
                Some(chunk) = losses.recv() => Wake::Lost(chunk),
                _ = tick.tick() => Wake::Tick,
            };
            self.apply(wake).await?;
        }
    }

    async fn apply(&mut self, wake: Wake) -> Result<(), FetchError> {
        match wake {
            Wake::Heard(link, heard) => self.on_heard(link, heard).await?,
            Wake::Written(written) => {
                for (chunk, outcome) in written {
                    match outcome {
                        Ok(()) => self.unsynced += 1,
                        Err(error) => self.not_kept(Some(chunk), error)?,
                    }
                }
            }
            Wake::Synced(outcome) => outcome.or_else(|error| self.not_kept(None, error))?,
            Wake::Hashed(Ok(sha)) => self.sha = Some(sha),
            // A chunk it could not read was lost meanwhile, or is read again after what came before it.
            Wake::Hashed(Err(error)) => {
                tracing::debug!(hash = %self.want.hash, %error, "failed to hash what is here; begun anew");
                self.sha = Some(Sha { state: Sha256::new(), next: 0 });
            }
            Wake::Lost(chunk) => self.plan(Event::Lost { chunk }),
            Wake::Tick => {
                while self.tasks.try_join_next().is_some() {}
                self.look_for_room()?;
                self.plan(Event::Tick);
                self.tell();
            }
        }
        Ok(())
    }

    async fn on_heard(&mut self, link: Link, heard: Heard) -> Result<(), FetchError> {
        match heard {
            Heard::Opened { size, held } => self.plan(Event::Opened { link, size, held }),
            Heard::News(chunks) => self.plan(Event::News { link, chunks }),
            Heard::NoList => self.plan(Event::NoList { link }),
            Heard::NoChunk(chunk) => self.plan(Event::NoChunk { link, chunk }),
            Heard::Chunk { chunk, bytes } => {
                self.got(link, chunk, bytes);
                self.plan(Event::Got { link, chunk });
            }
            Heard::List { list, last } => {
                if list.size() != self.want.size {
                    let (said, proven) = (self.want.size, list.size());
                    return Err(FetchError::WrongSize { hash: self.want.hash, said, proven });
                }
                let chunk = list.count() - 1;
                self.keep_list(list).await?;
                self.got(link, chunk, last);
                self.plan(Event::Listed { link });
            }
            Heard::Down(why) => {
                self.links.remove(&link);
                self.plan(Event::Down { link, why });
            }
        }
        Ok(())
    }

    async fn keep_list(&self, list: Arc<Chunks>) -> Result<(), FetchError> {
        loop {
            let (shared, partial, list, taken) =
                (self.shared.clone(), self.partial.clone(), list.clone(), self.taken.clone());
            let kept = blocking(move || {
                let _taken = taken;
                shared.keep_list(&list)?;
                partial.set_list(list);
                Ok(())
            });
            match kept.await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_full() => {
                    self.running.set_stage(Stage::WaitingForSpace { needed: ROOM_MIN, free: 0 });
                    sleep(ROOM_EVERY).await;
                }
                Err(error) => return Err(self.here(error)),
            }
        }
    }

    fn got(&mut self, link: Link, chunk: u32, bytes: Buffer) {
        let counters = &self.shared.counters;
        let is_new = !self.partial.has(chunk) && !self.to_write.iter().any(|(other, _)| *other == chunk);
        match is_new {
            true => _ = counters.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed),
            false => _ = counters.bytes_wasted.fetch_add(bytes.len() as u64, Ordering::Relaxed),
        }
        if let Some(peer) = self.plan.peer_of(link) {
            self.sources.entry(peer).or_default().bytes += bytes.len() as u64;
        }
        if is_new {
            self.to_write.push((chunk, bytes));
        }
    }

    // ---- the plan

    fn plan(&mut self, event: Event) {
        for action in self.plan.on(self.start.elapsed(), event) {
            match action {
                Action::Dial { link, peer } => self.dial(link, peer),
                Action::AskList { link } => self.order(link, Order::List),
                Action::Ask { link, chunk } => self.order(link, Order::Chunk(chunk)),
                Action::HangUp { link } => {
                    if let Some(wire) = self.links.remove(&link) {
                        wire.task.abort();
                    }
                }
                Action::Shun { peer, lie } => {
                    self.shared.counters.liars.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(hash = %self.want.hash, %peer, ?lie, "a peer lied about a blob and is not asked for it again");
                }
            }
        }
    }

    fn dial(&mut self, link: Link, peer: NodeId) {
        let (orders, ordered) = mpsc::unbounded_channel();
        let wire = link::Link {
            id: link,
            shared: self.shared.clone(),
            peer,
            partial: self.partial.clone(),
            buffers: self.buffers.clone(),
        };
        let task = self.tasks.spawn(wire.run(ordered, self.heard.clone()));
        self.links.insert(link, Wire { orders, task });
    }

    /// The plan bounds how many are open; one for a link that is down comes to nothing, and the plan hears of that.
    fn order(&self, link: Link, order: Order) {
        if let Some(wire) = self.links.get(&link) {
            let _ = wire.orders.send(order);
        }
    }

    // ---- work that blocks

    fn begin_work(&mut self) {
        if self.writing.is_none() && !self.to_write.is_empty() {
            let batch = std::mem::take(&mut self.to_write);
            let (partial, taken) = (self.partial.clone(), self.taken.clone());
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let _taken = taken;
                let write = |(chunk, bytes): (u32, Buffer)| (chunk, partial.write(chunk, &bytes));
                batch.into_iter().map(write).collect()
            }));
        }
        if self.syncing.is_none() && self.unsynced >= SYNC_CHUNKS {
            self.unsynced = 0;
            let (partial, taken) = (self.partial.clone(), self.taken.clone());
            self.syncing = Some(tokio::task::spawn_blocking(move || {
                let _taken = taken;
                partial.sync()
            }));
        }
        let behind = |sha: &Sha| self.partial.first_missing(sha.next) > sha.next;
        if self.hashing.is_none() && self.partial.list().is_some() && self.sha.as_ref().is_some_and(behind) {
            let sha = self.sha.take().expect("it was just seen");
            let (partial, taken) = (self.partial.clone(), self.taken.clone());
            self.hashing = Some(tokio::task::spawn_blocking(move || {
                let _taken = taken;
                sha.go_on(&partial)
            }));
        }
    }

    /// Everything is here, written and hashed: this is the SHA-256.
    fn is_through(&mut self) -> Option<Digest> {
        let all_here = self.plan.is_complete() && self.to_write.is_empty() && self.writing.is_none();
        if !all_here || !self.partial.is_whole() {
            return None;
        }
        self.running.set_stage(Stage::Checking);
        let sha = self.sha.as_ref().filter(|sha| sha.next == self.partial.here().len() && self.syncing.is_none())?;
        Some(Digest::from_bytes(sha.state.clone().finalize().into()))
    }

    /// The SHA-256 is another. Either a chunk has changed on this disk since it was verified, and is fetched again, or the
    /// two names were never those of the same bytes.
    async fn find_what_is_wrong(&mut self, found: Digest) -> Result<(), FetchError> {
        self.sha = Some(Sha { state: Sha256::new(), next: 0 });
        let (partial, taken) = (self.partial.clone(), self.taken.clone());
        let all_good = blocking(move || {
            let _taken = taken;
            let mut buffer = vec![0; CHUNK_BYTES];
            let list = partial.list().cloned();
            let mut good = true;
            for chunk in partial.here().iter() {
                let length = list.as_ref().map_or(0, |list| list.length(chunk));
                match partial.read_verified(chunk, &mut buffer[..length]) {
                    Ok(()) => {}
                    Err(Unread::Damaged) => good = false,
                    Err(Unread::Io(source)) => {
                        return Err(Error::Io { what: "read", path: partial.path.clone(), source });
                    }
                }
            }
            Ok(good)
        });
        let (hash, said) = (self.want.hash, self.want.sha256);
        match all_good.await {
            Ok(true) => Err(FetchError::WrongBinding { hash, said, found }),
            // The losses tell the plan which.
            Ok(false) => Ok(()),
            Err(error) => Err(self.here(error)),
        }
    }

    async fn publish(&mut self) -> Result<PathBuf, FetchError> {
        let (shared, partial, taken, want) = (self.shared.clone(), self.partial.clone(), self.taken.clone(), self.want);
        let published = blocking(move || {
            let _taken = taken;
            partial.sync().map_err(Error::io("sync", &partial.path))?;
            let note = |entry: Option<&Entry>| Entry {
                size: want.size,
                sha256: want.sha256,
                references: entry.map_or_else(Vec::new, |entry| entry.references.clone()),
            };
            shared.note(want.hash, note)?;
            let path = shared.folder.publish(&partial.path, &want.hash)?;
            disk::remove(&shared.folder.journal(&want.hash)).map_err(Error::io("remove the journal of", &path))?;
            shared.close(&want.hash);
            shared.shelf().set_damaged(&want.hash, BTreeSet::new());
            // Now with our own copy.
            shared.note(want.hash, note)?;
            Ok(path)
        });
        let path = published.await.map_err(|error| self.here(error))?;
        self.shared.counters.fetches_done.fetch_add(1, Ordering::Relaxed);
        Ok(path)
    }

    // ---- the disk is full

    /// A full disk is waited for; anything else ends the fetch.
    fn not_kept(&mut self, chunk: Option<u32>, source: io::Error) -> Result<(), FetchError> {
        let full = is_full(&source);
        if !full {
            return Err(self.here(Error::Io { what: "write", path: self.partial.path.clone(), source }));
        }
        if let Some(chunk) = chunk {
            self.plan(Event::Lost { chunk });
        }
        self.full = Some(Instant::now());
        self.running.set_stage(Stage::WaitingForSpace { needed: ROOM_MIN, free: 0 });
        self.plan(Event::Full);
        Ok(())
    }

    fn look_for_room(&mut self) -> Result<(), FetchError> {
        if self.full.is_none_or(|since| since.elapsed() < ROOM_EVERY) {
            return Ok(());
        }
        let looked = self
            .partial
            .unallocated()
            .and_then(|missing| self.shared.space.promise(self.want.hash, missing.max(ROOM_MIN)));
        match looked {
            Ok(Ok(())) => {
                self.full = None;
                self.plan(Event::Room);
            }
            Ok(Err(short)) => {
                self.full = Some(Instant::now());
                self.running.set_stage(Stage::WaitingForSpace { needed: short.needed, free: short.free });
            }
            Err(source) => {
                let path = self.partial.path.clone();
                return Err(self.here(Error::Io { what: "measure the room of", path, source }));
            }
        }
        Ok(())
    }

    // ---- telling

    fn tell(&mut self) {
        let smooth = |rate: f64, bytes: u64| {
            let now = bytes as f64 / TICK.as_secs_f64();
            rate + (now - rate) * RATE_WEIGHT
        };
        let bytes = self.bytes();
        self.rate = smooth(self.rate, bytes.saturating_sub(self.bytes_before));
        self.bytes_before = bytes;
        for sent in self.sources.values_mut() {
            sent.rate = smooth(sent.rate, sent.bytes - sent.before);
            sent.before = sent.bytes;
        }
        let info = |(node, sent): (&NodeId, &Sent)| SourceInfo { node: *node, bytes: sent.bytes, rate: sent.rate };
        let sources = self.sources.iter().map(info).collect();
        let (rate, is_waiting) = (self.rate, self.full.is_some());
        let stage = match (self.plan.is_complete(), self.plan.has_sources()) {
            (true, _) => Stage::Checking,
            (false, true) => Stage::Fetching,
            (false, false) => Stage::WaitingForSources,
        };
        self.running.progress.send_modify(|progress| {
            (progress.bytes, progress.rate, progress.sources) = (bytes, rate, sources);
            if !is_waiting {
                progress.stage = stage;
            }
        });
    }

    fn bytes(&self) -> u64 {
        (u64::from(self.partial.here().count()) * CHUNK_BYTES as u64).min(self.want.size)
    }

    fn here(&self, cause: Error) -> FetchError {
        FetchError::Here { hash: self.want.hash, cause: Arc::new(cause) }
    }
}

impl Sha {
    /// Hashes what stands in order behind it. Blocks.
    fn go_on(mut self, partial: &Partial) -> io::Result<Self> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let end = partial.first_missing(self.next).min(self.next + HASH_CHUNKS);
        while self.next < end {
            let buffer = &mut buffer[..chunks::length(partial.size, self.next)];
            partial.read(self.next, buffer)?;
            self.state.update(buffer);
            self.next += 1;
        }
        Ok(self)
    }
}

/// The work that is away, if some is; then it is so no more. May be dropped.
async fn away<T>(work: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    let Some(handle) = work else { return std::future::pending().await };
    let done = handle.await;
    *work = None;
    done
}
