//! The consensus log over `store`. An append is acknowledged when `store` says that it is durable, never before.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use store::{Log, Meta, Record};

use super::wire::{WireEntry, WireLogId, WireVote};
use super::{Entry, LogId, Types, Vote};
use crate::cluster::Boot;
use crate::pack;
use crate::runtime::Runtime;

/// How many bytes of entries are read for one message to a follower. What is left follows in the next one.
const READ_BYTES_MAX: usize = 1 << 20;

pub(crate) struct LogStore<R> {
    log: Log,
    runtime: PhantomData<fn() -> R>,
}

impl<R> LogStore<R> {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, runtime: PhantomData }
    }

    pub(crate) fn boot(log: &Log) -> io::Result<Boot> {
        let vote = Self::new(log.clone()).meta::<WireVote>(Meta::Vote)?.map(Vote::from);
        let leader = vote.filter(|vote| vote.committed).map(|vote| vote.leader_id);
        Ok(Boot { leader, last_index: log.bounds().last.map_or(0, |record| record.index) })
    }

    fn meta<T: codec::Record>(&self, meta: Meta) -> io::Result<Option<T>> {
        self.log.get(meta).map(|bytes| codec::decode(&bytes).map_err(io::Error::other)).transpose()
    }
}

impl<R: Runtime> RaftLogReader<Types<R>> for LogStore<R> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.meta::<WireVote>(Meta::Vote)?.map(Into::into))
    }
}

impl<R: Runtime> LogStore<R> {
    /// Entries of the range in order, stopping once they exceed so many bytes; at least one where there is one.
    async fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let records = match self.log.read_cached(start..end, bytes_max) {
            Some(records) => records,
            None => {
                let log = self.log.clone();
                R::aside(move || log.read_within(start..end, bytes_max).map_err(io::Error::other)).await?
            }
        };
        records.iter().map(|record| decode(&record.bytes)).collect()
    }
}

fn decode(bytes: &[u8]) -> io::Result<Entry> {
    let entry: WireEntry = codec::decode(bytes).map_err(io::Error::other)?;
    Entry::try_from(entry).map_err(io::Error::other)
}

impl<R: Runtime> RaftLogStorage<Types<R>> for LogStore<R> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<R>>> {
        let bounds = self.log.bounds();
        let purged: Option<LogId> = match bounds.last_purged {
            Some(bytes) => Some(codec::decode::<WireLogId>(&bytes).map_err(io::Error::other)?.into()),
            None => None,
        };
        let last = match bounds.last {
            Some(record) => Some(decode(&record.bytes)?.log_id),
            None => purged,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        Self::new(self.log.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.log.put(Meta::Vote, pack(&WireVote::from(*vote)).to_vec()).await.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        match self.log.put(Meta::Committed, pack(&WireLogId::from(committed)).to_vec()).await {
            // It is kept lazily anyway, and a full disk passes.
            Ok(()) | Err(store::Error::NoSpace { .. }) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.meta::<WireLogId>(Meta::Committed)?.map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let record = |entry: Entry| {
            let index = entry.log_id.index;
            Record { index, bytes: pack(&WireEntry::from(entry)) }
        };
        let records = entries.into_iter().map(record).collect();
        let done = move |result: Result<(), store::Error>| callback.io_completed(result.map_err(io::Error::other));
        self.log.append(records, done).await.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last.map(|id| id.index)).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge_to(upto.index, pack(&WireLogId::from(upto)).to_vec()).await.map_err(io::Error::other)
    }
}
