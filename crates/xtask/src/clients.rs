//! Ollama's official clients, from PyPI and npm, against a node with the engine: what programs in the field do.
//!
//! They are installed by name and version into a cache folder outside the repository, once.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use testnet::{Options, Testnet};

use crate::tools::{runs, workspace};

/// How it went.
pub(crate) enum Outcome {
    Good,
    /// What is missing on this machine.
    NotRun(String),
}

/// From the node to its engine's first model.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Faq {
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
pub(crate) struct Entry {
    pub(crate) questions: Vec<String>,
    pub(crate) answer: String,
}

pub(crate) fn run(binary: &Path) -> anyhow::Result<Outcome> {
    let scripts = workspace().join("tests").join("clients");
    let mut clients = Vec::new();
    for install in [python, javascript] {
        match install(&scripts, &cache()?)? {
            Ok(client) => clients.push(client),
            Err(missing) => return Ok(Outcome::NotRun(missing)),
        }
    }
    let scratch = env::temp_dir().join(format!("omx-clients-{}", std::process::id()));
    let outcome = ask(binary, &scratch, clients);
    let _ = fs::remove_dir_all(&scratch);
    outcome.map(|()| Outcome::Good)
}

fn ask(binary: &Path, scratch: &Path, clients: Vec<Command>) -> anyhow::Result<()> {
    // Not an Ollama that may run here: it has other models.
    let arguments = ["--ollama", "none"].map(str::to_owned).into();
    let testnet = Testnet::up(binary, &scratch.join("node"), 1, &Options { arguments, ..Options::default() })?;
    let node = &testnet.nodes()[0];
    let serves = |status: &serde_json::Value| status["backend"]["version"].as_str().map(str::to_owned);
    node.wait_until("the engine to serve", ENGINE_LIMIT, serves)?;
    let faq = scratch.join("faq.json");
    fs::write(&faq, questions()?).context("failed to write the questions")?;
    for mut client in clients {
        let host = format!("http://{}", node.run()?.api);
        let status = client.arg(&faq).env("OLLAMA_HOST", host).status().context("failed to run a client")?;
        ensure!(status.success(), "a client of Ollama's was not satisfied ({status})");
    }
    Ok(())
}

/// Each entry's first wording and its answer, for languages that may lack a reader of TOML.
fn questions() -> anyhow::Result<String> {
    let faq = faq()?;
    let entries = faq.iter().filter_map(|entry| {
        let question = entry.questions.first()?;
        Some(serde_json::json!({ "question": question, "answer": entry.answer.trim() }))
    });
    Ok(serde_json::Value::Array(entries.collect()).to_string())
}

/// What the first model knows.
pub(crate) fn faq() -> anyhow::Result<Vec<Entry>> {
    let text = fs::read_to_string(workspace().join("testnet/model/faq.toml")).context("failed to read the FAQ")?;
    Ok(toml::from_str::<Faq>(&text).context("failed to understand the FAQ")?.entry)
}

fn cache() -> anyhow::Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let usual = || env::home_dir().map(|home| home.join(".cache"));
    let folder = named.or_else(usual).context("there is no home folder to install clients below")?.join("omx-clients");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    Ok(folder)
}

fn python(scripts: &Path, cache: &Path) -> anyhow::Result<Result<Command, String>> {
    let folder = cache.join("python");
    let python = folder.join("bin").join("python");
    if !runs(Command::new("python3").arg("--version")) {
        return Ok(Err("python3 is missing".to_owned()));
    }
    if !runs(Command::new(&python).arg("--version")) && !runs(Command::new("python3").args(["-m", "venv"]).arg(&folder))
    {
        return Ok(Err("python3 makes no virtual environment (on Debian: python3-venv)".to_owned()));
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(scripts.join("requirements.txt"));
    if !runs(&mut pip) {
        return Ok(Err("pip cannot install PyPI `ollama`".to_owned()));
    }
    let mut command = Command::new(python);
    command.arg(scripts.join("ask.py"));
    Ok(Ok(command))
}

fn javascript(scripts: &Path, cache: &Path) -> anyhow::Result<Result<Command, String>> {
    for program in ["node", "npm"] {
        if !runs(Command::new(program).arg("--version")) {
            return Ok(Err(format!("{program} is missing")));
        }
    }
    let folder = cache.join("javascript");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    fs::copy(scripts.join("package.json"), folder.join("package.json")).context("failed to copy `package.json`")?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--prefer-offline", "--no-audit", "--no-fund"]).current_dir(&folder);
    if !runs(&mut npm) {
        return Ok(Err("npm cannot install `ollama`".to_owned()));
    }
    let mut command = Command::new("node");
    command.arg(scripts.join("ask.mjs")).current_dir(folder);
    Ok(Ok(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_questions_are_those_of_the_model() {
        let entries: Vec<serde_json::Value> = serde_json::from_str(&questions().unwrap()).unwrap();
        assert!(entries.len() >= 60);
        assert!(entries.iter().all(|entry| entry["question"].is_string() && entry["answer"].is_string()));
    }
}
