//! How long a connection may take over what. A silent socket, a dribbled header and a client that does not read its
//! answer all come to an end here; `axum::serve` would hold each of them for ever.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::config::Limits;

/// Where one connection stands. Shared by its stream, its requests and its watcher, which all run in one task.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when the client has accepted no byte of what we have for it.
    blocked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The headers of a request are awaited.
    Head { since: Instant },
    /// A request is carried out or answered. Its route has deadlines of its own.
    Busy,
    /// Between two requests.
    Idle { since: Instant },
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(State { phase: Phase::Head { since: now }, blocked: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, now: Instant) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Idle { .. }) {
            state.phase = Phase::Head { since: now };
        }
    }

    /// The headers are complete.
    pub(crate) fn asked(&self) {
        self.state().phase = Phase::Busy;
    }

    fn answered(&self, now: Instant) {
        self.state().phase = Phase::Idle { since: now };
    }

    fn blocked(&self, now: Instant) {
        self.state().blocked.get_or_insert(now);
    }

    fn flowing(&self) {
        self.state().blocked = None;
    }

    /// Since when nothing has been asked of us; `None` while something is.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        match self.state().phase {
            Phase::Head { since } | Phase::Idle { since } => Some(since),
            Phase::Busy => None,
        }
    }

    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::Head { since } => Some(since + limits.head),
            Phase::Idle { since } => Some(since + limits.idle),
            Phase::Busy => None,
        };
        let blocked = state.blocked.map(|since| since + limits.stalled);
        phase.into_iter().chain(blocked).min()
    }

    /// Returns when the client has taken too long. To be polled after what moves the connection, in the same task: each
    /// poll looks where it stands.
    pub(crate) async fn exceeded(&self, limits: &Limits) {
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(Instant::now()));
        std::future::poll_fn(|cx| {
            let Some(deadline) = self.deadline(limits) else { return Poll::Pending };
            if alarm.deadline() != deadline {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(cx)
        })
        .await;
    }
}

/// A stream that tells its pace.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    pub(crate) stream: S,
    pub(crate) pace: Arc<Pace>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pace.heard(Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    fn watch<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending => self.pace.blocked(Instant::now()),
            Poll::Ready(_) => self.pace.flowing(),
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A body whose end is the end of its request.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Body,
    pace: Arc<Pace>,
}

impl Answer {
    pub(crate) fn new(body: Body, pace: Arc<Pace>) -> Self {
        Self { body, pace }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.pace.answered(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits() -> Limits {
        Limits {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stalled: Duration::from_secs(30),
            ..Limits::default()
        }
    }

    #[test]
    fn dribbling_does_not_buy_time_for_the_headers() {
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.heard(start + Duration::from_secs(9));
        assert_eq!(pace.deadline(&limits()), Some(start + Duration::from_secs(10)));
    }

    #[test]
    fn a_request_has_no_deadline_here_and_the_pause_after_it_has() {
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.asked();
        assert_eq!((pace.deadline(&limits()), pace.waiting_since()), (None, None));
        let later = start + Duration::from_secs(100);
        pace.answered(later);
        assert_eq!(pace.deadline(&limits()), Some(later + Duration::from_secs(60)));
        pace.heard(later + Duration::from_secs(50));
        assert_eq!(pace.deadline(&limits()), Some(later + Duration::from_secs(60)));
        pace.asked();
        assert_eq!(pace.deadline(&limits()), None);
    }

    #[test]
    fn a_client_that_does_not_read_its_answer_has_until_it_does() {
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.asked();
        pace.blocked(start);
        pace.blocked(start + Duration::from_secs(20));
        assert_eq!(pace.deadline(&limits()), Some(start + Duration::from_secs(30)));
        pace.flowing();
        assert_eq!(pace.deadline(&limits()), None);
    }
}
