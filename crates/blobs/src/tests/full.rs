//! A disk that is full.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rig::*;
use crate::disk::Disk;
use crate::{Config, Stage, State};

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

/// A file system in memory, as long as this value lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` where this process may not mount one.
    fn mount(at: PathBuf, mib: u64) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(&at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(at))
    }

    fn resize(&self, mib: u64) {
        let resized = Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0).status();
        assert!(resized.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Nothing is injected here: the file system itself says that it is full.
#[tokio::test]
async fn a_real_disk_that_is_too_small_is_waited_for_and_the_fetch_goes_on_once_it_has_grown() {
    let mut mesh = Mesh::new();
    let bytes = content(20 * MIB, 33);
    let source = mesh.holder(&bytes).await;
    let Some(small) = Tmpfs::mount(mesh.path("small"), 12) else {
        println!("no file system can be mounted here: a full disk is tested as an injected error alone");
        return;
    };
    println!("a full disk is tested on a file system of 12 MiB");
    let os = Arc::new(crate::disk::Os);
    let receiver = mesh.node_with(Config::new(small.0.join("blobs")), os);
    let is_waiting = |progress: &crate::Progress| matches!(progress.stage, Stage::WaitingForSpace { .. });

    // It is seen beforehand that it does not fit.
    let fetch = receiver.fetch(want(&bytes), sources([0]));
    let mut progress = fetch.progress();
    within(progress.wait_for(is_waiting)).await.unwrap();
    assert_eq!((source.figures().bytes_out, walk(&small.0.join("blobs")).len()), (0, 3), "lock, file and journal");
    small.resize(64);
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
    drop(fetch);
    within(receiver.forget(&want(&bytes).hash)).await.unwrap();

    // And half-way: somebody else takes the room that was there.
    let disk = Arc::new(Sparse);
    let dir = small.0.join("others");
    let late = mesh.node_with(Config::new(&dir), disk);
    let ballast = small.0.join("ballast");
    std::fs::write(&ballast, vec![1; 50 * MIB]).unwrap();
    let fetch = late.fetch(want(&bytes), sources([0]));
    let mut progress = fetch.progress();
    within(progress.wait_for(is_waiting)).await.unwrap();
    eventually("what fits is written", || matches!(late.state(&want(&bytes).hash), State::Partial { chunks: 5.., .. }))
        .await;
    std::fs::remove_file(&ballast).unwrap();
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
    let again = late.figures().bytes_in - bytes.len() as u64;
    assert!(again <= 16 * MIB as u64, "{again} bytes came again");
}

/// A disk that promises room without holding it, as one does that compresses or is shared.
struct Sparse;

impl Disk for Sparse {
    fn free(&self, _: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn allocate(&self, _: &File, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
