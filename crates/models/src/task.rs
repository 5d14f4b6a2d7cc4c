//! Brings this node to where the mesh wants it, step by step: again and again, on a beat and when something changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ollama::Digest;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, chain};
use crate::reconcile::{Step, steps};
use crate::site::Site;

const BEAT: Duration = Duration::from_secs(5);
/// Between two looks, however much changes.
const PAUSE: Duration = Duration::from_millis(200);
/// While something comes in, others who may have it are asked again this often.
const SOURCES_EVERY: Duration = Duration::from_secs(3);
/// Models fetched at once; each takes several connections.
const FETCHES_MAX: usize = 2;
/// Everything else: hashing and linking keep one disk busy.
const OTHERS_MAX: usize = 1;

/// A step is not taken twice within it.
const REST: Duration = Duration::from_secs(30);

/// After a failure, twice as long with each further one.
const DEFER_MIN: Duration = Duration::from_secs(5);
const DEFER_MAX: Duration = Duration::from_secs(300);

#[must_use = "nothing moves until the task runs"]
#[derive(Debug)]
pub struct Task {
    site: Arc<Site>,
    nudge: Arc<Notify>,
    running: JoinSet<Ended>,
    under_way: BTreeSet<Step>,
    deferred: BTreeMap<Digest, Deferred>,
    /// Steps that ended a moment ago and may be wanted again, since what they changed is not seen yet, or never will be.
    resting: BTreeMap<Step, Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Deferred {
    until: Instant,
    pause: Duration,
}

type Ended = (Step, Result<(), Error>);

enum Event {
    Look,
    Ended(Box<Ended>),
    Sources,
    Stop,
}

impl Task {
    pub(crate) fn new(site: Arc<Site>, nudge: Arc<Notify>) -> Self {
        Self {
            site,
            nudge,
            running: JoinSet::new(),
            under_way: BTreeSet::new(),
            deferred: BTreeMap::new(),
            resting: BTreeMap::new(),
        }
    }

    /// What is half done at its end is gone on with after the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.site.cluster.changes();
        let (mut look_at, mut sources_at) = (Instant::now(), Instant::now());
        loop {
            let asks_sources = self.under_way.iter().any(|step| matches!(step, Step::Fetch { .. }));
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => Event::Stop,
                Some(ended) = self.running.join_next() => match ended {
                    Ok(ended) => Event::Ended(Box::new(ended)),
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                },
                () = sleep_until(look_at) => Event::Look,
                () = sleep_until(sources_at), if asks_sources => Event::Sources,
                () = self.nudge.notified() => {
                    look_at = look_at.min(Instant::now() + PAUSE);
                    continue;
                }
                Some(_) = changes.next() => {
                    look_at = look_at.min(Instant::now() + PAUSE);
                    continue;
                }
            };
            match event {
                Event::Look => {
                    self.look().await;
                    look_at = Instant::now() + BEAT;
                }
                Event::Ended(ended) => {
                    let (step, outcome) = *ended;
                    self.ended(step, outcome);
                    look_at = look_at.min(Instant::now() + PAUSE);
                }
                Event::Sources => {
                    self.site.holders.refresh().await;
                    sources_at = Instant::now() + SOURCES_EVERY;
                }
                Event::Stop => return,
            }
        }
    }

    async fn look(&mut self) {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        let mut local = self.site.local().await;
        self.site.holders.set_mine(self.site.holdings(&local));
        local.deferred = self.deferred.iter().filter(|(_, wait)| wait.until > now).map(|(digest, _)| *digest).collect();
        let wanted = steps(&local, &self.site.agreed(), self.site.role());
        // What failed once and is not wanted any more has no reason to be remembered.
        self.deferred.retain(|digest, wait| wait.until > now || wanted.iter().any(|step| of(step) == Some(*digest)));
        let is_fetch = |step: &Step| matches!(step, Step::Fetch { .. });
        if wanted.iter().any(is_fetch) {
            self.site.holders.refresh().await;
        }
        for step in wanted {
            let alike = self.under_way.iter().filter(|other| is_fetch(other) == is_fetch(&step)).count();
            let room = if is_fetch(&step) { FETCHES_MAX } else { OTHERS_MAX };
            if alike < room && !self.under_way.contains(&step) && !self.resting.contains_key(&step) {
                self.under_way.insert(step.clone());
                let site = self.site.clone();
                self.running.spawn(async move {
                    let outcome = take(&site, &step).await;
                    (step, outcome)
                });
            }
        }
    }

    fn ended(&mut self, step: Step, outcome: Result<(), Error>) {
        self.under_way.remove(&step);
        if matches!(step, Step::Notice { .. } | Step::Unname { .. }) {
            self.resting.insert(step.clone(), Instant::now() + REST);
        }
        if let (Step::Unname { .. }, Err(error)) = (&step, &outcome) {
            tracing::warn!(?step, error = %chain(error), "a name that the mesh has deleted stays here for now");
        }
        let Some(digest) = of(&step) else { return };
        match outcome {
            Ok(()) => drop(self.deferred.remove(&digest)),
            Err(error) => {
                let pause = self.deferred.get(&digest).map_or(DEFER_MIN, |wait| (wait.pause * 2).min(DEFER_MAX));
                tracing::warn!(?step, error = %chain(&error), ?pause, "a step with a model failed and is tried again later");
                self.deferred.insert(digest, Deferred { until: Instant::now() + pause, pause });
            }
        }
    }
}

async fn take(site: &Site, step: &Step) -> Result<(), Error> {
    match step {
        Step::Notice { store, name, digest } => site.notice(*store, name, *digest).await,
        Step::Fetch { version } => site.fetch(*version, &|_, _| ()).await,
        Step::Publish { store, name, version } => site.publish(*store, name, *version).await,
        Step::Unname { store, name } => site.unname(*store, name).await,
    }
}

/// The version that waits when the step fails.
fn of(step: &Step) -> Option<Digest> {
    match step {
        Step::Notice { digest, .. } => Some(*digest),
        Step::Fetch { version } | Step::Publish { version, .. } => Some(*version),
        Step::Unname { .. } => None,
    }
}
