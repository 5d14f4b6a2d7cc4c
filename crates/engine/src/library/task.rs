//! The loop that owns the models.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::state::{Action, Limits, State, Ticket};
use super::{Config, KeepAlive, Lease, Resident};
use crate::error::Error;
use crate::machine;
use crate::runner::{Loader, Need, Runner, Spec};

#[derive(Debug)]
pub(crate) enum Command {
    Acquire { spec: Spec, keep_alive: KeepAlive, ended: mpsc::UnboundedSender<PathBuf>, reply: Reply },
    Unload { file: PathBuf },
    List { reply: oneshot::Sender<Vec<Resident>> },
}

type Reply = oneshot::Sender<Result<Lease, Error>>;

/// What happened beside the loop.
enum Done {
    Probed(Ticket, Result<Need, Error>),
    Loaded(PathBuf, Result<Arc<dyn Runner>, Error>),
    Unloaded(PathBuf),
}

enum Next {
    Command(Command),
    LeaseEnded(PathBuf),
    Done(Done),
    Tick,
    End,
}

/// Owns the models. Its end, or its drop, frees those that nobody uses.
pub struct Task {
    loader: Arc<dyn Loader>,
    inbox: mpsc::Receiver<Command>,
    leases: mpsc::UnboundedReceiver<PathBuf>,
    state: State,
    runners: BTreeMap<PathBuf, Arc<dyn Runner>>,
    replies: BTreeMap<Ticket, (Reply, mpsc::UnboundedSender<PathBuf>)>,
    /// At most one load, one unload per model, one probe per waiting request.
    beside: JoinSet<Done>,
    last: Ticket,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}

impl Task {
    pub(super) fn new(
        config: Config,
        loader: Arc<dyn Loader>,
        inbox: mpsc::Receiver<Command>,
        leases: mpsc::UnboundedReceiver<PathBuf>,
    ) -> Self {
        let memory = config.memory.or_else(machine::memory_available).unwrap_or(u64::MAX);
        let Config { context, loaded_max, waiting_max, .. } = config;
        Self {
            loader,
            inbox,
            leases,
            state: State::new(Limits { context, loaded_max, waiting_max, memory }),
            runners: BTreeMap::new(),
            replies: BTreeMap::new(),
            beside: JoinSet::new(),
            last: 0,
        }
    }

    /// Runs until it is told to stop, or nobody can ask any more; what is idle then is freed when this returns.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => Next::End,
                Some(file) = self.leases.recv() => Next::LeaseEnded(file),
                Some(done) = self.beside.join_next() => match done {
                    Ok(done) => Next::Done(done),
                    // A loader that panics has told nobody which model it was: nothing can be promised.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                command = self.inbox.recv() => command.map_or(Next::End, Next::Command),
                () = until(self.state.next_expiry()) => Next::Tick,
            };
            if matches!(next, Next::End) {
                break;
            }
            self.apply(next);
        }
        let runners = std::mem::take(&mut self.runners);
        // Freeing a model waits for its thread.
        let _ = tokio::task::spawn_blocking(move || drop(runners)).await;
        while self.beside.join_next().await.is_some() {}
    }

    fn apply(&mut self, next: Next) {
        let now = tokio::time::Instant::now().into_std();
        // A load for someone who left would push out models that are needed.
        let replies = &self.replies;
        self.state.left(|ticket| replies.get(&ticket).is_some_and(|(reply, _)| !reply.is_closed()));
        let actions = match next {
            Next::Command(Command::Acquire { spec, keep_alive, ended, reply }) => {
                let dead = self.runners.get(&spec.file).is_some_and(|runner| !runner.is_alive());
                let mut actions = if dead { self.state.leave(now, &spec.file) } else { Vec::new() };
                self.last += 1;
                self.replies.insert(self.last, (reply, ended));
                actions.extend(self.state.asked(now, self.last, spec, keep_alive));
                actions
            }
            Next::Command(Command::Unload { file }) => self.state.leave(now, &file),
            Next::Command(Command::List { reply }) => {
                let _ = reply.send(self.list(now));
                Vec::new()
            }
            Next::LeaseEnded(file) => self.state.released(now, &file),
            Next::Done(Done::Probed(ticket, need)) => self.state.probed(now, ticket, need),
            Next::Done(Done::Loaded(file, how)) => self.loaded(now, &file, how),
            Next::Done(Done::Unloaded(file)) => self.state.unloaded(now, &file),
            Next::Tick => self.state.tick(now),
            Next::End => Vec::new(),
        };
        for action in actions {
            self.act(action);
        }
        self.replies.retain(|_, (reply, _)| !reply.is_closed());
    }

    fn loaded(&mut self, now: Instant, file: &Path, how: Result<Arc<dyn Runner>, Error>) -> Vec<Action> {
        let facts = how.map(|runner| {
            let facts = runner.facts().clone();
            tracing::info!(file = %file.display(), context = facts.context, slots = facts.slots, "model loaded");
            self.runners.insert(file.to_owned(), runner);
            facts
        });
        if let Err(error) = &facts {
            tracing::warn!(file = %file.display(), error = error as &dyn std::error::Error, "failed to load a model");
        }
        self.state.loaded(now, file, facts)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Probe(ticket, spec) => {
                let loader = self.loader.clone();
                self.beside.spawn_blocking(move || Done::Probed(ticket, loader.probe(&spec)));
            }
            Action::Load(spec) => {
                let loader = self.loader.clone();
                self.beside.spawn_blocking(move || {
                    let how = loader.load(&spec);
                    Done::Loaded(spec.file, how)
                });
            }
            Action::Unload(file) => {
                tracing::info!(file = %file.display(), "model unloaded");
                let runner = self.runners.remove(&file);
                self.beside.spawn_blocking(move || {
                    drop(runner);
                    Done::Unloaded(file)
                });
            }
            Action::Grant(ticket, file) => self.grant(ticket, file),
            Action::Refuse(ticket, error) => {
                if let Some((reply, _)) = self.replies.remove(&ticket) {
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, file: PathBuf) {
        let Some((reply, ended)) = self.replies.remove(&ticket) else { return };
        let runner = self.runners.get(&file).cloned().expect("only what is loaded is granted");
        // Given to someone who just left, the lease ends by being dropped here.
        let _ = reply.send(Ok(Lease { runner: Some(runner), file, ended, waited: Duration::ZERO }));
    }

    fn list(&self, now: Instant) -> Vec<Resident> {
        let entries = self.state.entries(now).into_iter();
        let resident = |entry: super::state::Entry<'_>| Resident {
            file: entry.file.to_owned(),
            options: entry.options.clone(),
            facts: entry.facts.clone(),
            users: entry.users,
            expires_in: entry.expires_in,
        };
        entries.map(resident).collect()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
