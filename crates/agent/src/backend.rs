//! How the backend is spoken to: HTTP/1.1 over connections that are kept. It is not told who asked, by which name and
//! from which page; a body goes there as it came, but for a context that is loaded already.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use ollama::{Endpoint, seen};
use tokio::net::TcpStream;
use tokio::time::timeout;
use types::Secret;

use crate::pool::{self, Answer, Pool, Whole};
use crate::state::{LOOK_MAX, Missed};

/// Where it listens now, and the header without which it does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub at: Endpoint,
    pub secret: Option<(&'static str, Secret<String>)>,
}

/// Asked before each request: an engine that was started anew listens elsewhere. `Err` says why there is none.
pub type FindWay = Box<dyn Fn() -> Result<Way, String> + Send + Sync>;

pub(crate) struct Backend {
    find: FindWay,
    pool: Pool<Endpoint>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    NoWay(String),
    #[error(transparent)]
    Send(#[from] pool::Error),
}

/// A backend on this machine or its network takes a connection at once, or is not there.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// For lists of models, from memory or a folder.
const LIST_MAX: Duration = Duration::from_secs(5);
/// For what a client asks beside inference; a model is shown from its file.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// A list of some thousand models.
const LIST_BYTES_MAX: usize = 8 << 20;

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Backend {
    pub(crate) fn new(find: FindWay) -> Self {
        Self { find, pool: Pool::new() }
    }

    /// Returns once the head of the answer has come. Dropped, it is cancelled.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Result<Response<Answer<Endpoint>>, Error> {
        let Way { at, secret } = (self.find)().map_err(Error::NoWay)?;
        let mut request = Request::new(Whole::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = hyper::Uri::from_static(path);
        let headers = request.headers_mut();
        let no_way = |_| Error::NoWay(format!("`{at}` cannot stand in a header"));
        headers.insert(HOST, at.authority().parse().map_err(no_way)?);
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        if let Some((name, value)) = &secret {
            headers.insert(*name, value.expose().parse().map_err(|_| Error::NoWay("no fit secret".to_owned()))?);
        }
        let dial = async {
            let stream = TcpStream::connect((at.host(), at.port())).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        Ok(self.pool.send(at.clone(), request, CONNECT_MAX, dial).await?)
    }

    /// Whether it answers at all, and as what we know.
    pub(crate) async fn look(&self) -> Result<String, Missed> {
        let body = timeout(LOOK_MAX, self.get("/api/version")).await.map_err(|_| Missed::Late)??;
        let version: seen::Version =
            serde_json::from_slice(&body).map_err(|_| Missed::Foreign("it tells no version".to_owned()))?;
        Ok(version.version)
    }

    pub(crate) async fn tags(&self) -> Result<seen::Tags, Missed> {
        let body = timeout(LIST_MAX, self.get("/api/tags")).await.map_err(|_| Missed::Late)??;
        serde_json::from_slice(&body).map_err(|_| Missed::Foreign("it lists no models".to_owned()))
    }

    pub(crate) async fn loaded(&self) -> Result<seen::Ps, Missed> {
        let body = timeout(LIST_MAX, self.get("/api/ps")).await.map_err(|_| Missed::Late)??;
        serde_json::from_slice(&body).map_err(|_| Missed::Foreign("it lists no loaded models".to_owned()))
    }

    /// A question with a short answer.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), crate::Error> {
        let answered = async {
            let response = self.send(method, path, body).await.map_err(|error| match error {
                Error::NoWay(why) => crate::Error::NoWay(why),
                Error::Send(error) => crate::Error::Unreachable(error),
            })?;
            let (status, mut answer) = (response.status(), response.into_body());
            let mut body = Vec::new();
            while let Some(bytes) = answer.bytes().await {
                body.extend_from_slice(&bytes.map_err(crate::Error::Broken)?);
                if body.len() > LIST_BYTES_MAX {
                    return Err(crate::Error::Garbage("an answer without end"));
                }
            }
            Ok((status, Bytes::from(body)))
        };
        timeout(ANSWER_MAX, answered).await.unwrap_or(Err(crate::Error::Silent(ANSWER_MAX)))
    }

    async fn get(&self, path: &'static str) -> Result<Vec<u8>, Missed> {
        let response = self.send(Method::GET, path, Bytes::new()).await.map_err(|error| match error {
            Error::NoWay(why) => Missed::Refused(why),
            Error::Send(pool::Error::Late(_)) => Missed::Late,
            Error::Send(error @ (pool::Error::Connect(_) | pool::Error::Broken(_))) => {
                Missed::Refused(error.to_string())
            }
        })?;
        if response.status() != StatusCode::OK {
            return Err(Missed::Foreign(format!("`{path}` is answered with {}", response.status())));
        }
        let mut answer = response.into_body();
        let mut body = Vec::new();
        while let Some(bytes) = answer.bytes().await {
            body.extend_from_slice(&bytes.map_err(|error| Missed::Refused(error.to_string()))?);
            if body.len() > LIST_BYTES_MAX {
                return Err(Missed::Foreign(format!("`{path}` is answered without end")));
            }
        }
        Ok(body)
    }
}
