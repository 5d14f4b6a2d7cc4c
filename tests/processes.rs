//! Real processes: meshes of `omx` on loopback, killed, frozen and restarted.

#[path = "support/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testnet::{Options, Testnet, wait_until};

/// For anything that takes an election or two on a machine busy with other tests.
const LIMIT: Duration = Duration::from_secs(60);

fn mesh(dir: &Path, nodes: usize) -> Result<Testnet> {
    // Nobody asks a model here.
    let arguments = ["--engine", "off"].map(str::to_owned).into();
    Testnet::up(Path::new(env!("CARGO_BIN_EXE_omx")), dir, nodes, &Options { arguments, ..Options::default() })
}

fn leader(status: &Value) -> Option<String> {
    Some(status["leader"]["name"].as_str()?.to_owned())
}

fn up(status: &Value) -> usize {
    let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    members.iter().filter(|member| member["state"] == "up").count()
}

fn voters(status: &Value) -> usize {
    let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    members.iter().filter(|member| member["voter"] == true).count()
}

/// Writers that set labels of one node through any node that answers, each its own label to growing numbers.
struct Load {
    stop: Arc<AtomicBool>,
    /// The last acknowledged number of each writer.
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    writers: Vec<thread::JoinHandle<Result<()>>>,
}

impl Load {
    fn start(testnet: &Testnet, writers: usize) -> Self {
        let sockets: Vec<_> = testnet.nodes().iter().map(|node| node.dir().join("run/omx.sock")).collect();
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let writers = (0..writers).map(|writer| {
            let (sockets, stop, acknowledged) = (sockets.clone(), stop.clone(), acknowledged.clone());
            thread::spawn(move || {
                let key = format!("writer-{writer}");
                for number in 1.. {
                    // The same number until somebody has it: a later one then stands for all before it.
                    for socket in sockets.iter().cycle().skip(writer) {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let body = json!({"set": {key.clone(): number.to_string()}, "unset": []});
                        match http::ask(socket, "PATCH", "/omx/v1/nodes/n1/labels", Some(&body)) {
                            Ok((200, _)) => break,
                            Ok((503 | 504 | 507, _)) | Err(_) => {}
                            Ok((status, answer)) => bail!("a write got {status}: {answer}"),
                        }
                    }
                    acknowledged.lock().expect("no writer panics").insert(key.clone(), number);
                }
                Ok(())
            })
        });
        Self { writers: writers.collect(), stop, acknowledged }
    }

    fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.acknowledged.lock().expect("no writer panics").clone()
    }

    /// Waits until every writer has got through once more.
    fn goes_on(&self) -> Result<()> {
        let before = self.acknowledged();
        wait_until("every writer to be acknowledged again", LIMIT, || {
            let now = self.acknowledged();
            let further = |(key, number): (&String, &u64)| before.get(key).is_none_or(|before| number > before);
            ensure!(now.len() == self.writers.len() && now.iter().all(further), "{before:?} {now:?}");
            Ok(())
        })
    }

    fn stop(self) -> Result<BTreeMap<String, u64>> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("no writer panics")?;
        }
        Ok(self.acknowledged.lock().expect("no writer panics").clone())
    }
}

/// Every node shows, once it is up to date, at least what was acknowledged.
fn holds(testnet: &Testnet, acknowledged: &BTreeMap<String, u64>) -> Result<()> {
    for node in testnet.nodes() {
        let shown = wait_until("a fresh read", LIMIT, || node.json(&["nodes", "show", "n1"]))?;
        for (key, number) in acknowledged {
            let found: u64 = shown["labels"][key].as_str().unwrap_or("0").parse()?;
            ensure!(found >= *number, "node {} shows {found} for {key}, acknowledged was {number}", node.name());
        }
    }
    Ok(())
}

/// All nodes at one index, with one state.
fn same_state(testnet: &Testnet) -> Result<()> {
    wait_until("the same index and state on all nodes", LIMIT, || {
        let mut states = Vec::new();
        for node in testnet.nodes() {
            let status = node.status()?;
            states.push((status["index"].clone(), status["state_hash"].clone()));
        }
        ensure!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
        Ok(())
    })
}

/// Three of five vote, and every node sees every other: nobody's seat is about to be given to somebody else.
fn seated_and_up(testnet: &Testnet) -> Result<()> {
    for node in testnet.nodes() {
        let quiet = |status: &Value| (voters(status) == 3 && up(status) == 5).then_some(());
        node.wait_until("three voters and all five up", LIMIT, quiet)?;
    }
    Ok(())
}

