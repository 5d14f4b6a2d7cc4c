//! A disk that is full.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rig::*;
use crate::disk::Disk;
use crate::{Stage, State};

/// So many bytes are free, and no blocks can be taken beforehand.
struct Small(AtomicU64);

impl Disk for Small {
    fn free(&self, _: &Path) -> io::Result<u64> {
        // Somebody else writes to the disk as well: what looked free is not there when it is written to.
        Ok(self.0.load(Ordering::Relaxed) * 10)
    }

    fn allocate(&self, _: &File, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let take = |free: u64| free.checked_sub(bytes.len() as u64);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => crate::disk::Os.write_at(file, bytes, offset),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_half_way_is_waited_for_and_nothing_is_lost() {
    let mut mesh = Mesh::new();
    let bytes = content(20 * MIB, 31);
    mesh.holder(&bytes).await;
    let disk = Arc::new(Small(AtomicU64::new(7 * MIB as u64)));
    let receiver = mesh.node_on(disk.clone());
    let fetch = receiver.fetch(want(&bytes), sources([0]));
    let mut progress = fetch.progress();
    let is_waiting = |progress: &crate::Progress| matches!(progress.stage, Stage::WaitingForSpace { .. });
    within(progress.wait_for(is_waiting)).await.unwrap();
    eventually("what fits is written", || {
        matches!(receiver.state(&want(&bytes).hash), State::Partial { chunks: 7, .. })
    })
    .await;
    disk.0.store(100 * MIB as u64, Ordering::Relaxed);
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_fit_is_not_begun() {
    let mut mesh = Mesh::new();
    let bytes = content(20 * MIB, 32);
    let source = mesh.holder(&bytes).await;
    let disk = Arc::new(Small(AtomicU64::new(2 * MIB as u64)));
    let receiver = mesh.node_on(disk.clone());
    let fetch = receiver.fetch(want(&bytes), sources([0]));
    let mut progress = fetch.progress();
    let short = Stage::WaitingForSpace { needed: 21 * MIB as u64, free: 20 * MIB as u64 };
    within(progress.wait_for(|progress| progress.stage == short)).await.unwrap();
    assert_eq!(source.figures().bytes_out, 0);
    disk.0.store(100 * MIB as u64, Ordering::Relaxed);
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
}
