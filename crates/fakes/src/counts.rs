//! What a fake saw: numbers to compare with what clients saw, and a way to wait for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Model;

/// The oldest is forgotten beyond it.
const SERVED_MAX: usize = 1 << 16;
/// Of a prompt, in bytes.
const REMEMBERED_MAX: usize = 128;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests, of any route.
    pub requests: u64,
    /// Requests a model was to answer, embeddings too.
    pub inferences: u64,
    pub finished: u64,
    /// Those whose client went before the end.
    pub cancelled: u64,
    pub refused: u64,
    /// Loads that were begun.
    pub loads: u64,
    /// Connections taken so far.
    pub connections: u64,
    pub connections_open: u64,
    /// In a slot now.
    pub running: u64,
    pub running_max: u64,
    /// Waiting for a load or a slot now.
    pub waiting: u64,
}

/// One inference, as it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub model: String,
    /// Whose text or weights: [`crate::Model::content`], which for a model in a folder is the digest of its weights.
    pub content: String,
    /// The end of the prompt as the model got it, where a test can have put a mark.
    pub prompt_end: String,
    /// Tokens that were made.
    pub tokens: u32,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finished,
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
#[error("still not so after {limit:?}: {counts:?}")]
pub struct TooLate {
    pub limit: Duration,
    pub counts: Counts,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    counts: watch::Sender<Counts>,
    served: Mutex<VecDeque<Served>>,
}

/// Counts while it lives.
#[derive(Debug)]
pub(crate) struct While {
    ledger: Arc<Ledger>,
    less: fn(&mut Counts),
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { counts: watch::Sender::new(Counts::default()), served: Mutex::new(VecDeque::new()) }
    }

    pub(crate) fn now(&self) -> Counts {
        self.counts.borrow().clone()
    }

    pub(crate) fn add(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    pub(crate) fn hold(self: &Arc<Self>, more: fn(&mut Counts), less: fn(&mut Counts)) -> While {
        self.add(more);
        While { ledger: self.clone(), less }
    }

    pub(crate) async fn until(&self, so: impl FnMut(&Counts) -> bool, limit: Duration) -> Result<Counts, TooLate> {
        let mut counts = self.counts.subscribe();
        // The sender is ours and lives as long as this borrow of it: only time can run out.
        if let Ok(Ok(counts)) = tokio::time::timeout(limit, counts.wait_for(so)).await {
            return Ok(counts.clone());
        }
        Err(TooLate { limit, counts: self.now() })
    }

    pub(crate) fn note(&self, model: &Model, prompt: &str, tokens: u32, end: End) {
        let from = prompt.ceil_char_boundary(prompt.len().saturating_sub(REMEMBERED_MAX));
        let prompt_end = prompt[from..].to_owned();
        let mut served = self.served.lock().expect("nothing panics while it holds the lock");
        if served.len() == SERVED_MAX {
            served.pop_front();
        }
        served.push_back(Served { model: model.name.clone(), content: model.content.clone(), prompt_end, tokens, end });
        drop(served);
        self.add(|counts| match end {
            End::Finished => counts.finished += 1,
            End::Cancelled => counts.cancelled += 1,
        });
    }

    pub(crate) fn served(&self) -> Vec<Served> {
        self.served.lock().expect("nothing panics while it holds the lock").iter().cloned().collect()
    }
}

impl Drop for While {
    fn drop(&mut self) {
        self.ledger.add(self.less);
    }
}
