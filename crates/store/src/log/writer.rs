//! What makes the log durable: takes all that is queued as one batch, writes and syncs once, then acknowledges in order.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    Shared,
    queue::{Receiver, Waited},
};
use crate::{
    Error, Record,
    ledger::{Batch, Ledger},
    space::Reserve,
};

pub(super) type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The operation's share of the queue, given back when it is dropped.
pub(super) type Room = OwnedSemaphorePermit;

/// Operations that go into one batch. Their bytes are bounded by the queue.
const BATCH_OPS: usize = 4096;

/// How long nothing may be asked for until what could wait is settled.
const IDLE: Duration = Duration::from_millis(20);

/// How long what could wait does when it is never quiet.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// When nobody has come back for this long, nobody will soon.
const QUIET: Duration = Duration::from_micros(100);

pub(super) enum Op {
    Append { records: Vec<Record>, seq: u64, done: Done, room: Room },
    Vote { value: Vec<u8>, done: Done, room: Room },
    Committed { value: Vec<u8>, room: Room },
    Truncate { last: Option<u64>, done: Done, room: Room },
    Purge { index: u64, meta: Vec<u8>, done: Done, room: Room },
    TakeReserve { room: Room },
    Close { done: Done },
}

pub(super) struct Writer {
    ledger: Option<Ledger>,
    shared: Arc<Shared>,
    /// What the next batch takes along.
    committed: Option<Vec<u8>>,
    /// Since when something waits to be settled.
    unsettled: Option<Instant>,
    /// The reserve is to be taken, or the rest of it.
    reserving: bool,
}

/// The batch before: what tells how many will come soon.
#[derive(Default)]
struct Served {
    /// Operations it did, and those that came meanwhile.
    clients: usize,
    took: Duration,
}

/// Takes what is queued. Clients that were told of the last batch come back one after the other, and a batch begun with
/// the first of them makes the others wait for a sync of their own; so as many as were just served are given a moment.
/// A single client never waits here.
fn gather(queue: &Receiver<Op>, before: &Served) -> Vec<Op> {
    let wanted = before.clients.min(BATCH_OPS);
    let deadline = Instant::now() + before.took / 4;
    let mut there = queue.len();
    while there < wanted {
        let left = deadline.saturating_duration_since(Instant::now()).min(QUIET);
        let waited = queue.wait_for(wanted, Some(left));
        let now = queue.len();
        if waited != Waited::Fewer || now == there {
            break;
        }
        there = now;
    }
    queue.take(BATCH_OPS)
}

type Replies = Vec<(Done, Result<(), Error>)>;

impl Writer {
    pub(super) fn new(ledger: Ledger, shared: Arc<Shared>) -> Writer {
        Writer { ledger: Some(ledger), shared, committed: None, unsettled: None, reserving: false }
    }

    /// The thread's life: until the log is closed, or nobody holds it any more.
    pub(super) fn run(mut self, queue: Receiver<Op>) {
        let mut before = Served::default();
        while self.ledger.is_some() {
            if self.next(&queue) == Waited::Ended {
                break;
            }
            let ops = gather(&queue, &before);
            let (count, start) = (ops.len(), Instant::now());
            let served = catch_unwind(AssertUnwindSafe(|| {
                let replies = self.apply(ops);
                before = Served { clients: count + queue.len(), took: start.elapsed() };
                replies.into_iter().for_each(|(done, result)| done(result));
            }));
            if served.is_err() {
                self.shared.fail(&Error::damaged(&self.shared.path, "the writer panicked"));
            }
            if self.unsettled.is_some_and(|since| since.elapsed() >= SETTLE_AFTER) {
                drop(self.settle());
            }
        }
        // Nobody is left to hear of a failure here, and `fail` has logged it.
        let _ = self.close();
    }

    /// Waits for the next operation. What was left for a quiet moment is done if there is one; of the reserve a step is
    /// taken between two batches in any case, and no more of it.
    fn next(&mut self, queue: &Receiver<Op>) -> Waited {
        while self.reserving {
            self.reserving = self.take_reserve();
            match queue.wait_for(1, Some(Duration::ZERO)) {
                Waited::Fewer => {}
                waited => return waited,
            }
        }
        if self.unsettled.is_some() {
            match queue.wait_for(1, Some(IDLE)) {
                // A failure has stopped the store, and whoever comes next is told.
                Waited::Fewer => drop(self.settle()),
                waited => return waited,
            }
        }
        queue.wait_for(1, None)
    }