/// Everybody's addresses are what it listens on: nobody has anything to tell the others any more.
fn addresses_known(testnet: &Testnet) -> Result<()> {
    wait_until("the mesh to know all addresses", LIMIT, || {
        for node in testnet.nodes() {
            let known = testnet.nodes()[0].json(&["nodes", "show", node.name()])?["addresses"].clone();
            let known: Vec<String> = serde_json::from_value(known)?;
            let missing = node.run()?.mesh.iter().find(|address| !known.contains(address));
            ensure!(missing.is_none(), "{missing:?} of {} is not among {known:?}", node.name());
        }
        Ok(())
    })
}

#[test]
fn five_nodes_lose_no_acknowledged_write_while_one_after_another_is_killed() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 5)?;
    testnet.nodes()[0].wait_until("three voters", LIMIT, |status| (voters(status) == 3).then_some(()))?;
    let load = Load::start(&testnet, 4);
    // The first write after the seats are taken stands behind that change in the log: it is through.
    load.goes_on()?;
    for round in 0..10 {
        // Every other round it is whoever leads just then.
        let name = match round % 2 {
            0 => testnet.nodes()[round / 2].wait_until("a leader", LIMIT, leader)?,
            _ => format!("n{}", 1 + round % 5),
        };
        testnet.node(&name)?.kill9()?;
        load.goes_on().with_context(|| format!("after {name} was killed in round {round}"))?;
        testnet.node(&name)?.start()?;
        load.goes_on().with_context(|| format!("after {name} came back in round {round}"))?;
    }
    let acknowledged = load.stop()?;
    ensure!(acknowledged.values().all(|number| *number > 10), "{acknowledged:?}");
    holds(&testnet, &acknowledged)?;
    addresses_known(&testnet)?;
    seated_and_up(&testnet)?;
    same_state(&testnet)?;

    // All at once: what they agree on afterwards is what they agreed on before.
    let before = testnet.nodes()[0].status()?;
    for node in testnet.nodes_mut() {
        node.kill9()?;
    }
    for node in testnet.nodes_mut() {
        node.launch()?;
    }
    for node in testnet.nodes_mut() {
        node.ready()?;
    }
    seated_and_up(&testnet)?;
    holds(&testnet, &acknowledged)?;
    same_state(&testnet)?;
    let after = testnet.nodes()[0].status()?;
    ensure!(after["mesh_id"] == before["mesh_id"]);
    ensure!(after["state_hash"] == before["state_hash"], "{before} {after}");
    Ok(())
}

#[test]
fn a_frozen_node_is_down_for_the_others_and_up_again_when_it_thaws() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 3)?;
    testnet.nodes()[0].wait_until("three voters", LIMIT, |status| (voters(status) == 3).then_some(()))?;
    let frozen = testnet.nodes()[0].wait_until("a leader", LIMIT, leader)?;
    testnet.node(&frozen)?.freeze()?;
    let others: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|name| *name != frozen).collect();
    let other = testnet.node(others[0])?;
    other.wait_until("another leader", LIMIT, |status| leader(status).filter(|name| *name != frozen))?;
    other.wait_until("one node down", LIMIT, |status| (up(status) == 2).then_some(()))?;
    other.text(&["config", "set", "mesh.name", "without it"])?;
    let thawed = testnet.node(&frozen)?;
    thawed.thaw()?;
    let read = wait_until("a fresh read where it was frozen", LIMIT, || thawed.json(&["config", "get", "mesh.name"]))?;
    ensure!(read["value"] == "without it" && read["index"].as_u64() > Some(0), "{read}");
    thawed.wait_until("all up", LIMIT, |status| (up(status) == 3).then_some(()))?;
    Ok(())
}

#[test]
fn a_removed_node_is_cut_off_and_stays_out() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 4)?;
    let n1 = testnet.node("n1")?;
    let unconfirmed = n1.cli(&["nodes", "remove", "n4"])?;
    ensure!(unconfirmed.status.code() == Some(2), "{:?}", unconfirmed.status);
    ensure!(String::from_utf8_lossy(&unconfirmed.stderr).contains("hint: give `--yes`"), "{unconfirmed:?}");
    n1.text(&["nodes", "remove", "n4", "--yes"])?;
    for name in ["n1", "n2", "n3"] {
        let gone = |status: &Value| (status["members"].as_array()?.len() == 3).then_some(());
        testnet.node(name)?.wait_until("three members", LIMIT, gone)?;
    }
    // It learns of it and stops by itself.
    let removed = testnet.node("n4")?;
    wait_until("the removed node to stop", LIMIT, || {
        ensure!(removed.condition() == testnet::Condition::Stopped, "it runs");
        Ok(())
    })?;
    let said = removed.last_words();
    ensure!(said.contains("no member of its mesh any more"), "{said}");

    // Neither its folder nor a token that would let in anybody else brings it back.
    let (dir, token) = (removed.dir(), testnet.node("n1")?.text(&["token", "create"])?);
    let ended = Command::new(env!("CARGO_BIN_EXE_omx"))
        .env_clear()
        .args(["up", "--no-mdns", "--engine", "off", "--join", &token, "--data-dir"])
        .arg(&dir)
        .args(["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--bulk", "127.0.0.1:0"])
        .output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(10), "{}: {said}", ended.status);
    for name in ["n1", "n2", "n3"] {
        let status = testnet.node(name)?.status()?;
        ensure!(status["members"].as_array().map(Vec::len) == Some(3), "at {name}: {status}");
    }
    Ok(())
}

