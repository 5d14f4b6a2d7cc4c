//! Answers: one JSON object, or a stream of them, one on each line.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use hyper::body::{Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use ollama::wire::{ErrorBody, encode};
use serde::Serialize;

use super::failure::Failure;

pub(super) type Reply = Response<Body>;

const JSON: &str = "application/json; charset=utf-8";
const LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is sent. A stream is asked for its next line when there is room for it: a slow client slows the answer down,
/// and nothing piles up.
pub(super) enum Body {
    Whole(Bytes),
    Lines(BoxStream<'static, Bytes>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Lines(_) => "Lines",
        })
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Lines(lines) => lines.poll_next_unpin(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Lines(_) => SizeHint::default(),
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> Reply {
    whole(StatusCode::OK, JSON, encode(value).into())
}

pub(super) fn text(text: &'static str) -> Reply {
    whole(StatusCode::OK, TEXT, Bytes::from_static(text.as_bytes()))
}

/// Where no route is: Ollama's router answers by itself, and names no character set.
pub(super) fn unrouted(status: StatusCode, text: &'static str) -> Reply {
    whole(status, "text/plain", Bytes::from_static(text.as_bytes()))
}

pub(super) fn empty() -> Reply {
    Response::new(Body::Whole(Bytes::new()))
}

pub(super) fn failed(failure: Failure) -> Reply {
    whole(failure.status, JSON, encode(&ErrorBody { error: failure.message }).into())
}

pub(super) fn lines(lines: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
    typed(LINES, Body::Lines(lines.boxed()))
}

pub(super) fn line(value: &impl Serialize) -> Bytes {
    let mut bytes = encode(value);
    bytes.push(b'\n');
    bytes.into()
}

fn whole(status: StatusCode, kind: &'static str, bytes: Bytes) -> Reply {
    let mut reply = typed(kind, Body::Whole(bytes));
    *reply.status_mut() = status;
    reply
}

fn typed(kind: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}
