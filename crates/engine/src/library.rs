//! Which models are loaded: loads what is asked for, keeps it as long as was said, makes room by dropping what is idle.
//!
//! One task owns the models. What it does is decided in `state`, which is pure; loading and unloading
//! block, and run beside it.

mod state;
mod task;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use self::task::Command;
pub use self::task::Task;
use crate::error::Error;
use crate::runner::{Facts, LoadOptions, Loader, Runner, Spec};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tokens of a request's context where nobody says. Default 4096.
    pub context: u32,
    /// Models loaded at once. Default 3, as Ollama without a GPU.
    pub loaded_max: usize,
    /// Requests that wait for a load; more are refused. Default 512.
    pub waiting_max: usize,
    /// Bytes for all models together. `None` is what was free at the start.
    pub memory: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { context: 4096, loaded_max: 3, waiting_max: 512, memory: None }
    }
}

/// How long a model stays after its last request. Of several requests the last to begin decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    For(Duration),
    Forever,
}

impl Default for KeepAlive {
    /// Ollama's five minutes.
    fn default() -> Self {
        Self::For(Duration::from_secs(300))
    }
}

/// A loaded model, as `ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    pub file: PathBuf,
    pub options: LoadOptions,
    pub facts: Facts,
    /// Requests that use it now.
    pub users: usize,
    /// Until it is dropped, counted from now even while it is used. `None` is never.
    pub expires_in: Option<Duration>,
}

/// Commands that wait for the task; beyond, callers wait.
const COMMANDS_MAX: usize = 64;

/// Asks the library. Cheap to clone; the task ends when all clones and leases are gone.
#[derive(Clone, Debug)]
pub struct Library {
    commands: mpsc::Sender<Command>,
    /// Bounded by the leases: each says once that it ended.
    ended: mpsc::UnboundedSender<PathBuf>,
}

impl Library {
    pub fn new(config: Config, loader: Arc<dyn Loader>) -> (Self, Task) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (ended, leases) = mpsc::unbounded_channel();
        let library = Self { commands, ended: ended.clone() };
        (library, Task::new(config, loader, inbox, leases))
    }

    /// A model to use, loaded if need be. Dropping the future withdraws the request.
    pub async fn acquire(&self, spec: Spec, keep_alive: KeepAlive) -> Result<Lease, Error> {
        let began = Instant::now();
        let (reply, granted) = oneshot::channel();
        let ask = Command::Acquire { spec: spec.clone(), keep_alive, ended: self.ended.clone(), reply };
        self.commands.send(ask).await.map_err(|_| Error::Stopped)?;
        let mut lease: Lease = granted.await.unwrap_or(Err(Error::Stopped))?;
        lease.waited = began.elapsed();
        Ok(lease)
    }

    /// Longest-lived first.
    pub async fn loaded(&self) -> Vec<Resident> {
        let (reply, listed) = oneshot::channel();
        if self.commands.send(Command::List { reply }).await.is_err() {
            return Vec::new();
        }
        listed.await.unwrap_or_default()
    }

    /// Drops a model as soon as nobody uses it. Nothing happens where it is not loaded.
    pub async fn unload(&self, file: &Path) {
        // A task that has ended has unloaded everything.
        let _ = self.commands.send(Command::Unload { file: file.to_owned() }).await;
    }
}

/// The right to use a model. It stays loaded until this is dropped, and for the time it was asked to be kept.
#[derive(Debug)]
pub struct Lease {
    /// `None` only while it is dropped: the runner goes first, so that the task's is the last and frees the model.
    runner: Option<Arc<dyn Runner>>,
    file: PathBuf,
    ended: mpsc::UnboundedSender<PathBuf>,
    waited: Duration,
}

impl Lease {
    /// From asking to having it: Ollama's `load_duration`.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Deref for Lease {
    type Target = dyn Runner;

    fn deref(&self) -> &Self::Target {
        self.runner.as_deref().expect("taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.runner = None;
        let _ = self.ended.send(std::mem::take(&mut self.file));
    }
}

#[cfg(test)]
mod tests;
