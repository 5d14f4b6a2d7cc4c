//! What the tests stand on: a ground to open logs on, and an executor that is nobody's runtime.

use std::{
    future::Future,
    ops::RangeInclusive,
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use tempfile::TempDir;

use crate::{Config, Error, Log, MemoryDisk, Record, Worker};

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
    worker: Option<Worker>,
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
            Ground::Memory(disk) => Ok(Open { log: Log::on(disk)?, worker: None }),
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