    /// Does what was left for a quiet moment.
    fn settle(&mut self) -> Result<(), Error> {
        self.unsettled = None;
        let committed = self.committed.take();
        self.attempt(|ledger| ledger.settle(committed))
    }

    /// Does the operations in order and returns what to tell whom. After a failure they all get an error.
    pub(super) fn apply(&mut self, ops: Vec<Op>) -> Replies {
        let mut replies = Replies::new();
        let mut batch = Pending::default();
        for op in ops {
            match op {
                Op::Append { records, seq, done, room } => batch.append(records, seq, done, room),
                Op::Vote { value, done, room } => batch.vote(value, done, room),
                Op::Committed { value, room } => {
                    self.committed = Some(value);
                    self.unsettled.get_or_insert_with(Instant::now);
                    drop(room);
                }
                Op::Truncate { last, done, room } => {
                    self.write(&mut batch, &mut replies);
                    let result = self.attempt(|ledger| ledger.truncate_to(last));
                    replies.push((done, result));
                    drop(room);
                }
                Op::Purge { index, meta, done, room } => {
                    self.write(&mut batch, &mut replies);
                    let result = self.attempt(|ledger| ledger.purge_to(index, meta));
                    replies.push((done, result));
                    drop(room);
                }
                Op::TakeReserve { room } => {
                    self.reserving = true;
                    drop(room);
                }
                Op::Close { done } => {
                    self.write(&mut batch, &mut replies);
                    let result = self.close();
                    replies.push((done, result));
                }
            }
        }
        self.write(&mut batch, &mut replies);
        replies
    }

    fn write(&mut self, pending: &mut Pending, replies: &mut Replies) {
        let Pending { mut batch, dones, room, seq } = mem::take(pending);
        if dones.is_empty() {
            return;
        }
        batch.committed = self.committed.take();
        self.unsettled.get_or_insert_with(Instant::now);
        let result = self.attempt(|ledger| ledger.write(batch));
        if result.is_ok() {
            self.shared.view().became_durable(seq);
        }
        drop(room);
        replies.extend(dones.into_iter().map(|done| (done, result.clone())));
    }

    /// The first failure is the last thing the ledger is asked: what a failed sync left behind nobody can tell.
    fn attempt(&mut self, step: impl FnOnce(&mut Ledger) -> Result<(), Error>) -> Result<(), Error> {
        self.shared.check()?;
        let Some(ledger) = &mut self.ledger else { return Err(self.shared.stopped()) };
        let result = step(ledger);
        if let Err(cause) = &result {
            self.shared.fail(cause);
        }
        result
    }

    /// Says whether there is more of it to take.
    fn take_reserve(&self) -> bool {
        let taken = self.shared.reserve.as_ref().map_or(Ok(false), Reserve::take_some);
        taken.unwrap_or_else(|cause| {
            tracing::warn!(error = %cause, "the reserve could not be taken");
            false
        })
    }

    fn close(&mut self) -> Result<(), Error> {
        let result = self.settle();
        self.ledger = None;
        self.shared.kv.write().expect("no holder panics").take();
        self.shared.fail(&Error::Closed);
        result
    }
}

/// What goes into the next write.
#[derive(Default)]
struct Pending {
    batch: Batch,
    dones: Vec<Done>,
    /// Of all of them together, so that it is given back at once.
    room: Option<Room>,
    seq: u64,
}

impl Pending {
    fn append(&mut self, records: Vec<Record>, seq: u64, done: Done, room: Room) {
        self.batch.records.extend(records);
        self.seq = seq;
        self.dones.push(done);
        self.take(room);
    }

    /// Of several votes in one batch the last one counts; all of them are acknowledged by it.
    fn vote(&mut self, value: Vec<u8>, done: Done, room: Room) {
        self.batch.vote = Some(value);
        self.dones.push(done);
        self.take(room);
    }

    fn take(&mut self, room: Room) {
        match &mut self.room {
            Some(taken) => taken.merge(room),
            None => self.room = Some(room),
        }
    }
}
