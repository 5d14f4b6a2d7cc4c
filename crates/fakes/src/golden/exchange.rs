//! One request and its answer, on a connection of their own.

use std::future::pending;
use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Subject;

/// No case has an answer beyond it.
const ANSWER_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) kind: Option<String>,
    pub(super) chunked: bool,
    pub(super) text: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Connection(#[from] io::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Body(#[from] Box<dyn std::error::Error + Send + Sync>),
}

pub(super) async fn exchange(subject: &Subject, method: &str, path: &str, body: String) -> Result<Reply, Failure> {
    let stream = TcpStream::connect(subject.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder().method(method).uri(path).header(HOST, subject.address.to_string());
    for (name, value) in &subject.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let ask = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Reply {
            status: head.status.as_u16(),
            kind: text(CONTENT_TYPE),
            chunked: text(TRANSFER_ENCODING).as_deref() == Some("chunked"),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
    };
    // The connection's own end says nothing that the answer does not.
    let drive = async {
        let _ = connection.await;
        pending::<Result<Reply, Failure>>().await
    };
    tokio::select! {
        reply = ask => reply,
        never = drive => never,
    }
}
