//! The registry's side of Ollama's protocol, as far as Ollamas need it to pull: for the one beside us, and for those of the
//! local network that the operator lets in. Read-only, and only what is offered.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, SeekFrom};
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ollama::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// An Ollama pulls by 16 connections at once. At the limit the next one waits to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Also for whoever says nothing at all.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// However slow the line: a part of a gigabyte takes its time.
const CONNECTION_MAX: Duration = Duration::from_secs(6 * 3600);
const PIECE_BYTES: usize = 256 << 10;
const MANIFEST_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.distribution.manifest.v2+json");

/// What is there to be pulled.
pub(crate) trait Offers: Send + Sync {
    /// The manifest's bytes.
    fn manifest(&self, namespace: &str, model: &str, tag: &str) -> Option<Vec<u8>>;
    /// Where the blob lies and how long it is.
    fn blob(&self, namespace: &str, model: &str, digest: &Digest) -> Option<(PathBuf, u64)>;
    /// Whether this address may ask at all.
    fn admits(&self, from: IpAddr) -> bool;
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, offers: Arc<dyn Offers>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: some connection must end first.
                tracing::warn!(%error, "failed to accept a connection for a pull");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if !offers.admits(from.ip()) {
            continue;
        }
        let offers = offers.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let offers = offers.clone();
                async move { Ok::<_, Infallible>(answer(&*offers, request).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            let served = server.serve_connection(TokioIo::new(stream), answer);
            // Whoever breaks off has its reasons.
            let _ = tokio::time::timeout(CONNECTION_MAX, served).await;
            drop(place);
        });
    }
}

/// What is asked for, as far as the path says it. Each part is looked up and never becomes part of a path here.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Manifest { namespace: &'a str, model: &'a str, tag: &'a str },
    Blob { namespace: &'a str, model: &'a str, digest: Digest },
}

impl<'a> Asked<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let mut parts = path.strip_prefix("/v2/")?.split('/');
        let (namespace, model, kind, last) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match (kind, parts.next()) {
            ("manifests", None) => Some(Self::Manifest { namespace, model, tag: last }),
            ("blobs", None) => Some(Self::Blob { namespace, model, digest: last.parse().ok()? }),
            _ => None,
        }
    }
}

async fn answer(offers: &dyn Offers, request: Request<Incoming>) -> Response<Body> {
    let is_head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    };
    match Asked::parse(request.uri().path()) {
        None => refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        Some(Asked::Manifest { namespace, model, tag }) => match offers.manifest(namespace, model, tag) {
            None => refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Some(bytes) => {
                let length = HeaderValue::from(bytes.len());
                let mut response = Response::new(if is_head { empty() } else { full(bytes) });
                response.headers_mut().insert(CONTENT_TYPE, MANIFEST_TYPE);
                response.headers_mut().insert(CONTENT_LENGTH, length);
                response
            }
        },
        Some(Asked::Blob { namespace, model, digest }) => {
            let Some((path, size)) = offers.blob(namespace, model, &digest) else {
                return refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
            };
            let range = request.headers().get(RANGE).map(|range| parse_range(range, size));
            match range {
                Some(None) => refusal(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
                range => blob(path, size, range.flatten(), is_head, request.uri().path()).await,
            }
        }
    }
}

async fn blob(path: PathBuf, size: u64, range: Option<Range<u64>>, is_head: bool, asked: &str) -> Response<Body> {
    let (start, end) = range.as_ref().map_or((0, size), |range| (range.start, range.end));
    let body = if is_head { Ok(empty()) } else { read(path, start, end - start).await };
    let Ok(body) = body else { return refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN") };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(end - start));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if range.is_some() {
        let said = format!("bytes {start}-{}/{size}", end - 1);
        headers.insert(CONTENT_RANGE, said.parse().expect("digits and a slash"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    } else if let Ok(here) = HeaderValue::from_str(asked) {
        // Without it an Ollama does not begin, redirected or not.
        response.headers_mut().insert(LOCATION, here);
    }
    response
}

/// `bytes=a-b` or `bytes=a-`, inside the file; `None` for all else.
fn parse_range(range: &HeaderValue, size: u64) -> Option<Range<u64>> {
    let (start, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse::<u64>().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (start < end).then_some(start..end)
}

async fn read(path: PathBuf, start: u64, length: u64) -> io::Result<Body> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let pieces = stream::try_unfold((file, length), async |(mut file, left)| {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        let read = file.read(&mut piece).await?;
        if read == 0 {
            // Shorter than it was: whoever reads hears that it is not whole.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(read);
        Ok(Some((Frame::data(Bytes::from(piece)), (file, left - read as u64))))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}

fn empty() -> Body {
    full(Vec::new())
}

fn full(bytes: Vec<u8>) -> Body {
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": code.to_lowercase().replace('_', " ") }] });
    let mut response = Response::new(full(body.to_string().into_bytes()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl fmt::Debug for dyn Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_asks_for_a_manifest_or_a_blob_or_nothing() {
        let digest = Digest::of(b"");
        let blob = format!("/v2/n/m/blobs/{digest}");
        assert_eq!(Asked::parse(&blob), Some(Asked::Blob { namespace: "n", model: "m", digest }));
        let manifest = Asked::Manifest { namespace: "n", model: "m", tag: "t" };
        assert_eq!(Asked::parse("/v2/n/m/manifests/t"), Some(manifest));
        for path in
            ["/", "/v2/", "/v2/n/m", "/v2/n/m/blobs/../../x", "/v2/n/m/manifests/t/u", "/v2/n/m/blobs/sha256:12"]
        {
            assert_eq!(Asked::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_range_lies_inside_the_file() {
        let range = |text: &'static str| parse_range(&HeaderValue::from_static(text), 10);
        assert_eq!(
            (range("bytes=2-5"), range("bytes=2-"), range("bytes=0-99")),
            (Some(2..6), Some(2..10), Some(0..10))
        );
        for text in
            ["bytes=5-2", "bytes=10-", "bytes=-5", "bytes=a-b", "x=1-2", "bytes=1-18446744073709551615x", "bytes"]
        {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
