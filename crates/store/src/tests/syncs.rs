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
    Wrote(u64),
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
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
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

    fn wrote(&self, last: u64) {
        self.note(Event::Wrote(last));
    }
}

fn open(dir: &Path, recorder: &Arc<Recorder>) -> Log {
    let config = Config { reserve: 0, ..Config::new(dir.join("log")) };
    Log::open_on(config, recorder.clone()).unwrap().0
}

/// Behind the write of `index`: the segment's sync begun and ended, then the acknowledgement.
fn assert_synced_before_acknowledged(events: &[Event], index: u64) {
    let after = |from: usize, wanted: &dyn Fn(&Event) -> bool| {
        from + events[from..]
            .iter()
            .position(wanted)
            .unwrap_or_else(|| panic!("`{index}`: nothing fits after `{from}`"))
    };
    let wrote = after(0, &|event| matches!(event, Event::Wrote(last) if *last >= index));
    let mut at = wrote;
    for step in [Event::Begun(FIRST_SEGMENT.into()), Event::Ended(FIRST_SEGMENT.into())] {
        at = after(at, &|event| *event == step);
    }
    let acknowledged = events.iter().position(|event| *event == Event::Acknowledged(index)).unwrap();
    assert!(at < acknowledged, "`{index}` was acknowledged at `{acknowledged}`, synced at `{at}`");
}

#[test]
fn a_serial_client_gets_a_sync_for_each_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.begun();
    for index in 0..50 {
        append(&log, vec![record(index, 1)]).unwrap();
        recorder.note(Event::Acknowledged(index));
    }
    assert!(recorder.begun() - opened >= 50);
    let events = recorder.events();
    (0..50).for_each(|index| assert_synced_before_acknowledged(&events, index));
}

#[test]
fn under_load_each_acknowledgement_follows_a_sync_begun_after_its_write() {
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
        assert!(events[before..].contains(&Event::Ended("db".into())));
        assert_eq!(events.last(), Some(&Event::Ended("mark".into())));
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
    let failed = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Ended(_))).count();
    assert_eq!(failed(&recorder.events()), tried - 1, "one sync failed");
}

#[test]
fn when_it_falls_quiet_the_mark_is_raised_once() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let log = open(dir.path(), &recorder);
    let opened = recorder.events().len();
    append(&log, records(0..=4, 1)).unwrap();
    let quiet = [Event::Ended("db".into()), Event::Begun("mark".into()), Event::Ended("mark".into())];
    let deadline = Instant::now() + Duration::from_secs(20);
    while !recorder.events()[opened..].ends_with(&quiet) {
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
