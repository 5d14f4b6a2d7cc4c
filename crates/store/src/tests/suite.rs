//! What every implementation has to do, run on each.

use std::sync::mpsc;

use super::rig::{Ground, append, record, records, wait};
use crate::{Bounds, Error, META_BYTES_MAX, Meta, RECORD_BYTES_MAX, Record};

macro_rules! on_each_ground {
    ($(fn $name:ident($ground:ident) $body:block)*) => {
        mod in_memory { $(#[test] fn $name() { super::$name(&super::Ground::memory()) })* }
        mod on_disk { $(#[test] fn $name() { super::$name(&super::Ground::folder()) })* }
        $(fn $name($ground: &Ground) $body)*
    };
}

on_each_ground! {
    fn a_new_log_is_empty(ground) {
        let open = ground.open();
        assert_eq!(open.log.bounds(), Bounds::default());
        assert_eq!(open.log.read(..).unwrap(), []);
        assert_eq!(open.log.get(Meta::Vote), None);
        open.close();
        assert_eq!(ground.open().log.bounds(), Bounds::default());
    }

    fn what_was_appended_is_read_before_and_after_a_restart(ground) {
        let open = ground.open();
        append(&open.log, records(0..=4, 1)).unwrap();
        append(&open.log, vec![]).unwrap();
        append(&open.log, records(5..=9, 1)).unwrap();
        assert_eq!(open.log.read(..).unwrap(), records(0..=9, 1));
        open.close();
        let open = ground.open();
        assert_eq!(open.log.read(3..=6).unwrap(), records(3..=6, 1));
        assert_eq!(open.log.read(8..100).unwrap(), records(8..=9, 1));
        assert_eq!(open.log.read(10..).unwrap(), []);
        assert_eq!(open.log.bounds(), Bounds { last_purged: None, first: Some(0), last: Some(record(9, 1)) });
        append(&open.log, records(10..=10, 1)).unwrap();
        assert_eq!(open.log.read(9..).unwrap(), records(9..=10, 1));
    }

    fn records_can_be_read_as_soon_as_append_returns(ground) {
        let open = ground.open();
        wait(open.log.append(records(0..=2, 1), |_| ())).unwrap();
        assert_eq!(open.log.read(..).unwrap(), records(0..=2, 1));
    }

    fn records_outside_the_cache_come_from_disk(ground) {
        let open = ground.try_open(100).unwrap();
        for index in 0..50 {
            append(&open.log, vec![record(index, 1)]).unwrap();
        }
        assert_eq!(open.log.read(..).unwrap(), records(0..=49, 1));
        assert_eq!(open.log.read_within(7.., 33).unwrap(), records(7..=8, 1));
        wait(open.log.truncate_after(Some(20))).unwrap();
        assert_eq!(open.log.bounds().last, Some(record(20, 1)));
        append(&open.log, records(21..=22, 2)).unwrap();
        assert_eq!(open.log.read(19..).unwrap(), [records(19..=20, 1), records(21..=22, 2)].concat());
    }

    fn records_of_every_size_come_back(ground) {
        let sizes = [0, 1, 3003, 3004, 3005, 6076, 100_000, RECORD_BYTES_MAX];
        let written: Vec<_> = (0..).zip(sizes).map(|(index, size)| {
            Record { index, bytes: (0..size).map(|at| (at % 251) as u8).collect() }
        }).collect();
        let open = ground.try_open(0).unwrap();
        append(&open.log, written.clone()).unwrap();
        assert_eq!(open.log.read(..).unwrap(), written);
        open.close();
        assert_eq!(ground.try_open(0).unwrap().log.read(..).unwrap(), written);
    }

    fn a_record_that_does_not_follow_is_refused_and_nothing_taken(ground) {
        let open = ground.open();
        append(&open.log, records(3..=4, 1)).unwrap();
        for wrong in [records(6..=6, 1), records(4..=4, 1), vec![record(5, 1), record(7, 1)]] {
            assert!(matches!(append(&open.log, wrong), Err(Error::NotNext { .. })));
        }
        assert_eq!(open.log.read(..).unwrap(), records(3..=4, 1));
        append(&open.log, records(5..=5, 1)).unwrap();
    }

    fn what_is_too_long_is_refused(ground) {
        let open = ground.open();
        let record = Record { index: 0, bytes: vec![0; RECORD_BYTES_MAX + 1].into() };
        assert!(matches!(append(&open.log, vec![record]), Err(Error::TooLong { .. })));
        let value = vec![0; META_BYTES_MAX + 1];
        assert!(matches!(wait(open.log.put(Meta::Vote, value.clone())), Err(Error::TooLong { .. })));
        assert!(matches!(wait(open.log.purge_to(0, value)), Err(Error::TooLong { .. })));
        assert_eq!(open.log.bounds(), Bounds::default());
    }

    fn a_truncated_end_is_gone_and_may_be_written_anew(ground) {
        let open = ground.open();
        append(&open.log, records(0..=9, 1)).unwrap();
        wait(open.log.truncate_after(Some(20))).unwrap();
        wait(open.log.truncate_after(Some(6))).unwrap();
        assert_eq!(open.log.read(..).unwrap(), records(0..=6, 1));
        open.close();
        let open = ground.open();
        assert_eq!(open.log.read(..).unwrap(), records(0..=6, 1));
        append(&open.log, records(7..=8, 2)).unwrap();
        open.close();
        let open = ground.open();
        assert_eq!(open.log.read(5..).unwrap(), [records(5..=6, 1), records(7..=8, 2)].concat());
        wait(open.log.truncate_after(None)).unwrap();
        assert_eq!(open.log.bounds(), Bounds::default());
        open.close();
        assert_eq!(ground.open().log.bounds(), Bounds::default());
    }

    fn a_purged_beginning_is_gone_and_its_note_stays(ground) {
        let open = ground.open();
        append(&open.log, records(0..=9, 1)).unwrap();
        wait(open.log.purge_to(4, b"at 4".to_vec())).unwrap();
        wait(open.log.purge_to(3, b"at 3".to_vec())).unwrap();
        let bounds = Bounds { last_purged: Some(b"at 4".to_vec()), first: Some(5), last: Some(record(9, 1)) };
        assert_eq!(open.log.bounds(), bounds);
        assert_eq!(open.log.read(..).unwrap(), records(5..=9, 1));
        open.close();
        let open = ground.open();
        assert_eq!(open.log.bounds(), bounds);
        assert_eq!(open.log.read(..).unwrap(), records(5..=9, 1));
        wait(open.log.truncate_after(None)).unwrap();
        assert_eq!(open.log.bounds(), Bounds { first: None, last: None, ..bounds.clone() });
        append(&open.log, records(5..=6, 2)).unwrap();
        open.close();
        assert_eq!(ground.open().log.read(..).unwrap(), records(5..=6, 2));
    }

    fn a_purge_beyond_the_end_leaves_room_only_behind_it(ground) {
        let open = ground.open();
        append(&open.log, records(0..=2, 1)).unwrap();
        wait(open.log.purge_to(10, b"snapshot".to_vec())).unwrap();
        assert_eq!(open.log.bounds(), Bounds { last_purged: Some(b"snapshot".to_vec()), first: None, last: None });
        assert!(matches!(append(&open.log, records(3..=3, 1)), Err(Error::NotNext { .. })));
        append(&open.log, records(11..=12, 1)).unwrap();
        open.close();
        assert_eq!(ground.open().log.read(..).unwrap(), records(11..=12, 1));
    }

    fn a_purge_below_the_first_record_keeps_it(ground) {
        let open = ground.open();
        append(&open.log, records(2..=5, 1)).unwrap();
        wait(open.log.purge_to(1, b"at 1".to_vec())).unwrap();
        open.close();
        assert_eq!(ground.open().log.read(..).unwrap(), records(2..=5, 1));
    }

    fn the_last_vote_is_there_after_a_restart(ground) {
        let open = ground.open();
        for vote in 0..5 {
            wait(open.log.put(Meta::Vote, vec![vote; 40])).unwrap();
        }
        assert_eq!(open.log.get(Meta::Vote), Some(vec![4; 40]));
        open.close();
        assert_eq!(ground.open().log.get(Meta::Vote), Some(vec![4; 40]));
    }

    fn what_is_committed_is_written_with_the_next_batch_or_at_closing(ground) {
        let open = ground.open();
        wait(open.log.put(Meta::Committed, b"one".to_vec())).unwrap();
        append(&open.log, records(0..=0, 1)).unwrap();
        wait(open.log.put(Meta::Committed, b"two".to_vec())).unwrap();
        open.close();
        assert_eq!(ground.open().log.get(Meta::Committed), Some(b"two".to_vec()));
    }

    fn acknowledgements_come_in_order(ground) {
        let open = ground.open();
        let (sender, acknowledged) = mpsc::channel();
        for index in 0..500 {
            let sender = sender.clone();
            wait(open.log.append(vec![record(index, 1)], move |result| sender.send((index, result.is_ok())).unwrap()))
                .unwrap();
            if index % 100 == 99 {
                wait(open.log.put(Meta::Vote, index.to_be_bytes().to_vec())).unwrap();
            }
        }
        let order: Vec<_> = acknowledged.iter().take(500).collect();
        assert_eq!(order, (0..500).map(|index| (index, true)).collect::<Vec<_>>());
    }

    fn a_closed_log_refuses_everything(ground) {
        let open = ground.open();
        let other = open.log.clone();
        append(&open.log, records(0..=0, 1)).unwrap();
        open.close();
        assert!(matches!(append(&other, records(1..=1, 1)), Err(Error::Closed)));
        assert!(matches!(wait(other.put(Meta::Vote, vec![1])), Err(Error::Closed)));
        assert!(matches!(wait(other.failed()), Error::Closed));
        assert_eq!(ground.open().log.read(..).unwrap(), records(0..=0, 1));
    }
}

#[test]
fn a_memory_disk_opened_anew_shuts_out_the_log_before() {
    let disk = crate::MemoryDisk::new();
    let before = crate::Log::on(&disk).unwrap();
    append(&before, records(0..=0, 1)).unwrap();
    let after = crate::Log::on(&disk).unwrap();
    assert!(append(&before, records(1..=1, 1)).is_err());
    assert_eq!(after.read(..).unwrap(), records(0..=0, 1));
    append(&after, records(1..=1, 2)).unwrap();
    assert_eq!(crate::Log::on(&disk).unwrap().read(..).unwrap(), [record(0, 1), record(1, 2)]);
}