#[test]
fn a_node_that_leaves_stops_and_the_others_go_on_without_it() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 2)?;
    // The only voter of the two.
    let name = testnet.nodes()[0].wait_until("a leader", LIMIT, leader)?;
    let leaving = testnet.node(&name)?;
    leaving.text(&["leave", "--yes"])?;
    wait_until("it to stop", LIMIT, || {
        ensure!(leaving.condition() == testnet::Condition::Stopped, "it runs");
        Ok(())
    })?;
    let other = if name == "n1" { "n2" } else { "n1" };
    let other = testnet.node(other)?;
    other.wait_until("to lead alone", LIMIT, |status| {
        (status["members"].as_array()?.len() == 1 && leader(status).as_deref() == Some(other.name())).then_some(())
    })?;
    other.text(&["config", "set", "mesh.name", "alone"])?;
    // What is left of the one that went is no node any more, and says so.
    let ended = Command::new(env!("CARGO_BIN_EXE_omx"))
        .env_clear()
        .args(["up", "--no-mdns", "--engine", "off", "--data-dir"])
        .arg(testnet.node(&name)?.dir())
        .args(["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--bulk", "127.0.0.1:0"])
        .output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(10) && said.contains("no member of its mesh"), "{}: {said}", ended.status);
    Ok(())
}

#[test]
fn a_node_that_is_asked_to_stop_gives_up_its_seat_and_leaves_nothing_behind() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 4)?;
    testnet.nodes()[0].wait_until("three voters", LIMIT, |status| (voters(status) == 3).then_some(()))?;
    let name = testnet.nodes()[0].wait_until("a leader", LIMIT, leader)?;
    let leaving = testnet.node(&name)?;
    let status = leaving.term(Duration::from_secs(30))?.context("it is our child")?;
    ensure!(status.success(), "{status}: {}", leaving.last_words());
    ensure!(!leaving.dir().join("run.json").exists(), "run.json is still there");
    ensure!(!leaving.dir().join("run/omx.sock").exists(), "the socket is still there");
    let other = ["n1", "n2"].into_iter().find(|other| *other != name).context("two names")?;
    // At once: nobody had to time out, and the one that left does not vote any more.
    let status = testnet.node(other)?.status()?;
    ensure!(status["quorum"] == true && leader(&status).is_some_and(|leader| leader != name), "{status}");
    let seated = |member: &&Value| member["voter"] == true;
    let members = status["members"].as_array().context("members")?;
    let votes: Vec<_> = members.iter().filter(seated).map(|member| member["name"].clone()).collect();
    ensure!(votes.len() == 3 && !votes.contains(&json!(name)), "{votes:?}");
    Ok(())
}

#[test]
fn settings_written_at_any_node_are_read_at_every_node_and_roll_back() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let testnet = mesh(scratch.path(), 3)?;
    let mut first = None;
    for writer in testnet.nodes() {
        let value = format!("by {}", writer.name());
        writer.text(&["config", "set", "mesh.name", &value])?;
        for reader in testnet.nodes() {
            let read = reader.json(&["config", "get", "mesh.name"])?;
            ensure!(read["value"] == value.as_str(), "at {}: {read}", reader.name());
            first = first.or(read["index"].as_u64());
        }
    }
    let node = &testnet.nodes()[2];
    let first = first.context("an index")?.to_string();
    node.text(&["config", "rollback", "mesh.name", "--to", &first])?;
    ensure!(testnet.nodes()[1].json(&["config", "get", "mesh.name"])?["value"] == "by n1");
    let history = node.json(&["config", "history", "mesh.name"])?;
    ensure!(history.as_array().map(Vec::len) == Some(4), "{history}");
    Ok(())
}

#[test]
fn a_worker_joins_and_never_votes_nor_commands() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = mesh(scratch.path(), 1)?;
    let token = testnet.node("n1")?.text(&["token", "create", "--role", "worker"])?;
    testnet.add("w1", Some(token))?.start()?;
    let worker = testnet.node("w1")?;
    worker.wait_until("two members", LIMIT, |status| (up(status) == 2).then_some(()))?;
    ensure!(worker.status()?["members"].as_array().is_some_and(|all| all.iter().any(|m| m["role"] == "worker")));
    let refused = worker.cli(&["config", "set", "mesh.name", "mine"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(11) && said.contains("worker"), "{:?}: {said}", refused.status);
    Ok(())
}
