//! The log as others use it: a cheap handle that shows what was appended at once and tells when it is durable.

mod queue;
mod view;
mod writer;

use std::{
    collections::Bound,
    fmt,
    ops::{RangeBounds, RangeInclusive},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{Semaphore, oneshot, watch};

pub(crate) use self::view::Span;
use self::{
    view::View,
    writer::{Op, Writer},
};
use crate::{
    Error, META_BYTES_MAX, MemoryDisk, RECORD_BYTES_MAX, Record, Space,
    disk::{Disk, Os},
    folder::Folder,
    kv::{KvLog, memory::Mounted},
    ledger::{Ledger, Opened},
    record::Entry,
    space::{Purpose, Reserve},
};

/// Bytes that may wait for the disk. At the limit `append` and the others wait.
const QUEUE_BYTES: usize = 16 << 20;

/// What an operation counts for besides its bytes, so that empty ones are bounded too.
const OP_BYTES: usize = 128;

/// Bytes of records read from disk between two looks at whether the log has changed meanwhile.
const READ_BYTES: usize = 1 << 20;

pub(crate) const SNAPSHOTS: &str = "snapshots";

#[derive(Debug, Clone)]
pub struct Config {
    /// A folder of the store's own. Made if it is not there.
    pub dir: PathBuf,
    /// Bytes held back on the disk so that the log can end in good order when the disk is full. Default: 64 MiB.
    pub reserve: u64,
    /// Bytes of the newest records kept in memory. Default: 8 MiB.
    pub cache: usize,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config { dir: dir.into(), reserve: 64 << 20, cache: Config::CACHE }
    }

    /// Where snapshot files are kept that an export should take along.
    pub fn snapshots(&self) -> PathBuf {
        self.dir.join(SNAPSHOTS)
    }

    const CACHE: usize = 8 << 20;
}

/// The small values beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Durable when `put` returns, in order with the log, and kept twice.
    Vote,
    /// Written when the log falls quiet, at the latest every second or so; after a power cut or a kill an older value may
    /// come back.
    Committed,
}

/// What the log spans. All of it can be read; the newest part may not be durable yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The note given with the last purge.
    pub last_purged: Option<Vec<u8>>,
    pub first: Option<u64>,
    pub last: Option<Record>,
}

/// A handle on the log. Dropping every handle ends the writer too, after it has written what is queued.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    backend: Backend,
}

/// The log's one thread.
#[derive(Debug)]
pub struct Worker(JoinHandle<()>);

#[derive(Clone)]
enum Backend {
    Thread(Arc<queue::Sender<Op>>),
    Inline(Arc<Mutex<Writer>>),
}

/// What handles and writer both see.
struct Shared {
    /// Taken out at closing, so that the files are let go whoever still holds a handle.
    kv: RwLock<Option<Arc<dyn KvLog>>>,
    view: Mutex<View>,
    room: Arc<Semaphore>,
    failure: watch::Sender<Option<Error>>,
    reserve: Option<Reserve>,
    /// A disk in memory has no reserve, but may be told to be full.
    full: Arc<AtomicBool>,
    path: PathBuf,
}

impl Log {
    /// Opens the log in its folder, checking all of it. Blocks for as long as that takes: milliseconds per megabyte.
    pub fn open(config: Config) -> Result<(Log, Worker), Error> {
        Log::open_on(config, Arc::new(Os))
    }

