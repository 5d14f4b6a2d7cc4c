//! What is asked of an Ollama beside inference: who it is, what it has, and that it take, rename or drop a model.
//!
//! One connection for each question: these are rare. A connection is driven by whoever waits for the answer and goes with
//! it, so that a question that is dropped is taken back.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{Endpoint, ModelName, seen};

/// Of one answer, or of one line where an answer is made of lines. A list of some thousand models.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// An Ollama on this machine or its network takes a connection at once, or is not there.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// For lists, names and manifests; deleting a large model takes a moment.
const ANSWER_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing listens there")]
    Connect(#[source] std::io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("what listens there is no Ollama")]
    NoOllama,
    #[error("it answered with status {status}: {text}")]
    Said { status: u16, text: String },
    #[error("its answer broke off")]
    Broken,
}

/// An Ollama, and the header without which it does not answer.
#[derive(Clone)]
pub struct Client {
    at: Endpoint,
    header: Option<(String, String)>,
}

/// A line of a pull: what it is at, or how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub status: String,
    pub digest: String,
    pub total: u64,
    pub completed: u64,
    pub error: String,
}

/// What comes of a pull, line by line. Dropped before its end, the pull is cancelled.
#[derive(Debug)]
pub struct Pulling(Answer);

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

struct Answer {
    status: u16,
    body: Incoming,
    read: BytesMut,
    /// `None` once it has ended; what it brought is in the body all the same.
    connection: Option<Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

/// Asks who is there. A header may be what it takes to be answered.
pub async fn version(at: &Endpoint, header: Option<(&str, &str)>, within: Duration) -> Result<String, Error> {
    let header = header.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Client { at: at.clone(), header }.version(within).await
}

impl Client {
    pub fn new(at: Endpoint, header: Option<(String, String)>) -> Self {
        Self { at, header }
    }

    pub async fn version(&self, within: Duration) -> Result<String, Error> {
        let asked = async {
            let answer = self.ask(Method::GET, "/api/version", None).await?;
            serde_json::from_slice::<seen::Version>(&answer.whole().await.map_err(|_| Error::NoOllama)?)
                .map_err(|_| Error::NoOllama)
        };
        let version = tokio::time::timeout(within, asked).await.unwrap_or(Err(Error::Late(within)))?.version;
        if version.is_empty() { Err(Error::NoOllama) } else { Ok(version) }
    }

    pub async fn tags(&self) -> Result<seen::Tags, Error> {
        let body = self.short(Method::GET, "/api/tags", None).await?;
        serde_json::from_slice(&body).map_err(|_| Error::NoOllama)
    }

    /// Byte by byte: both names mean one digest.
    pub async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<(), Error> {
        let body = json!({ "source": from.full(), "destination": to.full() });
        self.short(Method::POST, "/api/copy", Some(body.to_string())).await.map(drop)
    }

    pub async fn delete(&self, name: &ModelName) -> Result<(), Error> {
        let body = json!({ "model": name.full() });
        self.short(Method::DELETE, "/api/delete", Some(body.to_string())).await.map(drop)
    }

    /// Has it fetch a model from the registry its name begins with, over plain HTTP where that is what is spoken there.
    pub async fn pull(&self, name: &ModelName, plain: bool) -> Result<Pulling, Error> {
        let body = json!({ "model": name.full(), "insecure": plain });
        let asked = self.ask(Method::POST, "/api/pull", Some(body.to_string()));
        let answer = tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or(Err(Error::Late(ANSWER_MAX)))?;
        Ok(Pulling(answer))
    }

    async fn short(&self, method: Method, path: &str, body: Option<String>) -> Result<Bytes, Error> {
        let asked = async { self.ask(method, path, body).await?.whole().await };
        tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or(Err(Error::Late(ANSWER_MAX)))
    }

    /// Returns with the head of a good answer.
    async fn ask(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer, Error> {
        let at = &self.at;
        let dial = TcpStream::connect((at.host(), at.port()));
        let dialled = tokio::time::timeout(CONNECT_MAX, dial).await;
        let stream = dialled.map_err(|_| Error::Late(CONNECT_MAX))?.map_err(Error::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Error::NoOllama)?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, at.authority());
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(body.unwrap_or_default())).map_err(|_| Error::NoOllama)?;
        let mut connection = Some(connection);
        let response = {
            let mut response = std::pin::pin!(sender.send_request(request));
            loop {
                let Some(driven) = &mut connection else { break response.await };
                tokio::select! {
                    biased;
                    response = &mut response => break response,
                    _ = driven => connection = None,
                }
            }
        };
        let (head, body) = response.map_err(|_| Error::NoOllama)?.into_parts();
        let answer = Answer { status: head.status.as_u16(), body, read: BytesMut::new(), connection };
        if head.status.is_success() { Ok(answer) } else { Err(answer.refusal().await) }
    }
}

impl Pulling {
    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Progress, Error>> {
        loop {
            if let Some(end) = self.0.read.iter().position(|byte| *byte == b'\n') {
                let line = self.0.read.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Some(serde_json::from_slice(&line).map_err(|_| Error::NoOllama));
            }
            match self.0.more().await {
                Ok(true) => {}
                Ok(false) if self.0.read.trim_ascii().is_empty() => return None,
                // A last line without its end.
                Ok(false) => self.0.read.extend_from_slice(b"\n"),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Answer {
    /// Reads on; `false` at the end.
    async fn more(&mut self) -> Result<bool, Error> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(driven) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    _ = driven => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            let Some(frame) = frame else { return Ok(false) };
            let Ok(bytes) = frame.map_err(|_| Error::Broken)?.into_data() else { continue };
            if self.read.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err(Error::NoOllama);
            }
            self.read.extend_from_slice(&bytes);
            return Ok(true);
        }
    }

    async fn whole(mut self) -> Result<Bytes, Error> {
        while self.more().await? {}
        Ok(self.read.freeze())
    }

    async fn refusal(self) -> Error {
        let status = self.status;
        let text = match self.whole().await {
            Ok(body) => serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.error).unwrap_or_default(),
            Err(error) => return error,
        };
        Error::Said { status, text: text.chars().filter(|c| !c.is_control()).take(500).collect() }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.at).finish()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}
