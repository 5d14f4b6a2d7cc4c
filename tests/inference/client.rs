//! What a client sees of one request.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    /// Whose answer it is.
    pub(crate) node: String,
    /// What it is called in traces.
    pub(crate) request: String,
    /// What the trailer says of its rest.
    pub(crate) continued: Option<String>,
    /// What came of the answer, an object to a line.
    pub(crate) lines: Vec<Value>,
    /// The body came to its own end.
    pub(crate) is_whole: bool,
    /// Its last event was `[DONE]`.
    pub(crate) is_done: bool,
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The text.
    Whole(String),
    /// The beginning of a text, and the client was told that it is no more.
    Cut(String),
    /// Nothing of an answer.
    Lost(String),
}

/// The text of a page.
pub(crate) async fn get(api: SocketAddr, path: &str) -> Result<String> {
    let stream = TcpStream::connect(api).await.context("no connection")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::get(path).header("host", "localhost").body(Full::new(Bytes::new()))?;
    let answer = sender.send_request(request).await.context("no answer")?;
    Ok(String::from_utf8(answer.into_body().collect().await?.to_bytes().into())?)
}

pub(crate) async fn ask(api: SocketAddr, path: &str, body: &Value) -> Result<Said> {
    begun(api, path, body).await?.rest().await
}

/// An answer under way.
pub(crate) struct Answer {
    pub(crate) node: String,
    request: String,
    status: u16,
    body: Incoming,
    bytes: Vec<u8>,
    _driver: JoinSet<()>,
}

pub(crate) async fn begun(api: SocketAddr, path: &str, body: &Value) -> Result<Answer> {
    let stream = TcpStream::connect(api).await.context("no connection")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::post(path).header("host", "localhost").header("te", "trailers");
    let request = request.body(Full::new(Bytes::from(body.to_string())))?;
    let (head, body) = sender.send_request(request).await.context("no answer")?.into_parts();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (node, request) = (text("omx-node"), text("omx-request-id"));
    Ok(Answer { node, request, status: head.status.as_u16(), body, bytes: Vec::new(), _driver: driver })
}

impl Answer {
    pub(crate) async fn until_lines(&mut self, count: usize) -> Result<()> {
        while self.bytes.iter().filter(|byte| **byte == b'\n').count() < count {
            let frame = self.body.frame().await.context("the answer is over")??;
            self.bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        Ok(())
    }

    /// Lines, or what stands in events.
    pub(crate) async fn rest(mut self) -> Result<Said> {
        let (mut is_whole, mut continued) = (true, None);
        while let Some(frame) = self.body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => self.bytes.extend_from_slice(&data),
                Ok(Err(frame)) => {
                    let seams = frame.trailers_ref().and_then(|trailers| trailers.get("omx-continued"));
                    continued = seams.and_then(|seams| seams.to_str().ok()).map(str::to_owned);
                }
                Err(_) => is_whole = false,
            }
        }
        let lines = self.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| line.strip_prefix(b"data: ").unwrap_or(line));
        let is_done = lines.clone().next_back() == Some(b"[DONE]");
        let lines = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let Self { node, request, status, .. } = self;
        Ok(Said { status, node, request, continued, lines, is_whole, is_done })
    }
}

impl Said {
    pub(crate) fn outcome(self) -> Outcome {
        let text: String = self.lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
        let is_done = self.lines.last().is_some_and(|line| line["done"] == true);
        let is_told = !self.is_whole || self.lines.last().is_some_and(|line| line["error"].is_string());
        match (self.status, is_done) {
            (200, true) if self.is_whole => Outcome::Whole(text),
            (200, _) if is_told && !text.is_empty() => Outcome::Cut(text),
            _ => Outcome::Lost(format!("{self:?}")),
        }
    }
}
