//! The little that is asked of an Ollama before it is used.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::Endpoint;

/// A version is one short line.
const ANSWER_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing listens there")]
    Connect(#[source] std::io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("what listens there is no Ollama")]
    NoOllama,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// Asks who is there. A header may be what it takes to be answered.
pub async fn version(at: &Endpoint, header: Option<(&str, &str)>, within: Duration) -> Result<String, Error> {
    tokio::time::timeout(within, ask(at, header)).await.unwrap_or(Err(Error::Late(within)))
}

async fn ask(at: &Endpoint, header: Option<(&str, &str)>) -> Result<String, Error> {
    let stream = TcpStream::connect((at.host(), at.port())).await.map_err(Error::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Error::NoOllama)?;
    let mut request = Request::get("/api/version").header(HOST, at.authority());
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| Error::NoOllama)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|_| Error::NoOllama)?;
        if answer.status() != StatusCode::OK {
            return Err(Error::NoOllama);
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|_| Error::NoOllama)?;
        serde_json::from_slice::<Version>(&body.to_bytes()).map_err(|_| Error::NoOllama)
    };
    // The connection has to be driven while the answer is waited for, and is dropped with it. It may end before the answer
    // is looked at, which is there all the same then.
    let mut answer = std::pin::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.version)
}
