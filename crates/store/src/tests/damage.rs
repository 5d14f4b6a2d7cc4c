//! Bits that flip, files that shrink, vanish or come back from the past: damage is reported, or did no harm.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::rig::{Dice, Ground, append, copy_dir, records, wait};
use crate::{Config, Error, Log, Meta, Record};

/// A closed store in which everything has been acknowledged, and what it holds.
fn acknowledged(dir: &Path) -> (Vec<Record>, Vec<u8>) {
    let (log, worker) = Log::open(config(dir)).unwrap();
    for first in (0..400).step_by(8) {
        append(&log, records(first..=first + 7, 1)).unwrap();
    }
    wait(log.purge_to(99, b"at 99".to_vec())).unwrap();
    wait(log.put(Meta::Vote, b"vote".to_vec())).unwrap();
    append(&log, records(400..=400, 1)).unwrap();
    wait(log.close()).unwrap();
    worker.join();
    (records(100..=400, 1), b"vote".to_vec())
}

fn config(dir: &Path) -> Config {
    Config { reserve: 0, cache: 0, ..Config::new(dir) }
}

/// Opens what was tampered with: all of it is there, or it is said to be damaged. Returns which.
fn is_noticed(dir: &Path, (records, vote): &(Vec<Record>, Vec<u8>), what: &str) -> bool {
    let (log, worker) = match Log::open(config(dir)) {
        Ok(opened) => opened,
        Err(Error::Damaged { .. } | Error::TooNew { .. }) => return true,
        Err(other) => panic!("{what}: {other:?}"),
    };
    match log.read(..) {
        Ok(found) => {
            assert!(found == *records, "{what}: other records were served");
            assert_eq!(log.get(Meta::Vote).as_ref(), Some(vote), "{what}: the vote is another");
            wait(log.close()).unwrap();
            worker.join();
            false
        }
        Err(Error::Damaged { .. }) => true,
        Err(other) => panic!("{what}: {other:?}"),
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    files(&dir.join("segments"))
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(dir).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

fn assert_untouched(before: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path) {
    let after = contents(dir);
    assert!(before.keys().eq(after.keys()), "files came or went: {:?}", after.keys());
    let changed: Vec<_> = before.iter().filter(|(file, bytes)| after[*file] != **bytes).map(|(file, _)| file).collect();
    assert!(changed.is_empty(), "{changed:?} changed");
}

#[test]
fn no_flipped_bit_serves_a_wrong_record_or_loses_one_silently() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    let expected = acknowledged(&good);
    let mut noticed = 0;
    for round in 0..160 {
        copy_dir(&good, &bad);
        let files = files(&bad);
        let file = &files[dice.below(files.len() as u64) as usize];
        let mut bytes = fs::read(file).unwrap();
        // Most of a file has never been written; half of the flips go where there is something.
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1);
        let bit = dice.below(8 * if round % 2 == 0 { written } else { bytes.len().max(1) as u64 }) as usize;
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
        fs::write(file, bytes).unwrap();
        noticed += usize::from(is_noticed(&bad, &expected, &format!("bit `{bit}` of `{}`", file.display())));
        fs::remove_dir_all(&bad).unwrap();
    }
    assert!(noticed > 0, "no flip hit anything");
}

#[test]
fn no_file_that_shrank_or_vanished_goes_unnoticed_where_it_matters() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    let expected = acknowledged(&good);
    let mut noticed = 0;
    for _ in 0..60 {
        copy_dir(&good, &bad);
        let files = files(&bad);
        let file = &files[dice.below(files.len() as u64) as usize];
        let len = fs::metadata(file).unwrap().len();
        if dice.below(4) == 0 {
            fs::remove_file(file).unwrap();
        } else {
            fs::OpenOptions::new().write(true).open(file).unwrap().set_len(dice.below(len.max(1))).unwrap();
        }
        noticed += usize::from(is_noticed(&bad, &expected, &format!("`{}` shrank", file.display())));
        fs::remove_dir_all(&bad).unwrap();
    }
    assert!(noticed > 0);
}

