//! What goes back over the wire, and how a fault spoils it.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::json::encode;
use crate::refusal::Refusal;
use crate::stream::Run;
use crate::transfer::Progress;

pub(crate) type Body = UnsyncBoxBody<Bytes, Broken>;

/// The connection is to end in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("broken off as ordered")]
pub(crate) struct Broken;

/// What a route has to say.
#[derive(Debug)]
pub(crate) enum Answer {
    Json(StatusCode, Value),
    Text(StatusCode, &'static str, &'static str),
    Empty(StatusCode),
    /// Line by line, as it comes to be.
    Lines(Box<Run>),
    Progress(Box<Progress>),
}

/// A body that comes to be line by line.
pub(crate) trait Lines: Send {
    /// The next piece. `None` is the clean end.
    fn frame(&mut self) -> impl Future<Output = Option<Result<Bytes, Broken>>> + Send;
}

const JSON: &str = "application/json; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";
pub(crate) const GARBAGE: &str = "\u{1}{{{not json\n";

impl Answer {
    pub(crate) fn json(value: Value) -> Self {
        Self::Json(StatusCode::OK, value)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Json(refusal.status, json!({ "error": refusal.text }))
    }
}

/// The head goes out with the first line and not before, as in Ollama.
pub(crate) async fn respond(answer: Answer, fault: Option<&Fault>) -> Response<Body> {
    match answer {
        Answer::Json(status, value) => whole(status, JSON, encode(&value), fault),
        Answer::Text(status, kind, text) => whole(status, kind, text.to_owned(), fault),
        Answer::Empty(status) => response(status, None, full(Bytes::new())),
        Answer::Lines(run) => written(run).await,
        Answer::Progress(progress) => written(progress).await,
    }
}

async fn written<L: Lines + 'static>(mut lines: Box<L>) -> Response<Body> {
    let first = lines.frame().await;
    let rest = futures::stream::unfold((first, lines), |(ready, mut lines)| async move {
        let frame = match ready {
            Some(frame) => frame,
            None => lines.frame().await?,
        };
        Some((frame.map(Frame::data), (None, lines)))
    });
    response(StatusCode::OK, Some(NDJSON), StreamBody::new(rest).boxed_unsync())
}

fn whole(status: StatusCode, kind: &'static str, text: String, fault: Option<&Fault>) -> Response<Body> {
    match fault {
        Some(Fault::Garbage) => response(status, Some(kind), full(Bytes::from_static(GARBAGE.as_bytes()))),
        Some(Fault::Cut { at }) => {
            let promised = text.len();
            let mut bytes = Bytes::from(text);
            bytes.truncate(usize::try_from(*at).unwrap_or(usize::MAX));
            let mut cut = response(status, Some(kind), broken_after(bytes));
            cut.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(promised));
            cut
        }
        _ => response(status, Some(kind), full(Bytes::from(text))),
    }
}

fn response(status: StatusCode, kind: Option<&'static str>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn broken_after(bytes: Bytes) -> Body {
    let frames = futures::stream::unfold(Some(bytes), |left| async move {
        match left {
            Some(bytes) => Some((Ok(Frame::data(bytes)), None)),
            None => Some((Err(flushed_and_broken().await), None)),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// While nothing is ready, hyper writes out what it has; broken off at once, it would throw that away.
pub(crate) async fn flushed_and_broken() -> Broken {
    tokio::task::yield_now().await;
    Broken
}
