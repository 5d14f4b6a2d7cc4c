//! Work that says how far it is, line by line. When its client goes, it ends.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Depot;
use crate::body::{Answer, Broken, Lines, flushed_and_broken};
use crate::digest::Digest;
use crate::fault::Fault;
use crate::refusal::Refusal;
use crate::spoil::{Next, Spoiler};

/// The lines of a piece of work, and the work.
#[derive(Debug)]
pub(crate) struct Progress {
    first: Option<Value>,
    lines: mpsc::Receiver<Value>,
    work: JoinSet<Result<(), Refusal>>,
    spoiler: Spoiler,
    over: bool,
}

/// Says how far the work is. With one line waiting to be sent, it waits.
#[derive(Debug, Clone)]
pub(super) struct Reporter(mpsc::Sender<Value>);

/// How an answer is wanted.
pub(super) struct Wanted {
    pub(super) stream: bool,
    pub(super) fault: Option<Fault>,
}

impl Reporter {
    pub(super) async fn say(&self, status: &str) {
        self.send(json!({ "status": status })).await;
    }

    /// `doing` is what is done with it. Nothing completed is not written.
    pub(super) async fn blob(&self, doing: &str, digest: &Digest, total: u64, completed: u64) {
        let mut line = Map::new();
        line.insert("status".to_owned(), format!("{doing} {}", digest.short()).into());
        line.insert("digest".to_owned(), digest.to_string().into());
        for (name, bytes) in [("total", total), ("completed", completed)] {
            if bytes > 0 {
                line.insert(name.to_owned(), bytes.into());
            }
        }
        self.send(line.into()).await;
    }

    async fn send(&self, line: Value) {
        // Nobody listens only when the work is about to be stopped.
        let _ = self.0.send(line).await;
    }
}

impl Progress {
    /// Where nothing was said before it failed, the failure is the answer, with its own status.
    pub(super) async fn begin<W>(
        depot: &Depot,
        wanted: Wanted,
        work: impl FnOnce(Reporter) -> W,
    ) -> Result<Answer, Refusal>
    where
        W: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let (sender, lines) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(work(Reporter(sender)));
        let spoiler = Spoiler::new(depot.faults.clone(), wanted.fault);
        let mut progress = Self { first: None, lines, work: tasks, spoiler, over: false };
        progress.first = progress.advance().await?;
        if wanted.stream { Ok(Answer::Progress(Box::new(progress))) } else { progress.whole().await }
    }

    /// The last line alone.
    async fn whole(mut self) -> Result<Answer, Refusal> {
        match self.spoiler.fault() {
            Some(Fault::HangInside { .. }) => std::future::pending().await,
            Some(Fault::ErrorInside { .. }) => return Err(Refusal::here(TOLD)),
            _ => {}
        }
        let mut last = self.first.take();
        while let Some(line) = self.advance().await? {
            last = Some(line);
        }
        Ok(Answer::json(last.unwrap_or_default()))
    }

    async fn advance(&mut self) -> Result<Option<Value>, Refusal> {
        if let Some(line) = self.lines.recv().await {
            return Ok(Some(line));
        }
        match self.work.join_next().await {
            Some(Ok(ended)) => ended.map(|()| None),
            Some(Err(stopped)) => Err(super::failed(stopped)),
            None => Ok(None),
        }
    }
}

impl Lines for Progress {
    async fn frame(&mut self) -> Option<Result<Bytes, Broken>> {
        match self.spoiler.next().await {
            Next::Break => return Some(Err(flushed_and_broken().await)),
            Next::End => return None,
            Next::Error if self.over => return None,
            Next::Error => {
                self.over = true;
                return Some(Ok(self.spoiler.line(&json!({ "error": TOLD })).await));
            }
            Next::Line => {}
        }
        let line = match self.first.take() {
            Some(line) => line,
            None if self.over => return None,
            None => match self.advance().await {
                Ok(line) => line?,
                Err(refusal) => {
                    self.over = true;
                    json!({ "error": refusal.text })
                }
            },
        };
        Some(Ok(self.spoiler.line(&line).await))
    }
}

const TOLD: &str = "the fake was told to fail";