#[test]
fn a_log_from_the_past_beside_the_mark_of_today_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    acknowledged(&old);
    copy_dir(&old, &new);
    let (log, worker) = Log::open(config(&new)).unwrap();
    append(&log, records(401..=410, 1)).unwrap();
    wait(log.close()).unwrap();
    worker.join();
    fs::remove_dir_all(new.join("segments")).unwrap();
    copy_dir(&old.join("segments"), &new.join("segments"));
    assert!(matches!(Log::open(config(&new)), Err(Error::Damaged { .. })));
}

#[test]
fn a_log_with_other_records_under_the_same_indexes_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for (dir, writing) in [(&one, 1), (&other, 2)] {
        let (log, worker) = Log::open(config(dir)).unwrap();
        append(&log, records(0..=9, writing)).unwrap();
        wait(log.close()).unwrap();
        worker.join();
    }
    fs::copy(one.join("mark"), other.join("mark")).unwrap();
    let refused = Log::open(config(&other)).unwrap_err();
    assert!(refused.to_string().contains("not the one that was written"), "{refused}");
}

#[test]
fn without_mark_log_or_format_a_used_store_is_damaged_and_stays_as_it_is() {
    for missing in ["mark", "sled", "segments", "format"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("log");
        acknowledged(&dir);
        let path = dir.join(missing);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let before = contents(&dir);
        for _ in 0..2 {
            assert!(matches!(Log::open(config(&dir)), Err(Error::Damaged { .. })), "without `{missing}`");
        }
        assert_untouched(&before, &dir);
    }
}

#[test]
fn every_flipped_bit_of_a_segment_is_noticed_at_opening() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    acknowledged(dir.path());
    let segment = segments(dir.path()).pop().unwrap();
    let good = fs::read(&segment).unwrap();
    let written = good.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    for round in 0..100 {
        // In the last batch too, and where nothing was written yet.
        let bit = match round % 4 {
            0 => 8 * (written - 512) + dice.below(8 * 512),
            1 => dice.below(8 * good.len() as u64),
            _ => dice.below(8 * written),
        };
        let mut bad = good.clone();
        bad[bit as usize / 8] ^= 1 << (bit % 8);
        fs::write(&segment, bad).unwrap();
        let before = contents(&dir.path().join("segments"));
        assert!(matches!(Log::open(config(dir.path())), Err(Error::Damaged { .. })), "bit `{bit}`");
        assert_untouched(&before, &dir.path().join("segments"));
    }
    fs::write(&segment, good).unwrap();
    Log::open(config(dir.path())).unwrap();
}

#[test]
fn an_older_format_is_refused_with_nothing_touched() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    acknowledged(&dir);
    fs::write(dir.join("format"), "omx store 2\n").unwrap();
    let before = contents(&dir);
    let refused = Log::open(config(&dir)).unwrap_err();
    assert!(refused.to_string().contains("format `2`"), "{refused}");
    assert_untouched(&before, &dir);
}

#[test]
fn a_newer_format_is_refused_with_nothing_touched() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    acknowledged(&dir);
    fs::write(dir.join("format"), "omx store 4\n").unwrap();
    let before = contents(&dir);
    let refused = Log::open(config(&dir)).unwrap_err();
    assert!(matches!(refused, Error::TooNew { found: 4, known: 3, .. }));
    assert_eq!(refused.hint(), Some("update this node"));
    assert_untouched(&before, &dir);
}

#[test]
fn a_second_opening_of_the_same_folder_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Log::open(config(dir.path())).unwrap();
    assert!(matches!(Log::open(config(dir.path())), Err(Error::InUse { .. })));
}

#[test]
fn damage_found_while_reading_stops_the_store() {
    let Ground::Memory(disk) = Ground::memory() else { unreachable!() };
    let log = Log::on_cached(&disk, 0).unwrap();
    append(&log, records(0..=9, 1)).unwrap();
    disk.damage(4);
    assert_eq!(log.read(..=3).unwrap(), records(0..=3, 1));
    assert!(matches!(log.read(..), Err(Error::Damaged { .. })));
    assert!(matches!(wait(log.failed()), Error::Damaged { .. }));
    assert!(matches!(append(&log, records(10..=10, 1)), Err(Error::Stopped(_))));
    assert!(matches!(Log::on(&disk), Err(Error::Damaged { .. })));
}
