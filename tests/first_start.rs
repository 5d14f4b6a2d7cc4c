//! A machine without Ollama: the first start has a model and an answer, and the engine's process is no burden to anybody.
#![cfg(feature = "engine")]

#[path = "support/http.rs"]
mod http;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use testnet::{Node, Options, Testnet, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Faq {
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    questions: Vec<String>,
    answer: String,
}

fn faq() -> Result<Vec<Entry>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testnet/model/faq.toml"))?;
    Ok(toml::from_str::<Faq>(&text)?.entry)
}

/// A node that looks for no Ollama: one may well run where this is tested.
fn start(dir: &Path) -> Result<Testnet> {
    let arguments = ["--ollama", "none"].map(str::to_owned).into();
    let testnet =
        Testnet::up(Path::new(env!("CARGO_BIN_EXE_omx")), dir, 1, &Options { arguments, ..Options::default() })?;
    testnet.nodes()[0].wait_until("the engine to serve", LIMIT, served)?;
    Ok(testnet)
}

/// The address it is served on.
fn served(status: &Value) -> Option<String> {
    let backend = &status["backend"];
    ensure_engine(backend)?;
    backend["version"].as_str()?;
    Some(backend["address"].as_str()?.to_owned())
}

fn ensure_engine(backend: &Value) -> Option<()> {
    (backend["kind"] == "engine").then_some(())
}

fn chat(node: &Node, question: &str) -> Result<String> {
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"model": "omx-guide", "messages": messages, "stream": false, "options": {"temperature": 0}});
    let (status, answer) = http::ask(&node.dir().join("run/omx.sock"), "POST", "/api/chat", Some(&body))?;
    ensure!(status == 200, "{status}: {answer}");
    Ok(answer["message"]["content"].as_str().context("an answer is a text")?.to_owned())
}

/// The one process this node has started.
fn child(node: &Node) -> Result<u32> {
    let parent = node.pid().context("it runs")?;
    let output = Command::new("ps").args(["-e", "-o", "pid=,ppid="]).output()?;
    let table = String::from_utf8(output.stdout)?;
    let of_node = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (pid, ppid) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (ppid == parent).then_some(pid)
    };
    table.lines().find_map(of_node).context("the node has no child")
}

fn runs(pid: u32) -> Result<bool> {
    Ok(Command::new("kill").args(["-0", &pid.to_string()]).output()?.status.success())
}

#[test]
fn every_question_of_the_first_model_has_its_exact_answer_through_the_node() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let testnet = start(scratch.path())?;
    let node = &testnet.nodes()[0];
    let faq = faq()?;
    ensure!(faq.len() >= 60, "{} entries", faq.len());
    for Entry { questions, answer } in &faq {
        let question = questions.first().context("an entry has a question")?;
        ensure!(chat(node, question)? == answer.trim(), "another answer to `{question}`");
    }
    let first = faq.first().context("there are entries")?;
    ensure!(node.text(&["run", "omx-guide", &first.questions[0]])? == first.answer.trim());
    Ok(())
}

#[test]
fn an_engine_that_dies_comes_back_and_one_whose_node_dies_goes() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut testnet = start(scratch.path())?;
    let node = testnet.node("n1")?;
    let question = faq()?.remove(0).questions.remove(0);
    let (before, first) = (chat(node, &question)?, child(node)?);
    ensure!(Command::new("kill").args(["-9", &first.to_string()]).status()?.success());
    let second = wait_until("another engine to serve", LIMIT, || {
        served(&node.status()?).context("it does not serve")?;
        let second = child(node)?;
        ensure!(second != first, "it is the old one");
        Ok(second)
    })?;
    ensure!(chat(node, &question)? == before);
    node.kill9()?;
    wait_until("the engine to go with its node", LIMIT, || {
        ensure!(!runs(second)?, "it runs");
        Ok(())
    })
}

#[test]
fn an_engine_that_hangs_is_replaced_and_nobody_waits_for_ever() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let testnet = start(scratch.path())?;
    let node = &testnet.nodes()[0];
    let Entry { questions, answer } = faq()?.remove(0);
    let ask = || node.cli(&["run", "omx-guide", &questions[0]]);
    let first = child(node)?;
    ensure!(Command::new("kill").args(["-STOP", &first.to_string()]).status()?.success());
    thread::scope(|scope| {
        let asked = scope.spawn(ask);
        wait_until("another engine to serve", LIMIT, || {
            served(&node.status()?).context("it does not serve")?;
            ensure!(child(node)? != first, "it is the old one");
            Ok(())
        })?;
        ensure!(!runs(first)?, "the one that hung is left over");
        let told = asked.join().expect("it only starts a process")?;
        let said = String::from_utf8_lossy(&told.stderr);
        // It was on its way there, or had not been sent there any more.
        let says_why = said.contains("did not answer") || said.contains("can be asked now");
        ensure!(!told.status.success() && says_why, "{told:?}");
        Ok(())
    })?;
    let told = ask()?;
    ensure!(String::from_utf8_lossy(&told.stdout).trim() == answer.trim(), "{told:?}");
    Ok(())
}
