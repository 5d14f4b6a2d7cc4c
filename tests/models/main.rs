//! Models that travel, over a mesh of real processes: each node before an Ollama of its own, with a folder of its own.
#![cfg(unix)]

mod catalogue;
mod pulls;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Node, Options, Testnet, wait_until};
use tokio::runtime::Runtime;

/// For what takes an election or a machine that is busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How an Ollama lets models in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// By its folder.
    Folder,
    /// By a pull alone: nobody says where its folder is.
    Pull,
}

pub(crate) struct Mesh {
    pub(crate) runtime: Runtime,
    pub(crate) ollamas: Vec<fakes::Ollama>,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) testnet: Testnet,
    pub(crate) scratch: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn of(doors: &[Door]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let scratch = tempfile::tempdir()?;
        let (mut ollamas, mut folders, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for (place, door) in doors.iter().enumerate() {
            let folder = scratch.path().join(format!("ollama-{place}"));
            std::fs::create_dir_all(&folder)?;
            let config = fakes::Config { folder: Some(folder.clone()), slots: 4, ..fakes::Config::default() };
            let ollama = runtime.block_on(fakes::Ollama::start(config))?;
            let known = if *door == Door::Folder { folder.clone() } else { scratch.path().join("elsewhere") };
            each.push(vec!["--ollama".into(), ollama.url(), "--ollama-models".into(), known.display().to_string()]);
            ollamas.push(ollama);
            folders.push(folder);
        }
        let binary = Path::new(env!("CARGO_BIN_EXE_omx"));
        let testnet =
            Testnet::up(binary, &scratch.path().join("net"), doors.len(), &Options { each, ..Options::default() })?;
        Ok(Self { runtime, ollamas, folders, testnet, scratch })
    }

    pub(crate) fn node(&self, place: usize) -> &Node {
        &self.testnet.nodes()[place]
    }

    /// A file of weights of this size, and its name.
    pub(crate) fn weights(&self, seed: u64, size: u64) -> Result<PathBuf> {
        let path = self.scratch.path().join(format!("{seed}.gguf"));
        let weights = fakes::Weights::new(seed, size);
        let length = usize::try_from(weights.size())?;
        std::fs::write(&path, weights.read(0, length))?;
        Ok(path)
    }

    /// The states of a model's holders, by node.
    pub(crate) fn holders(&self, model: &str) -> Result<Vec<(String, String)>> {
        let shown = self.node(0).json(&["models", "show", model])?;
        let holders = shown["holders"].as_array().context("no holders")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(holders.iter().map(|holder| (text(&holder["node"]), text(&holder["state"]))).collect())
    }

    pub(crate) fn wait_for_holders(&self, model: &str, count: usize, state: &str) -> Result<()> {
        wait_until(&format!("{count} {state} copies of {model}"), LIMIT, || {
            let holders = self.holders(model)?;
            ensure!(holders.iter().filter(|(_, found)| found == state).count() == count, "{holders:?}");
            Ok(())
        })
    }

    /// What an Ollama itself lists: names and digests.
    pub(crate) fn listed(&self, place: usize) -> Result<Vec<(String, String)>> {
        let mut stream = TcpStream::connect(self.ollamas[place].address())?;
        stream.write_all(b"GET /api/tags HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, tags) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
        let tags: serde_json::Value = serde_json::from_str(tags)?;
        let models = tags["models"].as_array().context("no list of models")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let digest = |model: &serde_json::Value| format!("sha256:{}", text(&model["digest"]));
        let mut found: Vec<_> = models.iter().map(|model| (text(&model["name"]), digest(model))).collect();
        found.sort();
        Ok(found)
    }

    pub(crate) fn ask(&self, place: usize, model: &str) -> Result<()> {
        let said = self.node(place).text(&["run", model, "hello"])?;
        ensure!(said.starts_with("t0 t1 "), "{said:?}");
        Ok(())
    }
}
