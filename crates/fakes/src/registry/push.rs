//! What a client sends when it pushes: parts of blobs, and at last the manifest.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_RANGE;
use serde_json::Value;

use super::data::failed;
use super::{Body, Digest, Fault, LOCATION, Parts, Response, Shared, StatusCode, Step, Storage, read, said, with};
use crate::name::Name;
use crate::release::Content;

/// Uploads that were begun and not finished; the oldest is forgotten beyond it.
const UPLOADS_MAX: usize = 64;
/// Of all parts of one upload together.
const UPLOAD_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    begun: BTreeMap<u64, Upload>,
}

#[derive(Debug)]
struct Upload {
    repository: String,
    /// By where they begin.
    parts: BTreeMap<u64, Bytes>,
}

/// `POST …/blobs/uploads/`, perhaps with `?mount=<digest>&from=<repository>`.
pub(super) async fn begin(shared: &Shared, repository: &str, query: Option<&str>) -> Response<Body> {
    if let Some(refused) = spoilt(shared).await {
        return refused;
    }
    let mount = field(query, "mount").and_then(|digest| digest.parse::<Digest>().ok());
    if let (Some(digest), Some(from)) = (mount, field(query, "from"))
        && shared.stock.mount(repository, &from, &digest)
    {
        shared.tally.add(|asked| asked.pushed.mounts += 1);
        return with(StatusCode::CREATED, &[(LOCATION, format!("/v2/{repository}/blobs/{digest}"))]);
    }
    let number = shared.uploads.begin(repository);
    shared.tally.add(|asked| asked.pushed.uploads += 1);
    with(StatusCode::ACCEPTED, &[(LOCATION, at(shared, number))])
}

