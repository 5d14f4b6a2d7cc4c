//! Talks to the node of a data folder: HTTP/1.1 over its local socket, which only the node's own user may open.
//!
//! One connection per request. The answers are JSON; what they mean is known to the commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gateway::wire::{Failed, Problem};
use http_body_util::{BodyExt, Limited};
pub(crate) use hyper::Method;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::connection::Connection;
use self::events::Parser;
pub(crate) use self::events::ServerEvent;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::folder;
use crate::run_file::{self, RunFile};

mod connection;
mod events;

/// Longer than any route's own deadline, so that the node's account of a delay arrives before we give up on it.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A mesh of thousands of members fits many times.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The way to one node.
#[derive(Debug)]
pub(crate) struct Client {
    folder: PathBuf,
    run: RunFile,
}

/// JSON as the node sent it.
#[derive(Debug)]
pub(crate) struct Answer {
    request: String,
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no node is running on `{}`", .0.display())]
    NotRunning(PathBuf),
    #[error("not permitted to talk to the node of `{}`", .folder.display())]
    NotPermitted { folder: PathBuf, source: io::Error },
    #[error(transparent)]
    RunFile(#[from] run_file::Error),
    #[error("failed to connect to the node of `{}`", .folder.display())]
    Connect { folder: PathBuf, source: io::Error },
    #[error("the node of `{}` does not answer: nothing within {} s", .folder.display(), .limit.as_secs())]
    Silent { folder: PathBuf, limit: Duration },
    #[error("the connection to the node broke during `{request}`")]
    Broken { request: String, source: hyper::Error },
    #[error("the node's answer to `{request}` is not to be used")]
    Answer { request: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The node answered, and it is no.
    #[error("{message}")]
    Refused { status: StatusCode, code: String, message: String, hint: Option<String> },
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) => Exit::NotRunning,
            Self::NotPermitted { .. } => Exit::NotPermitted,
            // Sent, but not answered: it may be carried out.
            Self::Silent { .. } | Self::Broken { .. } => Exit::Unknown,
            Self::RunFile(_) | Self::Connect { .. } | Self::Answer { .. } => Exit::General,
            Self::Refused { status, code, .. } => exit_of(*status, code),
        }
    }
}

/// The exit code for a refusal: by its code where that says more than the status.
fn exit_of(status: StatusCode, code: &str) -> Exit {
    match (code, status) {
        ("no_leader", _) => Exit::NoQuorum,
        ("unknown_outcome", _) | (_, StatusCode::GATEWAY_TIMEOUT) => Exit::Unknown,
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Exit::NotPermitted,
        (_, StatusCode::TOO_MANY_REQUESTS) => Exit::General,
        (_, StatusCode::INSUFFICIENT_STORAGE) => Exit::Refused,
        (_, status) if status.is_client_error() => Exit::Refused,
        _ => Exit::General,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match &error {
            Error::NotRunning(folder) => Some(format!("start one with `omx{} up`", folder::flag(folder))),
            Error::NotPermitted { .. } => Some("run the command as the user who started the node".to_owned()),
            Error::Silent { .. } | Error::Connect { .. } => Some("`omx doctor` looks what is wrong".to_owned()),
            Error::Broken { .. } => Some("look whether it was done before asking again".to_owned()),
            Error::Answer { .. } => Some("are `omx` here and the running node of the same version?".to_owned()),
            Error::Refused { hint, .. } => hint.clone(),
            Error::RunFile(_) => None,
        };
        Self::new(error.exit(), error).hint(hint)
    }
}

