//! One connection to a node, and one request on it.

use std::io;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::rt::{Read, Write};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use crate::run_file::RunFile;

/// To the local socket. Where a system has none, the node's TCP address and a secret file beside `run.json` will have
/// to do; until then commands do not work there.
#[cfg(unix)]
pub(super) async fn dial(run: &RunFile) -> io::Result<TokioIo<tokio::net::UnixStream>> {
    tokio::net::UnixStream::connect(&run.socket).await.map(TokioIo::new)
}

#[cfg(not(unix))]
pub(super) async fn dial(_run: &RunFile) -> io::Result<TokioIo<tokio::net::TcpStream>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no local sockets"))
}

/// The connection ends when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    pub(super) async fn over(stream: impl Read + Write + Send + Unpin + 'static) -> hyper::Result<Self> {
        let (sender, connection) = http1::handshake(stream).await?;
        let mut driver = JoinSet::new();
        // What ends the connection ends the request on it too, which tells.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _driver: driver })
    }

    pub(super) async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        // Without a body there is nothing to name the type of.
        let request = if body.is_empty() { request } else { request.header(CONTENT_TYPE, "application/json") };
        let request = request.body(Full::new(body)).expect("paths are built from encoded segments");
        self.sender.send_request(request).await
    }
}
