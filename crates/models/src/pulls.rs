//! Pulls that somebody has asked for. Each goes on by itself, however slowly it is listened to, and to its end where
//! nobody listens any more: others may be waiting for its turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cluster::Actor;
use ollama::client::Progress;
use ollama::{Digest, ModelName, Origin};
use tokio::sync::{Notify, oneshot};

use crate::error::{Error, chain};
use crate::site::Site;

/// News that wait for whoever listens; beyond, the oldest goes. More than a model can have layers.
const NEWS_MAX: usize = 512;

/// What is to be pulled, and who is told.
#[derive(Debug)]
pub(crate) struct Pull {
    by: Actor,
    name: ModelName,
    allowed: Vec<Origin>,
    news: Arc<News>,
    done: oneshot::Sender<Result<Digest, Error>>,
}

/// The other end of it. Dropped, the pull goes on.
#[derive(Debug)]
pub(crate) struct Heard {
    news: Arc<News>,
    done: oneshot::Receiver<Result<Digest, Error>>,
}

/// What there is to tell. What is said about the same thing as the last time takes its place.
#[derive(Debug, Default)]
struct News {
    waiting: Mutex<VecDeque<Progress>>,
    more: Notify,
}

impl News {
    fn tell(&self, progress: Progress) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.back().is_some_and(|last| last.status == progress.status) {
            waiting.pop_back();
        }
        if waiting.len() == NEWS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(progress);
        drop(waiting);
        self.more.notify_one();
    }

    fn next(&self) -> Option<Progress> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

pub(crate) fn new(by: Actor, name: ModelName, allowed: Vec<Origin>) -> (Pull, Heard) {
    let news = Arc::<News>::default();
    let (done, heard) = oneshot::channel();
    (Pull { by, name, allowed, news: news.clone(), done }, Heard { news, done: heard })
}

impl Pull {
    pub(crate) async fn run(self, site: &Site) {
        let Self { by, name, allowed, news, done } = self;
        let pulled = site.pull(by, &name, &allowed, &|progress| news.tell(progress)).await;
        if let Err(Err(error)) = done.send(pulled) {
            tracing::info!(%name, error = %chain(&error), "a pull that nobody waited for any more failed");
        }
    }
}

impl Heard {
    /// All that is told, in its order, until the pull is over.
    pub(crate) async fn until_over(self, tell: &impl Fn(Progress)) -> Result<Digest, Error> {
        let Self { news, mut done } = self;
        loop {
            let outcome = tokio::select! {
                biased;
                outcome = &mut done => Some(outcome.unwrap_or(Err(Error::Stopping))),
                () = news.more.notified() => None,
            };
            while let Some(progress) = news.next() {
                tell(progress);
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use types::NodeId;

    use super::*;

    fn progress(status: &str, completed: u64) -> Progress {
        Progress { status: status.to_owned(), completed, ..Progress::default() }
    }

    fn pull() -> (Pull, Heard) {
        let by = Actor::Node(NodeId::from_public_key([1; 32]));
        new(by, "m".parse().unwrap(), Vec::new())
    }

    #[tokio::test]
    async fn whoever_listens_late_hears_everything_in_order_and_its_last_state() {
        let (pull, heard) = pull();
        for (status, completed) in [("a", 0), ("b", 1), ("b", 2), ("b", 3), ("c", 0)] {
            pull.news.tell(progress(status, completed));
        }
        pull.done.send(Err(Error::NoStore)).unwrap();
        let told = Mutex::new(Vec::new());
        let outcome =
            heard.until_over(&|progress| told.lock().unwrap().push((progress.status, progress.completed))).await;
        assert!(matches!(outcome, Err(Error::NoStore)));
        let expected = [("a", 0), ("b", 3), ("c", 0)].map(|(status, completed)| (status.to_owned(), completed));
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn nobody_who_listens_holds_a_pull_up_and_its_end_without_a_word_is_told() {
        let (pull, heard) = pull();
        (0..10 * NEWS_MAX as u64).for_each(|n| pull.news.tell(progress(&n.to_string(), n)));
        assert_eq!(pull.news.waiting.lock().unwrap().len(), NEWS_MAX);
        drop(pull);
        assert!(matches!(heard.until_over(&|_| ()).await, Err(Error::Stopping)));
    }
}
