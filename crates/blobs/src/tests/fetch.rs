//! What goes well, and what is waited for.

use std::sync::atomic::Ordering;

use super::rig::*;
use crate::{FetchError, Stage, State, Want};

#[tokio::test]
async fn blobs_of_every_shape_arrive_as_they_were() {
    let mut mesh = Mesh::new();
    let (source, receiver) = (mesh.node(), mesh.node());
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB + 77] {
        let bytes = content(size, size as u64);
        let path = mesh.file(&format!("blob-{size}"), &bytes);
        assert_eq!(source.refer(path, |_| {}).await.unwrap(), known(&bytes));
        let fetch = receiver.fetch(want(&bytes), sources([0]));
        let path = within(fetch.done()).await.unwrap();
        assert_same(&path, &bytes);
        assert_eq!(receiver.state(&want(&bytes).hash), State::Whole { path: path.clone(), ours: true });
        assert_eq!(receiver.known_by_sha256(&want(&bytes).sha256), Some(known(&bytes)));
        assert_eq!(fetch.progress().borrow().stage, Stage::Done);
        assert_eq!(fetch.progress().borrow().bytes, size as u64);
        assert_eq!(within(receiver.fetch(want(&bytes), sources([])).done()).await.unwrap(), path, "at once");
    }
    assert!(receiver.transfers().is_empty());
    assert_eq!((source.figures().fetches_done, receiver.figures().fetches_done), (0, 7));
    assert_eq!(receiver.figures().bytes_wasted, 0);
}

#[tokio::test]
async fn several_sources_share_the_work_and_receivers_help_each_other() {
    let mut mesh = Mesh::new();
    let bytes = content(40 * MIB + 5, 3);
    for _ in 0..3 {
        mesh.holder(&bytes).await;
    }
    let receivers = [mesh.node(), mesh.node(), mesh.node()];
    let fetches = receivers.each_ref().map(|node| node.fetch(want(&bytes), sources(0..6)));
    for fetch in &fetches {
        assert_same(&within(fetch.done()).await.unwrap(), &bytes);
    }
    for fetch in &fetches {
        let progress = fetch.progress().borrow().clone();
        assert!(progress.sources.iter().filter(|source| source.bytes > 0).count() > 1, "{progress:?}");
    }
}

#[tokio::test]
async fn who_joins_a_fetch_shares_it_and_the_last_to_leave_cancels_it() {
    let mut mesh = Mesh::new();
    let bytes = content(4 * MIB, 4);
    mesh.holder(&bytes).await;
    let receiver = mesh.node();
    let (from, switch) = switched([0]);
    let first = receiver.fetch(want(&bytes), from);
    let second = receiver.fetch(want(&bytes), sources([]));
    assert_eq!(receiver.transfers().len(), 1);
    drop(first);
    switch.store(true, Ordering::Relaxed);
    assert_same(&within(second.done()).await.unwrap(), &bytes);

    let other = content(4 * MIB, 5);
    let fetch = receiver.fetch(want(&other), sources([]));
    let done = fetch.clone();
    let progress = fetch.progress();
    drop((fetch, done));
    eventually("the fetch has ended", || receiver.transfers().is_empty()).await;
    assert_eq!(progress.borrow().stage, Stage::Failed);
}

#[tokio::test(start_paused = true)]
async fn when_all_sources_are_gone_it_waits_and_goes_on_when_one_is_back() {
    let mut mesh = Mesh::new();
    let bytes = content(30 * MIB, 6);
    let source = mesh.holder(&bytes).await;
    let receiver = mesh.node();
    // Slow enough to be interrupted half-way.
    source.set_limits(std::num::NonZeroU64::new(4 << 20), None);
    let fetch = receiver.fetch(want(&bytes), sources([0]));
    eventually("some of it is here", || fetch.progress().borrow().bytes > 3 << 20).await;
    mesh.fabric.isolate(id(0));
    let mut progress = fetch.progress();
    within(progress.wait_for(|progress| progress.stage == Stage::WaitingForSources)).await.unwrap();
    let before = receiver.figures().bytes_in;
    assert!(matches!(receiver.state(&want(&bytes).hash), State::Partial { of: 30, chunks: 3.. }));
    source.set_limits(None, None);
    mesh.fabric.heal();
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
    assert_eq!(receiver.figures().bytes_in, bytes.len() as u64, "nothing came twice, {before} before the cut");
}

#[tokio::test]
async fn a_wrong_binding_is_found_and_nothing_is_published() {
    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB, 7);
    mesh.holder(&bytes).await;
    let receiver = mesh.node();
    let right = want(&bytes);
    let wrong = Want { sha256: ollama::Digest::of(b"something else"), ..right };
    let error = within(receiver.fetch(wrong, sources([0])).done()).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongBinding { found, .. } if found == right.sha256), "{error}");
    assert!(matches!(receiver.state(&right.hash), State::Partial { chunks: 3, of: 3 }));
    // The right one has all it needs.
    assert_same(&within(receiver.fetch(right, sources([])).done()).await.unwrap(), &bytes);
    let error = within(receiver.fetch(wrong, sources([0])).done()).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongBinding { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_size_is_proven_by_honest_peers_and_not_taken_for_their_lie() {
    let mut mesh = Mesh::new();
    let receiver = mesh.node();
    for (size, wrong) in [(3 * MIB, 3 * MIB - 1), (3 * MIB, 5), (5, 3 * MIB), (0, 1), (MIB + 1, MIB), (MIB, MIB + 1)] {
        let bytes = content(size, size as u64);
        let path = mesh.file("blob", &bytes);
        mesh.node().refer(path, |_| {}).await.unwrap();
        let holder = mesh.count() - 1;
        let fetch = receiver.fetch(Want { size: wrong as u64, ..want(&bytes) }, sources([holder]));
        let error = within(fetch.done()).await.unwrap_err();
        assert!(matches!(error, FetchError::WrongSize { proven, .. } if proven == size as u64), "{error}");
    }
    assert_eq!(receiver.figures().liars, 0);
    let huge = Want { size: crate::SIZE_MAX + 1, ..want(b"") };
    let error = within(receiver.fetch(huge, sources([])).done()).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_fetch_that_was_cancelled_is_gone_on_with_and_one_that_was_forgotten_is_not() {
    let mut mesh = Mesh::new();
    let bytes = content(20 * MIB, 8);
    let source = mesh.holder(&bytes).await;
    let receiver = mesh.node();
    let hash = want(&bytes).hash;
    source.set_limits(std::num::NonZeroU64::new(20 << 20), None);
    let fetch = receiver.fetch(want(&bytes), sources([0]));
    eventually("some of it is here", || receiver.figures().bytes_in > 5 << 20).await;
    drop(fetch);
    eventually("the fetch has ended", || receiver.transfers().is_empty()).await;
    source.set_limits(None, None);
    within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap();
    let twice = receiver.figures().bytes_in - bytes.len() as u64;
    assert!(twice <= 8 << 20, "{twice} bytes were fetched again");
    receiver.forget(&hash).await.unwrap();
    assert_eq!(receiver.state(&hash), State::Absent);
    let files = walk(&mesh.path("node-1"));
    assert_eq!(files, ["lock"], "nothing is left");
    assert_same(&within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap(), &bytes);
}
