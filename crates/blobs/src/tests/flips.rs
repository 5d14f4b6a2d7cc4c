//! Bits that flip on the disk.

use std::collections::BTreeSet;
use std::fs;

use super::rig::*;
use crate::{RepairError, Stage, State};

fn flip(path: &std::path::Path, size: usize, flips: usize, seed: u64) -> BTreeSet<u32> {
    let mut bytes = fs::read(path).unwrap();
    let mut word = seed | 1;
    let mut damaged = BTreeSet::new();
    let mut flipped = BTreeSet::new();
    while flipped.len() < flips {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (word >> 20) as usize % size;
        if flipped.insert(at) {
            bytes[at] ^= 1 << (word >> 61);
            damaged.insert((at / MIB) as u32);
        }
    }
    // In place: it stays the file it was, as when the disk does it.
    use std::io::Write;
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_modified(modified).unwrap();
    damaged
}

#[tokio::test(start_paused = true)]
async fn a_thousand_flipped_bits_are_found_repaired_and_never_served() {
    let mut mesh = Mesh::new();
    let mut left = 1000;
    let (good, victim, reader) = (mesh.node(), mesh.node(), mesh.node());
    let mut expected = 0;
    for round in 0..20 {
        let size = (3 + round % 5) * MIB + round;
        let bytes = content(size, round as u64);
        let hash = want(&bytes).hash;
        good.refer(mesh.file("good", &bytes), |_| {}).await.unwrap();
        let path = within(victim.fetch(want(&bytes), sources([0])).done()).await.unwrap();
        // One bit in the first rounds, as a disk does it; many in the last.
        let flips = if round < 19 { 1 + round * 5 } else { left };
        left -= flips;
        let damaged = flip(&path, size, flips, round as u64 + 1);
        expected += damaged.len() as u64;

        let fetch = reader.fetch(want(&bytes), sources([1]));
        let mut progress = fetch.progress();
        within(progress.wait_for(|progress| progress.stage == Stage::WaitingForSources)).await.unwrap();
        assert_eq!(reader.figures().chunks_bad, 0, "nothing bad was served");
        drop(fetch);
        let State::Damaged { chunks, .. } = victim.state(&hash) else { panic!("it was read and not found") };
        assert!(chunks.is_subset(&damaged));
        assert!(victim.damaged().borrow().contains(&hash) && !victim.whole().contains(&hash));

        let report = within(victim.repair(&hash, sources([0]))).await.unwrap();
        assert_eq!((report.damaged, report.repaired), (damaged, true));
        assert_same(&path, &bytes);
        assert_eq!(victim.state(&hash), State::Whole { path, ours: true });
        assert!(victim.damaged().borrow().is_empty());
        assert_same(&within(reader.fetch(want(&bytes), sources([1])).done()).await.unwrap(), &bytes);
    }
    assert_eq!(left, 0);
    let figures = victim.figures();
    assert_eq!((figures.damage_found, figures.chunks_repaired), (expected, expected));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_of_somebody_elses_is_left_as_it_is_and_a_good_copy_comes_to_us() {
    let mut mesh = Mesh::new();
    let bytes = content(8 * MIB, 21);
    mesh.holder(&bytes).await;
    let victim = mesh.holder(&bytes).await;
    let path = mesh.path("file-1");
    let damaged = flip(&path, bytes.len(), 2, 5);
    let hash = want(&bytes).hash;
    assert_eq!(victim.verify(&hash).await.unwrap().damaged, damaged);
    assert!(matches!(victim.state(&hash), State::Damaged { .. }));
    let before = fs::read(&path).unwrap();
    let report = within(victim.repair(&hash, sources([0]))).await.unwrap();
    assert!(report.is_good() && report.damaged == damaged);
    assert_same(&path, &before);
    let State::Whole { path: own, ours: true } = victim.state(&hash) else { panic!("no copy of our own") };
    assert_same(&own, &bytes);
    let fetched = victim.figures().bytes_in;
    assert!(fetched <= (damaged.len() * MIB) as u64, "the good chunks are not fetched: {fetched}");
}

#[tokio::test]
async fn what_is_good_is_left_alone_and_what_is_not_here_cannot_be_verified() {
    let mut mesh = Mesh::new();
    let bytes = content(2 * MIB, 22);
    let holder = mesh.holder(&bytes).await;
    let hash = want(&bytes).hash;
    let report = holder.repair(&hash, sources([])).await.unwrap();
    assert!(report.is_good() && !report.repaired && report.chunks == 2);
    // The list is made anew.
    fs::write(mesh.path("node-0").join("lists").join(hash.hex()), b"nothing").unwrap();
    assert!(holder.verify(&hash).await.unwrap().is_good());
    let receiver = mesh.node();
    assert_same(&within(receiver.fetch(want(&bytes), sources([0])).done()).await.unwrap(), &bytes);
    let absent = holder.repair(&want(b"").hash, sources([])).await.unwrap_err();
    assert!(matches!(absent, RepairError::Here(crate::Error::Absent { .. })), "{absent}");
}
