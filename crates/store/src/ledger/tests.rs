//! What opening makes of every pair of log and mark that a power cut can leave, and of pairs that it cannot. Without the
//! writer, so that nothing is settled unless a test says so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::*;
use crate::{
    folder::Folder,
    tests::rig::{Dice, Small, copy_dir, records},
};

const SECTOR_BYTES: usize = 512;

/// What of a write has reached the disk.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Absent,
    Torn,
    Whole,
}

const PARTS: [Part; 3] = [Part::Absent, Part::Torn, Part::Whole];

struct Store {
    ledger: Ledger,
    records: Vec<Record>,
    vote: Option<Vec<u8>>,
}

fn open(dir: &Path) -> Result<Store, Error> {
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(Small);
    let (kv, marks) = Folder::prepare(dir)?.open(&disk)?;
    let (ledger, opened) = Ledger::open(Arc::new(kv), Box::new(marks), dir, usize::MAX)?;
    Ok(Store { ledger, records: opened.tail, vote: opened.vote })
}

/// Room for images of one store's folder.
struct Images(TempDir);

impl Images {
    fn new() -> Images {
        Images(tempfile::tempdir().unwrap())
    }

    fn live(&self) -> PathBuf {
        self.path("live")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a power cut at this moment leaves, if everything was synced.
    fn take(&self, name: &str) -> PathBuf {
        self.mix(name, &self.live(), &self.live(), &self.live())
    }

    /// The log from one image and the mark from another; the rest does not change in between.
    fn mix(&self, name: &str, log: &Path, mark: &Path, rest: &Path) -> PathBuf {
        let mixed = self.path(name);
        let _ = fs::remove_dir_all(&mixed);
        copy_dir(rest, &mixed);
        fs::remove_dir_all(mixed.join("segments")).unwrap();
        copy_dir(&log.join("segments"), &mixed.join("segments"));
        fs::copy(mark.join("mark"), mixed.join("mark")).unwrap();
        mixed
    }
}

fn write(ledger: &mut Ledger, range: std::ops::RangeInclusive<u64>) {
    ledger.write(Batch { records: records(range, 1), ..Batch::default() }).unwrap();
}

/// Of the sectors that were changed since `before` not all.
fn tear(before: &Path, file: &Path, dice: &mut Dice) {
    let now = fs::read(file).unwrap();
    // A new segment gets its name in full and blank, but for its head.
    let before = fs::read(before).unwrap_or_else(|_| {
        let mut blank = vec![0; now.len()];
        blank[..4096].copy_from_slice(&now[..4096]);
        blank
    });
    let changed = |at: &usize| before[*at..*at + SECTOR_BYTES] != now[*at..*at + SECTOR_BYTES];
    let changed: Vec<_> = (0..now.len()).step_by(SECTOR_BYTES).filter(changed).collect();
    let lost = dice.below(changed.len() as u64) as usize;
    let mut torn = now.clone();
    for (place, at) in changed.into_iter().enumerate() {
        if place == lost || dice.below(2) == 0 {
            torn[at..at + SECTOR_BYTES].copy_from_slice(&before[at..at + SECTOR_BYTES]);
        }
    }
    fs::write(file, torn).unwrap();
}

fn newest_segment(dir: &Path) -> PathBuf {
    fs::read_dir(dir.join("segments")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap()
}

type Step = fn(&mut Ledger);

/// What was done before the batch at which the power goes. Each leaves records up to some index.
const BEFORE: [(&str, Step); 7] = [
    ("nothing", |_| ()),
    ("a batch", |ledger| write(ledger, 0..=4)),
    ("a full segment", |ledger| (0..4).for_each(|index| write(ledger, index..=index))),
    ("a quiet moment", |ledger| {
        write(ledger, 0..=4);
        ledger.settle(Some(b"three".to_vec())).unwrap();
    }),
    ("a truncation", |ledger| {
        write(ledger, 0..=4);
        write(ledger, 5..=9);
        ledger.truncate_to(Some(6)).unwrap();
    }),
    ("a purge", |ledger| {
        write(ledger, 0..=4);
        write(ledger, 5..=9);
        ledger.purge_to(6, b"six".to_vec()).unwrap();
    }),
    ("a purge of everything", |ledger| {
        write(ledger, 0..=4);
        ledger.purge_to(6, b"six".to_vec()).unwrap();
    }),
];

#[test]
fn whatever_a_power_cut_leaves_of_batch_and_mark_opens_with_all_that_was_acknowledged() {
    let mut dice = Dice::new();
    for (what, steps) in BEFORE {
        let images = Images::new();
        let mut store = open(&images.live()).unwrap();
        // Long, so that the mark has sectors to be torn.
        let vote = |fill: u8| Some(vec![fill; 900]);
        store.ledger.write(Batch { vote: vote(1), ..Batch::default() }).unwrap();
        steps(&mut store.ledger);
        let before = images.take("before");
        let acknowledged = open(&images.take("acknowledged")).unwrap().records;
        let end = store.ledger.mark.last.map(|(last, _)| last).or(store.ledger.mark.base.purged);
        let next = end.map_or(0, |end| end + 1);
        let newest = records(next..=next + 40, 2);
        store.ledger.write(Batch { records: newest.clone(), vote: vote(2), ..Batch::default() }).unwrap();
        let after = images.take("after");
        drop(store);

        for (log, mark) in PARTS.into_iter().flat_map(|log| PARTS.map(|mark| (log, mark))) {
            // sled's file has the old vote or the new one.
            let sled = [Part::Absent, Part::Whole][dice.below(2) as usize];
            let name = format!("{what}; log {log:?}, mark {mark:?}, sled {sled:?}");
            let of = |part: Part| if part == Part::Absent { &before } else { &after };
            let cut = images.mix("cut", of(log), of(mark), of(sled));
            if log == Part::Torn {
                let segment = newest_segment(&cut);
                tear(&before.join(segment.strip_prefix(&cut).unwrap()), &segment, &mut dice);
            }
            if mark == Part::Torn {
                tear(&before.join("mark"), &cut.join("mark"), &mut dice);
            }
            let again = images.path("again");
            let _ = fs::remove_dir_all(&again);
            copy_dir(&cut, &again);

            let newest = if log == Part::Whole { &newest[..] } else { &[] };
            let expected = [&acknowledged[..], newest].concat();
            let voted = if mark == Part::Whole || sled == Part::Whole { vote(2) } else { vote(1) };
            let opened = |dir: &Path, name: &str| {
                let store = open(dir).unwrap_or_else(|cause| panic!("{name}: {cause:?}"));
                assert!(store.records == expected, "{name}: {} of {}", store.records.len(), expected.len());
                assert_eq!(store.vote, voted, "{name}");
                store
            };
            let mut store = opened(&cut, &name);
            // And the power goes once more while it opens: its mark is torn.
            let torn = images.path("torn");
            fs::copy(cut.join("mark"), &torn).unwrap();
            tear(&again.join("mark"), &torn, &mut dice);
            fs::copy(torn, again.join("mark")).unwrap();
            drop(opened(&again, &format!("{name}, again")));

            // It goes on from there.
            let next = next + newest.len() as u64;
            write(&mut store.ledger, next..=next);
        }
    }
}

#[test]
fn a_loss_of_more_than_the_newest_batch_is_noticed_at_once() {
    let images = Images::new();
    let mut store = open(&images.live()).unwrap();
    let taken: Vec<_> = (0..12)
        .map(|batch| {
            write(&mut store.ledger, 2 * batch..=2 * batch + 1);
            images.take(&batch.to_string())
        })
        .collect();
    for (newest, mark) in taken.iter().enumerate() {
        for (batch, log) in taken[..=newest].iter().enumerate() {
            let opened = open(&images.mix("cut", log, mark, mark));
            if batch + 1 >= newest {
                // That of the newest alone cannot be told from a power cut before its acknowledgement.
                assert_eq!(opened.unwrap().records.len(), 2 * batch + 2);
            } else {
                assert!(
                    matches!(opened, Err(Error::Damaged { .. })),
                    "`{newest}` was acknowledged, `{batch}` is there"
                );
            }
        }
    }
}

#[test]
fn a_loss_of_the_newest_batch_is_noticed_once_it_was_quiet_or_anything_else_was_done() {
    let later: [(&str, Step); 4] = [
        ("quiet", |ledger| ledger.settle(None).unwrap()),
        ("a vote", |ledger| ledger.write(Batch { vote: Some(b"vote".to_vec()), ..Batch::default() }).unwrap()),
        ("a purge", |ledger| ledger.purge_to(1, b"one".to_vec()).unwrap()),
        ("an opening", |_| ()),
    ];
    for (what, step) in later {
        let images = Images::new();
        let mut store = open(&images.live()).unwrap();
        write(&mut store.ledger, 0..=4);
        let before = images.take("before");
        write(&mut store.ledger, 5..=9);
        if what == "an opening" {
            drop(store);
            store = open(&images.live()).unwrap();
        }
        step(&mut store.ledger);
        let live = images.take("after");
        let opened = open(&images.mix("cut", &before, &live, &live));
        assert!(matches!(opened, Err(Error::Damaged { .. })), "after {what}");
    }
}

#[test]
fn an_end_where_the_mark_expects_it_but_with_another_record_is_damage() {
    let images = Images::new();
    let mut store = open(&images.live()).unwrap();
    write(&mut store.ledger, 0..=4);
    write(&mut store.ledger, 5..=9);
    let good = images.take("good");
    drop(store);
    let mut store = open(&images.path("other")).unwrap();
    store.ledger.write(Batch { records: records(0..=4, 2), ..Batch::default() }).unwrap();
    drop(store);
    let opened = open(&images.mix("cut", &images.path("other"), &good, &good));
    assert!(matches!(opened, Err(Error::Damaged { .. })));
}

#[test]
fn a_log_that_ends_inside_the_newest_batch_is_damage() {
    let disk = crate::MemoryDisk::new();
    let mount = || {
        let mounted = disk.mount();
        Ledger::open(Arc::new(mounted.clone()), Box::new(mounted), Path::new("memory"), 0)
    };
    let (mut ledger, _) = mount().unwrap();
    write(&mut ledger, 0..=4);
    write(&mut ledger, 5..=9);
    disk.mount().commit(vec![Change::CutAfter(Some(7))]).unwrap();
    assert!(matches!(mount(), Err(Error::Damaged { .. })));
    disk.mount().commit(vec![Change::CutAfter(Some(4))]).unwrap();
    mount().unwrap();
}