/// A part by `PATCH`, or by `PUT` where it was sent on; the end by `PUT` with the digest.
pub(super) async fn upload(shared: &Shared, number: u64, head: &Parts, body: Incoming) -> Response<Body> {
    if let Some(refused) = spoilt(shared).await {
        return refused;
    }
    if head.method == hyper::Method::PUT
        && let Some(digest) = field(head.uri.query(), "digest")
    {
        return finish(shared, number, &digest);
    }
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let from = text(CONTENT_RANGE.as_str()).and_then(|range| range.split_once('-')?.0.parse::<u64>().ok());
    // Where it was sent on, the place says which part it is.
    let from = from.or_else(|| field(head.uri.query(), "from")?.parse().ok());
    let Some(from) = from else { return said(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", "no range") };
    let sends_on = head.method == hyper::Method::PATCH && shared.config.storage == Storage::Elsewhere;
    if sends_on && text("x-redirect-uploads") == Some("1") {
        let to = format!("http://localhost:{}/uploads/{number}?from={from}", shared.address.port());
        return with(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, to)]);
    }
    let Ok(part) = Limited::new(body, UPLOAD_BYTES_MAX).collect().await else {
        return said(StatusCode::BAD_REQUEST, "SIZE_INVALID", "the part cannot be read, or is too long");
    };
    let part = part.to_bytes();
    let length = part.len() as u64;
    if !shared.uploads.put(number, from, part) {
        return said(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload, or too much for one");
    }
    shared.tally.add(|asked| {
        asked.pushed.parts += 1;
        asked.pushed.bytes += length;
    });
    with(StatusCode::ACCEPTED, &[(LOCATION, at(shared, number))])
}

pub(super) async fn manifest(shared: &Shared, repository: &str, tag: &str, body: Incoming) -> Response<Body> {
    if let Some(refused) = spoilt(shared).await {
        return refused;
    }
    let invalid = |message| said(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let Some(name) = Name::parse(&format!("{repository}:{tag}")) else { return invalid("no name") };
    let Some(body) = read(body).await else { return invalid("too long, or cut short") };
    let Ok(manifest) = serde_json::from_slice::<Value>(&body) else { return invalid("no JSON") };
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let known = |layer: &Value| {
        let digest = layer["digest"].as_str().and_then(|digest| digest.parse().ok());
        digest.is_some_and(|digest| shared.stock.linked(repository, &digest).is_some())
    };
    if !layers.iter().chain([&manifest["config"]]).all(known) {
        return said(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
    }
    shared.stock.put_manifest(&name, body);
    shared.tally.add(|asked| asked.pushed.manifests += 1);
    with(StatusCode::CREATED, &[])
}

fn finish(shared: &Shared, number: u64, digest: &str) -> Response<Body> {
    let Some((repository, whole)) = shared.uploads.finish(number) else {
        return said(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload, or one with gaps");
    };
    let found = Digest::of(&whole);
    if digest.parse().as_ref() != Ok(&found) {
        return said(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the digest is another");
    }
    shared.stock.put(&repository, found, Content::Bytes(whole));
    with(StatusCode::CREATED, &[])
}

async fn spoilt(shared: &Shared) -> Option<Response<Body>> {
    match shared.faults.of(Step::Push, 0, 0)? {
        Fault::Status { status } => Some(failed(status)),
        Fault::Redirect { to } => Some(with(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, to)])),
        Fault::Hang => std::future::pending().await,
        _ => None,
    }
}

fn at(shared: &Shared, number: u64) -> String {
    format!("http://{}/uploads/{number}", shared.address)
}

/// Of a query, with what is escaped in it: Go escapes colons and slashes.
fn field(query: Option<&str>, name: &str) -> Option<String> {
    let fields = query?.split('&').filter_map(|field| field.split_once('='));
    let value = fields.into_iter().find(|(key, _)| *key == name)?.1;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit =
                    |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(rest.next())? << 4 | digit(rest.next())?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Uploads {
    fn begin(&self, repository: &str) -> u64 {
        let mut state = self.state();
        if state.begun.len() == UPLOADS_MAX {
            state.begun.pop_first();
        }
        state.last += 1;
        let number = state.last;
        state.begun.insert(number, Upload { repository: repository.to_owned(), parts: BTreeMap::new() });
        number
    }

    /// Whether there is such an upload, with room for it.
    fn put(&self, number: u64, from: u64, part: Bytes) -> bool {
        let mut state = self.state();
        let Some(upload) = state.begun.get_mut(&number) else { return false };
        let others = upload.parts.iter().filter(|(at, _)| **at != from).map(|(_, part)| part.len());
        let fits = others.sum::<usize>() + part.len() <= UPLOAD_BYTES_MAX;
        if fits {
            upload.parts.insert(from, part);
        }
        fits
    }

    /// Its parts in their order, if nothing is missing between them.
    fn finish(&self, number: u64) -> Option<(String, Bytes)> {
        let upload = self.state().begun.remove(&number)?;
        let mut whole = Vec::new();
        for (from, part) in upload.parts {
            if from != whole.len() as u64 {
                return None;
            }
            whole.extend_from_slice(&part);
        }
        Some((upload.repository, whole.into()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_query_are_read_as_go_writes_them() {
        let query = Some("from=library%2Ftiny&mount=sha256%3Aab&bad=%zz");
        assert_eq!(field(query, "from").as_deref(), Some("library/tiny"));
        assert_eq!(field(query, "mount").as_deref(), Some("sha256:ab"));
        assert_eq!((field(query, "bad"), field(query, "none"), field(None, "from")), (None, None, None));
    }

    #[test]
    fn parts_may_come_in_any_order_and_none_may_be_missing() {
        let uploads = Uploads::default();
        let number = uploads.begin("library/tiny");
        assert!(
            uploads.put(number, 3, Bytes::from_static(b"def")) && uploads.put(number, 0, Bytes::from_static(b"abc"))
        );
        assert_eq!(uploads.finish(number), Some(("library/tiny".to_owned(), Bytes::from_static(b"abcdef"))));
        assert!(!uploads.put(number, 0, Bytes::new()), "it is finished");
        let gap = uploads.begin("library/tiny");
        assert!(uploads.put(gap, 3, Bytes::from_static(b"def")));
        assert_eq!(uploads.finish(gap), None);
    }
}
