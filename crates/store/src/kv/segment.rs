//! Entries in a log of our own: segments that only ever grow at their end, and go from the front.
//!
//! Each step, an append or a cut, is a numbered batch in the newest segment, synced before the next is written. So a
//! batch that is there, if only one sector of it, proves that every batch before it was durable and has to be there in
//! full; only the last one may be torn, and then it was not acknowledged. A cut is a step like any other: nothing that
//! was acknowledged is written over, and a power cut leaves the log with it or without it.
//!
//! What is missing altogether at the end does not show here. The mark knows of it.

mod file;
mod frame;
mod step;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use self::{
    file::{End, Found, Newest, Segment},
    step::Step,
};
use super::{Change, Key, KvLog, values::Values};
use crate::{
    Error,
    disk::{Disk, sync_dir},
    record::Entry,
};

pub(crate) struct SegmentLog {
    dir: PathBuf,
    values: Values,
    disk: Arc<dyn Disk>,
    end: Mutex<Tip>,
    contents: Mutex<Contents>,
}

/// Where writing goes on.
struct Tip {
    segment: Segment,
    /// The number of the next batch.
    batch: u64,
    state: State,
}

enum State {
    /// As it was found. The newest batch may be in the page cache only, and what follows it may have to go.
    Found(Newest, End),
    Durable,
}

/// What readers look up. Held for moments, never during a read or write.
#[derive(Default)]
struct Contents {
    /// In the order of the log. One per append that holds an entry, at least a page each, so that they take about a
    /// hundredth of the log's bytes; the log is as long as its owner lets it grow between purges.
    places: VecDeque<Place>,
    segments: BTreeSet<u64>,
}

/// Where the entries of one append lie.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: u64,
    /// Lower than what was written, once some of it was cut.
    last: u64,
    batch: u64,
    segment: u64,
    at: u64,
    bytes: usize,
}

impl SegmentLog {
    /// Opens what lies in `dir`, or makes the first segment in an empty one. What exists is only read: it is for the caller
    /// to judge, and the first commit that says it is accepted.
    pub(crate) fn open(dir: &Path, values: Values, disk: Arc<dyn Disk>) -> Result<SegmentLog, Error> {
        fs::create_dir_all(dir).map_err(|cause| Error::io("create", dir, cause))?;
        let segments = file::list(dir)?;
        let mut contents = Contents { segments: segments.iter().copied().collect(), ..Contents::default() };
        let tip = match newest_run(&segments) {
            [] => {
                let segment = Segment::create(dir, 1, 1, disk.segment_bytes(), &*disk)?;
                contents.segments.insert(segment.number);
                Tip { segment, batch: 1, state: State::Durable }
            }
            run => replay(dir, run, &mut contents)?,
        };
        Ok(SegmentLog { dir: dir.into(), values, disk, end: Mutex::new(tip), contents: Mutex::new(contents) })
    }

    /// Whether `dir` holds any segment.
    pub(crate) fn exists(dir: &Path) -> bool {
        file::list(dir).is_ok_and(|found| !found.is_empty())
    }

    fn write(&self, step: Step) -> Result<(), Error> {
        let mut tip = self.end.lock().expect("no holder panics");
        let tip = &mut *tip;
        let pages = step.encode().seal(tip.batch);
        if !tip.segment.has_room(pages.len()) {
            let room = self.disk.segment_bytes().max(pages.len() as u64);
            tip.segment = Segment::create(&self.dir, tip.segment.number + 1, tip.batch, room, &*self.disk)?;
            self.contents().segments.insert(tip.segment.number);
        }
        let at = tip.segment.write(&pages)?;
        if let Step::Append(entries) = &step {
            self.disk.wrote(&tip.segment.path, entries.last().map(|last| last.record.index));
        }
        tip.segment.sync(&*self.disk)?;
        self.contents().apply(&step, tip.segment.number, tip.batch, at, pages.len());
        tip.batch += 1;
        Ok(())
    }

    /// Makes what was found durable, and blanks a torn end: its sectors must not mix with those of the next batch, which
    /// takes its number. The newest batch is written again: if its sync failed and the process was started anew, it is in
    /// the page cache only, where it looks clean, and a sync alone would pass it over.
    /// The segment's own name may be as young.
    fn accept(&self) -> Result<(), Error> {
        let mut tip = self.end.lock().expect("no holder panics");
        let tip = &mut *tip;
        let State::Found(newest, end) = &tip.state else { return Ok(()) };
        tip.segment.write_again(newest)?;
        if *end == End::Torn {
            tracing::warn!(path = %tip.segment.path.display(), "cut a batch that was never acknowledged");
            tip.segment.wipe()?;
        }
        self.disk.wrote(&tip.segment.path, self.last_index()?);
        tip.segment.sync(&*self.disk)?;
        sync_dir(&self.dir).map_err(|cause| Error::io("sync", &self.dir, cause))?;
        tip.state = State::Durable;
        Ok(())
    }

