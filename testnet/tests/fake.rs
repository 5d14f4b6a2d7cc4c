//! The testnet's own logic, on a small shell script in the place of `omx`: whether starting, finding again, signalling
//! and ending work does not depend on what the processes do.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use testnet::{Condition, Options, Testnet};

const LIMIT: Duration = Duration::from_secs(20);

fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-omx")
}

fn up(dir: &Path, count: usize, arguments: &[&str]) -> anyhow::Result<Testnet> {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Testnet::up(&binary(), dir, count, &Options { arguments, ..Options::default() })
}

fn is_alive(pid: u32) -> bool {
    std::process::Command::new("kill").args(["-0", &pid.to_string()]).output().unwrap().status.success()
}

#[test]
fn nodes_come_up_as_members_of_one_mesh_each_by_a_token_of_its_own() {
    let scratch = tempfile::tempdir().unwrap();
    let testnet = up(scratch.path(), 3, &[]).unwrap();
    for (node, name) in testnet.nodes().iter().zip(["n1", "n2", "n3"]) {
        assert_eq!(node.run().unwrap().peer_id, format!("id-{name}"));
        assert_eq!(node.run().unwrap().pid, node.pid().unwrap());
        assert_eq!(node.status().unwrap()["members"].as_array().unwrap().len(), 3);
    }
    assert_eq!(testnet.nodes()[0].last_words(), "");
    assert_ne!(testnet.nodes()[1].last_words(), testnet.nodes()[2].last_words());
}

#[test]
fn a_killed_node_starts_again_at_its_old_address_and_without_its_token() {
    let scratch = tempfile::tempdir().unwrap();
    let mut testnet = up(scratch.path(), 2, &[]).unwrap();
    let node = testnet.node("n2").unwrap();
    let before = node.run().unwrap().clone();
    node.kill9().unwrap();
    assert_eq!(node.condition(), Condition::Stopped);
    assert!(node.run().is_err() && node.kill9().is_err());

    node.start().unwrap();
    let after = node.run().unwrap();
    assert_ne!(after.pid, before.pid);
    assert_eq!((after.api, &after.mesh, after.bulk), (before.api, &before.mesh, before.bulk));
    assert_eq!(node.last_words().lines().count(), 1, "{}", node.last_words());
}

#[test]
fn a_frozen_node_is_seen_frozen_until_it_is_thawed() {
    let scratch = tempfile::tempdir().unwrap();
    let mut testnet = up(scratch.path(), 1, &[]).unwrap();
    let node = testnet.node("n1").unwrap();
    node.freeze().unwrap();
    assert_eq!(node.condition(), Condition::Frozen);
    node.thaw().unwrap();
    testnet::wait_until("it runs", LIMIT, || match node.condition() {
        Condition::Running => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .unwrap();
    assert!(node.term(LIMIT).unwrap().unwrap().success());
    assert!(!node.dir().join("run.json").exists());
}

#[test]
fn a_testnet_that_was_kept_is_found_again_and_taken_down() {
    let scratch = tempfile::tempdir().unwrap();
    let first = up(scratch.path(), 2, &[]).unwrap();
    let pids: Vec<u32> = first.nodes().iter().map(|node| node.pid().unwrap()).collect();
    // These are our children whoever looks after them; something must wait for them, or they stay as zombies.
    first.keep().unwrap();

    let mut second = Testnet::open(scratch.path()).unwrap();
    assert_eq!(second.nodes().iter().map(|node| node.pid().unwrap()).collect::<Vec<_>>(), pids);
    second.node("n2").unwrap().freeze().unwrap();
    drop(second);
    assert!(pids.iter().all(|&pid| is_alive(pid)), "a testnet ended what it had only found");

    std::fs::write(scratch.path().join("not-ours"), "").unwrap();
    let third = Testnet::open(scratch.path()).unwrap();
    assert_eq!(third.down().unwrap(), [""; 0]);
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.contains(&"not-ours".into()) && !left.contains(&"n1".into()), "{left:?}");
    assert!(Testnet::open(scratch.path()).is_err());
}

#[test]
fn a_folder_that_holds_a_testnet_is_not_used_for_another() {
    let scratch = tempfile::tempdir().unwrap();
    let _first = up(scratch.path(), 1, &[]).unwrap();
    let error = up(scratch.path(), 1, &[]).unwrap_err();
    assert!(error.to_string().contains("holds a testnet already"), "{error}");
}

#[test]
fn processes_end_with_the_testnet_that_started_them() {
    let scratch = tempfile::tempdir().unwrap();
    let testnet = up(scratch.path(), 2, &[]).unwrap();
    let pids: Vec<u32> = testnet.nodes().iter().map(|node| node.pid().unwrap()).collect();
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    drop(testnet);
    assert!(!pids.iter().any(|&pid| is_alive(pid)));
}

#[test]
fn a_node_that_ends_instead_of_becoming_ready_is_told_with_what_it_said() {
    let scratch = tempfile::tempdir().unwrap();
    let error = up(scratch.path(), 1, &["refuse"]).unwrap_err();
    assert!(error.to_string().contains("told to refuse"), "{error:#}");
}

#[test]
fn a_node_that_does_not_listen_to_reason_goes_on_until_it_is_killed() {
    let scratch = tempfile::tempdir().unwrap();
    let mut testnet = up(scratch.path(), 1, &["stubborn"]).unwrap();
    let node = testnet.node("n1").unwrap();
    let error = node.term(Duration::from_millis(200)).unwrap_err();
    assert!(error.to_string().contains("goes on"), "{error:#}");
    assert_eq!(node.condition(), Condition::Running);
    node.kill9().unwrap();
}

#[test]
fn a_failed_command_is_told_with_what_it_said() {
    let scratch = tempfile::tempdir().unwrap();
    let testnet = up(scratch.path(), 1, &[]).unwrap();
    let error = testnet.nodes()[0].json(&["dance"]).unwrap_err();
    assert!(error.to_string().contains("no verb ` dance`"), "{error:#}");
    assert_eq!(testnet.nodes()[0].cli(&["dance"]).unwrap().status.code(), Some(2));
}
