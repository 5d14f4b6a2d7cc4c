//! Routes by which models come and go, for a fake with a folder: pull, push, create, and the blobs they are made of.

mod blobs;
mod create;
mod download;
mod http;
mod md5;
mod progress;
mod pull;
mod push;
mod remote;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use hyper::Method;
use hyper::body::Incoming;

use crate::body::Answer;
use crate::config::{Config, Transfer};
use crate::digest::{Digest, Hasher};
use crate::fault::{Fault, Faults};
use crate::folder::Folder;
use crate::refusal::Refusal;

use self::download::Downloads;

pub(crate) use self::progress::Progress;

/// What these routes use.
#[derive(Debug)]
pub(crate) struct Depot {
    folder: Arc<Folder>,
    downloads: Downloads,
    /// Who answers as Ollama's own registry.
    upstream: Option<SocketAddr>,
    version: String,
    transfer: Transfer,
    faults: Faults,
}

/// A path of these routes, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Pull,
    Push,
    Create,
    Blob(String),
}

impl Route {
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path {
            "/api/pull" => Some(Self::Pull),
            "/api/push" => Some(Self::Push),
            "/api/create" => Some(Self::Create),
            _ => {
                let digest = path.strip_prefix("/api/blobs/")?;
                (!digest.is_empty() && !digest.contains('/')).then(|| Self::Blob(digest.to_owned()))
            }
        }
    }

    pub(crate) fn methods(&self) -> &[Method] {
        match self {
            Self::Blob(_) => &[Method::POST, Method::HEAD],
            _ => &[Method::POST],
        }
    }
}

impl Depot {
    pub(crate) fn new(folder: Arc<Folder>, config: &Config, faults: Faults) -> Self {
        Self {
            downloads: Downloads::new(folder.clone(), config.transfer),
            folder,
            upstream: config.upstream,
            version: config.version.clone(),
            transfer: config.transfer,
            faults,
        }
    }

    pub(crate) async fn tell(
        self: &Arc<Self>,
        route: &Route,
        body: &[u8],
        fault: Option<Fault>,
    ) -> Result<Answer, Refusal> {
        match route {
            Route::Pull => pull::pull(self, body, fault).await,
            Route::Push => push::push(self, body, fault).await,
            Route::Create => create::create(self, body, fault).await,
            Route::Blob(digest) => blobs::head(self, digest),
        }
    }

    /// Bytes that come, and are not to be held in memory.
    pub(crate) async fn receive(&self, digest: &str, body: Incoming) -> Result<Answer, Refusal> {
        blobs::receive(self, digest, body).await
    }
}

/// Of a whole file, which may be long: other tasks go on.
async fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Hasher::default();
        let mut chunk = vec![0; 1 << 20];
        loop {
            match io::Read::read(&mut file, &mut chunk)? {
                0 => return Ok(hasher.finish()),
                read => hasher.update(&chunk[..read]),
            }
        }
    });
    hashed.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

fn failed(what: impl std::fmt::Display) -> Refusal {
    Refusal::here(what.to_string())
}
