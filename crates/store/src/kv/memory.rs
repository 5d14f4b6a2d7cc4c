//! A disk in memory: every write is durable at once. For simulations and tests.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Change, Key, KvLog};
use crate::{
    Error,
    mark::{Found, Mark, Marks},
    record::Entry,
};

/// What stays when a simulated node stops. A log opened on it shuts out the logs opened before, as a restarted process
/// has nothing to fear from its predecessor's leftovers.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    platter: Arc<Mutex<Platter>>,
    full: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Platter {
    mounts: u64,
    entries: BTreeMap<u64, Entry>,
    values: BTreeMap<Key, Vec<u8>>,
    mark: Option<Mark>,
}

impl MemoryDisk {
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// A full disk refuses records and takes everything else.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Where the log on it ends.
    pub fn last_index(&self) -> Option<u64> {
        let platter = self.platter.lock().expect("no holder panics");
        platter.entries.last_key_value().map(|(index, _)| *index)
    }

    pub(crate) fn full(&self) -> Arc<AtomicBool> {
        self.full.clone()
    }

    /// Changes a record behind everybody's back, as a failing disk would.
    #[cfg(test)]
    pub(crate) fn damage(&self, index: u64) {
        let mut platter = self.platter.lock().expect("no holder panics");
        platter.entries.get_mut(&index).expect("the test wrote it").record.bytes = b"something else".as_slice().into();
    }

    pub(crate) fn mount(&self) -> Mounted {
        let mut platter = self.platter.lock().expect("no holder panics");
        platter.mounts += 1;
        Mounted { disk: self.clone(), mount: platter.mounts }
    }
}

/// The disk as seen by one opening of it.
#[derive(Debug, Clone)]
pub(crate) struct Mounted {
    disk: MemoryDisk,
    mount: u64,
}

impl Mounted {
    fn platter(&self) -> Result<MutexGuard<'_, Platter>, Error> {
        let platter = self.disk.platter.lock().expect("no holder panics");
        if platter.mounts == self.mount { Ok(platter) } else { Err(Error::Closed) }
    }

    /// What messages call it.
    pub(crate) fn path() -> &'static Path {
        Path::new("memory")
    }
}

impl KvLog for Mounted {
    fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        let mut platter = self.platter()?;
        for change in changes {
            match change {
                Change::Append(entries) => {
                    platter.entries.extend(entries.into_iter().map(|entry| (entry.record.index, entry)))
                }
                Change::CutAfter(None) => platter.entries.clear(),
                Change::CutAfter(Some(last)) => platter.entries.retain(|index, _| *index <= last),
                Change::DropTo(purged) => platter.entries.retain(|index, _| *index > purged),
                Change::Put(key, value) => drop(platter.values.insert(key, value)),
            }
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), Error> {
        self.platter().map(drop)
    }

    fn scan(&self, range: RangeInclusive<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let mut bytes = 0;
        let platter = self.platter()?;
        let until_full = platter.entries.range(range).map(|(_, entry)| entry).take_while(|entry| {
            let wanted = bytes < bytes_max;
            bytes += entry.record.bytes.len().max(1);
            wanted
        });
        Ok(until_full.cloned().collect())
    }

    fn last_index(&self) -> Result<Option<u64>, Error> {
        Ok(self.platter()?.entries.last_key_value().map(|(index, _)| *index))
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.platter()?.values.get(&key).cloned())
    }
}

impl Marks for Mounted {
    fn read(&self) -> Result<Found, Error> {
        Ok(self.platter()?.mark.clone().map_or(Found::Blank, |mark| Found::Mark(mark.into())))
    }

    fn begin(&mut self, mark: Mark) -> Result<(), Error> {
        self.platter()?.mark = Some(mark);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
