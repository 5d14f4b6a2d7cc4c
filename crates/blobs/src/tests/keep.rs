//! What is here: taken in, given away, forgotten, collected.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rig::*;
use crate::{Config, Error, State};

#[tokio::test]
async fn a_file_is_referred_to_in_place_and_read_once_while_it_stays_the_same() {
    let mut mesh = Mesh::new();
    let bytes = content(5 * MIB + 3, 41);
    let path = mesh.file("weights", &bytes);
    let node = mesh.node();
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = || {
        let told = told.clone();
        move |done| told.lock().unwrap().push(done)
    };
    let found = node.refer(&path, teller()).await.unwrap();
    assert_eq!(found, known(&bytes));
    assert_eq!(told.lock().unwrap().len(), 6);
    assert_eq!(node.refer(&path, teller()).await.unwrap(), found);
    assert_eq!(told.lock().unwrap().split_off(6), [bytes.len() as u64], "not read again");
    assert_eq!(node.state(&found.hash), State::Whole { path: path.clone(), ours: false });
    assert_eq!(walk(&mesh.path("node-0")).len(), 3, "the lock, a list and a record");

    let other = content(5 * MIB + 3, 42);
    fs::write(&path, &other).unwrap();
    assert_eq!(node.locate(&found.hash).await, None, "it is another file now");
    assert_eq!(node.state(&found.hash), State::Absent);
    assert_eq!(node.refer(&path, |_| {}).await.unwrap(), known(&other));
}

