//! `/api/blobs/:digest`: what models are made of, before they are made.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;

use super::{Depot, failed};
use crate::body::Answer;
use crate::digest::{Digest, Hasher};
use crate::refusal::Refusal;

/// So that two that come at once have a file each.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A file that is not yet what it should be. Unless it is moved, it goes.
struct Incomplete(PathBuf);

pub(super) fn head(depot: &Depot, digest: &str) -> Result<Answer, Refusal> {
    let digest = parse(digest)?;
    if depot.folder.blob(&digest).is_file() {
        return Ok(Answer::Empty(StatusCode::OK));
    }
    Err(Refusal::not_found(format!("blob \"{digest}\" not found")))
}

pub(super) async fn receive(depot: &Depot, digest: &str, mut body: Incoming) -> Result<Answer, Refusal> {
    let digest = parse(digest)?;
    let path = depot.folder.blob(&digest);
    if path.is_file() {
        return Ok(Answer::Empty(StatusCode::OK));
    }
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let name = format!("sha256-incoming-{}-{number}", std::process::id());
    let incomplete = Incomplete(depot.folder.blobs().join(name));
    let mut file = File::create(&incomplete.0).map_err(failed)?;
    let mut hasher = Hasher::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad_request(error.to_string()))?;
        let Some(bytes) = frame.data_ref() else { continue };
        hasher.update(bytes);
        file.write_all(bytes).map_err(failed)?;
    }
    let found = hasher.finish();
    if found != digest {
        return Err(Refusal::bad_request(format!("digest mismatch, expected \"{digest}\", got \"{found}\"")));
    }
    fs::rename(&incomplete.0, path).map_err(failed)?;
    Ok(Answer::Empty(StatusCode::CREATED))
}

fn parse(digest: &str) -> Result<Digest, Refusal> {
    digest.parse().map_err(|invalid: crate::digest::InvalidDigest| Refusal::bad_request(invalid.to_string()))
}

impl Drop for Incomplete {
    fn drop(&mut self) {
        // Moved to its place, it is not there.
        let _ = fs::remove_file(&self.0);
    }
}
