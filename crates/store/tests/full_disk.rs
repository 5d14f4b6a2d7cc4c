//! A disk that is really full: a small file system of its own, where one may be mounted. Apart from the other tests, as a
//! process that starts others keeps their locks for a moment.

use std::{
    env, fs,
    future::Future,
    io::Write,
    path::Path,
    pin::pin,
    process::Command,
    sync::mpsc,
    task::{Context, Poll, Waker},
};

use store::{Config, Error, Log, Record};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Gone with the test.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(bytes: u64) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().expect("there is a folder for temporary files");
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Tmpfs(dir))
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=1g"]).arg(self.0.path()).status();
        assert!(grown.is_ok_and(|status| status.success()), "what could be mounted can be grown");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn open(dir: &Path) -> (Log, store::Worker) {
    Log::open(Config { reserve: 16 * MIB, cache: 0, ..Config::new(dir.join("log")) }).expect("the log is in order")
}

/// With one append at a time there is always room in the queue, so the future is ready at once.
fn append(log: &Log, index: u64) -> Result<(), Error> {
    let (sender, durable) = mpsc::channel();
    let record = Record { index, bytes: vec![index as u8; 64 << 10].into() };
    let appending = pin!(log.append(vec![record], move |result| drop(sender.send(result))));
    match appending.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(taken) => taken?,
        Poll::Pending => panic!("the queue is full"),
    }
    durable.recv().expect("every append is answered")
}

/// Set for this program where it was started again with the right to mount.
const AGAIN: &str = "STORE_TEST_AGAIN";

/// Runs this test once more where anyone may mount. Where not even that is allowed it is said past the harness, which
/// keeps what a passing test says; continuous integration has to allow it.
fn as_root_of_a_namespace() {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--"]);
        command
    };
    let allowed = unshare().arg("true").output().is_ok_and(|output| output.status.success());
    if allowed && env::var_os(AGAIN).is_none() {
        let again = unshare().arg(env::current_exe().expect("this very program")).env(AGAIN, "1").output();
        let again = again.expect("it was allowed just now");
        assert!(again.status.success(), "in a namespace of its own: {}", String::from_utf8_lossy(&again.stdout));
        return;
    }
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "no file system may be mounted here");
    let said =
        b"\nNOT TESTED: a full disk. No file system may be mounted here; run it as root, or allow user namespaces\n";
    std::io::stderr().write_all(said).expect("stderr is there");
}

#[test]
fn a_full_disk_refuses_cleanly_opens_and_serves_again_when_there_is_room() {
    let Some(tmpfs) = Tmpfs::mount(56 * MIB) else { return as_root_of_a_namespace() };
    let ballast = tmpfs.0.path().join("ballast");
    fs::write(&ballast, vec![0; 20 << 20]).unwrap();

    let (log, worker) = open(tmpfs.0.path());
    assert!(!log.space().unwrap().low);
    let (acknowledged, cause) =
        (0..).find_map(|index| append(&log, index).err().map(|cause| (index, cause))).expect("the disk is small");
    assert!(matches!(cause, Error::NoSpace { .. }), "{cause:?}");
    assert!(acknowledged > 0);
    assert!(log.space().unwrap().low, "the reserve is spent");
    assert!(log.failure().is_none(), "nothing was half written, so nothing has failed");
    assert_eq!(log.read(..).unwrap().len() as u64, acknowledged);
    drop(log);
    worker.join();

    // Full from the start: it opens, and all is there.
    let (log, worker) = open(tmpfs.0.path());
    assert_eq!(log.read(..).unwrap().len() as u64, acknowledged);
    assert!(log.space().unwrap().low);
    tmpfs.grow();
    append(&log, acknowledged).unwrap();
    assert_eq!(log.read(..).unwrap().len() as u64, acknowledged + 1);
    drop(log);
    worker.join();
}
