//! What a node runs beside its registry. None of it ends before the node does: one that does has failed, and a node that
//! goes on without it would look well and do half of its work.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};

/// Under the names they have in the log. Dropped, they end.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// A part that is not there any more.
#[derive(Debug, thiserror::Error)]
#[error("its {part} came to an end: {why}")]
pub struct PartEnded {
    part: &'static str,
    why: String,
}

impl Parts {
    pub(crate) fn spawn(&mut self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let handle = self.running.spawn(work);
        self.names.insert(handle.id(), part);
    }

    /// The first that ends. May be dropped at any time.
    pub(crate) async fn ended(&mut self) -> PartEnded {
        let Some(ended) = self.running.join_next_with_id().await else { return std::future::pending().await };
        let (id, why) = match ended {
            Ok((id, ())) => (id, "by itself".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        let part = self.names.remove(&id).unwrap_or("work");
        tracing::error!(part, why, "a part of this node came to an end, and so does the node");
        PartEnded { part, why }
    }

    /// Returns when all have ended.
    pub(crate) async fn end(mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

/// A child's panic is its parent's: what is only logged would leave the parent at half its work.
pub(crate) fn pass_on(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_told_by_its_name_and_so_is_one_that_just_ends() {
        let mut parts = Parts::default();
        parts.spawn("patience", std::future::pending());
        parts.spawn("nerve", async { panic!("as the test wants it") });
        let told = parts.ended().await.to_string();
        assert!(told.starts_with("its nerve came to an end: ") && told.contains("as the test wants it"), "{told}");
        parts.spawn("zeal", async {});
        assert_eq!(parts.ended().await.to_string(), "its zeal came to an end: by itself");
    }

    #[tokio::test]
    async fn a_child_that_panics_takes_its_parent_along_and_one_that_was_stopped_does_not() {
        let mut parts = Parts::default();
        parts.spawn("parent", async {
            let mut children = JoinSet::new();
            children.spawn(std::future::pending()).abort();
            pass_on(children.join_next().await.unwrap());
            children.spawn(async { panic!("as the test wants it") });
            pass_on(children.join_next().await.unwrap());
            std::future::pending().await
        });
        assert!(parts.ended().await.to_string().contains("as the test wants it"));
    }
}
