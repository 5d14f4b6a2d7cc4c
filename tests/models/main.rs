//! Models that travel, over a mesh of real processes: each node before an Ollama of its own, with a folder of its own.
#![cfg(unix)]

mod catalogue;
mod kills;
mod old;
mod pulls;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
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

/// A file system in memory, as long as this value lives.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf, mib: u64) -> Result<Option<Self>> {
        std::fs::create_dir(&at)?;
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at).output()?;
        Ok(mounted.status.success().then_some(Self(at)))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
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
        Self::with(doors, &[])
    }

    /// The same, with more arguments for every node.
    pub(crate) fn with(doors: &[Door], arguments: &[&str]) -> Result<Self> {
        Self::built(doors, arguments, tempfile::tempdir()?)
    }

    /// The same, where all nodes together have so little room for what is theirs. `None` where this process may not mount
    /// a file system.
    pub(crate) fn small(doors: &[Door], mib: u64) -> Result<Option<(Self, Mounted)>> {
        let scratch = tempfile::tempdir()?;
        match Mounted::tmpfs(scratch.path().join("net"), mib)? {
            Some(mounted) => Ok(Some((Self::built(doors, &[], scratch)?, mounted))),
            None => Ok(None),
        }
    }

    fn built(doors: &[Door], arguments: &[&str], scratch: tempfile::TempDir) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
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
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let testnet = Testnet::up(binary, &scratch.path().join("net"), doors.len(), &Options { arguments, each })?;
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

    /// Asks over HTTP: the node that answered, by its name.
    pub(crate) fn answered_by(&self, place: usize, model: &str) -> Result<String> {
        let body = format!(r#"{{"model":"{model}","prompt":"hello","stream":false}}"#);
        let mut stream = TcpStream::connect(self.node(place).run()?.api)?;
        let head = format!(
            "POST /api/generate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
        ensure!(head.starts_with("HTTP/1.1 200") && body.contains("t0 t1 "), "{answer}");
        let node = head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("omx-node")));
        Ok(node.context("no node is named")?.1.to_owned())
    }

    /// The largest file among the blobs of an Ollama: the weights, where there is one model.
    pub(crate) fn weights_at(&self, place: usize) -> Result<PathBuf> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(self.folders[place].join("blobs"))? {
            let path = entry?.path();
            paths.push((std::fs::metadata(&path)?.len(), path));
        }
        Ok(paths.into_iter().max().context("no blobs")?.1)
    }

    /// Bytes of files in a node's own folder of blobs that are weights and no lists.
    pub(crate) fn own_bytes(&self, place: usize) -> Result<u64> {
        let whole = self.node(place).dir().join("blobs").join("whole");
        let sizes = std::fs::read_dir(whole)?.map(|entry| Ok(entry?.metadata()?.len()));
        Ok(sizes.collect::<Result<Vec<_>>>()?.into_iter().filter(|size| *size > 1 << 20).sum())
    }
}
