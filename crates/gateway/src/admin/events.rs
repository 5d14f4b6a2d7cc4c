//! What happens, as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior};

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Silence for longer means that the connection is dead, to clients and to what stands between.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A revoked key hears of the mesh for no longer than this.
const RECHECK: Duration = Duration::from_secs(1);

pub(crate) async fn listen(ask: Ask<wire::Nothing>) -> Result<Response, Failure> {
    let after = resume_after(&ask.headers)?;
    let (missed, coming) = ask.api().events(after);
    let mut recheck = tokio::time::interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed { missed: missed.into(), coming, seen: after.unwrap_or(0), recheck, ask };
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("still here");
    Ok(Sse::new(stream(feed)).keep_alive(heartbeat).into_response())
}

fn resume_after(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let index = value.to_str().ok().and_then(|text| text.parse().ok());
    index.map(Some).ok_or_else(|| Failure::bad_request("`Last-Event-ID` is no index of an event"))
}

/// One listener's place. Bounded: what was missed by the journal, what is coming by its channel.
struct Feed {
    missed: VecDeque<node::Event>,
    coming: Receiver<node::Event>,
    /// The last index that was sent: what is coming may repeat what was missed.
    seen: u64,
    recheck: Interval,
    ask: Ask<wire::Nothing>,
}

impl Feed {
    /// The next event to send; nothing when the server stops or the listener may listen no more.
    async fn next(&mut self) -> Option<wire::Event> {
        loop {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => tokio::select! {
                    biased;
                    () = self.ask.face.shutdown().cancelled() => return None,
                    _ = self.recheck.tick() => {
                        if !self.ask.may_still() {
                            return None;
                        }
                        continue;
                    }
                    event = self.coming.recv() => match event {
                        Ok(event) => event,
                        Err(RecvError::Lagged(count)) => return Some(wire::Event::Missed { count }),
                        Err(RecvError::Closed) => return None,
                    },
                },
            };
            let event = wire::Event::from(event);
            match event.index() {
                Some(index) if index <= self.seen => {}
                Some(index) => {
                    self.seen = index;
                    return Some(event);
                }
                None => return Some(event),
            }
        }
    }
}

fn stream(feed: Feed) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    futures::stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        let json = serde_json::to_string(&event).expect("an event is text, numbers and names");
        let sent = sse::Event::default().event(event.name()).data(json);
        let sent = match event.index() {
            Some(index) => sent.id(index.to_string()),
            None => sent,
        };
        Some((Ok(sent), feed))
    })
}

impl From<node::Event> for wire::Event {
    fn from(event: node::Event) -> Self {
        match event {
            node::Event::Registry(entry) => Self::Registry {
                index: entry.index,
                at: wire::Time(entry.at),
                by: entry.by.to_string(),
                what: entry.what,
                refused: entry.refused,
            },
            node::Event::Up { node, name } => Self::Up { node, name },
            node::Event::Down { node, name } => Self::Down { node, name },
            node::Event::Leader { node, name } => Self::Leader { node, name },
        }
    }
}