#[tokio::test]
async fn what_cannot_be_taken_in_is_refused_with_a_reason() {
    let mut mesh = Mesh::new();
    let node = mesh.node();
    let refused = node.refer(mesh.path("missing"), |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    let refused = node.refer(mesh.path("node-0"), |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::NotAFile { .. }), "{refused}");
    let huge = mesh.path("huge");
    fs::File::create(&huge).unwrap().set_len(crate::SIZE_MAX + 1).unwrap();
    let refused = node.refer(&huge, |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
}

#[tokio::test]
async fn our_copy_gives_way_to_one_that_was_linked_moved_or_copied_elsewhere() {
    let mut mesh = Mesh::new();
    let node = mesh.node();
    let elsewhere = mesh.path("elsewhere");
    for (seed, how) in [(1, "linked"), (2, "moved"), (3, "copied")] {
        let bytes = content(2 * MIB + 9, seed);
        let hash = node.adopt(bytes.clone()).await.unwrap().hash;
        let own = node.locate(&hash).await.unwrap();
        let _ = fs::remove_file(&elsewhere);
        match how {
            "linked" => fs::hard_link(&own, &elsewhere).unwrap(),
            "moved" => fs::rename(&own, &elsewhere).unwrap(),
            _ => _ = fs::copy(&own, &elsewhere).unwrap(),
        }
        node.release(&hash, &elsewhere).await.unwrap();
        assert!(!own.exists());
        assert_eq!(node.state(&hash), State::Whole { path: elsewhere.clone(), ours: false }, "{how}");
        assert!(node.verify(&hash).await.unwrap().is_good());
    }
    let bytes = content(2 * MIB, 4);
    let hash = node.adopt(bytes.clone()).await.unwrap().hash;
    fs::write(&elsewhere, content(2 * MIB, 5)).unwrap();
    let refused = node.release(&hash, &elsewhere).await.unwrap_err();
    assert!(matches!(refused, Error::OtherContent { .. }), "{refused}");
    assert_same(&node.locate(&hash).await.unwrap(), &bytes);
}

#[tokio::test]
async fn collecting_frees_what_is_ours_and_only_forgets_what_is_not() {
    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB, 51);
    let file = mesh.file("weights", &bytes);
    let node = mesh.node();
    let referred = node.refer(&file, |_| {}).await.unwrap();
    let kept = node.adopt(*b"kept").await.unwrap();
    let held = node.adopt(*b"held").await.unwrap();
    let free = node.adopt(*b"free").await.unwrap();
    let hold = node.hold(held.hash);
    let keep = BTreeSet::from([kept.hash]);
    let mut expected = vec![(referred.hash, referred.size, 0), (free.hash, free.size, free.size)];
    expected.sort();
    let plain = |collected: Vec<crate::Collected>| {
        let mut plain: Vec<_> = collected.iter().map(|one| (one.hash, one.size, one.freed)).collect();
        plain.sort();
        plain
    };
    assert_eq!(plain(node.collect_dry(&keep).await.unwrap()), expected);
    assert!(matches!(node.state(&free.hash), State::Whole { .. }), "nothing was done");
    assert_eq!(plain(node.collect(&keep).await.unwrap()), expected);
    assert_eq!((node.state(&free.hash), node.state(&referred.hash)), (State::Absent, State::Absent));
    assert_same(&file, &bytes);
    assert!(node.locate(&kept.hash).await.is_some() && node.locate(&held.hash).await.is_some());
    drop(hold);
    assert_eq!(node.collect(&keep).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_came_a_moment_ago_is_not_collected() {
    let mut mesh = Mesh::new();
    let config = Config::new(mesh.path("careful"));
    let node = mesh.node_with(config, Arc::new(crate::disk::Os));
    let new = node.adopt(*b"new").await.unwrap();
    assert!(node.collect(&BTreeSet::new()).await.unwrap().is_empty());
    assert!(node.locate(&new.hash).await.is_some());
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_kept_stays_when_its_owner_removes_it_and_takes_no_room_until_then() {
    use std::os::unix::fs::MetadataExt as _;

    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB + 1, 61);
    let file = mesh.file("weights", &bytes);
    let node = mesh.node();
    let known = node.refer(&file, |_| {}).await.unwrap();
    assert!(!node.keep(&known.hash, mesh.path("elsewhere")).await.unwrap(), "that is no file we refer to");
    assert!(node.keep(&known.hash, &file).await.unwrap() && node.keep(&known.hash, &file).await.unwrap());
    let State::Whole { path: own, ours: true } = node.state(&known.hash) else {
        panic!("{:?}", node.state(&known.hash))
    };
    assert_eq!(fs::metadata(&own).unwrap().ino(), fs::metadata(&file).unwrap().ino(), "nothing was copied");
    let dry = node.collect_dry(&BTreeSet::new()).await.unwrap();
    assert_eq!((dry.len(), dry[0].freed, dry[0].sha256), (1, 0, Some(known.sha256)), "its owner has it still");
    fs::remove_file(&file).unwrap();
    assert_same(&node.locate(&known.hash).await.unwrap(), &bytes);
    assert_eq!(node.collect(&BTreeSet::new()).await.unwrap()[0].freed, known.size);

    // A way to a file is not the file.
    let (target, way) = (mesh.file("target", &bytes), mesh.path("way"));
    std::os::unix::fs::symlink(&target, &way).unwrap();
    let known = node.refer(&way, |_| {}).await.unwrap();
    assert!(!node.keep(&known.hash, &way).await.unwrap());
    assert_eq!(node.state(&known.hash), State::Whole { path: way, ours: false });
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_others_have_too_is_not_written_to_when_it_is_repaired() {
    let mut mesh = Mesh::new();
    let bytes = content(4 * MIB, 62);
    mesh.holder(&bytes).await;
    let file = mesh.file("weights", &bytes);
    let node = mesh.node();
    let hash = node.refer(&file, |_| {}).await.unwrap().hash;
    assert!(node.keep(&hash, &file).await.unwrap());
    let mut wrong = bytes.clone();
    wrong[2 * MIB + 5] ^= 1;
    fs::write(&file, &wrong).unwrap();
    let report = within(node.repair(&hash, sources([0]))).await.unwrap();
    assert_eq!((report.damaged.len(), report.repaired), (1, true));
    assert_same(&file, &wrong);
    assert_same(&node.locate(&hash).await.unwrap(), &bytes);
    assert!(matches!(node.state(&hash), State::Whole { ours: true, .. }));
}

#[tokio::test]
async fn a_file_is_what_it_holds_and_not_how_long_it_is() {
    let mut mesh = Mesh::new();
    let (bytes, other) = (content(2 * MIB + 7, 63), content(2 * MIB + 7, 64));
    let node = mesh.node();
    let hash = node.adopt(bytes.clone()).await.unwrap().hash;
    let (good, wrong) = (mesh.file("good", &bytes), mesh.file("wrong", &other));
    assert!(node.lies_at(&hash, &good).await.unwrap());
    assert!(!node.lies_at(&hash, &wrong).await.unwrap());
    assert!(!node.lies_at(&hash, mesh.file("short", b"x")).await.unwrap());
    // It was read, so it stands in for ours from now on.
    node.release(&hash, &good).await.unwrap();
    assert_eq!(node.state(&hash), State::Whole { path: good.clone(), ours: false });
    fs::write(&good, &other).unwrap();
    assert!(!node.lies_at(&hash, &good).await.unwrap());
    let missing = node.lies_at(&hash, mesh.path("missing")).await.unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}

#[tokio::test]
async fn a_survey_sees_what_others_have_removed() {
    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB, 65);
    let file = mesh.file("weights", &bytes);
    let node = mesh.node();
    let hash = node.refer(&file, |_| {}).await.unwrap().hash;
    let own = node.adopt(*b"own").await.unwrap().hash;
    assert_eq!(node.survey().await.unwrap().whole, BTreeSet::from([hash, own]));
    fs::remove_file(&file).unwrap();
    assert_eq!(node.survey().await.unwrap().whole, BTreeSet::from([own]));
}

#[tokio::test]
async fn unfinished_fetches_are_collected_when_they_are_old_and_nobody_runs_them() {
    let mut mesh = Mesh::new();
    let bytes = content(6 * MIB, 52);
    mesh.holder(&bytes).await;
    let dir = mesh.path("receiver");
    let old = Config { partial_age_max: Duration::ZERO, ..Config::new(&dir) };
    let receiver = mesh.node_with(old, Arc::new(crate::disk::Os));
    let wrong = crate::Want { sha256: ollama::Digest::of(b""), ..want(&bytes) };
    within(receiver.fetch(wrong, sources([0])).done()).await.unwrap_err();
    let hash = want(&bytes).hash;
    assert!(matches!(receiver.state(&hash), State::Partial { .. }));
    let part = crate::Part { chunks: 6, of: 6 };
    assert_eq!(receiver.survey().await.unwrap().partial.into_iter().collect::<Vec<_>>(), [(hash, part)]);
    let running = receiver.fetch(crate::Want { hash: want(b"").hash, ..wrong }, sources([]));
    assert!(receiver.collect(&BTreeSet::from([hash])).await.unwrap().is_empty());
    let collected = receiver.collect(&BTreeSet::new()).await.unwrap();
    assert_eq!(collected.iter().map(|one| one.hash).collect::<Vec<_>>(), [hash]);
    assert_eq!(receiver.state(&hash), State::Absent);
    drop(running);
}
