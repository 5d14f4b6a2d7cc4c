//! What the tests stand on: a ground to open logs on, and an executor that is nobody's runtime.

use std::{
    fs::File,
    future::Future,
    io,
    ops::RangeInclusive,
    path::Path,
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use tempfile::TempDir;

use crate::{
    Config, Error, Log, MemoryDisk, Record, Worker,
    disk::{Disk, Os},
};

/// Runs a future without any runtime, which shows that the log needs none.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A place where a log can be opened again and again.
pub(crate) enum Ground {
    Memory(MemoryDisk),
    Folder(TempDir),
}

pub(crate) struct Open {
    pub(crate) log: Log,
    pub(crate) worker: Option<Worker>,
}

impl Ground {
    pub(crate) fn memory() -> Ground {
        Ground::Memory(MemoryDisk::new())
    }

    pub(crate) fn folder() -> Ground {
        Ground::Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn try_open(&self, cache: usize) -> Result<Open, Error> {
        match self {
            Ground::Memory(disk) => Ok(Open { log: Log::on_cached(disk, cache)?, worker: None }),
            Ground::Folder(dir) => {
                let (log, worker) = Log::open(Config { cache, reserve: 0, ..Config::new(dir.path().join("log")) })?;
                Ok(Open { log, worker: Some(worker) })
            }
        }
    }

    pub(crate) fn open(&self) -> Open {
        self.try_open(1 << 20).unwrap()
    }
}

impl Open {
    pub(crate) fn close(self) {
        wait(self.log.close()).unwrap();
        self.worker.into_iter().for_each(Worker::join);
    }
}

/// A disk with segments so small that a few batches fill one, for tests that lose data by their own hand: it syncs nothing.
pub(crate) struct Small;

impl Disk for Small {
    fn sync(&self, _file: &File, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        Os.free(dir)
    }

    fn segment_bytes(&self) -> u64 {
        16 << 10
    }
}

/// A record whose bytes tell its index, and which writing of it this is.
pub(crate) fn record(index: u64, writing: u8) -> Record {
    Record { index, bytes: [&index.to_be_bytes()[..], &[writing; 24]].concat().into() }
}

pub(crate) fn records(range: RangeInclusive<u64>, writing: u8) -> Vec<Record> {
    range.map(|index| record(index, writing)).collect()
}

/// Appends and returns when it is durable.
pub(crate) fn append(log: &Log, records: Vec<Record>) -> Result<(), Error> {
    let (sender, durable) = mpsc::channel();
    wait(log.append(records, move |result| sender.send(result).unwrap()))?;
    durable.recv().unwrap()
}

/// A small generator with a seed that can be printed and given again.
pub(crate) struct Dice(u64);

impl From<u64> for Dice {
    fn from(seed: u64) -> Dice {
        Dice(seed)
    }
}

impl Dice {
    /// From `OMX_SEED`, or a new one every time; printed, so that a failure can be replayed.
    pub(crate) fn new() -> Dice {
        let fresh = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("OMX_SEED").map_or_else(|_| fresh(), |seed| seed.parse().unwrap());
        println!("OMX_SEED={seed}");
        Dice(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
