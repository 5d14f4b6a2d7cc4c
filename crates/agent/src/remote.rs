//! The agents of other nodes, asked over HTTP/1.1. Where connections come from is handed in.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use types::NodeId;

use crate::desk::{Refusal, Waited};
use crate::handle::Request;
use crate::lines::Lines;
use crate::pool::{self, Pool, Whole};
use crate::protocol::{
    ASK, EXPECTED_WAIT_MS, Envelope, FAILURE, Failure, QUEUE_PLACE, RAISED_CONTEXT, from_hex, to_hex,
};

/// Keeps connections to nodes, some for each.
#[derive(Debug)]
pub struct Remote {
    pool: Pool<NodeId>,
}

/// How long it is waited for. Only the caller knows what was promised.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Where no kept connection is at hand.
    pub connect: Duration,
    /// Until the head of the answer: its wait, load and reading.
    pub head: Duration,
    /// Between two pieces of it.
    pub between: Duration,
}

/// An answer that has begun, as that of an agent here. Dropped before its end, it closes the connection, and the other
/// node stops.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    /// The `num_ctx` that was set there in place of the request's.
    pub raised_context: Option<u32>,
    pub waited: Option<Waited>,
    body: pool::Answer<NodeId>,
    lines: Lines,
    is_lines: bool,
    between: Duration,
    is_over: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never reached a backend.
    #[error("not taken")]
    Refused(#[source] Refusal),
    #[error("the node's backend did not answer: {0}")]
    Backend(String),
    #[error("the node could not read the request: {0}")]
    Malformed(String),
    #[error("what decides about the request is too long to be sent")]
    Unsendable(#[source] codec::Error),
    #[error("the node could not be asked")]
    Unreachable(#[source] pool::Error),
    /// It may be at work all the same; its connection was closed, which stops it.
    #[error("the node said nothing for `{0:?}`")]
    Silent(Duration),
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("the node answered what is no answer: {0}")]
    Garbage(&'static str),
}

impl Error {
    /// Whether another node may do better with the same request. Whoever has shown bytes to a client asks no more.
    pub fn may_differ_elsewhere(&self) -> bool {
        !matches!(self, Self::Refused(Refusal::Late) | Self::Malformed(_) | Self::Unsendable(_))
    }
}

impl Default for Remote {
    fn default() -> Self {
        Self { pool: Pool::new() }
    }
}

impl Remote {
    /// Returns with the head of the answer. `dial` makes a stream to that node where none is kept. Dropped at any time it
    /// is cancelled, there too.
    pub async fn run<S>(
        &self,
        node: NodeId,
        request: Request,
        limits: Limits,
        dial: impl Future<Output = io::Result<S>>,
    ) -> Result<Answer, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Request { route, ask, body } = request;
        let ask = to_hex(&Envelope::from(ask)).map_err(Error::Unsendable)?;
        let mut request = hyper::Request::new(Whole::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(route.path());
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("omx"));
        headers.insert(ASK, ask.parse().expect("hex stands in a header"));
        let sent = self.pool.send(node, request, limits.connect, dial);
        let response =
            timeout(limits.connect.saturating_add(limits.head), sent).await.map_err(|_| Error::Silent(limits.head))?;
        let (head, mut body) = response.map_err(Error::Unreachable)?.into_parts();
        if let Some(failure) = head.headers.get(FAILURE) {
            // Nothing stands behind the head; seeing that gives the connection back.
            drop(timeout(limits.between, body.bytes()).await);
            return Err(failure_of(failure));
        }
        // Without either, an answer would end wherever the connection does.
        if !head.headers.contains_key(TRANSFER_ENCODING) && !head.headers.contains_key(CONTENT_LENGTH) {
            return Err(Error::Garbage("an answer that does not tell where it ends"));
        }
        let content_type = head.headers.get(CONTENT_TYPE).cloned();
        let is_lines = content_type.as_ref().is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-ndjson"));
        Ok(Answer {
            status: head.status,
            content_type,
            raised_context: number(&head.headers, RAISED_CONTEXT),
            waited: waited(&head.headers),
            body,
            lines: Lines::default(),
            is_lines,
            between: limits.between,
            is_over: false,
        })
    }
}

fn failure_of(header: &HeaderValue) -> Error {
    match from_hex(header.as_bytes()) {
        Some(Failure::Refused(refusal)) => Error::Refused(refusal),
        Some(Failure::Backend(why)) => Error::Backend(why),
        Some(Failure::Malformed(why)) => Error::Malformed(why),
        None => Error::Garbage("a failure without a reason"),
    }
}

fn number<T: FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn waited(headers: &HeaderMap) -> Option<Waited> {
    let expected = Duration::from_millis(number(headers, EXPECTED_WAIT_MS)?);
    Some(Waited { place: number(headers, QUEUE_PLACE)?, expected: expected.into() })
}

impl Answer {
    /// The next line of a stream with its end, or the next bytes of what is none; `None` at the end. After an error
    /// nothing follows. May be dropped at any time, nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if self.is_over {
            return None;
        }
        let next = self.read().await.transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.lines.next().map_err(|_| Error::Garbage("a line without end"))? {
                return Ok(Some(line));
            }
            let more = timeout(self.between, self.body.bytes()).await.map_err(|_| Error::Silent(self.between))?;
            match more.transpose().map_err(Error::Broken)? {
                Some(bytes) if self.is_lines => self.lines.push(bytes),
                Some(bytes) => return Ok(Some(bytes)),
                None if self.lines.rest().is_some() => return Err(Error::Garbage("half a line at the end")),
                None => return Ok(None),
            }
        }
    }
}
