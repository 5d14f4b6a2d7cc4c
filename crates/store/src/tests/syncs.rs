//! Which sync lies behind which acknowledgement, and what a failed one means.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::rig::{append, record, records, wait};
use crate::{
    Config, Error, Log, Meta,
    disk::{Disk, Os},
};

const FIRST_SEGMENT: &str = "0000000000000001";

#[derive(Debug, Clone, PartialEq)]
enum Event {
    /// Up to a record, in a file.
    Wrote(String, u64),
    Begun(String),
    Ended(String),
    Acknowledged(u64),
}

/// Notes what happens in which order, and fails syncs on demand.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
    broken: AtomicBool,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn begun(&self) -> usize {
        self.events().iter().filter(|event| matches!(event, Event::Begun(_))).count()
    }
}

impl Disk for Recorder {
    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        let name = name(path);
        self.note(Event::Begun(name.clone()));
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk went away"));
        }
        Os.sync(file, path)?;
        self.note(Event::Ended(name));
        Ok(())
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        Os.free(dir)
    }

    fn wrote(&self, path: &Path, last: Option<u64>) {
        last.into_iter().for_each(|last| self.note(Event::Wrote(name(path), last)));
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn open(dir: &Path, recorder: &Arc<Recorder>) -> Log {
    let config = Config { reserve: 0, ..Config::new(dir.join("log")) };
    Log::open_on(config, recorder.clone()).unwrap().0
}

/// In the segment and in the mark: behind the write of `index` a sync begun and ended, then the acknowledgement.
fn assert_synced_before_acknowledged(events: &[Event], index: u64) {
    let after = |from: usize, wanted: &dyn Fn(&Event) -> bool| {
        from + events[from..]
            .iter()
            .position(wanted)
            .unwrap_or_else(|| panic!("`{index}`: nothing fits after `{from}`"))
    };
    let acknowledged = after(0, &|event| *event == Event::Acknowledged(index));
    for file in [FIRST_SEGMENT, "mark"] {
        let wrote = after(0, &|event| matches!(event, Event::Wrote(name, last) if name == file && *last >= index));
        let begun = after(wrote, &|event| *event == Event::Begun(file.into()));
        let ended = after(begun, &|event| *event == Event::Ended(file.into()));
        assert!(ended < acknowledged, "`{index}` was acknowledged at `{acknowledged}`, `{file}` synced at `{ended}`");
    }
}

#[test]
fn a_serial_client_gets_a_sync_of_log_and_mark_for_each_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.begun();
    for index in 0..50 {
        append(&log, vec![record(index, 1)]).unwrap();
        recorder.note(Event::Acknowledged(index));
    }
    assert!(recorder.begun() - opened >= 2 * 50);
    let events = recorder.events();
    (0..50).for_each(|index| assert_synced_before_acknowledged(&events, index));
}

#[test]
fn under_load_each_acknowledgement_follows_syncs_of_log_and_mark_begun_after_their_writes() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.begun();
    let (sender, acknowledged) = mpsc::channel();
    const IN_FLIGHT: u64 = 64;
    const TOTAL: u64 = 2000;
    for index in 0..TOTAL {
        if index >= IN_FLIGHT {
            acknowledged.recv().unwrap();
        }
        let (recorder, sender) = (recorder.clone(), sender.clone());
        let done = move |result: Result<(), Error>| {
            result.unwrap();
            recorder.note(Event::Acknowledged(index));
            sender.send(()).unwrap();
        };
        wait(log.append(vec![record(index, 1)], done)).unwrap();
    }
    (0..IN_FLIGHT).for_each(|_| acknowledged.recv().unwrap());
    let events = recorder.events();
    (0..TOTAL).for_each(|index| assert_synced_before_acknowledged(&events, index));
    assert!(recorder.begun() - opened < TOTAL as usize, "nothing was written together");
}

#[test]
fn a_vote_is_synced_before_put_returns() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    for vote in 0..10 {
        let before = recorder.events().len();
        wait(log.put(Meta::Vote, vec![vote])).unwrap();
        let events = recorder.events();
        for file in ["db", "mark"] {
            assert!(events[before..].contains(&Event::Begun(file.into())));
            assert!(events[before..].contains(&Event::Ended(file.into())));
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_no_sync_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    append(&log, records(0..=4, 1)).unwrap();
    assert!(log.failure().is_none());
    recorder.broken.store(true, Ordering::SeqCst);
    // The log may be settled at this moment, and fail at that.
    assert!(matches!(append(&log, records(5..=5, 1)), Err(Error::Io { .. } | Error::Stopped(_))));
    assert!(matches!(wait(log.failed()), Error::Io { .. }));
    let tried = recorder.begun();
    // The disk comes back, but what it forgot nobody knows.
    recorder.broken.store(false, Ordering::SeqCst);
    assert!(matches!(append(&log, records(6..=6, 1)), Err(Error::Stopped(_))));
    assert!(matches!(wait(log.put(Meta::Vote, vec![1])), Err(Error::Stopped(_))));
    assert!(matches!(wait(log.truncate_after(Some(0))), Err(Error::Stopped(_))));
    assert!(matches!(wait(log.purge_to(3, vec![])), Err(Error::Stopped(_))));
    assert_eq!(recorder.begun(), tried);
    let ended = recorder.events().iter().filter(|event| matches!(event, Event::Ended(_))).count();
    assert!((1..=2).contains(&(tried - ended)), "what failed are the two syncs of one batch, or one of them");
}

#[test]
fn when_it_falls_quiet_the_newest_batch_is_confirmed_once() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.events().len();
    append(&log, records(0..=4, 1)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let synced = |name: &str| {
        let events = recorder.events();
        events[opened..].iter().filter(|event| **event == Event::Ended(name.into())).count()
    };
    while synced("mark") < 2 || synced("db") < 1 {
        assert!(Instant::now() < deadline, "{:?}", recorder.events());
        std::thread::yield_now();
    }
    let settled = recorder.begun();
    wait(log.close()).unwrap();
    assert_eq!(recorder.begun(), settled, "there was nothing left to do");
}

#[test]
fn what_is_committed_is_durable_when_it_falls_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.events().len();
    wait(log.put(Meta::Committed, b"nothing follows".to_vec())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !recorder.events()[opened..].contains(&Event::Ended("db".into())) {
        assert!(Instant::now() < deadline, "{:?}", recorder.events());
        std::thread::yield_now();
    }
}

#[test]
fn what_waits_behind_a_failed_sync_fails_too() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    recorder.broken.store(true, Ordering::SeqCst);
    let (sender, results) = mpsc::channel();
    let mut taken = 0;
    for index in 0..200 {
        let sender = sender.clone();
        let submitted = wait(log.append(vec![record(index, 1)], move |result| sender.send(result.is_err()).unwrap()));
        taken += usize::from(submitted.is_ok());
    }
    drop(sender);
    assert!(taken > 0);
    assert_eq!(results.iter().collect::<Vec<_>>(), vec![true; taken]);
}
