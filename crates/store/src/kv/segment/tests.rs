//! The segments by themselves, without a mark: what they notice, and what only the mark can.

use std::{fs, path::Path, sync::Arc};

use super::*;
use crate::{
    record::{Hash, Record},
    tests::rig::{Dice, Small, copy_dir, records},
};

fn open(dir: &Path) -> Result<SegmentLog, Error> {
    let disk = Arc::new(Small);
    SegmentLog::open(&dir.join("segments"), Values::open(&dir.join("sled"), disk.clone())?, disk)
}

/// Chained entries, as the ledger makes them.
struct Chain(Hash);

impl Chain {
    fn append(&mut self, log: &SegmentLog, records: Vec<Record>) {
        let chained = records.into_iter().map(|record| {
            let entry = Entry::chained(self.0, record);
            self.0 = entry.hash;
            entry
        });
        log.commit(vec![Change::Append(chained.collect())]).unwrap();
    }
}

fn found(log: &SegmentLog) -> Vec<Record> {
    log.scan(0..=u64::MAX, usize::MAX).unwrap().into_iter().map(|entry| entry.record).collect()
}

fn numbers(dir: &Path) -> Vec<u64> {
    file::list(&dir.join("segments")).unwrap()
}

/// Twelve batches of two records each, four to a segment.
fn filled(dir: &Path) -> Chain {
    let (log, mut chain) = (open(dir).unwrap(), Chain([0; 32]));
    for first in (0..24).step_by(2) {
        chain.append(&log, records(first..=first + 1, 1));
    }
    assert_eq!(numbers(dir), [1, 2, 3]);
    chain
}

#[test]
fn what_was_written_over_several_segments_is_found_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut chain = filled(dir.path());
    let log = open(dir.path()).unwrap();
    assert_eq!(found(&log), records(0..=23, 1));
    assert_eq!(log.last_index().unwrap(), Some(23));
    let two = log.scan(9..=20, 33).unwrap();
    assert_eq!(two.iter().map(|entry| entry.record.index).collect::<Vec<_>>(), [9, 10]);
    chain.append(&log, records(24..=24, 1));
    drop(log);
    assert_eq!(found(&open(dir.path()).unwrap()), records(0..=24, 1));
}

#[test]
fn the_newest_batch_is_written_again_before_it_counts_as_durable() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let log = open(dir.path()).unwrap();
    let place = log.contents().places.back().copied().unwrap();
    // It was in the page cache only, and has gone from there since it was read.
    let path = file::path(&dir.path().join("segments"), place.segment);
    let mut bytes = fs::read(&path).unwrap();
    let at = usize::try_from(place.at).unwrap();
    bytes[at..at + place.bytes].fill(0);
    fs::write(&path, bytes).unwrap();
    log.commit(Vec::new()).unwrap();
    drop(log);
    assert_eq!(found(&open(dir.path()).unwrap()), records(0..=23, 1));
}

#[test]
fn a_batch_longer_than_a_segment_gets_one_of_its_own_length() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut chain) = (open(dir.path()).unwrap(), Chain([0; 32]));
    let long = Record { index: 0, bytes: vec![7; 100_000].into() };
    chain.append(&log, vec![long.clone()]);
    chain.append(&log, records(1..=1, 1));
    drop(log);
    assert_eq!(found(&open(dir.path()).unwrap()), [vec![long], records(1..=1, 1)].concat());
}

#[test]
fn a_cut_may_go_through_a_batch_and_through_segments() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let log = open(dir.path()).unwrap();
    log.commit(vec![Change::CutAfter(Some(4))]).unwrap();
    let mut chain = Chain(log.scan(4..=4, 1).unwrap()[0].hash);
    chain.append(&log, records(5..=6, 2));
    let expected = [records(0..=4, 1), records(5..=6, 2)].concat();
    assert_eq!(found(&log), expected);
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!(found(&log), expected);
    log.commit(vec![Change::CutAfter(None)]).unwrap();
    drop(log);
    assert_eq!(open(dir.path()).unwrap().last_index().unwrap(), None);
}

#[test]
fn a_purge_removes_the_segments_that_hold_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let log = open(dir.path()).unwrap();
    log.commit(vec![Change::DropTo(2)]).unwrap();
    assert_eq!(numbers(dir.path()), [1, 2, 3]);
    log.commit(vec![Change::DropTo(10)]).unwrap();
    assert_eq!(numbers(dir.path()), [2, 3]);
    log.commit(vec![Change::DropTo(1000)]).unwrap();
    assert_eq!(numbers(dir.path()), [3]);
    assert_eq!(log.last_index().unwrap(), None);
}

