//! Real nodes on one machine: `omx` processes on loopback in a scratch folder, with faults to switch on.
//!
//! Used by people (`cargo xtask testnet`) and by the process tests. It knows `omx` from outside only, by its command
//! line and `run.json`, as a script would; it links nothing of the product and so compiles in seconds.

mod node;
mod process;
mod wait;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use node::{Condition, Node, RunInfo};
pub use wait::{output_within, wait_until};

/// From all processes running to every node knowing every member.
const MEMBERS_LIMIT: Duration = Duration::from_secs(60);
/// For an ordered shutdown, which has a deadline of its own below this.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// How a testnet differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More arguments for every `omx up`.
    pub arguments: Vec<String>,
    /// More arguments for each, in the order they are added.
    pub each: Vec<Vec<String>>,
}

/// A mesh of processes. Those it started itself end with it, unless it is told to `keep` them.
#[derive(Debug)]
pub struct Testnet {
    binary: PathBuf,
    dir: PathBuf,
    options: Options,
    nodes: Vec<Node>,
    kept: bool,
}

/// `testnet.json`: what a later process needs to go on.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    binary: PathBuf,
    arguments: Vec<String>,
    nodes: Vec<node::NodeRecord>,
}

impl Testnet {
    /// Starts `count` nodes named `n1`, `n2` and so on: the first makes the mesh, the others join it at the same time,
    /// each with a token of its own. Returns when every node knows all of them as members and has a leader.
    pub fn up(binary: &Path, dir: &Path, count: usize, options: &Options) -> anyhow::Result<Self> {
        let mut testnet = Self::empty(binary, dir, options)?;
        match testnet.raise(count) {
            Ok(()) => Ok(testnet),
            Err(error) => {
                testnet.print_last_words();
                Err(error)
            }
        }
    }

    /// A testnet without nodes, for those who add them one by one.
    pub fn empty(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let binary = fs::canonicalize(binary).with_context(|| format!("no binary at `{}`", binary.display()))?;
        fs::create_dir_all(dir).with_context(|| format!("failed to make folder `{}`", dir.display()))?;
        let dir = fs::canonicalize(dir).with_context(|| format!("failed to find folder `{}`", dir.display()))?;
        if dir.join(RECORD).exists() {
            bail!("folder `{}` holds a testnet already", dir.display());
        }
        let testnet = Self { binary, dir, options: options.clone(), nodes: Vec::new(), kept: false };
        testnet.save()?;
        Ok(testnet)
    }

    /// The testnet that an earlier process left in this folder. Its processes do not end with this value.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(RECORD);
        let text = fs::read(&path).with_context(|| format!("no testnet in `{}`", dir.display()))?;
        let record: Record =
            serde_json::from_slice(&text).with_context(|| format!("failed to read `{}`", path.display()))?;
        let dir = fs::canonicalize(dir).with_context(|| format!("failed to find folder `{}`", dir.display()))?;
        let Record { binary, arguments, nodes } = record;
        let nodes = nodes.into_iter().map(|node| Node::from_record(&binary, &dir, node)).collect();
        Ok(Self { binary, dir, options: Options { arguments, each: Vec::new() }, nodes, kept: false })
    }

    /// A further node, not started yet, that will join with this token or, without one, make a mesh of its own.
    pub fn add(&mut self, name: &str, join: Option<String>) -> anyhow::Result<&mut Node> {
        if self.nodes.iter().any(|node| node.name() == name) {
            bail!("there is a node `{name}` already");
        }
        let Options { arguments, each } = &self.options;
        let own = each.get(self.nodes.len()).into_iter().flatten();
        let arguments: Vec<String> = arguments.iter().chain(own).cloned().collect();
        self.nodes.push(Node::new(&self.binary, &self.dir, name, &arguments, join));
        Ok(self.nodes.last_mut().expect("it was pushed in the line above"))
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    pub fn node(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        let known: Vec<String> = self.nodes.iter().map(|node| node.name().to_owned()).collect();
        let found = self.nodes.iter_mut().find(|node| node.name() == name);
        found.with_context(|| format!("no node `{name}` among {known:?}"))
    }

    /// Waits until each running node knows every node as a member and has a leader. Their tokens are used up then.
    pub fn wait_for_members(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name().to_owned()).collect();
        let what = format!("{} members and a leader", names.len());
        for node in &mut self.nodes {
            if node.condition() == Condition::Running {
                node.wait_until(&what, MEMBERS_LIMIT, |status| knows_all(status, &names).then_some(()))?;
                node.became_member();
            }
        }
        self.save()
    }

    /// Writes down what `open` needs. Call it after nodes were started or ended, where a later process shall go on.
    pub fn save(&self) -> anyhow::Result<()> {
        let record = Record {
            binary: self.binary.clone(),
            arguments: self.options.arguments.clone(),
            nodes: self.nodes.iter().map(Node::record).collect(),
        };
        let path = self.dir.join(RECORD);
        let text = serde_json::to_vec_pretty(&record).context("failed to describe the testnet")?;
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// Leaves the processes running, for a later process to `open`.
    pub fn keep(mut self) -> anyhow::Result<()> {
        self.kept = true;
        self.save()
    }

    /// Ends all nodes in order, by force where that does not work within its time, and removes what they left.
    /// Returns the names of those that had to be forced.
    pub fn down(mut self) -> anyhow::Result<Vec<String>> {
        let mut forced = Vec::new();
        for node in &mut self.nodes {
            let condition = node.condition();
            if condition == Condition::Stopped {
                continue;
            }
            if condition == Condition::Frozen {
                node.thaw()?;
            }
            if node.term(STOP_LIMIT).is_err() {
                node.kill9()?;
                forced.push(node.name().to_owned());
            }
        }
        // By name, and never what somebody else put into the folder.
        for node in &self.nodes {
            absent(fs::remove_dir_all(node.dir()))?;
            for log in node.log_paths() {
                absent(fs::remove_file(log))?;
            }
        }
        absent(fs::remove_file(self.dir.join(RECORD)))?;
        Ok(forced)
    }

    fn raise(&mut self, count: usize) -> anyhow::Result<()> {
        for number in 1..=count {
            let token = match self.nodes.first() {
                Some(first) => Some(first.text(&["token", "create"])?),
                None => None,
            };
            self.add(&format!("n{number}"), token)?.launch()?;
            self.save()?;
            if number == 1 {
                self.nodes[0].ready()?;
                self.nodes[0].wait_until("a leader", MEMBERS_LIMIT, |status| has_leader(status).then_some(()))?;
            }
        }
        for node in &mut self.nodes {
            node.ready()?;
        }
        self.wait_for_members()
    }

    /// The folder is often a temporary one: then this is all that remains to find a cause by.
    fn print_last_words(&self) {
        for node in &self.nodes {
            eprintln!("last words of node `{}`:\n{}", node.name(), node.last_words());
        }
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            self.print_last_words();
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_child()) {
            // It may have ended by itself, and there is nobody left to tell.
            let _ = node.kill9();
        }
    }
}

const RECORD: &str = "testnet.json";

fn has_leader(status: &Value) -> bool {
    status["leader"]["name"].is_string()
}

fn knows_all(status: &Value, names: &[String]) -> bool {
    let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    let known = |name: &String| members.iter().any(|member| member["name"] == **name);
    has_leader(status) && names.iter().all(known)
}

/// What is not there need not be removed.
fn absent(removed: io::Result<()>) -> anyhow::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("failed to clean up"),
        _ => Ok(()),
    }
}
