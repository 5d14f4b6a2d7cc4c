//! Brings this node to where the mesh wants it, step by step: again and again, on a beat and when something changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ollama::Digest;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, chain};
use crate::pulls::Pull;
use crate::reconcile::{Step, steps};
use crate::site::Site;

const BEAT: Duration = Duration::from_secs(5);
/// Between two looks, however much changes.
const PAUSE: Duration = Duration::from_millis(200);
/// While something comes in, others who may have it are asked again this often.
const SOURCES_EVERY: Duration = Duration::from_secs(3);
/// Pulls that run at once. One more waits until one of them is through.
const PULLS_MAX: usize = 32;

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
    pulls: mpsc::Receiver<Pull>,
    pulling: JoinSet<()>,
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

/// Steps of one lane wait for each other and not for those of the others: a node with a terabyte of models of its own
/// gives names while it reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Over the network; each takes several connections.
    Fetch,
    /// From end to end through the disk.
    Read,
    /// A moment's work, but where an Ollama has to pull or another file system is copied to.
    Name,
}

impl Lane {
    fn of(step: &Step) -> Self {
        match step {
            Step::Fetch { .. } => Self::Fetch,
            Step::Notice { .. } | Step::Repair { .. } => Self::Read,
            Step::Publish { .. } | Step::Unname { .. } => Self::Name,
        }
    }

    fn room(self) -> usize {
        match self {
            Self::Fetch => 2,
            Self::Read | Self::Name => 1,
        }
    }
}

enum Event {
    Look,
    Ended(Box<Ended>),
    Sources,
    Pull(Pull),
    Stop,
}

impl Task {
    pub(crate) fn new(site: Arc<Site>, nudge: Arc<Notify>, pulls: mpsc::Receiver<Pull>) -> Self {
        Self {
            site,
            nudge,
            running: JoinSet::new(),
            pulls,
            pulling: JoinSet::new(),
            under_way: BTreeSet::new(),
            deferred: BTreeMap::new(),
            resting: BTreeMap::new(),
        }
    }

    /// What is half done at its end is gone on with after the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.site.cluster.changes();
        let mut damage = self.site.blobs.damaged();
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
                Some(ended) = self.pulling.join_next() => match ended {
                    Ok(()) => continue,
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                },
                Some(pull) = self.pulls.recv(), if self.pulling.len() < PULLS_MAX => Event::Pull(pull),
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
                Ok(()) = damage.changed() => {
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
                Event::Pull(pull) => {
                    let site = self.site.clone();
                    self.pulling.spawn(async move { pull.run(&site).await });
                }
                Event::Stop => return,
            }
        }
    }

    async fn look(&mut self) {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        if !self.site.blobs.damaged().borrow().is_empty() || !self.site.wrong().is_empty() {
            self.site.holders.refresh().await;
        }
        let mut local = self.site.say_what_is_here().await;
        local.deferred = self.deferred.iter().filter(|(_, wait)| wait.until > now).map(|(digest, _)| *digest).collect();
        let wanted = steps(&local, &self.site.agreed(), self.site.role());
        // What failed once and is not wanted any more has no reason to be remembered.
        self.deferred
            .retain(|digest, wait| wait.until > now || wanted.iter().any(|step| step.version() == Some(*digest)));
        if wanted.iter().any(|step| matches!(step, Step::Fetch { .. })) {
            self.site.holders.refresh().await;
        }
        let is_resting = |step: &Step| self.resting.contains_key(step);
        for step in chosen(wanted, &self.under_way, is_resting) {
            self.under_way.insert(step.clone());
            let site = self.site.clone();
            self.running.spawn(async move {
                let outcome = take(&site, &step).await;
                (step, outcome)
            });
        }
    }

    fn ended(&mut self, step: Step, outcome: Result<(), Error>) {
        self.under_way.remove(&step);
        // What failed has a pause of its own, but for a name that is to go.
        let is_slow = matches!(step, Step::Notice { .. } | Step::Repair { .. }) && outcome.is_ok();
        if is_slow || matches!(step, Step::Unname { .. }) {
            self.resting.insert(step.clone(), Instant::now() + REST);
        }
        if let (Step::Unname { .. }, Err(error)) = (&step, &outcome) {
            tracing::warn!(?step, error = %chain(error), "a name that the mesh has deleted stays here for now");
        }
        let Some(digest) = step.version() else { return };
        match outcome {
            Ok(()) => drop(self.deferred.remove(&digest)),
            // It is known what it should be, so it is not read again but repaired.
            Err(Error::Corrupt { path, found })
                if self.site.cluster.view(|registry| registry.version(&digest).is_some()) =>
            {
                tracing::warn!(?step, path = %path.display(), %found, "a file of a model is not what its name says");
            }
            Err(error) => {
                let pause = self.deferred.get(&digest).map_or(DEFER_MIN, |wait| (wait.pause * 2).min(DEFER_MAX));
                tracing::warn!(?step, error = %chain(&error), ?pause, "a step with a model failed and is tried again later");
                self.deferred.insert(digest, Deferred { until: Instant::now() + pause, pause });
            }
        }
    }
}

/// Those that there is room for, besides what is under way.
fn chosen(wanted: BTreeSet<Step>, under_way: &BTreeSet<Step>, is_resting: impl Fn(&Step) -> bool) -> Vec<Step> {
    let mut chosen: Vec<Step> = Vec::new();
    for step in wanted {
        let lane = Lane::of(&step);
        let alike = under_way.iter().chain(&chosen).filter(|other| Lane::of(other) == lane).count();
        if alike < lane.room() && !under_way.contains(&step) && !is_resting(&step) {
            chosen.push(step);
        }
    }
    chosen
}

async fn take(site: &Site, step: &Step) -> Result<(), Error> {
    match step {
        Step::Notice { store, name, digest } => site.notice(*store, name, *digest).await,
        Step::Fetch { version } => site.fetch(*version, &|_, _| ()).await,
        Step::Publish { store, name, version } => site.publish(*store, name, *version).await,
        Step::Unname { store, name } => site.unname(*store, name).await,
        Step::Repair { version } => {
            let found = site.verify(*version, true).await?;
            tracing::info!(%version, damaged = found.damaged, "what was damaged of a model is as it was");
            site.say_what_is_here().await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_and_models_fetched_while_a_disk_full_of_models_is_read() {
        let version = |n: u8| Digest::of(&[n]);
        let name = |n: u8| format!("m{n}").parse().unwrap();
        let notices = (0..9).map(|n| Step::Notice { store: 0, name: name(n), digest: version(n) });
        let publish = Step::Publish { store: 0, name: name(20), version: version(20) };
        let fetches = (30..39).map(|n| Step::Fetch { version: version(n) });
        let repair = Step::Repair { version: version(40) };
        let wanted: BTreeSet<Step> = notices.chain(fetches).chain([publish.clone(), repair]).collect();
        let first = chosen(wanted.clone(), &BTreeSet::new(), |_| false);
        let lanes = |lane: Lane| first.iter().filter(|step| Lane::of(step) == lane).count();
        assert_eq!((lanes(Lane::Read), lanes(Lane::Name), lanes(Lane::Fetch), first.len()), (1, 1, 2, 4));
        // While one is read, the next name is given.
        let under_way = first.iter().filter(|step| **step != publish).cloned().collect();
        assert_eq!(chosen(wanted.clone(), &under_way, |_| false), std::slice::from_ref(&publish));
        assert!(chosen(wanted, &under_way, |step| *step == publish).is_empty());
    }
}
