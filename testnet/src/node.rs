//! One node: an `omx` process, its data folder, and the command line that talks to it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process::{Process, Signal};
use crate::wait::{Look, output_within, poll, wait_until};

/// For one command to a node. Commands have deadlines of their own, shorter than this; a frozen node answers none.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// From `omx up` to `run.json`, on a machine busy with other tests.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// From `SIGKILL` to the end of the process, which may have much to flush out of its page tables.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Lines of a node's stderr that go into an error.
const LAST_WORDS: usize = 20;

/// What a running node says about itself in `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunInfo {
    pub api: SocketAddr,
    pub mesh: Vec<String>,
    pub bulk: SocketAddr,
    pub pid: u32,
    pub peer_id: String,
    pub version: String,
}

/// What a look from outside tells about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Running,
    Frozen,
    Stopped,
}

#[derive(Debug)]
pub struct Node {
    binary: PathBuf,
    scratch: PathBuf,
    state: State,
    record: NodeRecord,
}

/// What must be remembered of a node between two processes that look after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    /// More arguments for `omx up`.
    pub(crate) arguments: Vec<String>,
    /// Given to every start until the node is a member.
    pub(crate) join: Option<String>,
    /// Port 0 at the first start and the same ports ever after, as on a real machine: members of a mesh that was
    /// stopped as a whole find each other where they were.
    api: SocketAddr,
    mesh: SocketAddr,
    bulk: SocketAddr,
    pid: Option<u32>,
}

#[derive(Debug)]
enum State {
    Stopped,
    /// The process is there, `run.json` is not yet its own.
    Launched(Process),
    Running {
        process: Process,
        run: RunInfo,
    },
}

impl Node {
    pub(crate) fn new(binary: &Path, scratch: &Path, name: &str, arguments: &[String], join: Option<String>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let record = NodeRecord {
            name: name.to_owned(),
            arguments: arguments.to_vec(),
            join,
            api: any,
            mesh: any,
            bulk: any,
            pid: None,
        };
        Self { binary: binary.to_owned(), scratch: scratch.to_owned(), state: State::Stopped, record }
    }

    /// A node that an earlier process started, in whatever state it is now.
    pub(crate) fn from_record(binary: &Path, scratch: &Path, record: NodeRecord) -> Self {
        let mut node = Self { binary: binary.to_owned(), scratch: scratch.to_owned(), state: State::Stopped, record };
        if let Some(process) = node.record.pid.and_then(|pid| Process::found(pid, node.mark())) {
            node.state = match node.read_run_info(process.pid()) {
                Ok(run) => State::Running { process, run },
                Err(_) => State::Launched(process),
            };
        }
        node
    }

    pub(crate) fn record(&self) -> NodeRecord {
        NodeRecord { pid: self.pid(), ..self.record.clone() }
    }

    pub(crate) fn became_member(&mut self) {
        self.record.join = None;
    }

    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its data folder.
    pub fn dir(&self) -> PathBuf {
        self.scratch.join(self.name())
    }

