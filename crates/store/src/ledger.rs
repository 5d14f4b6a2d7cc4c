//! The one owner of the log's state: opens it, judges what it finds, and makes changes durable in the order that lets
//! every power cut be judged. Synchronous; a thread or a simulation drives it.
//!
//! The order is what carries the promises. Appending: entries and mark durable, at the same time and in either order,
//! then the acknowledgement. Truncating and purging: the mark changed first, then entries removed. A mark names the end it
//! was raised to and the end that was durable before, so after any power cut the log reaches the one, or ends at the other
//! and nobody was told of more; where it does neither, something else has happened to the disk. Entries beyond the mark
//! were durable too, unless they are a torn batch at the very end, which the home of the entries tells apart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Error, Record,
    kv::{Change, Key, KvLog},
    mark::{Found, Mark, Marks},
    record::{Base, Entry, Hash, Vote},
};

#[cfg(test)]
mod tests;

/// Bytes of records checked in one go at opening.
const SCAN_BYTES: usize = 1 << 20;

pub(crate) struct Ledger {
    kv: Arc<dyn KvLog>,
    marks: Box<dyn Marks>,
    /// What is durable between two operations, and what the mark file says of it.
    mark: Mark,
    /// Nothing waits for a quiet moment.
    settled: bool,
    path: PathBuf,
}

/// What an opened log holds.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) base: Base,
    pub(crate) first: Option<u64>,
    /// The newest records, in order, up to the bytes asked for; at least the last one.
    pub(crate) tail: Vec<Record>,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<Vec<u8>>,
}

/// One batch to be written.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<Vec<u8>>,
}

impl Ledger {
    /// Judges what is there: an end that is whole is kept even if it was never acknowledged; anything that does not join
    /// up from base to end, or ends where the mark knows of more, is damage, and nothing is touched.
    pub(crate) fn open(
        kv: Arc<dyn KvLog>,
        marks: Box<dyn Marks>,
        path: &Path,
        tail_bytes: usize,
    ) -> Result<(Ledger, Opened), Error> {
        let damaged = |what: String| Error::damaged(path, what);
        let vote: Option<Vote> = load(&*kv, Key::Vote, path)?;
        let base: Option<Base> = load(&*kv, Key::Base, path)?;
        let committed: Option<Vec<u8>> = match kv.get(Key::Committed)? {
            Some(sealed) => Some(unseal(Key::Committed, &sealed, path)?.to_vec()),
            None => None,
        };
        // A power cut before the first mark may leave a base that says nothing.
        let purged = base.as_ref().is_some_and(|base| base.purged.is_some());
        let in_use = purged || vote.is_some() || committed.is_some() || kv.last_index()?.is_some();
        let mark = match marks.read()? {
            Found::Mark(mark) => *mark,
            Found::Blank if !in_use => Mark::default(),
            Found::Blank => return Err(damaged("the mark file is blank, the log is not".into())),
            Found::Missing => return Err(damaged("the mark file is missing".into())),
            Found::Unreadable => return Err(damaged("no slot of the mark file can be read".into())),
        };

        // A purge is in the mark before it is in the log; a vote is in one of them first, whichever. The further base and
        // the newer vote are each the one that may have been acknowledged.
        let base = match base {
            Some(base) if base.purged == mark.base.purged && base.hash != mark.base.hash => {
                return Err(damaged("log and mark disagree on what was purged".into()));
            }
            Some(base) if base.purged > mark.base.purged => base,
            _ => mark.base.clone(),
        };
        let vote = match (vote, mark.vote.clone()) {
            (Some(logged), Some(marked)) => Some(if logged.seq > marked.seq { logged } else { marked }),
            (logged, marked) => logged.or(marked),
        };

        let mut walk = Walk::behind(&base, tail_bytes);
        walk.run(&*kv, mark.last.map(|(index, _)| index).unwrap_or_default())?;
        let kept = walk.last.map(|(last, _)| last).or(base.purged);
        let good = kept.map_or("none at all".to_owned(), |kept| format!("only those up to `{kept}`"));
        if let Some((index, hash)) = mark.last.filter(|(index, _)| Some(*index) > base.purged) {
            match walk.at_mark {
                Some(found) if found == hash => {}
                Some(_) => return Err(damaged(format!("record `{index}` is not the one that was written"))),
                // The power went while the newest batch was written, and its mark was the quicker.
                None if walk.last == mark.before => {
                    let path = path.display();
                    tracing::warn!(%path, "the power went while records up to `{index}` were written, {good} are there");
                }
                None => {
                    return Err(damaged(format!("records up to `{index}` were written, {good} are there in order")));
                }
            }
        }
        if let Some(found) = kv.last_index()?.filter(|found| Some(*found) > kept) {
            return Err(damaged(format!("records up to `{found}` were written, {good} are there in order")));
        }

        let mut changes = Vec::new();
        if let Some(purged) = base.purged {
            changes.push(Change::DropTo(purged));
        }
        changes.push(put(Key::Base, &base)?);
        if let Some(vote) = &vote {
            changes.push(put(Key::Vote, vote)?);
        }
        // What was found beyond the mark is about to be shown as being there, so it has to be there to stay.
        kv.commit(changes)?;
        let opened = Opened {
            first: walk.first,
            tail: walk.tail.into(),
            vote: vote.as_ref().map(|vote| vote.bytes.clone()),
            committed,
            base: base.clone(),
        };
        let mark = Mark { seq: mark.seq, last: walk.last, before: walk.last, base, vote };
        let mut ledger = Ledger { kv, marks, mark, settled: true, path: path.into() };
        ledger.raise()?;
        Ok((ledger, opened))
    }

