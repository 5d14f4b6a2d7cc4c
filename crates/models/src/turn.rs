//! One upstream download, however many ask: whoever wants to fetch a name from its registry waits for its turn at one node,
//! the same for all, and hears meanwhile how far the one before it is.
//!
//! A turn is held by an open stream, so it ends with the node that held it. Who keeps the turns of a name follows from the
//! members, and who keeps them in its place from whether it can be reached: two that differ in this may both fetch, which
//! costs a download and harms nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use net::{ByteStream, Frames, Net, Services};
use ollama::ModelName;
use ollama::client::Progress;
use tokio::sync::{OwnedMutexGuard, watch};
use types::NodeId;

use crate::protocol::{TURN, TURN_BYTES_MAX, Turn};

/// Whoever has the turn says so this often, however long a hash takes.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Silent for so long, it is gone, and so is its turn; the same for who keeps it.
const SILENCE_MAX: Duration = Duration::from_secs(40);
const SAY_MAX: Duration = Duration::from_secs(10);

/// Machines that sleep are many; who finds none of these fetches by itself.
const KEEPERS_MAX: usize = 4;
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The turns this node keeps. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<ModelName, Weak<Line>>>>);

/// Everybody who wants one name. There are no more than streams, which are bounded.
#[derive(Debug)]
pub(crate) struct Line {
    /// Given in the order it was asked for.
    turn: Arc<tokio::sync::Mutex<()>>,
    progress: watch::Sender<Progress>,
}

/// Held as long as its holder fetches.
pub(crate) enum Held {
    Here {
        line: Arc<Line>,
        _turn: OwnedMutexGuard<()>,
    },
    There(Frames),
    /// Nobody could be asked.
    Alone,
}

impl Turns {
    pub(crate) fn services(&self, services: Services) -> Services {
        let turns = self.clone();
        services.on_stream(TURN, move |_, stream| {
            let turns = turns.clone();
            Box::pin(async move {
                // Its stream broke: whoever it was is gone, and its turn with it.
                let _ = turns.serve(stream).await;
            })
        })
    }

    async fn serve(&self, stream: ByteStream) -> std::io::Result<()> {
        let mut frames = Frames::new(stream, TURN_BYTES_MAX);
        let Some(Turn::Wanted(name)) = within(SAY_MAX, hear(&mut frames)).await? else { return Ok(()) };
        let line = self.line(&name);
        let mut progress = line.progress.subscribe();
        let mut turn = std::pin::pin!(line.turn.clone().lock_owned());
        let _turn = loop {
            tokio::select! {
                biased;
                turn = &mut turn => break turn,
                // The line holds the other end.
                _ = progress.changed() => {
                    let now = progress.borrow_and_update().clone();
                    say(&mut frames, &now.into()).await?;
                }
                said = hear(&mut frames) => match said? {
                    Some(_) => {}
                    None => return Ok(()),
                },
            }
        };
        say(&mut frames, &Turn::Yours).await?;
        while let Some(said) = within(SILENCE_MAX, hear(&mut frames)).await? {
            if let Turn::Progress { status, digest, total, completed } = said {
                line.progress.send_replace(Progress { status, digest, total, completed, error: String::new() });
            }
        }
        Ok(())
    }

    /// Waits for the turn at the first of these that can be asked.
    pub(crate) async fn wait(&self, net: &Net, keepers: &[NodeId], name: &ModelName, tell: &impl Fn(Progress)) -> Held {
        for keeper in keepers.iter().take(KEEPERS_MAX) {
            if *keeper == net.local() {
                return self.wait_here(name, tell).await;
            }
            if let Ok(Some(frames)) = Self::wait_there(net, *keeper, name, tell).await {
                return Held::There(frames);
            }
        }
        Held::Alone
    }

    async fn wait_here(&self, name: &ModelName, tell: &impl Fn(Progress)) -> Held {
        let line = self.line(name);
        let mut progress = line.progress.subscribe();
        let mut turn = std::pin::pin!(line.turn.clone().lock_owned());
        loop {
            tokio::select! {
                biased;
                turn = &mut turn => return Held::Here { line: line.clone(), _turn: turn },
                _ = progress.changed() => tell(progress.borrow_and_update().clone()),
            }
        }
    }

    async fn wait_there(
        net: &Net,
        keeper: NodeId,
        name: &ModelName,
        tell: &impl Fn(Progress),
    ) -> Result<Option<Frames>, String> {
        let connected = tokio::time::timeout(CONNECT_MAX, net.connect(keeper, TURN.protocol)).await;
        let stream = connected.map_err(|_| "late".to_owned())?.map_err(|error| error.to_string())?;
        let mut frames = Frames::new(stream, TURN_BYTES_MAX);
        let failed = |error: std::io::Error| error.to_string();
        say(&mut frames, &Turn::Wanted(name.clone())).await.map_err(failed)?;
        loop {
            match within(SILENCE_MAX, hear(&mut frames)).await.map_err(failed)? {
                Some(Turn::Yours) => return Ok(Some(frames)),
                Some(Turn::Progress { status, digest, total, completed }) => {
                    tell(Progress { status, digest, total, completed, error: String::new() });
                }
                Some(Turn::Wanted(_)) => {}
                None => return Ok(None),
            }
        }
    }

    fn line(&self, name: &ModelName) -> Arc<Line> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| line.strong_count() > 0);
        if let Some(line) = lines.get(name).and_then(Weak::upgrade) {
            return line;
        }
        let line = Arc::new(Line { turn: Arc::default(), progress: watch::Sender::default() });
        lines.insert(name.clone(), Arc::downgrade(&line));
        line
    }
}

impl Held {
    /// Tells those who wait.
    pub(crate) async fn tell(&mut self, progress: Progress) {
        match self {
            Self::Here { line, .. } => drop(line.progress.send_replace(progress)),
            Self::There(frames) => {
                if say(frames, &progress.into()).await.is_err() {
                    // Who kept the turn is gone; another one may begin beside us.
                    *self = Self::Alone;
                }
            }
            Self::Alone => {}
        }
    }
}

/// Who keeps the turns of a name, and who in its place: in the same order for everybody.
pub(crate) fn keepers(name: &ModelName, members: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut keepers: Vec<NodeId> = members.into_iter().collect();
    keepers.sort_by_cached_key(|node| {
        let mut draw = blake3::Hasher::new_derive_key("omx 2026 who keeps the turns of a pull");
        draw.update(name.full().to_ascii_lowercase().as_bytes()).update(node.public_key());
        *draw.finalize().as_bytes()
    });
    keepers
}

async fn say(frames: &mut Frames, turn: &Turn) -> std::io::Result<()> {
    frames.queue(&codec::encode(turn).map_err(std::io::Error::other)?);
    within(SAY_MAX, frames.flush()).await
}

async fn within<T>(limit: Duration, doing: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(limit, doing).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn hear(frames: &mut Frames) -> std::io::Result<Option<Turn>> {
    let Some(bytes) = frames.next().await? else { return Ok(None) };
    codec::decode(&bytes).map(Some).map_err(std::io::Error::other)
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here { .. } => "Here",
            Self::There(_) => "There",
            Self::Alone => "Alone",
        })
    }
}