    pub fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Stopped => None,
            State::Launched(process) | State::Running { process, .. } => Some(process.pid()),
        }
    }

    /// What it said about itself when it became ready.
    pub fn run(&self) -> anyhow::Result<&RunInfo> {
        match &self.state {
            State::Running { run, .. } => Ok(run),
            State::Stopped | State::Launched(_) => bail!("node `{}` is not running", self.name()),
        }
    }

    pub fn condition(&mut self) -> Condition {
        let Ok(process) = self.process() else { return Condition::Stopped };
        if !process.is_alive() {
            Condition::Stopped
        } else if process.is_frozen() {
            Condition::Frozen
        } else {
            Condition::Running
        }
    }

    /// Starts it and waits until it says where it listens.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.ready()
    }

    /// Starts its process without waiting for anything.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        if self.condition() != Condition::Stopped {
            bail!("node `{}` is running already", self.name());
        }
        let mut command = self.command();
        command.arg("up").arg("--data-dir").arg(self.dir()).args(["--name", self.name()]);
        for (flag, address) in [("--api", self.record.api), ("--mesh", self.record.mesh), ("--bulk", self.record.bulk)]
        {
            command.arg(flag).arg(address.to_string());
        }
        if let Some(token) = &self.record.join {
            command.args(["--join", token]);
        }
        let child = command
            // What else is on this network must neither be seen nor see us.
            .arg("--no-mdns")
            .args(&self.record.arguments)
            .stdin(std::process::Stdio::null())
            .stdout(self.log("out")?)
            .stderr(self.log("err")?)
            .spawn()
            .with_context(|| format!("failed to start `{}`", self.binary.display()))?;
        self.state = State::Launched(Process::started(child, self.mark()));
        Ok(())
    }

    /// Waits until `run.json` is that of the launched process. A process that ended instead is told at once, with
    /// what it said.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        let mut process = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Launched(process) => process,
            other => {
                self.state = other;
                return self.run().map(drop);
            }
        };
        let what = format!("node `{}` to be ready", self.name());
        let seen = poll(&what, READY_LIMIT, || {
            if !process.is_alive() {
                bail!("node `{}` ended instead of becoming ready; it said\n{}", self.name(), self.last_words());
            }
            match self.read_run_info(process.pid()) {
                Ok(run) => mesh_socket(&run).map(|mesh| Look::Done((run, mesh))),
                Err(error) => Ok(Look::NotYet(format!("{error:#}"))),
            }
        });
        match seen {
            Ok((run, mesh)) => {
                (self.record.api, self.record.mesh, self.record.bulk) = (run.api, mesh, run.bulk);
                self.state = State::Running { process, run };
                Ok(())
            }
            Err(error) => {
                self.state = State::Launched(process);
                Err(error)
            }
        }
    }

    /// Ends it as a power cut would, as far as its process is concerned.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::Kill)?;
        self.process()?.ended(KILL_LIMIT)?;
        self.state = State::Stopped;
        Ok(())
    }

    /// Asks it to end and waits for that. `None` where an earlier process started it: only a parent learns the status.
    pub fn term(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.process()?.signal(Signal::Term)?;
        let status = self.process()?.ended(limit).with_context(|| format!("node `{}` goes on", self.name()))?;
        self.state = State::Stopped;
        Ok(status)
    }

    /// Stops it without its knowing, as a machine that went to sleep: sockets stay, nothing answers.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::Freeze)?;
        let what = format!("node `{}` to freeze", self.record.name);
        let process = self.process()?;
        wait_until(&what, KILL_LIMIT, || if process.is_frozen() { Ok(()) } else { bail!("it runs") })
    }

    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::Thaw)
    }

    /// `omx --data-dir D …`, whatever its exit code.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command();
        command.arg("--data-dir").arg(self.dir()).args(arguments);
        output_within(&mut command, COMMAND_LIMIT)
            .with_context(|| format!("`omx {}` did not work at node `{}`", arguments.join(" "), self.name()))
    }

    /// The stdout of a command that must succeed, without the newline at its end.
    pub fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let Output { status, stdout, stderr } = self.cli(arguments)?;
        if !status.success() {
            let said = String::from_utf8_lossy(&stderr);
            bail!("`omx {}` at node `{}`: {status}; it said\n{}", arguments.join(" "), self.name(), said.trim_end());
        }
        Ok(String::from_utf8(stdout).context("stdout is no text")?.trim_end().to_owned())
    }

    /// The answer of a command that must succeed, `--json` added.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("`omx {}` did not answer in JSON", arguments.join(" ")))
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        self.json(&["status"])
    }

    /// Waits for a condition on its `status`; what the condition returns is returned.
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Value) -> Option<T>,
    ) -> anyhow::Result<T> {
        wait_until(&format!("{what} at node `{}`", self.name()), limit, || {
            let status = self.status()?;
            condition(&status).with_context(|| status.to_string())
        })
    }

    /// The end of its stderr, over all its starts.
    pub fn last_words(&self) -> String {
        let text = fs::read(self.log_path("err")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    pub(crate) fn log_paths(&self) -> [PathBuf; 2] {
        ["out", "err"].map(|kind| self.log_path(kind))
    }

    /// Whether the process that holds this value started the node.
    pub(crate) fn is_child(&self) -> bool {
        match &self.state {
            State::Stopped => false,
            State::Launched(process) | State::Running { process, .. } => process.is_child(),
        }
    }

    fn process(&mut self) -> anyhow::Result<&mut Process> {
        match &mut self.state {
            State::Launched(process) | State::Running { process, .. } => Ok(process),
            State::Stopped => bail!("node `{}` is not running", self.record.name),
        }
    }

    /// Without the caller's own settings: a token in the environment would make every node join.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OMX_")) {
            command.env_remove(name);
        }
        command
    }

    /// Stands in the command line of this node's process and in no other.
    fn mark(&self) -> String {
        format!("--data-dir {} --name {} ", self.dir().display(), self.name())
    }

    fn read_run_info(&self, pid: u32) -> anyhow::Result<RunInfo> {
        let path = self.dir().join("run.json");
        let text = fs::read(&path).with_context(|| format!("no `{}`", path.display()))?;
        let run: RunInfo = serde_json::from_slice(&text).context("`run.json` is not complete")?;
        anyhow::ensure!(run.pid == pid, "`run.json` is of process {}, the node is {pid}", run.pid);
        Ok(run)
    }

    fn log_path(&self, kind: &str) -> PathBuf {
        self.scratch.join(format!("{}.{kind}", self.name()))
    }

    fn log(&self, kind: &str) -> anyhow::Result<File> {
        let path = self.log_path(kind);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("failed to open `{}`", path.display()))
    }
}

fn mesh_socket(run: &RunInfo) -> anyhow::Result<SocketAddr> {
    let readable = run.mesh.iter().find_map(|address| socket(address));
    readable.with_context(|| format!("no address to be read in {:?}", run.mesh))
}

/// From `127.0.0.1:4001` or `/ip4/127.0.0.1/tcp/4001/…`.
fn socket(address: &str) -> Option<SocketAddr> {
    if let Ok(plain) = address.parse() {
        return Some(plain);
    }
    let mut parts = address.strip_prefix('/')?.split('/');
    let (Some("ip4" | "ip6"), Some(ip), Some("tcp" | "udp"), Some(port)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_address_is_read_in_both_forms() {
        let expected = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4001)));
        assert_eq!(socket("127.0.0.1:4001"), expected);
        assert_eq!(socket("/ip4/127.0.0.1/tcp/4001"), expected);
        assert_eq!(socket("/ip4/127.0.0.1/udp/4001/quic-v1"), expected);
        assert_eq!(socket("/dns4/localhost/tcp/4001"), None);
        assert_eq!(socket("somewhere"), None);
    }
}
