//! A disk that fills up, emulated by a quota. `tests/full_disk.rs` has a real one.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::rig::{append, records, wait};
use crate::{
    Config, Error, Log, Record,
    disk::{Disk, Os},
    space::Reserve,
};

const MIB: u64 = 1 << 20;

/// What the folder holds counts against a quota.
struct Quota(AtomicU64);

impl Disk for Quota {
    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        Os.sync(file, path)
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        fn used(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
            entries
                .map(|entry| if entry.path().is_dir() { used(&entry.path()) } else { entry.metadata().unwrap().len() })
                .sum()
        }
        Ok(self.0.load(Ordering::SeqCst).saturating_sub(used(dir)))
    }

    /// As on file systems that cannot, so that the reserve is written step by step.
    fn allocate(&self, _file: &File, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn config(dir: &Path) -> Config {
    Config { reserve: 16 * MIB, cache: 0, ..Config::new(dir.join("log")) }
}

/// Appends until the store refuses; returns what it acknowledged.
fn fill_up(log: &Log) -> (u64, Error) {
    let mut acknowledged = log.bounds().last.map_or(0, |last| last.index + 1);
    loop {
        let record = Record { index: acknowledged, bytes: vec![acknowledged as u8; 64 << 10].into() };
        match append(log, vec![record]) {
            Ok(()) => acknowledged += 1,
            Err(cause) => return (acknowledged, cause),
        }
    }
}

fn a_full_disk_is_a_clean_refusal(dir: &Path, disk: Arc<dyn Disk>, make_room: &dyn Fn()) {
    let (log, worker) = Log::open_on(config(dir), disk.clone()).unwrap();
    assert!(!log.space().unwrap().low);
    let (acknowledged, cause) = fill_up(&log);
    assert!(matches!(cause, Error::NoSpace { .. }), "{cause:?}");
    assert!(acknowledged > 0);
    assert!(log.space().unwrap().low, "the reserve is spent");
    assert!(log.failure().is_none(), "nothing was half written, so nothing has failed");
    assert_eq!(log.bounds().last.unwrap().index, acknowledged - 1, "what was refused was not taken");
    assert_eq!(log.read(..).unwrap().len() as u64, acknowledged);
    wait(log.close()).unwrap();
    worker.join();

    // Full from the start: it opens, and all is there.
    let (log, worker) = Log::open_on(config(dir), disk.clone()).unwrap();
    assert_eq!(log.read(..).unwrap().len() as u64, acknowledged);
    assert!(log.space().unwrap().low);

    make_room();
    append(&log, records(acknowledged..=acknowledged, 1)).unwrap();
    // Asking is what takes the reserve back, on the writer's thread.
    assert!(log.space().unwrap().low);
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.space().unwrap().low {
        assert!(Instant::now() < deadline, "the reserve was not taken back");
        std::thread::yield_now();
    }
    wait(log.close()).unwrap();
    worker.join();
}

#[test]
fn a_spent_quota_refuses_cleanly_and_serves_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Arc::new(Quota(AtomicU64::new(56 * MIB)));
    let raise = quota.clone();
    a_full_disk_is_a_clean_refusal(dir.path(), quota, &move || raise.0.store(1 << 30, Ordering::SeqCst));
}

#[test]
fn a_reserve_that_cannot_be_allocated_is_written_in_steps_and_a_full_disk_ends_that() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Arc::new(Quota(AtomicU64::new(1 << 30)));
    let reserve = Reserve::open(dir.path(), 10 * MIB, quota.clone()).unwrap();
    let len = || fs::metadata(dir.path().join("reserve")).map_or(0, |found| found.len());
    for (more, taken) in [(true, 4), (true, 8), (false, 10), (false, 10)] {
        assert!(reserve.space().unwrap().low || taken == 10);
        assert_eq!((reserve.take_some().unwrap(), len()), (more, taken * MIB));
    }
    assert!(!reserve.space().unwrap().low);

    // What an earlier run left unfinished is given back.
    fs::write(dir.path().join("reserve"), vec![0; 4 << 20]).unwrap();
    let reserve = Reserve::open(dir.path(), 10 * MIB, quota.clone()).unwrap();
    assert_eq!(len(), 0);
    assert!(reserve.take_some().unwrap());
    quota.0.store(15 * MIB, Ordering::SeqCst);
    assert!(!reserve.take_some().unwrap());
    assert!(reserve.space().unwrap().low);
}

#[test]
fn a_disk_without_room_for_the_reserve_is_low_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Arc::new(Quota(AtomicU64::new(12 * MIB)));
    let (log, _worker) = Log::open_on(config(dir.path()), quota).unwrap();
    assert!(log.space().unwrap().low);
    append(&log, records(0..=9, 1)).unwrap();
}