impl Client {
    /// Finds the node's socket; whether anyone answers there is seen with the first request.
    pub(crate) fn of(folder: &Path) -> Result<Self, Error> {
        let run = RunFile::read(folder)?.ok_or_else(|| Error::NotRunning(folder.to_owned()))?;
        Ok(Self { folder: folder.to_owned(), run })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Answer, Error> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Answer, Error> {
        let body = serde_json::to_vec(body).expect("what we send has text for keys and no other way to fail");
        self.ask(method, path, body.into()).await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Error> {
        let request = format!("{method} {path}");
        let exchange = async {
            let (_connection, response) =
                self.start(method, path, &[("accept", "application/json".to_owned())], body).await?;
            collect(request, response).await
        };
        self.within_limit(exchange).await
    }

    /// What happens from now on, or after an event seen before, until one side ends it.
    pub(crate) async fn follow(&self, path: &str, after: Option<u64>) -> Result<Events, Error> {
        let request = format!("GET {path}");
        let exchange = async {
            let mut headers = vec![("accept", "text/event-stream".to_owned())];
            headers.extend(after.map(|index| ("last-event-id", index.to_string())));
            let (connection, response) = self.start(Method::GET, path, &headers, Bytes::new()).await?;
            if !response.status().is_success() {
                return Err(refusal(response.status(), &collect_bytes(&request, response).await?));
            }
            let body = response.into_body();
            Ok(Events { request: request.clone(), _connection: connection, body, parser: Parser::default() })
        };
        self.within_limit(exchange).await
    }

    /// Asks for an answer that comes line by line. It may take its time: a model may have to be loaded first.
    pub(crate) async fn lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, Error> {
        let request = format!("POST {path}");
        let body = serde_json::to_vec(body).expect("what we send has text for keys and no other way to fail");
        let (connection, response) = self.start(Method::POST, path, &[], body.into()).await?;
        if !response.status().is_success() {
            return Err(refusal(response.status(), &collect_bytes(&request, response).await?));
        }
        Ok(Lines { request, _connection: connection, body: response.into_body(), waiting: BytesMut::new() })
    }

    async fn start(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<(Connection, Response<Incoming>), Error> {
        let request = format!("{method} {path}");
        let broken = |source| Error::Broken { request: request.clone(), source };
        let stream = connection::dial(&self.run).await.map_err(|source| self.not_connected(source))?;
        let mut connection = Connection::over(stream).await.map_err(broken)?;
        let response = connection.request(method, path, headers, body).await.map_err(broken)?;
        Ok((connection, response))
    }

    /// A socket nobody listens on is what a killed node leaves behind.
    fn not_connected(&self, source: io::Error) -> Error {
        let folder = self.folder.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning(folder),
            io::ErrorKind::PermissionDenied => Error::NotPermitted { folder, source },
            _ => Error::Connect { folder, source },
        }
    }

    async fn within_limit<T>(&self, doing: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let silent = || Error::Silent { folder: self.folder.clone(), limit: ANSWER_LIMIT };
        tokio::time::timeout(ANSWER_LIMIT, doing).await.unwrap_or_else(|_| Err(silent()))
    }
}

async fn collect(request: String, response: Response<Incoming>) -> Result<Answer, Error> {
    let status = response.status();
    let body = collect_bytes(&request, response).await?;
    if status.is_success() { Ok(Answer { request, body }) } else { Err(refusal(status, &body)) }
}

async fn collect_bytes(request: &str, response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|source| Error::Answer { request: request.to_owned(), source })
}

/// A refusal in Ollama's shape.
#[derive(serde::Deserialize)]
struct OllamaFailed {
    error: String,
}

fn refusal(status: StatusCode, body: &[u8]) -> Error {
    if let Ok(OllamaFailed { error }) = serde_json::from_slice(body) {
        return Error::Refused { status, code: String::new(), message: error, hint: None };
    }
    match serde_json::from_slice(body) {
        Ok(Failed { error: Problem { code, message, hint } }) => Error::Refused { status, code, message, hint },
        Err(_) => {
            let message = format!("the node refused with status `{status}` and said no more");
            Error::Refused { status, code: String::new(), message, hint: None }
        }
    }
}

impl Answer {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let unusable =
            |source: serde_json::Error| Error::Answer { request: self.request.clone(), source: source.into() };
        serde_json::from_slice(&self.body).map_err(unusable)
    }

    /// The JSON itself, for scripts.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}

/// A running stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    request: String,
    /// Drives the body for as long as this lives.
    _connection: Connection,
    body: Incoming,
    parser: Parser,
}

impl Events {
    /// The next ones; nothing when the node has ended the stream. May be cancelled: no event is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<ServerEvent>>, Error> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| Error::Broken { request: self.request.clone(), source })?;
            let Ok(data) = frame.into_data() else { continue };
            let unusable = |error: events::Error| Error::Answer { request: self.request.clone(), source: error.into() };
            let events = self.parser.feed(&data).map_err(unusable)?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
        Ok(None)
    }
}

/// A running answer, one line of JSON after the other.
#[derive(Debug)]
pub(crate) struct Lines {
    request: String,
    /// Drives the body for as long as this lives; the node stops answering when it ends.
    _connection: Connection,
    body: Incoming,
    waiting: BytesMut,
}

/// More than any token says, its probabilities included.
const LINE_BYTES_MAX: usize = 16 << 20;

impl Lines {
    /// The next line, without its end; nothing when the answer is over. May be cancelled: no line is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line = self.waiting.split_to(end + 1).freeze();
                return Ok(Some(line.slice(..end)));
            }
            if self.waiting.len() > LINE_BYTES_MAX {
                let source = "a line without an end".into();
                return Err(Error::Answer { request: self.request.clone(), source });
            }
            let Some(frame) = self.body.frame().await else {
                let last = self.waiting.split().freeze();
                return Ok((!last.is_empty()).then_some(last));
            };
            let frame = frame.map_err(|source| Error::Broken { request: self.request.clone(), source })?;
            if let Ok(data) = frame.into_data() {
                self.waiting.extend_from_slice(&data);
            }
        }
    }
}

/// One segment of a path: everything but letters, digits and `-._~` is encoded.
pub(crate) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A path that asks with one value.
pub(crate) fn query(path: &str, key: &str, value: &str) -> String {
    format!("{path}?{key}={}", segment(value))
}

#[cfg(test)]
mod tests;
