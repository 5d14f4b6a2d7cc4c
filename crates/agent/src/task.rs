//! Looks after the backend: whether it answers, what it has and what it has loaded; and sends away what waited too long.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::desk::Care;
use crate::handle::Shared;

/// Runs until it is dropped. Whoever drops it leaves the agent blind, not broken.
#[derive(Debug)]
pub struct Task {
    shared: Arc<Shared>,
    version: Option<String>,
    listed: Option<Instant>,
}

/// Models come and go by hand. Where somebody asks for one that is not known, it is listed at once.
const LIST_EVERY: Duration = Duration::from_secs(10);
/// However often somebody asks for names nobody has heard of.
const LIST_PAUSE_MIN: Duration = Duration::from_millis(500);
/// Nudges come whenever they like; looks do not.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);

enum Event {
    LookDue,
    Expired,
    Nudged,
}

impl Task {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, version: None, listed: None }
    }

    pub async fn run(mut self) {
        let mut looked: Option<Instant> = None;
        loop {
            match self.event(looked).await {
                Event::LookDue => {
                    self.look().await;
                    looked = Some(Instant::now());
                }
                Event::Expired => self.shared.act(|desk, now| desk.tick(now)),
                Event::Nudged => {}
            }
        }
    }

    async fn event(&self, looked: Option<Instant>) -> Event {
        let Care { pause, expiry } = self.shared.await_care();
        let pause = if self.shared.list_wanted.load(Ordering::Acquire) { pause.min(LIST_PAUSE_MIN) } else { pause };
        let due = looked.map_or(Duration::ZERO, |looked| pause.max(LOOK_PAUSE_MIN).saturating_sub(looked.elapsed()));
        let expiry = expiry.map(|expiry| expiry.since(self.shared.now()).saturating_add(Duration::from_millis(1)));
        tokio::select! {
            () = sleep(due) => Event::LookDue,
            () = sleep(expiry.unwrap_or(Duration::MAX)), if expiry.is_some() => Event::Expired,
            () = self.shared.nudge.notified() => Event::Nudged,
        }
    }

    /// First what it has, then that it is up: a request that comes in between finds its model.
    async fn look(&mut self) {
        let is_list_due = self.shared.list_wanted.swap(false, Ordering::AcqRel)
            || self.listed.is_none_or(|listed| listed.elapsed() > LIST_EVERY);
        if !is_list_due {
            return self.look_at(false).await;
        }
        self.shared.looks.send_modify(|looks| looks.begun += 1);
        self.look_at(true).await;
        self.shared.looks.send_modify(|looks| looks.done = looks.begun);
    }

    async fn look_at(&mut self, is_list_due: bool) {
        let backend = &self.shared.backend;
        let version = match backend.look().await {
            Ok(version) => version,
            Err(how) => return self.missed(how),
        };
        if is_list_due || self.version.as_ref() != Some(&version) {
            match backend.tags().await {
                Ok(tags) => self.shared.act(|desk, _| {
                    desk.identified(&version);
                    desk.listed(&tags.models);
                    Vec::new()
                }),
                Err(how) => return self.missed(how),
            }
            self.version = Some(version);
            self.listed = Some(Instant::now());
        }
        match backend.loaded().await {
            Ok(ps) => self.shared.act(|desk, now| {
                let mut actions = desk.loaded(now, &ps.models);
                actions.extend(desk.answered(now));
                actions
            }),
            Err(how) => self.missed(how),
        }
    }

    fn missed(&mut self, how: crate::state::Missed) {
        tracing::debug!(?how, "a look at the backend went wrong");
        self.listed = None;
        self.shared.act(|desk, _| desk.missed(how));
    }
}