    pub(crate) fn open_on(config: Config, disk: Arc<dyn Disk>) -> Result<(Log, Worker), Error> {
        let folder = Folder::prepare(&config.dir)?;
        let reserve = Reserve::open(&config.dir, config.reserve, disk.clone())?;
        let (kv, marks) = folder.open(&disk)?;
        let kv: Arc<dyn KvLog> = Arc::new(kv);
        let (ledger, opened) = Ledger::open(kv.clone(), Box::new(marks), &config.dir, config.cache)?;
        while reserve.take_some()? {}
        let shared = Shared::new(kv, opened, config.cache, Some(reserve), Arc::default(), config.dir.clone());
        let writer = Writer::new(ledger, shared.clone());
        let (ops, queue) = queue::queue();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(queue))
            .map_err(|cause| Error::io("start the writer of", &config.dir, cause))?;
        Ok((Log { shared, backend: Backend::Thread(Arc::new(ops)) }, Worker(thread)))
    }

    /// A log on a disk in memory, where everything is durable at once. It has no thread: each operation is done when
    /// the call returns, acknowledgements included.
    pub fn on(disk: &MemoryDisk) -> Result<Log, Error> {
        Log::on_cached(disk, Config::CACHE)
    }

    pub(crate) fn on_cached(disk: &MemoryDisk, cache: usize) -> Result<Log, Error> {
        let mounted = disk.mount();
        let kv: Arc<dyn KvLog> = Arc::new(mounted.clone());
        let (ledger, opened) = Ledger::open(kv.clone(), Box::new(mounted), Mounted::path(), cache)?;
        let shared = Shared::new(kv, opened, cache, None, disk.full(), Mounted::path().into());
        let writer = Writer::new(ledger, shared.clone());
        Ok(Log { shared, backend: Backend::Inline(Arc::new(Mutex::new(writer))) })
    }

    pub fn memory() -> Log {
        Log::on(&MemoryDisk::new()).expect("a new disk in memory is not damaged")
    }

    pub fn bounds(&self) -> Bounds {
        self.shared.view().bounds()
    }

    /// The value last put. A vote shows here from the moment its `put` began.
    pub fn get(&self, meta: Meta) -> Option<Vec<u8>> {
        self.shared.view().values[meta as usize].clone()
    }

    /// Appends records that follow the last one without a gap. They can be read when this returns; `done` is called when
    /// they are durable, in the order of the appends, on the writer's thread: it must not block. Waits while the queue
    /// is full. On an error nothing was taken and `done` is dropped.
    ///
    /// May be cancelled: then either nothing was taken or everything will be done.
    pub async fn append(
        &self,
        records: Vec<Record>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let mut bytes = 0;
        for record in &records {
            limit("record", record.bytes.len(), RECORD_BYTES_MAX)?;
            bytes += record.bytes.len() + OP_BYTES;
        }
        self.submit(Purpose::Records, bytes, |view, room| {
            let seq = view.append(&records)?;
            Ok(Some(Op::Append { records, seq, done: Box::new(done), room }))
        })
        .await
    }

    /// Keeps a small value; see [`Meta`] for when it is durable. May be cancelled, which does not take it back.
    pub async fn put(&self, meta: Meta, value: Vec<u8>) -> Result<(), Error> {
        limit("value", value.len(), META_BYTES_MAX)?;
        let (done, durable) = acknowledgement();
        let bytes = value.len();
        self.submit(Purpose::Vote, bytes, |view, room| {
            view.values[meta as usize] = Some(value.clone());
            Ok(Some(match meta {
                Meta::Vote => Op::Vote { value, done, room },
                Meta::Committed => {
                    done(Ok(()));
                    Op::Committed { value, room }
                }
            }))
        })
        .await?;
        self.acknowledged(durable).await
    }

    /// Removes the records behind `after`, all of them for `None`. May be cancelled, which does not take it back.
    pub async fn truncate_after(&self, after: Option<u64>) -> Result<(), Error> {
        let (done, durable) = acknowledgement();
        self.submit(Purpose::Removal, 0, |view, room| {
            let kept = match view.kept_by_truncation(after) {
                view::Kept::Everything => {
                    done(Ok(()));
                    return Ok(None);
                }
                view::Kept::Nothing => None,
                view::Kept::UpTo(record) => Some(record),
                // It has left the cache, so it is on disk.
                view::Kept::UpToIndex(index) => {
                    let loaded = self.shared.load(index..=index, 1).inspect_err(|cause| self.shared.fail(cause))?;
                    loaded.into_iter().next()
                }
            };
            let last = kept.as_ref().map(|record| record.index);
            view.truncate(kept);
            Ok(Some(Op::Truncate { last, done, room }))
        })
        .await?;
        self.acknowledged(durable).await
    }

    /// Removes the records up to and including `index`, which may lie beyond the last one, and keeps `meta` as a note of
    /// it. Does nothing if more was purged before. May be cancelled, which does not take it back.
    pub async fn purge_to(&self, index: u64, meta: Vec<u8>) -> Result<(), Error> {
        limit("value", meta.len(), META_BYTES_MAX)?;
        let (done, durable) = acknowledgement();
        self.submit(Purpose::Removal, meta.len(), |view, room| {
            if !view.purge(index, &meta) {
                done(Ok(()));
                return Ok(None);
            }
            Ok(Some(Op::Purge { index, meta, done, room }))
        })
        .await?;
        self.acknowledged(durable).await
    }

    /// The records of the range that the log has. Reads from memory what is new, else from disk, checking each record;
    /// may block for the disk. What it finds damaged stops the store.
    pub fn read(&self, range: impl RangeBounds<u64>) -> Result<Vec<Record>, Error> {
        self.read_within(range, usize::MAX)
    }

    /// Like `read`, but stops behind the record that brings the bytes read to `bytes_max`.
    pub fn read_within(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Record>, Error> {
        let Some(wanted) = inclusive(&range) else { return Ok(Vec::new()) };
        let (mut next, end) = wanted.into_inner();
        let mut records = Vec::new();
        let mut bytes = 0;
        while next <= end && bytes < bytes_max {
            let (epoch, part) = {
                let view = self.shared.view();
                (view.epoch, view.part(next..=end, bytes_max - bytes))
            };
            let found = match part {
                view::Part::None => break,
                view::Part::Cached(found) => found,
                view::Part::OnDisk(part) => match self.shared.load(part, READ_BYTES.min(bytes_max - bytes)) {
                    Ok(found) => found,
                    // Truncated or purged under our eyes: look again at what there is.
                    Err(Error::Damaged { .. }) if self.shared.view().epoch != epoch => continue,
                    Err(cause) => {
                        self.shared.fail(&cause);
                        return Err(cause);
                    }
                },
            };
            bytes += found.iter().map(|record| record.bytes.len().max(1)).sum::<usize>();
            records.extend(found);
            next = match records.last().and_then(|record: &Record| record.index.checked_add(1)) {
                Some(next) => next,
                None => break,
            };
        }
        Ok(records)
    }

    /// What `read_within` would give, if that is in memory.
    pub fn read_cached(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Option<Vec<Record>> {
        let Some(wanted) = inclusive(&range) else { return Some(Vec::new()) };
        match self.shared.view().part(wanted, bytes_max) {
            view::Part::None => Some(Vec::new()),
            view::Part::Cached(found) => Some(found),
            view::Part::OnDisk(_) => None,
        }
    }

    /// How the disk stands. Also the occasion on which the reserve is taken back once there is room for it: ask every
    /// few seconds.
    pub fn space(&self) -> Result<Space, Error> {
        let Some(reserve) = &self.shared.reserve else {
            return Ok(if self.has_room() { Space::UNLIMITED } else { Space { free: 0, low: true } });
        };
        let space = reserve.space()?;
        if let Backend::Thread(ops) = &self.backend
            && reserve.could_take(space)
            && let Ok(room) = self.shared.room.clone().try_acquire_many_owned(OP_BYTES as u32)
        {
            // A writer that is gone has no use for a reserve, one with a full queue no time for it.
            let _ = ops.send(Op::TakeReserve { room });
        }
        Ok(space)
    }

    /// Whether new work should be taken: not while the reserve is in use. Cheap where there is plenty of room. Like
    /// `space`, asking is what gets the reserve taken back.
    pub fn has_room(&self) -> bool {
        match &self.shared.reserve {
            Some(reserve) => reserve.saw_plenty() || self.space().is_ok_and(|space| !space.low),
            None => !self.shared.full.load(Ordering::Relaxed),
        }
    }

    /// Whether a file of so many bytes may be written beside the log.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.has_room() && self.space().is_ok_and(|space| space.free > bytes)
    }

    /// Returns when the store has stopped: a write or sync failed, damage was found, or it was closed. Nothing is
    /// acknowledged after it, and the only way on is to open the folder anew. May be cancelled.
    pub async fn failed(&self) -> Error {
        let mut failure = self.shared.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        failed.expect("the sender lives in what this handle holds, and the condition asks for a failure")
    }

    /// What `failed` would return, if it would return now.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failure.borrow().clone()
    }

    /// Writes what is queued and lets the files go. Other handles get `Closed` from then on.
    pub async fn close(self) -> Result<(), Error> {
        let (done, closed) = acknowledgement();
        self.submit(Purpose::Removal, 0, |_, _| Ok(Some(Op::Close { done }))).await?;
        self.acknowledged(closed).await
    }

    pub(crate) fn span(&self) -> Span {
        self.shared.view().span()
    }

    /// `None` for a log in memory.
    pub(crate) fn folder(&self) -> Option<&Path> {
        matches!(self.backend, Backend::Thread(_)).then_some(&*self.shared.path)
    }

    /// Queues an operation, its effect on the view made in the same moment, so that both are in one order.
    async fn submit(
        &self,
        purpose: Purpose,
        bytes: usize,
        prepare: impl FnOnce(&mut View, writer::Room) -> Result<Option<Op>, Error>,
    ) -> Result<(), Error> {
        let permits = u32::try_from((bytes + OP_BYTES).min(QUEUE_BYTES)).expect("the queue's bound fits");
        let room = self.shared.room.clone().acquire_many_owned(permits).await.map_err(|_| self.shared.stopped())?;
        if let Some(reserve) = &self.shared.reserve {
            let queued = QUEUE_BYTES.saturating_sub(self.shared.room.available_permits());
            reserve.admit(purpose, queued as u64)?;
        } else if purpose == Purpose::Records && !self.has_room() {
            return Err(Error::NoSpace { path: self.shared.path.clone() });
        }
        match &self.backend {
            Backend::Thread(ops) => {
                let mut view = self.shared.view();
                self.shared.check()?;
                match prepare(&mut view, room)? {
                    Some(op) => ops.send(op).map_err(|_| self.shared.stopped()),
                    None => Ok(()),
                }
            }
            Backend::Inline(writer) => {
                let replies = {
                    let mut writer = writer.lock().expect("no holder panics");
                    self.shared.check()?;
                    let op = prepare(&mut self.shared.view(), room)?;
                    writer.apply(op.into_iter().collect())
                };
                replies.into_iter().for_each(|(done, result)| done(result));
                Ok(())
            }
        }
    }

    async fn acknowledged(&self, durable: oneshot::Receiver<Result<(), Error>>) -> Result<(), Error> {
        durable.await.unwrap_or_else(|_| Err(self.shared.stopped()))
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Worker {
    /// Waits for the thread to end, as it does after `close`, or when no handle is left.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Shared {
    fn new(
        kv: Arc<dyn KvLog>,
        opened: Opened,
        cache: usize,
        reserve: Option<Reserve>,
        full: Arc<AtomicBool>,
        path: PathBuf,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            kv: RwLock::new(Some(kv)),
            view: Mutex::new(View::new(opened, cache)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            failure: watch::Sender::new(None),
            reserve,
            full,
            path,
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no holder panics")
    }

    /// Reads from disk, and checks that what is found is intact, joined, and begins where it should.
    fn load(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Result<Vec<Record>, Error> {
        let kv = self.kv.read().expect("no holder panics").clone().ok_or(Error::Closed)?;
        let first = *range.start();
        let entries = kv.scan(range, bytes_max)?;
        let mut tip = entries.first().map(|entry| entry.prev);
        let intact = |(entry, index): (&Entry, u64)| {
            let follows = tip.is_some_and(|tip| entry.follows(&tip)) && entry.record.index == index;
            tip = Some(entry.hash);
            follows
        };
        if entries.is_empty() || !entries.iter().zip(first..).all(intact) {
            return Err(Error::damaged(&self.path, format!("record `{first}` or one behind it cannot be read")));
        }
        Ok(entries.into_iter().map(|entry| entry.record).collect())
    }

    /// The first failure stays.
    fn fail(&self, cause: &Error) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| cause.clone());
            first
        });
        if first && !matches!(cause, Error::Closed) {
            tracing::error!(path = %self.path.display(), error = %cause, "the store has stopped");
        }
        self.room.close();
    }

    fn check(&self) -> Result<(), Error> {
        if self.failure.borrow().is_some() { Err(self.stopped()) } else { Ok(()) }
    }

    /// What an operation gets that comes too late.
    fn stopped(&self) -> Error {
        self.failure.borrow().clone().map_or(Error::Closed, Error::after)
    }
}

fn acknowledgement() -> (writer::Done, oneshot::Receiver<Result<(), Error>>) {
    let (sender, receiver) = oneshot::channel();
    // A caller that no longer waits does not want to know.
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

fn limit(what: &'static str, len: usize, limit: usize) -> Result<(), Error> {
    if len > limit { Err(Error::TooLong { what, len, limit }) } else { Ok(()) }
}

fn inclusive(range: &impl RangeBounds<u64>) -> Option<RangeInclusive<u64>> {
    let first = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let last = match range.end_bound() {
        Bound::Included(last) => *last,
        Bound::Excluded(end) => end.checked_sub(1)?,
        Bound::Unbounded => u64::MAX,
    };
    Some(first..=last)
}
