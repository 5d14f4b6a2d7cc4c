//! What a client asks for when it pulls: the manifest, how long a blob is, and where it is.

use std::sync::Arc;

use hyper::header::RANGE;

use super::data::{failed, part};
use super::{
    Body, CONTENT_LENGTH, CONTENT_TYPE, Digest, Fault, LOCATION, Parts, Response, Sending, Shared, StatusCode, Step,
    Storage, said, with,
};
use crate::release::{Content, MANIFEST_TYPE};

pub(super) async fn manifest(shared: Arc<Shared>, head: &Parts, repository: &str, tag: &str) -> Response<Body> {
    shared.tally.add(|asked| asked.manifests += 1);
    let manifest = shared.stock.manifest(repository, tag);
    let size = manifest.as_ref().map_or(0, |manifest| manifest.len() as u64);
    let fault = shared.faults.of(Step::Manifest, 0, size);
    match &fault {
        Some(Fault::Status { status }) => return failed(*status),
        Some(Fault::Redirect { to }) => return with(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, to.clone())]),
        Some(Fault::Hang) => std::future::pending().await,
        _ => {}
    }
    let Some(manifest) = manifest else {
        return said(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry");
    };
    let end = match fault {
        Some(Fault::Overrun { by }) => size.saturating_add(by),
        _ => size,
    };
    let headers = [(CONTENT_TYPE, MANIFEST_TYPE.to_owned()), (CONTENT_LENGTH, end.to_string())];
    let mut response = with(StatusCode::OK, &headers);
    if head.method == hyper::Method::GET {
        *response.body_mut() = Sending { content: Content::Bytes(manifest), from: 0, end, fault, counted: None }.body();
    }
    response
}

/// How long it is.
pub(super) async fn head(shared: &Shared, repository: &str, digest: &Digest) -> Response<Body> {
    shared.tally.add(|asked| asked.heads += 1);
    let Some(content) = shared.stock.linked(repository, digest) else { return with(StatusCode::NOT_FOUND, &[]) };
    let size = match shared.faults.of(Step::Head, 0, content.size()) {
        Some(Fault::Status { status }) => return failed(status),
        Some(Fault::Redirect { to }) => return with(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, to)]),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Announce { size }) => size,
        _ => content.size(),
    };
    with(StatusCode::OK, &[(CONTENT_LENGTH, size.to_string())])
}

/// Without a range, where it is; with one, a part of it.
pub(super) async fn blob(shared: Arc<Shared>, head: &Parts, repository: &str, digest: &Digest) -> Response<Body> {
    if shared.stock.linked(repository, digest).is_none() {
        return said(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    }
    if head.headers.contains_key(RANGE) {
        return part(shared, head, digest).await;
    }
    shared.tally.add(|asked| asked.locates += 1);
    let elsewhere = || format!("http://localhost:{}/storage/{digest}", shared.address.port());
    let (status, location) = match shared.faults.of(Step::Locate, 0, 0) {
        Some(Fault::Status { status }) => return failed(status),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Nowhere) => return with(StatusCode::OK, &[]),
        Some(Fault::Redirect { to }) => (StatusCode::TEMPORARY_REDIRECT, to),
        _ if shared.config.storage == Storage::Elsewhere => (StatusCode::TEMPORARY_REDIRECT, elsewhere()),
        // Parts are asked for without a token.
        _ if shared.config.token.is_some() => (StatusCode::OK, format!("/storage/{digest}")),
        _ => (StatusCode::OK, head.uri.path().to_owned()),
    };
    with(status, &[(LOCATION, location)])
}