#[test]
fn removed_segments_that_a_power_cut_brings_back_do_no_harm_and_go_again() {
    for back in [vec![1], vec![2], vec![1, 2]] {
        let dir = tempfile::tempdir().unwrap();
        let before = dir.path().join("before");
        filled(dir.path());
        copy_dir(&dir.path().join("segments"), &before);
        open(dir.path()).unwrap().commit(vec![Change::DropTo(17)]).unwrap();
        for number in back {
            let path = file::path(&dir.path().join("segments"), number);
            fs::copy(before.join(path.file_name().unwrap()), path).unwrap();
        }
        let log = open(dir.path()).unwrap();
        let last = log.scan(18..=u64::MAX, usize::MAX).unwrap();
        assert_eq!(last.into_iter().map(|entry| entry.record).collect::<Vec<_>>(), records(18..=23, 1));
        log.commit(vec![Change::DropTo(17)]).unwrap();
        assert_eq!(numbers(dir.path()), [3]);
    }
}

#[test]
fn only_the_last_batch_may_be_torn_and_what_is_left_of_it_is_wiped() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    let (log, mut chain) = (open(dir.path()).unwrap(), Chain([0; 32]));
    chain.append(&log, records(0..=1, 1));
    let tip = chain.0;
    let torn = Record { index: 2, bytes: vec![7; 3000].into() };
    chain.append(&log, vec![torn.clone()]);
    drop(log);
    let segment = file::path(&dir.path().join("segments"), 1);
    let good = fs::read(&segment).unwrap();
    for round in 0..60 {
        let mut image = good.clone();
        let batch = 1 + round % 2;
        let sectors: Vec<_> =
            image[4096 * batch..].chunks_mut(512).take_while(|sector| sector[0..8] != [0; 8]).collect();
        let one = dice.below(sectors.len() as u64) as usize;
        for (place, sector) in sectors.into_iter().enumerate() {
            if place == one || dice.below(2) == 0 {
                sector.fill(0);
            }
        }
        fs::write(&segment, &image).unwrap();
        if batch == 1 {
            assert!(matches!(open(dir.path()), Err(Error::Damaged { .. })), "a batch before the last was torn");
            continue;
        }
        let log = open(dir.path()).unwrap();
        assert_eq!(found(&log), records(0..=1, 1));
        assert_eq!(fs::read(&segment).unwrap(), image, "opening only looks");
        // A shorter batch under the same number, which must not be taken for part of the torn one.
        Chain(tip).append(&log, records(2..=2, 2));
        drop(log);
        assert_eq!(found(&open(dir.path()).unwrap()), [records(0..=1, 1), records(2..=2, 2)].concat());
    }
}

#[test]
fn every_flipped_bit_is_damage_in_the_last_batch_too() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let values = || Values::open(&dir.path().join("sled"), Arc::new(Small)).unwrap();
    for number in numbers(dir.path()) {
        let path = file::path(&dir.path().join("segments"), number);
        let good = fs::read(&path).unwrap();
        for _ in 0..200 {
            let bit = dice.below(8 * good.len() as u64) as usize;
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            let opened = SegmentLog::open(&dir.path().join("segments"), values(), Arc::new(Small));
            assert!(matches!(opened, Err(Error::Damaged { .. })), "segment `{number}`, bit `{bit}`");
        }
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn a_segment_that_is_cut_short_or_anothers_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let segments = dir.path().join("segments");
    let (second, third) = (file::path(&segments, 2), file::path(&segments, 3));
    let good = fs::read(&third).unwrap();
    for bad in
        [&good[..good.len() - 4096], &good[..100], &[], &[&good[..], &[0; 4096]].concat(), &fs::read(&second).unwrap()]
    {
        fs::write(&third, bad).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Damaged { .. })));
    }
    // Without its last batch a segment looks whole, but the next one knows better.
    fs::write(&third, good).unwrap();
    let mut bad = fs::read(&second).unwrap();
    let last = bad.len() - 4096;
    bad[last..].fill(0);
    fs::write(&second, bad).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Damaged { .. })));
}

#[test]
fn a_draft_left_by_a_power_cut_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut chain = filled(dir.path());
    fs::write(dir.path().join("segments/next"), vec![9; 100_000]).unwrap();
    let log = open(dir.path()).unwrap();
    for index in 24..30 {
        chain.append(&log, records(index..=index, 1));
    }
    drop(log);
    assert_eq!(found(&open(dir.path()).unwrap()), records(0..=29, 1));
}
