//! What a registry was asked for: numbers from which one download can be told from two, and a way to wait for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::digest::Digest;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// All requests, of any route.
    pub requests: u64,
    pub manifests: u64,
    /// Requests for how long a blob is.
    pub heads: u64,
    /// Requests for where a blob is.
    pub locates: u64,
    /// Requests that came without a token where one is needed.
    pub strangers: u64,
    pub tokens: u64,
    pub connections_open: u64,
    /// Parts on their way now.
    pub sending: u64,
    pub sending_max: u64,
    /// What was taken of each blob.
    pub blobs: BTreeMap<Digest, Taken>,
    pub pushed: Pushed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Requests for a part of it.
    pub parts: u64,
    /// Bytes that left. What a client did not read of them is counted too.
    pub bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    pub mounts: u64,
    pub uploads: u64,
    pub parts: u64,
    pub bytes: u64,
    pub manifests: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("still not so after {limit:?}: {asked:?}")]
pub struct TooLate {
    pub limit: Duration,
    pub asked: Asked,
}

#[derive(Debug)]
pub(super) struct Tally(watch::Sender<Asked>);

/// Counts while it lives.
#[derive(Debug)]
pub(super) struct While {
    tally: Arc<Tally>,
    less: fn(&mut Asked),
}

impl Tally {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Asked::default()))
    }

    pub(super) fn now(&self) -> Asked {
        self.0.borrow().clone()
    }

    pub(super) fn add(&self, change: impl FnOnce(&mut Asked)) {
        self.0.send_modify(change);
    }

    pub(super) fn open(self: &Arc<Self>) -> While {
        self.add(|asked| asked.connections_open += 1);
        While { tally: self.clone(), less: |asked| asked.connections_open -= 1 }
    }

    /// A part of `digest` begins to leave.
    pub(super) fn sending(self: &Arc<Self>, digest: &Digest) -> While {
        self.add(|asked| {
            asked.sending += 1;
            asked.sending_max = asked.sending_max.max(asked.sending);
            asked.blobs.entry(digest.clone()).or_default().parts += 1;
        });
        While { tally: self.clone(), less: |asked| asked.sending -= 1 }
    }

    pub(super) async fn until(&self, so: impl FnMut(&Asked) -> bool, limit: Duration) -> Result<Asked, TooLate> {
        let mut asked = self.0.subscribe();
        // The sender is ours and lives as long as this borrow of it: only time can run out.
        if let Ok(Ok(asked)) = tokio::time::timeout(limit, asked.wait_for(so)).await {
            return Ok(asked.clone());
        }
        Err(TooLate { limit, asked: self.now() })
    }
}

impl Drop for While {
    fn drop(&mut self) {
        self.tally.add(self.less);
    }
}
