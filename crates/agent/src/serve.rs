//! An agent as other nodes see it: probes as bytes, requests as HTTP/1.1 over any stream of bytes.
//!
//! Who the peer is and what it may ask was checked by whoever brought its stream. A peer that goes takes its requests
//! along: hyper drops them, and what is dropped stops.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use scheduler::Work;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::desk::{Ask, Refusal, Waited};
use crate::error::Error;
use crate::handle::{Answer, Handle, Request, Route};
use crate::protocol::{
    ASK, EXPECTED_WAIT_MS, Envelope, FAILURE, Failure, Probe, QUEUE_PLACE, RAISED_CONTEXT, Reply, from_hex, to_hex,
};

/// Pictures make bodies long; gateways refuse longer ones before.
const BODY_BYTES_MAX: usize = 33 << 20;
/// For the longest body over a slow link.
const BODY_WITHIN: Duration = Duration::from_secs(120);
/// Between two requests, or within the head of one. Longer than a client keeps a connection, so that none is closed just
/// as it is used.
const HEAD_WITHIN: Duration = Duration::from_secs(45);
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A peer that takes no byte for so long has frozen, and a slot is not held for it.
const STALLED_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("the peer's connection broke")]
pub struct Broken(#[source] hyper::Error);

/// What a peer's probe is answered with. `find` gives the agent before the backend that is the best for it, where a node
/// has several; `None` where none has the model.
pub fn answer_probe(find: impl Fn(&Work) -> Option<Handle>, probe: &[u8]) -> Result<Vec<u8>, codec::Error> {
    let probe: Probe = codec::decode(probe)?;
    let answer = find(&probe.work).ok_or(Refusal::NoModel).and_then(|agent| agent.probe(&probe.work, probe.hold()));
    codec::encode(&Reply::from(answer))
}

/// Serves one peer's stream until the peer closes it. `may` says whether a key, by its id, allows to run models. Dropped
/// at any time, it cancels what runs over it.
pub async fn serve<S>(
    find: impl Fn(&Work) -> Option<Handle>,
    may: impl Fn(&str) -> bool,
    stream: S,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (find, may) = (&find, &may);
    let service = service_fn(async |request| Ok::<_, Infallible>(respond(find, may, request).await));
    let stream = TokioIo::new(Patient::new(stream, STALLED_MAX));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(stream, service)
        .await
        .map_err(Broken)
}

type Body = UnsyncBoxBody<Bytes, Error>;

async fn respond(
    find: &impl Fn(&Work) -> Option<Handle>,
    may: &impl Fn(&str) -> bool,
    request: hyper::Request<Incoming>,
) -> Response<Body> {
    match run(find, may, request).await {
        Ok(answer) => answered(answer),
        Err(failure) => failed(&failure),
    }
}

async fn run(
    find: impl Fn(&Work) -> Option<Handle>,
    may: impl Fn(&str) -> bool,
    request: hyper::Request<Incoming>,
) -> Result<Answer, Failure> {
    let (head, body) = request.into_parts();
    let route = Route::of_path(head.uri.path()).filter(|_| head.method == Method::POST);
    let route = route.ok_or_else(|| Failure::malformed(format!("no `{} {}` here", head.method, head.uri.path())))?;
    let envelope = head.headers.get(ASK).and_then(|ask| from_hex::<Envelope>(ask.as_bytes()));
    let ask = Ask::from(envelope.ok_or_else(|| Failure::malformed("no ask ahead of the request"))?);
    // A body that is for nobody is not read.
    if ask.key.as_ref().is_some_and(|key| !may(key)) {
        return Err(Failure::Refused(Refusal::Denied));
    }
    let agent = find(&ask.work).ok_or(Failure::Refused(Refusal::NoModel))?;
    let body = timeout(BODY_WITHIN, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let body = body.map_err(|_| Failure::malformed(format!("no whole body within {BODY_WITHIN:?}")))?;
    let body = body.map_err(|error| Failure::malformed(error.to_string()))?.to_bytes();
    let request = Request { route, ask, body };
    Ok(agent.run(request).await?)
}

fn answered(mut answer: Answer) -> Response<Body> {
    let (status, content_type) = (answer.status, answer.content_type.take());
    let (raised_context, waited) = (answer.raised_context, answer.waited);
    let pieces = stream::unfold(answer, async |mut answer| Some((answer.next().await?, answer)));
    let pieces = pieces.inspect_err(|error| tracing::debug!(%error, "an answer broke off")).map_ok(Frame::data);
    // Its length is not told: an end that is not marked as one is none.
    let mut response = Response::new(Body::new(StreamBody::new(pieces)));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    if let Some(context) = raised_context {
        response.headers_mut().insert(RAISED_CONTEXT, HeaderValue::from(context));
    }
    if let Some(Waited { place, expected }) = waited {
        response.headers_mut().insert(QUEUE_PLACE, HeaderValue::from(place));
        let ms = u64::try_from(Duration::from(expected).as_millis()).unwrap_or(u64::MAX);
        response.headers_mut().insert(EXPECTED_WAIT_MS, HeaderValue::from(ms));
    }
    response
}

/// The status is for people; nodes read the record.
fn failed(failure: &Failure) -> Response<Body> {
    let mut response = Response::new(Body::new(Empty::new().map_err(|never: Infallible| match never {})));
    *response.status_mut() = match failure {
        Failure::Refused(Refusal::NoModel) => StatusCode::NOT_FOUND,
        Failure::Refused(Refusal::Denied) => StatusCode::FORBIDDEN,
        Failure::Refused(Refusal::Nack(_)) => StatusCode::CONFLICT,
        Failure::Refused(Refusal::Full { .. }) => StatusCode::TOO_MANY_REQUESTS,
        Failure::Refused(Refusal::Late) => StatusCode::GATEWAY_TIMEOUT,
        Failure::Refused(Refusal::Draining | Refusal::Down(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Backend(_) => StatusCode::BAD_GATEWAY,
        Failure::Malformed(_) => StatusCode::BAD_REQUEST,
    };
    let record = to_hex(failure).expect("its texts are cut to what a record takes");
    response.headers_mut().insert(FAILURE, record.parse().expect("hex stands in a header"));
    response
}

/// A stream that is given up when the other side takes nothing for too long.
struct Patient<S> {
    stream: S,
    max: Duration,
    /// Since the last byte was taken, while one waits to be.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    const fn new(stream: S, max: Duration) -> Self {
        Self { stream, max, stalled: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, taken: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if taken.is_ready() {
            self.stalled = None;
            return taken;
        }
        let max = self.max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(max)));
        ready!(stalled.as_mut().poll(context));
        // It may be polled once more.
        stalled.as_mut().reset(Instant::now());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, format!("the peer took nothing for {max:?}"))))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, taken)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, taken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, taken)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_and_one_that_takes_a_little_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut ours = Patient::new(ours, Duration::from_millis(50));
        ours.write_all(&[0; 8]).await.unwrap();
        let started = Instant::now();
        let (written, _) =
            tokio::join!(ours.write_all(&[0; 8]), async { theirs.read_exact(&mut [0; 8]).await.unwrap() });
        written.unwrap();
        let error = ours.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= Duration::from_millis(50));
    }
}
