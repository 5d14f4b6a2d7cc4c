//! The clients that programs in the field use, from PyPI and npm, against a mesh: a node with the engine, a node before a
//! stand-in for Ollama, and a node with neither, which is the one they ask.
//!
//! They are installed by name and version into a cache folder outside the repository, once.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use fakes::{Config, Model, Ollama};
use serde::Deserialize;
use serde_json::Value;
use testnet::{Node, Options, Testnet, wait_until};

use crate::tools::{runs, workspace};

/// How it went.
pub(crate) enum Outcome {
    Good,
    /// What is missing on this machine.
    NotRun(String),
}

/// From three nodes to the one that is asked knowing what the others have; an engine starts on the way.
const OFFERS_LIMIT: Duration = Duration::from_secs(60);

/// What the stand-in has; full names, as lists have them.
const COMPLETION: &str = "tiny:latest";
const TOOLS: &str = "handy:latest";
const EMBEDDING: &str = "vector:latest";

/// How long each of its answers is.
const ANSWER_TOKENS: u32 = 40;

/// Packages and the programs that ask through them.
const PYTHON: [(&str, &str); 4] = [
    ("PyPI `ollama`", "ask.py"),
    ("PyPI `openai`", "ask_openai.py"),
    ("PyPI `langchain-ollama`", "ask_langchain.py"),
    ("PyPI `litellm`", "ask_litellm.py"),
];

/// One client, and the program that asks through it.
struct Client {
    package: &'static str,
    command: Command,
}

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
            Ok(installed) => clients.extend(installed),
            Err(missing) => return Ok(Outcome::NotRun(missing)),
        }
    }
    let scratch = env::temp_dir().join(format!("omx-clients-{}", std::process::id()));
    let outcome = ask(binary, &scratch, clients);
    let _ = fs::remove_dir_all(&scratch);
    outcome.map(|()| Outcome::Good)
}

fn ask(binary: &Path, scratch: &Path, clients: Vec<Client>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime for the stand-in")?;
    let fake = runtime.block_on(Ollama::start(stand_in())).context("cannot start the stand-in")?;
    let before = |ollama: &str, engine: &str| ["--ollama", ollama, "--engine", engine].map(str::to_owned).to_vec();
    let each = vec![before("none", "on"), before(&fake.url(), "off"), before("none", "off")];
    let options = Options { each, ..Options::default() };
    let testnet = Testnet::up(binary, &scratch.join("mesh"), 3, &options)?;
    let entry = testnet.nodes().last().expect("three were started");
    knows_all(entry)?;
    let told = scratch.join("mesh.json");
    fs::write(&told, what_is_there(&fake.url())?).context("failed to write what there is to ask")?;
    let host = format!("http://{}", entry.run()?.api);
    for Client { package, mut command } in clients {
        let status = command
            .arg(&told)
            .env("OLLAMA_HOST", &host)
            // Clients of OpenAI's always show a key; people give them any.
            .env("OPENAI_API_KEY", "ollama")
            .env("OLLAMA_API_KEY", "of-no-use-here")
            .status()
            .with_context(|| format!("failed to run {package}"))?;
        ensure!(status.success(), "{package} was not satisfied ({status})");
    }
    Ok(())
}

/// Waits until the node that is asked was told of every model at a node that can run it.
fn knows_all(entry: &Node) -> anyhow::Result<()> {
    let expected = ["omx-guide:latest", COMPLETION, TOOLS, EMBEDDING];
    wait_until("every model to be known where it is asked for", OFFERS_LIMIT, || {
        let queue = entry.json(&["ps", "--all"])?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let runs = |node: &Value| node["up"] == true && node["backends"][0]["state"] == "up";
        let offered: Vec<Value> =
            list(&queue["nodes"]).iter().filter(|node| runs(node)).flat_map(|node| list(&node["models"])).collect();
        ensure!(expected.iter().all(|name| offered.iter().any(|model| model["name"] == *name)), "{queue}");
        Ok(())
    })
}

fn stand_in() -> Config {
    let counting = |model: Model| Model { answer_tokens: Some(ANSWER_TOKENS), ..model };
    let models = vec![
        counting(Model::completion(COMPLETION)),
        counting(Model { tools: true, ..Model::completion(TOOLS) }),
        Model::embedding(EMBEDDING),
    ];
    Config { models, slots: 4, ..Config::default() }
}

/// What the clients may ask for and what is answered then, for languages that may lack a reader of TOML.
fn what_is_there(fake: &str) -> anyhow::Result<String> {
    let faq = faq()?;
    let questions = faq.iter().filter_map(|entry| {
        let question = entry.questions.first()?;
        Some(serde_json::json!({ "question": question, "answer": entry.answer.trim() }))
    });
    let told = serde_json::json!({
        "faq": questions.collect::<Vec<_>>(),
        "fake": {
            "url": fake,
            "completion": COMPLETION,
            "tools": TOOLS,
            "embedding": EMBEDDING,
            "dimensions": Model::embedding(EMBEDDING).embedding_length,
            "answer": (0..ANSWER_TOKENS).map(fakes::token).collect::<String>(),
        },
    });
    Ok(told.to_string())
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

fn python(scripts: &Path, cache: &Path) -> anyhow::Result<Result<Vec<Client>, String>> {
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
        return Ok(Err("pip cannot install what `tests/clients/requirements.txt` names".to_owned()));
    }
    let client = |(package, script)| {
        let mut command = Command::new(&python);
        // Compiled modules would be left in the repository.
        command.arg("-B").arg(scripts.join(script));
        Client { package, command }
    };
    Ok(Ok(PYTHON.map(client).into()))
}

fn javascript(scripts: &Path, cache: &Path) -> anyhow::Result<Result<Vec<Client>, String>> {
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
    Ok(Ok(vec![Client { package: "npm `ollama`", command }]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_questions_are_those_of_the_model_and_the_stand_in_s_answer_is_numbered() {
        let told: Value = serde_json::from_str(&what_is_there("http://127.0.0.1:1").unwrap()).unwrap();
        let entries = told["faq"].as_array().unwrap();
        assert!(entries.len() >= 60);
        assert!(entries.iter().all(|entry| entry["question"].is_string() && entry["answer"].is_string()));
        let answer = told["fake"]["answer"].as_str().unwrap();
        assert!(answer.starts_with("t0 t1 t2 ") && answer.ends_with(" t39"), "{answer}");
    }
}
