//! What a client sees of one request.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
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
    /// What came of the answer, an object to a line.
    pub(crate) lines: Vec<Value>,
    /// The body came to its own end.
    pub(crate) is_whole: bool,
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
    let stream = TcpStream::connect(api).await.context("no connection")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::post(path).header("host", "localhost").body(Full::new(Bytes::from(body.to_string())))?;
    let (head, mut body) = sender.send_request(request).await.context("no answer")?.into_parts();
    let (mut bytes, mut is_whole) = (Vec::new(), true);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => is_whole = false,
        }
    }
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let node = head.headers.get("omx-node").and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
    Ok(Said { status: head.status.as_u16(), node, lines, is_whole })
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