    /// Removes the segments that hold nothing behind `purged`. Their names need not be gone after a power cut: a segment
    /// before the newest unbroken run is passed over, one in it holds nothing that counts, and both go with the next purge.
    fn drop_to(&self, purged: u64) -> Result<(), Error> {
        let newest = self.end.lock().expect("no holder panics").segment.number;
        let unused = {
            let mut contents = self.contents();
            while contents.places.pop_front_if(|place| place.last <= purged).is_some() {}
            let needed = contents.places.front().map_or(newest, |place| place.segment);
            let kept = contents.segments.split_off(&needed);
            std::mem::replace(&mut contents.segments, kept)
        };
        unused.into_iter().try_for_each(|number| file::remove(&self.dir, number))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no holder panics")
    }
}

impl KvLog for SegmentLog {
    fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.accept()?;
        let mut flush = false;
        for change in changes {
            match change {
                Change::Append(entries) if entries.is_empty() => {}
                Change::Append(entries) => self.write(Step::Append(entries))?,
                Change::CutAfter(last) => self.write(Step::CutAfter(last))?,
                Change::DropTo(purged) => self.drop_to(purged)?,
                Change::Put(key, value) => {
                    self.values.put(key, value)?;
                    flush |= key != Key::Committed;
                }
            }
        }
        if flush { self.values.flush() } else { Ok(()) }
    }

    fn settle(&self) -> Result<(), Error> {
        self.values.flush()
    }

    fn scan(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let (mut next, end) = range.into_inner();
        let mut found = Vec::new();
        let mut bytes = 0;
        while next <= end && bytes < bytes_max {
            let Some(place) = self.contents().place_from(next).filter(|place| place.first <= end) else { break };
            let body = file::read_batch(&self.dir, place.segment, place.at, place.bytes, place.batch)?;
            let Some(Step::Append(entries)) = Step::decode(&body) else {
                return Err(not_written_here(&self.dir, place.segment));
            };
            let wanted = next..=end.min(place.last);
            for entry in entries.into_iter().filter(|entry| wanted.contains(&entry.record.index)) {
                if bytes >= bytes_max {
                    return Ok(found);
                }
                bytes += entry.record.bytes.len().max(1);
                found.push(entry);
            }
            match place.last.checked_add(1) {
                Some(behind) => next = behind,
                None => break,
            }
        }
        Ok(found)
    }

    fn last_index(&self) -> Result<Option<u64>, Error> {
        Ok(self.contents().places.back().map(|place| place.last))
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        self.values.get(key)
    }
}

impl Contents {
    fn apply(&mut self, step: &Step, segment: u64, batch: u64, at: u64, bytes: usize) {
        match step {
            Step::Append(entries) => {
                if let Some((first, last)) = entries.first().zip(entries.last()) {
                    let (first, last) = (first.record.index, last.record.index);
                    self.places.push_back(Place { first, last, batch, segment, at, bytes });
                }
            }
            Step::CutAfter(None) => self.places.clear(),
            Step::CutAfter(Some(cut)) => {
                while self.places.pop_back_if(|place| place.first > *cut).is_some() {}
                if let Some(place) = self.places.back_mut() {
                    place.last = place.last.min(*cut);
                }
            }
        }
    }

    /// The place that holds `index`, or the first one behind it.
    fn place_from(&self, index: u64) -> Option<Place> {
        self.places.get(self.places.partition_point(|place| place.last < index)).copied()
    }
}

/// A purge removes segments from the front, and a power cut may bring some of them back. Whether what follows the last gap
/// is all that is needed the chain tells.
fn newest_run(numbers: &[u64]) -> &[u64] {
    let gap = numbers.windows(2).rposition(|pair| pair[0].checked_add(1) != Some(pair[1]));
    &numbers[gap.map_or(0, |gap| gap + 1)..]
}

/// Follows the log through all its segments. Every one but the newest has to end with the batch before the next one's first.
fn replay(dir: &Path, run: &[u64], contents: &mut Contents) -> Result<Tip, Error> {
    let mut before: Option<(u64, u64)> = None;
    let mut newest = None;
    for &number in run {
        let path = file::path(dir, number);
        let mut found = Found::read(dir, number)?;
        if let Some((before, batch)) = before.filter(|(_, batch)| *batch != found.batch) {
            let what = format!("it ends before batch `{batch}`, the next segment begins with `{}`", found.batch);
            return Err(Error::damaged(&file::path(dir, before), what));
        }
        loop {
            let batch = found.batch;
            let Some((body, at, bytes)) = found.next() else { break };
            let step = Step::decode(&body).ok_or_else(|| not_written_here(dir, number))?;
            if let Step::Append(entries) = &step
                && contents.places.back().is_some_and(|place| entries[0].record.index <= place.last)
            {
                return Err(Error::damaged(&path, format!("batch `{batch}` does not follow the one before it")));
            }
            contents.apply(&step, number, batch, at, bytes);
        }
        let end = found.end(&path)?;
        if end == End::Torn && Some(&number) != run.last() {
            return Err(Error::damaged(&path, "it ends with a torn batch, though another segment follows"));
        }
        before = Some((number, found.batch));
        newest = Some((number, found, end));
    }
    let (number, found, end) = newest.expect("the run is not empty");
    let (batch, state) = (found.batch, State::Found(found.newest(), end));
    Ok(Tip { segment: found.resume(dir, number)?, batch, state })
}

fn not_written_here(dir: &Path, segment: u64) -> Error {
    Error::damaged(&file::path(dir, segment), "it holds a batch that no release has written")
}