    /// Everything in the batch is durable on return, and the mark with it, but for what is committed. What a power cut
    /// before that leaves is a part of it, of each record all or nothing.
    pub(crate) fn write(&mut self, batch: Batch) -> Result<(), Error> {
        let mut changes = Vec::new();
        let mut tip = self.tip();
        let mut entries = Vec::with_capacity(batch.records.len());
        for record in batch.records {
            let entry = Entry::chained(tip, record);
            tip = entry.hash;
            entries.push(entry);
        }
        let last = entries.last().map(|entry| (entry.record.index, entry.hash));
        if last.is_some() {
            changes.push(Change::Append(entries));
        }
        if let Some(bytes) = batch.vote {
            let seq = self.mark.vote.as_ref().map_or(0, |vote| vote.seq) + 1;
            let vote = Vote { seq, bytes };
            changes.push(put(Key::Vote, &vote)?);
            self.mark.vote = Some(vote);
        }
        if let Some(committed) = batch.committed {
            changes.push(Change::Put(Key::Committed, seal(Key::Committed, &committed)));
        }
        self.mark.before = self.mark.last;
        self.mark.last = last.or(self.mark.last);
        self.settled = false;
        self.raise_beside(|kv| kv.commit(changes))
    }

    /// Makes durable what could wait for a quiet moment: what is committed, and that the newest batch no longer is one that
    /// a power cut may have kept from the disk.
    pub(crate) fn settle(&mut self, committed: Option<Vec<u8>>) -> Result<(), Error> {
        if let Some(committed) = committed {
            self.kv.commit(vec![Change::Put(Key::Committed, seal(Key::Committed, &committed))])?;
            self.settled = false;
        }
        if !self.settled {
            self.mark.before = self.mark.last;
            self.raise_beside(|kv| kv.settle())?;
            self.settled = true;
        }
        Ok(())
    }

    /// Makes `last` the last record; it is there, unless everything goes. A power cut in between leaves the removed records
    /// or some of them: they had been acknowledged once, they still form a chain, and the truncation had not been.
    pub(crate) fn truncate_to(&mut self, last: Option<u64>) -> Result<(), Error> {
        self.mark.last = match last {
            Some(last) => match self.kv.scan(last..=last, 1)?.pop() {
                Some(entry) if entry.is_intact() => Some((last, entry.hash)),
                _ => return Err(Error::damaged(&self.path, format!("record `{last}` cannot be read"))),
            },
            None => None,
        };
        self.raise()?;
        self.kv.commit(vec![Change::CutAfter(last.or(self.mark.base.purged))])
    }

