//! An upstream registry on loopback, as Ollama pulls from it and pushes to it. It counts what it is asked for, so that
//! one download can be told from two, and spoils its answers on command.

mod data;
mod fault;
mod pull;
mod push;
mod stock;
mod tally;
mod token;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::body::{Body, full};
use crate::connections;
use crate::digest::Digest;
use crate::name::Name;
use crate::release::Release;

use self::data::Sending;
use self::push::Uploads;
use self::stock::Stock;
use self::tally::Tally;

pub use self::fault::{Fault, Faults, InvalidFault, Ordered, Step};
pub use self::tally::{Asked, Taken, TooLate};

#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0 is any free one.
    pub address: SocketAddr,
    pub storage: Storage,
    /// Without it nobody is asked who they are.
    pub token: Option<String>,
    /// Whether faults can be ordered by `POST /__fault`.
    pub control: bool,
}

/// Where blobs are had from, which the request without a range tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Another host, by 307, where no authorization is to be sent: here under the name `localhost`. Parts that are
    /// pushed are sent there too.
    Elsewhere,
    /// The same address, by 200.
    Here,
}

/// A running registry. Dropping it is pulling its plug.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    config: Config,
    stock: Stock,
    uploads: Uploads,
    tally: Arc<Tally>,
    faults: Faults,
}

/// A manifest that is pushed, or an order; beyond it a body is refused.
const BODY_BYTES_MAX: usize = 4 << 20;

impl Default for Config {
    /// As Ollama's own registry does it, but that it asks nobody who they are.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            storage: Storage::Elsewhere,
            token: None,
            control: false,
        }
    }
}

