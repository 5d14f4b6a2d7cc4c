//! How much a key may ask of models at this node. The table is pure: it is told the time.
//!
//! Each node counts for itself: what a key takes elsewhere is not known here.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use node::{Grant, KeyId};

const MINUTE: Duration = Duration::from_secs(60);

/// Starts that lie closer together are counted as one time, so that a key costs the same memory whatever its limit. A
/// start may therefore count for so much longer than a minute.
const GRAIN: Duration = Duration::from_secs(1);

/// Nobody knows when a running request ends.
const AGAIN: Duration = Duration::from_secs(1);

/// What keys with limits have under way and have started of late. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quota(Arc<Mutex<Table>>);

/// A place among the requests a key may have under way. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    quota: Quota,
    key: KeyId,
}

/// The limit a request would have exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    Concurrent { limit: NonZeroU32 },
    PerMinute { limit: NonZeroU32, wait: Duration },
}

impl Exceeded {
    /// After what time it is worth another try.
    pub(crate) fn wait(self) -> Duration {
        match self {
            Self::Concurrent { .. } => AGAIN,
            Self::PerMinute { wait, .. } => wait,
        }
    }
}

impl Quota {
    /// Nothing where the key has no limits of its own.
    pub(crate) fn admit(&self, grant: &Grant, now: Instant) -> Result<Option<Place>, Exceeded> {
        if grant.limits == node::KeyLimits::NONE {
            return Ok(None);
        }
        self.table().start(grant, now)?;
        Ok(Some(Place { quota: self.clone(), key: grant.key.clone() }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Keeps the place until the answer's body is over, or nobody wants it any more.
    pub(crate) fn hold(self, response: Response) -> Response {
        response.map(|body| Body::new(Held { body, place: Some(self) }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.quota.table().end(&self.key);
    }
}

/// By key. Keys come in only with a request that is admitted, and are forgotten once they have none under way and
/// started none for a minute, revoked ones like others: there are never more than the mesh has keys and had within
/// that minute.
#[derive(Debug, Default)]
struct Table(HashMap<KeyId, Taken>);

#[derive(Debug, Clone, Default)]
struct Taken {
    running: u32,
    /// Times, each with the number of requests started then, oldest first. Kept only where they are limited.
    started: VecDeque<(Instant, u32)>,
}

impl Table {
    fn start(&mut self, grant: &Grant, now: Instant) -> Result<(), Exceeded> {
        if !self.0.contains_key(&grant.key) {
            self.0.retain(|_, taken| {
                taken.forget_before(now);
                taken.running > 0 || !taken.started.is_empty()
            });
        }
        // It stays only with something in it: a limit is at least one, so what is new here is admitted.
        let taken = self.0.entry(grant.key.clone()).or_default();
        taken.forget_before(now);
        if let Some(limit) = grant.limits.concurrent.filter(|limit| taken.running >= limit.get()) {
            return Err(Exceeded::Concurrent { limit });
        }
        if let Some(limit) = grant.limits.per_minute {
            let count = taken.started.iter().map(|(_, count)| count).sum::<u32>();
            if let Some((oldest, _)) = taken.started.front().filter(|_| count >= limit.get()) {
                let wait = (MINUTE + GRAIN).saturating_sub(now.saturating_duration_since(*oldest));
                return Err(Exceeded::PerMinute { limit, wait });
            }
            match taken.started.back_mut() {
                Some((then, count)) if now.saturating_duration_since(*then) < GRAIN => *count += 1,
                _ => taken.started.push_back((now, 1)),
            }
        }
        taken.running = taken.running.saturating_add(1);
        Ok(())
    }

    fn end(&mut self, key: &KeyId) {
        if let Some(taken) = self.0.get_mut(key) {
            taken.running = taken.running.saturating_sub(1);
            if taken.running == 0 && taken.started.is_empty() {
                self.0.remove(key);
            }
        }
    }
}

impl Taken {
    fn forget_before(&mut self, now: Instant) {
        let over = |(then, _): &(Instant, u32)| now.saturating_duration_since(*then) >= MINUTE + GRAIN;
        while self.started.front().is_some_and(over) {
            self.started.pop_front();
        }
    }
}

/// An answer's body and the place it takes.
struct Held {
    body: Body,
    place: Option<Place>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    /// The place is free before the client hears of the end, so that its next request finds it free.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let over = match &polled {
            Poll::Pending => false,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_)) | None) => true,
        };
        if over {
            self.place = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt;
    use http_body_util::BodyExt;
    use node::KeyLimits;
    use types::{Scope, Scopes};

    use super::*;

    fn grant(number: u64, concurrent: u32, per_minute: u32) -> Grant {
        let limits = KeyLimits { concurrent: NonZeroU32::new(concurrent), per_minute: NonZeroU32::new(per_minute) };
        Grant { key: format!("{number:012x}").parse().unwrap(), scopes: Scopes::NONE.with(Scope::Infer), limits }
    }

    fn concurrent(limit: u32) -> Exceeded {
        Exceeded::Concurrent { limit: NonZeroU32::new(limit).unwrap() }
    }

    #[test]
    fn a_key_has_no_more_under_way_than_it_may_and_more_when_one_ends() {
        let (quota, now) = (Quota::default(), Instant::now());
        let (two, one) = (grant(1, 2, 0), grant(2, 1, 0));
        let first = quota.admit(&two, now).unwrap();
        let _second = quota.admit(&two, now).unwrap();
        assert_eq!(quota.admit(&two, now).unwrap_err(), concurrent(2));
        let _others = quota.admit(&one, now).unwrap();
        drop(first);
        let _third = quota.admit(&two, now).unwrap();
        assert_eq!(quota.admit(&two, now).unwrap_err(), concurrent(2));
    }

    #[test]
    fn a_key_starts_no_more_within_any_minute_than_it_may() {
        let (mut table, begin) = (Table::default(), Instant::now());
        let key = grant(1, 0, 5);
        let mut admitted: Vec<Instant> = Vec::new();
        for tenth in 0..3_000 {
            let now = begin + Duration::from_millis(tenth * 100);
            match table.start(&key, now) {
                Ok(()) => {
                    table.end(&key.key);
                    admitted.push(now);
                }
                Err(Exceeded::PerMinute { limit, wait }) => {
                    assert_eq!(limit.get(), 5);
                    assert!(!wait.is_zero() && wait <= MINUTE + GRAIN, "{wait:?}");
                    // To wait so long is enough.
                    let mut later = Table(table.0.clone());
                    later.start(&key, now + wait).unwrap();
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        for window in admitted.windows(6) {
            assert!(window[5] - window[0] >= MINUTE, "{:?}", window[5] - window[0]);
        }
        // Nor does it get less: five in each minute and a second.
        assert!(admitted.len() >= 20, "{}", admitted.len());
    }

    #[test]
    fn what_is_refused_is_not_counted_as_started() {
        let (quota, now) = (Quota::default(), Instant::now());
        let key = grant(1, 1, 2);
        let place = quota.admit(&key, now).unwrap();
        for _ in 0..10 {
            assert_eq!(quota.admit(&key, now).unwrap_err(), concurrent(1));
        }
        drop(place);
        drop(quota.admit(&key, now).unwrap());
        assert!(matches!(quota.admit(&key, now), Err(Exceeded::PerMinute { .. })));
    }

    #[test]
    fn a_key_costs_the_same_memory_whatever_its_limit() {
        let (mut table, begin) = (Table::default(), Instant::now());
        let key = grant(1, 0, 1_000_000);
        for milli in 0..200_000 {
            table.start(&key, begin + Duration::from_millis(milli)).unwrap();
            table.end(&key.key);
        }
        assert!(table.0[&key.key].started.len() <= 62, "{}", table.0[&key.key].started.len());
    }

    #[test]
    fn keys_without_limits_are_not_kept_and_others_only_while_they_count() {
        let (quota, begin) = (Quota::default(), Instant::now());
        assert!(quota.admit(&grant(0, 0, 0), begin).unwrap().is_none());
        assert!(quota.table().0.is_empty());
        let running = quota.admit(&grant(1, 1, 0), begin).unwrap();
        for number in 2..100 {
            drop(quota.admit(&grant(number, 0, 1), begin).unwrap());
            drop(quota.admit(&grant(1_000 + number, 1, 0), begin).unwrap());
        }
        assert_eq!(quota.table().0.len(), 99);
        let later = begin + MINUTE + GRAIN;
        drop(quota.admit(&grant(200, 0, 1), later).unwrap());
        assert_eq!(quota.table().0.len(), 2, "the one that runs and the one that came");
        drop(running);
        assert_eq!(quota.table().0.len(), 1);
    }

    #[tokio::test]
    async fn a_place_is_kept_until_the_body_is_over_or_dropped() {
        let (quota, now) = (Quota::default(), Instant::now());
        let key = grant(1, 1, 0);
        let answer = |body: Body| {
            let place = quota.admit(&key, now).unwrap().unwrap();
            place.hold(Response::new(body)).into_body()
        };
        let piece = |text: &'static str| Ok::<_, Infallible>(Bytes::from_static(text.as_bytes()));
        let stream = || Body::from_stream(futures::stream::iter([piece("a"), piece("b")]));

        let mut streamed = answer(stream());
        for _ in 0..2 {
            streamed.frame().await.unwrap().unwrap();
            assert_eq!(quota.admit(&key, now).unwrap_err(), concurrent(1));
        }
        assert!(streamed.frame().await.is_none());
        // Over, though somebody still has it.
        let mut whole = answer(Body::from("ab"));
        whole.frame().await.unwrap().unwrap();
        let endless = Body::from_stream(futures::stream::iter([piece("a")]).chain(futures::stream::pending()));
        let mut cut = answer(endless);
        cut.frame().await.unwrap().unwrap();
        assert_eq!(quota.admit(&key, now).unwrap_err(), concurrent(1));
        drop(cut);
        let failing = futures::stream::iter([piece("a"), piece("b")])
            .map(|_| Err::<Bytes, _>(std::io::Error::other("as the test wants it")));
        assert!(answer(Body::from_stream(failing)).frame().await.unwrap().is_err());
        drop(answer(stream()));
        assert!(quota.table().0.is_empty());
    }
}
