//! Ends at any moment, and what the next start makes of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Builder;

use super::rig::*;
use crate::bits::Bits;
use crate::disk::Os;
use crate::journal::Journal;
use crate::{Config, State, Want};

/// What a start may fetch again: what was on its way, and what was not noted.
const AGAIN_MAX: u64 = 16 << 20;

/// One life of a node that fetches, ended without a word as soon as `enough` bytes have come. Returns what has come, and
/// whether the blob is whole.
fn life(source: &Path, dir: &Path, want: Want, enough: u64) -> (u64, Option<PathBuf>) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut mesh = Mesh::new();
        // It knows its file from its first life.
        mesh.node_with(Config::new(source), Arc::new(Os)).refer(source.join("file"), |_| {}).await.unwrap();
        let receiver = mesh.node_with(Config::new(dir), Arc::new(Os));
        let fetch = receiver.fetch(want, sources([0]));
        let stop = async {
            while receiver.figures().bytes_in < enough {
                tokio::task::yield_now().await;
            }
        };
        let path = tokio::select! {
            path = fetch.done() => Some(path.unwrap()),
            () = stop => None,
        };
        (receiver.figures().bytes_in, path)
    })
}

#[test]
fn two_hundred_ends_at_random_bytes_cost_little_and_leave_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(24 * MIB + 1234, 11);
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), &bytes).unwrap();
    let want = want(&bytes);
    let mut seed = 7_u64;
    let (mut kills, mut round) = (0, 0);
    while kills < 200 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let node = dir.path().join(format!("{round}"));
        let before = left(&node, &want);
        let (fetched, whole) = life(&source, &node, want, (seed >> 33) % (16 * MIB as u64));
        if let Some(path) = whole {
            assert_same(&path, &bytes);
            std::fs::remove_dir_all(&node).unwrap();
            round += 1;
            continue;
        }
        kills += 1;
        // Whatever has come is there at the next start, but for what may be fetched again.
        let left = left(&node, &want);
        assert!(left + AGAIN_MAX >= before + fetched, "at kill {kills}: {before} and {fetched}, {left} left");
    }
    assert!(round > 3, "some came through: {round}");
}

fn left(dir: &Path, Want { hash, size, .. }: &Want) -> u64 {
    // Ended right behind its publication.
    if dir.join("whole").join(hash.hex()).exists() {
        return *size;
    }
    let journal = dir.join("partial").join(hash.hex()).with_extension("journal");
    Journal::look(&journal, hash).map_or(0, |found| u64::from(found.sure.count() + found.likely.count()) << 20)
}

/// After a power cut the journal may know more than the disk.
#[tokio::test]
async fn chunks_that_were_noted_and_never_reached_the_disk_are_fetched_again() {
    let mut mesh = Mesh::new();
    let bytes = content(10 * MIB, 12);
    mesh.holder(&bytes).await;
    let hash = want(&bytes).hash;
    let dir = mesh.path("node-1");
    for part in ["partial", "lists"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    let list = list_of(&bytes);
    let listed = [&b"omx list 1\n"[..], &list.size().to_le_bytes(), list.to_bytes()].concat();
    std::fs::write(dir.join("lists").join(hash.hex()), listed).unwrap();
    let mut there = bytes.clone();
    there[5 * MIB..7 * MIB].fill(0);
    let partial = dir.join("partial").join(hash.hex());
    std::fs::write(&partial, &there).unwrap();
    let mut journal = Journal::create(&partial.with_extension("journal"), &hash, list.size()).unwrap();
    (0..3).for_each(|chunk| journal.wrote(chunk).unwrap());
    journal.synced(journal.length()).unwrap();
    (3..8).for_each(|chunk| journal.wrote(chunk).unwrap());
    drop(journal);
    let receiver = mesh.node();
    let path = within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap();
    assert_same(&path, &bytes);
    assert_eq!(receiver.figures().bytes_in, 4 * MIB as u64, "5 and 6, and 8 and 9");
}

/// What was synced is not read again at the start, so a disk that changed it is found by the SHA-256 at the end.
#[tokio::test]
async fn a_chunk_that_changed_in_a_partial_blob_is_found_and_fetched_again() {
    let mut mesh = Mesh::new();
    let bytes = content(6 * MIB, 13);
    mesh.holder(&bytes).await;
    let receiver = mesh.node();
    let hash = want(&bytes).hash;
    within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap();
    drop(mesh);

    let mut mesh = Mesh::new();
    mesh.holder(&bytes).await;
    let dir = mesh.path("node-1");
    for part in ["partial", "lists"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    let list = list_of(&bytes);
    let listed = [&b"omx list 1\n"[..], &list.size().to_le_bytes(), list.to_bytes()].concat();
    std::fs::write(dir.join("lists").join(hash.hex()), listed).unwrap();
    let mut there = bytes.clone();
    there[2 * MIB + 77] ^= 4;
    let partial = dir.join("partial").join(hash.hex());
    std::fs::write(&partial, &there).unwrap();
    let mut journal = Journal::create(&partial.with_extension("journal"), &hash, list.size()).unwrap();
    Bits::all(6).iter().for_each(|chunk| journal.wrote(chunk).unwrap());
    journal.synced(journal.length()).unwrap();
    drop(journal);
    let receiver = mesh.node();
    assert_eq!(receiver.state(&hash), State::Partial { chunks: 6, of: 6 });
    let path = within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap();
    assert_same(&path, &bytes);
    assert_eq!(receiver.figures().bytes_in, MIB as u64);
}

#[test]
fn a_folder_is_for_one_process_and_what_cannot_be_read_in_it_counts_as_absent() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut mesh = runtime.block_on(async { Mesh::new() });
    let dir = mesh.path("node-0");
    let (first, second) = runtime.block_on(async {
        let first = mesh.node();
        first.adopt(*b"small").await.unwrap();
        let net = mesh.net(0);
        (first, crate::new(Config::new(&dir), net))
    });
    assert!(matches!(second, Err(crate::Error::InUse { .. })));
    let hash = want(b"small").hash;
    drop((first, mesh));
    drop(runtime);

    let kept = tempfile::tempdir().unwrap();
    let open = || {
        // Its end takes all of the node with it.
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut mesh = Mesh::new();
            let blobs = mesh.node_with(Config::new(kept.path()), Arc::new(Os));
            if matches!(blobs.state(&hash), State::Absent) {
                blobs.adopt(*b"small").await.unwrap();
                return false;
            }
            true
        })
    };
    assert!(!open() && open(), "it is there at the next start");
    let record = kept.path().join("known").join(hash.hex());
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    std::fs::write(kept.path().join("known").join("../escape"), b"").unwrap();
    std::fs::write(kept.path().join("known").join("no-hash"), b"").unwrap();
    assert!(!open() && open());
}
