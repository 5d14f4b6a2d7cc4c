//! The log as readers see it: everything that was taken, durable or not. Pure; the writer tells it what became durable.

use std::{collections::VecDeque, ops::RangeInclusive};

use super::Bounds;
use crate::{Error, Record, ledger::Opened};

pub(super) struct View {
    purged: Option<u64>,
    purged_meta: Vec<u8>,
    first: Option<u64>,
    last: Option<Record>,
    /// The newest records, without a gap up to `last`. Those before it are on disk.
    tail: VecDeque<Cached>,
    tail_bytes: usize,
    /// What the tail may keep of durable records. What is not durable is bounded by the queue.
    tail_bytes_max: usize,
    /// Number of the newest append.
    seq: u64,
    /// Number of the newest append that is on disk.
    durable: u64,
    /// Changes when records go away: a reader that missed one tells by it that it was not damage.
    pub(super) epoch: u64,
    /// Indexed by `Meta`.
    pub(super) values: [Option<Vec<u8>>; 2],
}

/// What an export has to cover.
pub(crate) struct Span {
    /// Index and note of the last purge.
    pub(crate) purged: Option<(u64, Vec<u8>)>,
    /// First and last index.
    pub(crate) records: Option<(u64, u64)>,
}

struct Cached {
    record: Record,
    seq: u64,
}

/// What a truncation leaves as the last record.
pub(super) enum Kept {
    Everything,
    UpTo(Record),
    UpToIndex(u64),
    Nothing,
}

/// Where the beginning of a range lies.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    None,
    Cached(Vec<Record>),
    OnDisk(RangeInclusive<u64>),
}

impl View {
    pub(super) fn new(opened: Opened, tail_bytes_max: usize) -> View {
        let tail: VecDeque<_> = opened.tail.into_iter().map(|record| Cached { record, seq: 0 }).collect();
        View {
            purged: opened.base.purged,
            purged_meta: opened.base.meta,
            first: opened.first,
            last: tail.back().map(|cached| cached.record.clone()),
            tail_bytes: tail.iter().map(|cached| cached.record.bytes.len()).sum(),
            tail,
            tail_bytes_max,
            seq: 0,
            durable: 0,
            epoch: 0,
            values: [opened.vote, opened.committed],
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let last_purged = self.purged.map(|_| self.purged_meta.clone());
        Bounds { last_purged, first: self.first, last: self.last.clone() }
    }

    pub(super) fn span(&self) -> Span {
        let purged = self.purged.map(|purged| (purged, self.purged_meta.clone()));
        Span { purged, records: self.first.zip(self.last.as_ref().map(|last| last.index)) }
    }

    /// Takes records that follow without a gap, and returns the append's number. An empty log that was never purged may
    /// begin anywhere.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<u64, Error> {
        let mut last = self.last.as_ref().map(|record| record.index).or(self.purged);
        for record in records {
            if last.is_some_and(|last| last.checked_add(1) != Some(record.index)) {
                return Err(Error::NotNext { index: record.index, last });
            }
            last = Some(record.index);
        }
        self.seq += 1;
        for record in records {
            self.first.get_or_insert(record.index);
            self.tail_bytes += record.bytes.len();
            self.tail.push_back(Cached { record: record.clone(), seq: self.seq });
        }
        self.last = records.last().or(self.last.as_ref()).cloned();
        Ok(self.seq)
    }

    /// The appends up to this number are on disk, so that the cache may let go of them.
    pub(super) fn became_durable(&mut self, seq: u64) {
        self.durable = self.durable.max(seq);
        while self.tail_bytes > self.tail_bytes_max
            && let Some(cached) = self.tail.pop_front_if(|cached| cached.seq <= self.durable)
        {
            self.tail_bytes -= cached.record.bytes.len();
        }
    }

    pub(super) fn kept_by_truncation(&self, after: Option<u64>) -> Kept {
        let Some((first, last)) = self.first.zip(self.last.as_ref()) else { return Kept::Everything };
        match after {
            Some(after) if after >= last.index => Kept::Everything,
            Some(after) if after >= first => match self.cached(after) {
                Some(record) => Kept::UpTo(record.clone()),
                None => Kept::UpToIndex(after),
            },
            _ => Kept::Nothing,
        }
    }

    pub(super) fn truncate(&mut self, kept: Option<Record>) {
        self.epoch += 1;
        let kept_index = kept.as_ref().map(|record| record.index);
        while let Some(cached) = self.tail.pop_back_if(|cached| Some(cached.record.index) > kept_index) {
            self.tail_bytes -= cached.record.bytes.len();
        }
        self.first = self.first.filter(|_| kept.is_some());
        self.last = kept;
    }

    /// False if as much was purged before.
    pub(super) fn purge(&mut self, index: u64, meta: &[u8]) -> bool {
        if self.purged >= Some(index) {
            return false;
        }
        self.epoch += 1;
        self.purged = Some(index);
        self.purged_meta = meta.to_vec();
        while let Some(cached) = self.tail.pop_front_if(|cached| cached.record.index <= index) {
            self.tail_bytes -= cached.record.bytes.len();
        }
        self.last = self.last.take().filter(|last| last.index > index);
        self.first = self.last.as_ref().and(self.first).map(|first| first.max(index.saturating_add(1)));
        true
    }

    /// Where the records at the beginning of the range are; at least one of them, and no more than `bytes_max` asks for.
    pub(super) fn part(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Part {
        let Some((first, last)) = self.first.zip(self.last.as_ref()) else { return Part::None };
        let (from, to) = (first.max(*range.start()), last.index.min(*range.end()));
        if from > to {
            return Part::None;
        }
        match self.tail.front().map(|cached| cached.record.index) {
            Some(cached) if cached <= from => {
                let skipped = usize::try_from(from - cached).expect("no longer than the cache");
                let mut bytes = 0;
                let wanted = self.tail.iter().skip(skipped).map(|cached| &cached.record).take_while(|record| {
                    let wanted = record.index <= to && bytes < bytes_max;
                    bytes += record.bytes.len().max(1);
                    wanted
                });
                Part::Cached(wanted.cloned().collect())
            }
            Some(cached) => Part::OnDisk(from..=to.min(cached - 1)),
            None => Part::OnDisk(from..=to),
        }
    }

    fn cached(&self, index: u64) -> Option<&Record> {
        let front = self.tail.front()?.record.index;
        self.tail.get(usize::try_from(index.checked_sub(front)?).ok()?).map(|cached| &cached.record)
    }
}
