//! `/api/*` as the one backend of this machine answers it: the request goes there as it came, the answer comes back as
//! it grows.
//!
//! What a backend is not told: who asked, by which name, and from which page.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use node::{Unavailable, Way};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::face::Face;
use crate::failure::Failure;
use crate::route::Raw;

/// A backend on this machine takes a connection at once, or is not there.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What of a request's and an answer's head says how to read the body.
const ABOUT_THE_BODY: [HeaderName; 2] = [header::CONTENT_TYPE, header::ACCEPT];

pub(crate) async fn forward(raw: Raw) -> Result<Response, Failure> {
    let path = raw.uri.path_and_query().map_or("/", |path| path.as_str());
    ask(&raw.face, raw.method, path, &raw.headers, raw.body).await
}

/// What the backend answers to one request.
pub(crate) async fn ask(
    face: &Face,
    method: Method,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let ways = face.api().backend().ways()?;
    let lost = |why: &dyn std::fmt::Display| {
        Failure::new(StatusCode::BAD_GATEWAY, "backend", format!("what runs models here did not answer: {why}"))
            .hint("`omx doctor` looks what is wrong")
    };
    let (Way { at, secret }, stream) = first(ways).await.map_err(|error| lost(&error))?;
    stream.set_nodelay(true).map_err(|error| lost(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    // The connection lives as long as the answer is wanted: a client that goes away takes it along, and the backend
    // stops.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });

    let mut request = Request::builder().method(method).uri(path).header(header::HOST, at.authority());
    for name in ABOUT_THE_BODY {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    if let Some((name, value)) = &secret {
        request = request.header(*name, value.expose());
    }
    let request = request.body(Full::new(body)).map_err(Failure::internal)?;
    let (head, body) = sender.send_request(request).await.map_err(|error| lost(&error))?.into_parts();
    let mut response = Response::new(Body::new(Held { body, _driver: driver }));
    *response.status_mut() = head.status;
    if let Some(value) = head.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, value.clone());
    }
    Ok(response)
}

/// The first of them that takes a connection, or why the last did not.
async fn first(ways: Vec<Way>) -> io::Result<(Way, TcpStream)> {
    let mut lost = io::ErrorKind::NotConnected.into();
    for way in ways {
        match tokio::time::timeout(CONNECT_MAX, TcpStream::connect((way.at.host(), way.at.port()))).await {
            Ok(Ok(stream)) => return Ok((way, stream)),
            Ok(Err(error)) => lost = error,
            Err(late) => lost = late.into(),
        }
    }
    Err(lost)
}

/// As Ollama says who it is.
pub(crate) async fn root(_: Raw) -> Result<Response, Failure> {
    let mut response = Response::new(Body::from("Ollama is running"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Self {
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_backend", unavailable.to_string());
        match unavailable {
            Unavailable::Nothing(_) => failure.hint("`omx doctor` says what is missing"),
            Unavailable::Starting | Unavailable::Down(_) => failure.retry_after(Duration::from_secs(1)),
        }
    }
}

/// An answer's body and the connection it comes over.
struct Held {
    body: Incoming,
    _driver: JoinSet<()>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
