//! Export and import.

use super::rig::{Ground, append, records, wait};
use crate::{Config, Error, Log, Meta, import, snapshot};

/// A store with some of everything in it, and its export.
fn exported() -> (Log, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { reserve: 0, ..Config::new(dir.path().join("log")) };
    let snapshots = config.snapshots();
    let (log, _worker) = Log::open(config).unwrap();
    append(&log, records(0..=99, 1)).unwrap();
    wait(log.purge_to(40, b"at 40".to_vec())).unwrap();
    wait(log.put(Meta::Vote, b"vote".to_vec())).unwrap();
    wait(log.put(Meta::Committed, b"committed".to_vec())).unwrap();
    snapshot::write(&snapshots, "at-40", b"all there was").unwrap();
    let mut bytes = Vec::new();
    log.export(&mut bytes).unwrap();
    (log, bytes)
}

#[test]
fn an_export_brings_everything_back() {
    let (log, bytes) = exported();
    let dir = tempfile::tempdir().unwrap();
    let config = Config { reserve: 0, ..Config::new(dir.path().join("new")) };
    import(&config.dir, &bytes[..]).unwrap();
    assert_eq!(snapshot::read(&config.snapshots(), "at-40").unwrap(), b"all there was");
    let (copy, _worker) = Log::open(config).unwrap();
    assert_eq!(copy.bounds(), log.bounds());
    assert_eq!(copy.read(..).unwrap(), log.read(..).unwrap());
    assert_eq!(copy.get(Meta::Vote).unwrap(), b"vote");
    assert_eq!(copy.get(Meta::Committed).unwrap(), b"committed");
    let mut again = Vec::new();
    copy.export(&mut again).unwrap();
    assert_eq!(again, bytes);
}

#[test]
fn a_log_in_memory_can_be_exported_too() {
    let Ground::Memory(disk) = Ground::memory() else { unreachable!() };
    let log = Log::on(&disk).unwrap();
    append(&log, records(0..=9, 1)).unwrap();
    let mut bytes = Vec::new();
    log.export(&mut bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), &bytes[..]).unwrap();
    let (copy, _worker) = Log::open(Config { reserve: 0, ..Config::new(dir.path()) }).unwrap();
    assert_eq!(copy.read(..).unwrap(), records(0..=9, 1));
}

#[test]
fn only_an_empty_folder_is_imported_into() {
    let (_, bytes) = exported();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "x").unwrap();
    assert!(matches!(import(dir.path(), &bytes[..]), Err(Error::NotEmpty { .. })));
}

#[test]
fn an_export_that_was_cut_or_changed_leaves_nothing_behind() {
    let (_, bytes) = exported();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    let step = bytes.len() / 40;
    let cuts = (0..bytes.len()).step_by(step).map(|len| bytes[..len].to_vec());
    let flips = (0..bytes.len()).step_by(step).map(|at| {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        flipped
    });
    for bad in cuts.chain(flips) {
        assert!(import(&target, &bad[..]).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