    /// Removes up to and including `index`, which may lie beyond the last record. Finished at opening if a power cut
    /// comes in between.
    pub(crate) fn purge_to(&mut self, index: u64, meta: Vec<u8>) -> Result<(), Error> {
        let last = self.mark.last;
        let hash = match last {
            Some((last, _)) if index < last => {
                let next = self.kv.scan(index + 1..=last, 1)?.pop();
                next.ok_or_else(|| Error::damaged(&self.path, format!("nothing can be read behind `{index}`")))?.prev
            }
            _ => self.tip(),
        };
        self.mark.base = Base { purged: Some(index), meta, hash };
        self.mark.last = last.filter(|(last, _)| *last > index);
        self.raise()?;
        let base = put(Key::Base, &self.mark.base)?;
        self.kv.commit(vec![base, Change::DropTo(index)])
    }

    /// Writes a mark up to which all is durable.
    fn raise(&mut self) -> Result<(), Error> {
        self.mark.before = self.mark.last;
        self.raise_beside(|_| Ok(()))
    }

    /// Writes the mark while the step is done. Both are durable on return; after an error neither can be counted on.
    fn raise_beside(&mut self, step: impl FnOnce(&dyn KvLog) -> Result<(), Error>) -> Result<(), Error> {
        self.mark.seq += 1;
        self.marks.begin(self.mark.clone())?;
        let stepped = step(&*self.kv);
        let raised = self.marks.finish();
        stepped.and(raised)
    }

    fn tip(&self) -> Hash {
        self.mark.last.map_or(self.mark.base.hash, |(_, hash)| hash)
    }
}

/// Follows the chain from the base as far as it holds.
struct Walk {
    tip: Hash,
    first: Option<u64>,
    last: Option<(u64, Hash)>,
    at_mark: Option<Hash>,
    next: Option<u64>,
    tail: std::collections::VecDeque<Record>,
    tail_bytes: usize,
    tail_bytes_max: usize,
}

impl Walk {
    fn behind(base: &Base, tail_bytes_max: usize) -> Walk {
        Walk {
            tip: base.hash,
            first: None,
            last: None,
            at_mark: None,
            next: base.purged.map_or(Some(0), |purged| purged.checked_add(1)),
            tail: Default::default(),
            tail_bytes: 0,
            tail_bytes_max,
        }
    }

    fn run(&mut self, kv: &dyn KvLog, mark: u64) -> Result<(), Error> {
        while let Some(next) = self.next {
            let entries = kv.scan(next..=u64::MAX, SCAN_BYTES)?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                let index = entry.record.index;
                if !entry.follows(&self.tip) || self.last.is_some_and(|(last, _)| index != last + 1) {
                    return Ok(());
                }
                self.step(index, entry, mark);
            }
        }
        Ok(())
    }

    fn step(&mut self, index: u64, entry: Entry, mark: u64) {
        self.tip = entry.hash;
        self.first.get_or_insert(index);
        self.last = Some((index, entry.hash));
        self.next = index.checked_add(1);
        if index == mark {
            self.at_mark = Some(entry.hash);
        }
        self.tail_bytes += entry.record.bytes.len();
        self.tail.push_back(entry.record);
        while self.tail_bytes > self.tail_bytes_max && self.tail.len() > 1 {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |record| record.bytes.len());
        }
    }
}

fn put<T: codec::Record>(key: Key, value: &T) -> Result<Change, Error> {
    let bytes = codec::encode(value).map_err(|_| Error::TooLong { what: "value", len: T::LIMIT, limit: T::LIMIT })?;
    Ok(Change::Put(key, seal(key, &bytes)))
}

fn load<T: codec::Record>(kv: &dyn KvLog, key: Key, path: &Path) -> Result<Option<T>, Error> {
    let Some(sealed) = kv.get(key)? else { return Ok(None) };
    let bytes = unseal(key, &sealed, path)?;
    codec::decode(bytes).map(Some).map_err(|cause| Error::damaged(path, format!("{key:?}: {cause}")))
}

/// A small value under a checksum that also covers which one it is.
fn seal(key: Key, bytes: &[u8]) -> Vec<u8> {
    [&checksum(key, bytes)[..], bytes].concat()
}

fn unseal<'a>(key: Key, sealed: &'a [u8], path: &Path) -> Result<&'a [u8], Error> {
    match sealed.split_first_chunk::<32>() {
        Some((sum, bytes)) if *sum == checksum(key, bytes) => Ok(bytes),
        _ => Err(Error::damaged(path, format!("the value of {key:?} does not match its checksum"))),
    }
}

fn checksum(key: Key, bytes: &[u8]) -> Hash {
    *blake3::Hasher::new().update(&[key as u8]).update(bytes).finalize().as_bytes()
}
