use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::runner::{Answer, EmbedJob, Embedded, Job, Need, Prompt, Token};

/// Counts what is loaded.
#[derive(Debug)]
struct Counting {
    facts: Facts,
    loaded: Arc<AtomicUsize>,
    alive: bool,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.loaded.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Runner for Counting {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn is_alive(&self) -> bool {
        self.alive
    }

    fn generate(&self, _: Job) -> BoxFuture<'_, Result<Answer, Error>> {
        async { Err(Error::OnlyEmbeds) }.boxed()
    }

    fn embed(&self, _: EmbedJob) -> BoxFuture<'_, Result<Embedded, Error>> {
        async { Err(Error::NeverEmbeds) }.boxed()
    }

    fn tokenize(&self, _: Prompt) -> BoxFuture<'_, Result<Vec<Token>, Error>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn detokenize(&self, _: Vec<Token>) -> BoxFuture<'_, Result<String, Error>> {
        async { Ok(String::new()) }.boxed()
    }
}

/// A file's name decides what becomes of it.
#[derive(Debug, Default)]
struct Names {
    loaded: Arc<AtomicUsize>,
    loads: AtomicUsize,
}

impl Loader for Names {
    fn probe(&self, spec: &Spec) -> Result<Need, Error> {
        if spec.file.ends_with("teapot") {
            return Err(Error::CannotRun { reason: "it is a teapot".to_owned() });
        }
        Ok(Need { weights: 60, context: 0 })
    }

    fn load(&self, spec: &Spec) -> Result<Arc<dyn Runner>, Error> {
        if spec.file.ends_with("broken") {
            return Err(Error::Load { path: spec.file.clone() });
        }
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.loaded.fetch_add(1, Ordering::SeqCst);
        let facts = Facts {
            size: 60,
            size_gpu: 0,
            context: spec.options.num_ctx.unwrap(),
            context_trained: 8192,
            slots: 1,
            only_embeds: false,
            embedding_length: 8,
        };
        Ok(Arc::new(Counting { facts, loaded: self.loaded.clone(), alive: !spec.file.ends_with("dying") }))
    }
}

struct Started {
    library: Library,
    names: Arc<Names>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

fn start() -> Started {
    let names = Arc::new(Names::default());
    let config = Config { memory: Some(100), ..Config::default() };
    let (library, task) = Library::new(config, names.clone());
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(shutdown.clone()));
    Started { library, names, shutdown, tasks }
}

impl Started {
    async fn acquire(&self, file: &str) -> Result<Lease, Error> {
        self.library.acquire(Spec::new(file), KeepAlive::default()).await
    }

    fn loaded(&self) -> usize {
        self.names.loaded.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn one_load_serves_many_and_another_model_takes_its_place() {
    let started = start();
    let (first, second) = tokio::join!(started.acquire("a"), started.acquire("a"));
    assert_eq!(started.names.loads.load(Ordering::SeqCst), 1);
    assert_eq!(first.as_ref().unwrap().facts().context, 4096);
    assert_eq!(started.library.loaded().await[0].users, 2);
    let mut other = Box::pin(started.acquire("b"));
    assert!(futures::poll!(&mut other).is_pending());
    drop(first);
    drop(second);
    let other = other.await.unwrap();
    assert_eq!(started.loaded(), 1);
    assert_eq!(started.library.loaded().await[0].file, Path::new("b"));
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_model_is_freed_when_its_time_is_over() {
    let started = start();
    drop(started.acquire("a").await.unwrap());
    let listed = started.library.loaded().await;
    assert_eq!((listed.len(), started.loaded()), (1, 1));
    assert!(listed[0].expires_in.unwrap() <= Duration::from_secs(300));
    // The clock moves on by itself whenever everyone waits.
    tokio::time::sleep(Duration::from_secs(301)).await;
    while started.loaded() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(started.library.loaded().await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_loaded_says_why() {
    let started = start();
    assert!(matches!(started.acquire("teapot").await, Err(Error::CannotRun { .. })));
    assert!(matches!(started.acquire("broken").await, Err(Error::Load { .. })));
    started.acquire("a").await.unwrap();
}

#[tokio::test]
async fn a_dead_runner_is_loaded_anew() {
    let started = start();
    drop(started.acquire("dying").await.unwrap());
    drop(started.acquire("dying").await.unwrap());
    assert_eq!((started.names.loads.load(Ordering::SeqCst), started.loaded()), (2, 1));
}

#[tokio::test]
async fn an_unloaded_model_is_gone_once_nobody_uses_it() {
    let started = start();
    let lease = started.acquire("a").await.unwrap();
    started.library.unload(Path::new("a")).await;
    assert_eq!(started.library.loaded().await.len(), 1);
    drop(lease);
    // The next load waits for the unload.
    let lease = started.acquire("a").await.unwrap();
    assert_eq!(started.names.loads.load(Ordering::SeqCst), 2);
    drop(lease);
}

#[tokio::test]
async fn the_end_frees_everything_and_answers_everyone() {
    let mut started = start();
    let lease = started.acquire("a").await.unwrap();
    let library = started.library.clone();
    let mut waiting = Box::pin(library.acquire(Spec::new("b"), KeepAlive::default()));
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(lease);
    started.shutdown.cancel();
    started.tasks.join_next().await.unwrap().unwrap();
    assert!(matches!(waiting.await, Err(Error::Stopped) | Ok(_)));
    assert_eq!(started.loaded(), 0);
    assert!(matches!(started.acquire("a").await, Err(Error::Stopped)));
}