impl Registry {
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            address,
            config,
            stock: Stock::default(),
            uploads: Uploads::default(),
            tally: Arc::new(Tally::new()),
            faults: Faults::new(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(connections::accept(listener, {
            let shared = shared.clone();
            move |stream| {
                let shared = shared.clone();
                Some(async move {
                    let _open = shared.tally.open();
                    connections::converse(stream, |request| answer(shared.clone(), request)).await;
                })
            }
        }));
        Ok(Self { address, shared, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a client calls the model `name` of this registry, such as `127.0.0.1:5000/library/tiny:1b`. Host names in
    /// `name` are left out: whoever asks here means this registry.
    pub fn name_of(&self, name: &str) -> io::Result<String> {
        let name = known(name)?;
        Ok(format!("{}/{}:{}", self.address, name.repository(), name.tag()))
    }

    /// From now on, in place of what had the name before.
    pub fn publish(&self, name: &str, release: &Release) -> io::Result<()> {
        self.shared.stock.publish(&known(name)?, release);
        Ok(())
    }

    /// A manifest of any bytes, hostile ones too.
    pub fn publish_manifest(&self, name: &str, manifest: impl Into<Bytes>) -> io::Result<()> {
        self.shared.stock.put_manifest(&known(name)?, manifest.into());
        Ok(())
    }

    /// The manifest that is there by now, which may have been pushed.
    pub fn manifest(&self, name: &str) -> Option<Bytes> {
        let name = Name::parse(name)?;
        self.shared.stock.manifest(&name.repository(), name.tag())
    }

    /// The whole of a blob that was published or pushed.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        let content = self.shared.stock.blob(digest)?;
        Some(content.read(0, usize::try_from(content.size()).unwrap_or(usize::MAX)))
    }

    pub fn faults(&self) -> Faults {
        self.shared.faults.clone()
    }

    pub fn asked(&self) -> Asked {
        self.shared.tally.now()
    }

    /// What was taken of one blob so far.
    pub fn taken(&self, digest: &Digest) -> Taken {
        self.asked().blobs.get(digest).cloned().unwrap_or_default()
    }

    /// Waits until what was asked for is `so`.
    pub async fn until(&self, so: impl FnMut(&Asked) -> bool, limit: Duration) -> Result<Asked, TooLate> {
        self.shared.tally.until(so, limit).await
    }

    /// After it the port is free and the numbers are final.
    pub async fn stop(mut self) -> Asked {
        self.serving.shutdown().await;
        self.asked()
    }
}

fn known(name: &str) -> io::Result<Name> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name of a model"));
    Name::parse(name).ok_or_else(wrong)
}

/// A request, with its path taken apart.
#[derive(Debug)]
enum Route {
    Manifest {
        repository: String,
        tag: String,
    },
    Blob {
        repository: String,
        digest: Digest,
    },
    /// Where blobs lie, and none but them.
    Stored {
        digest: Digest,
    },
    Begin {
        repository: String,
    },
    Upload {
        number: u64,
    },
    Token,
    Fault,
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Some(route) = Route::of(head.uri.path()) else {
        shared.tally.add(|asked| asked.requests += 1);
        return said(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such path");
    };
    if matches!(route, Route::Fault) && shared.config.control {
        return order(&shared, &head.method, body).await;
    }
    shared.tally.add(|asked| asked.requests += 1);
    if let Some(refused) = token::check(&shared, &route, &head) {
        return refused;
    }
    match (route, head.method.as_str()) {
        (Route::Token, "GET") => token::grant(&shared, &head),
        (Route::Manifest { repository, tag }, "GET" | "HEAD") => pull::manifest(shared, &head, &repository, &tag).await,
        (Route::Manifest { repository, tag }, "PUT") => push::manifest(&shared, &repository, &tag, body).await,
        (Route::Blob { repository, digest }, "HEAD") => pull::head(&shared, &repository, &digest).await,
        (Route::Blob { repository, digest }, "GET") => pull::blob(shared, &head, &repository, &digest).await,
        (Route::Stored { digest }, "GET") => data::part(shared, &head, &digest).await,
        (Route::Begin { repository }, "POST") => push::begin(&shared, &repository, head.uri.query()).await,
        (Route::Upload { number }, "PATCH" | "PUT") => push::upload(&shared, number, &head, body).await,
        _ => said(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported"),
    }
}

async fn order(shared: &Shared, method: &Method, body: Incoming) -> Response<Body> {
    if *method == Method::DELETE {
        shared.faults.clear();
        return with(StatusCode::OK, &[]);
    }
    let Some(body) = read(body).await else { return said(StatusCode::BAD_REQUEST, "UNSUPPORTED", "too long") };
    match serde_json::from_slice::<Ordered>(&body) {
        Ok(order) => {
            shared.faults.order(order);
            with(StatusCode::OK, &[])
        }
        Err(error) => said(StatusCode::BAD_REQUEST, "UNSUPPORTED", &error.to_string()),
    }
}

async fn read(body: Incoming) -> Option<Bytes> {
    Limited::new(body, BODY_BYTES_MAX).collect().await.ok().map(http_body_util::Collected::to_bytes)
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        match parts[..] {
            ["token"] => Some(Self::Token),
            ["__fault"] => Some(Self::Fault),
            ["storage", digest] => Some(Self::Stored { digest: digest.parse().ok()? }),
            ["uploads", number] => Some(Self::Upload { number: number.parse().ok()? }),
            ["v2", namespace, model, "manifests", tag] => {
                Some(Self::Manifest { repository: format!("{namespace}/{model}"), tag: tag.to_owned() })
            }
            ["v2", namespace, model, "blobs", "uploads", ""] => {
                Some(Self::Begin { repository: format!("{namespace}/{model}") })
            }
            ["v2", namespace, model, "blobs", digest] => {
                let digest = digest.parse().ok()?;
                Some(Self::Blob { repository: format!("{namespace}/{model}"), digest })
            }
            _ => None,
        }
    }
}

/// An error as registries write it.
fn said(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let mut response = with(status, &[(CONTENT_TYPE, "application/json".to_owned())]);
    *response.body_mut() = full(text.into());
    response
}

/// Without a body. A header that cannot be one is left out, which no fault but a hostile `Location` asks for.
fn with(status: StatusCode, headers: &[(HeaderName, String)]) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
