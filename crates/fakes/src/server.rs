//! The server itself: connections, routes, and the checks that come before them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{HOST, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::body::{Answer, Body, respond};
use crate::config::{Config, Model};
use crate::counts::{Counts, Ledger, Served, TooLate};
use crate::fault::{Fault, Faults, Order, Routes};
use crate::folder::Folder;
use crate::infer::Fake;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::runner::Runners;
use crate::shelf::{Shelf, ps};
use crate::transfer::{self, Depot};
use crate::{chat, connections, embed, generate};

/// Images come in the body; beyond it a request is refused.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A running fake. Dropping it is pulling its plug: the port closes and every connection with it.
#[derive(Debug)]
pub struct Ollama {
    address: SocketAddr,
    fake: Arc<Fake>,
    serving: JoinSet<()>,
}

impl Ollama {
    pub async fn start(config: Config) -> io::Result<Self> {
        if let Some(wrong) = config.models.iter().find(|model| Name::parse(&model.name).is_none()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` is no name of a model", wrong.name)));
        }
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        let ledger = Arc::new(Ledger::new());
        let runners = Runners::new(config.slots, config.loaded_max, config.pending_max, ledger.clone());
        let faults = Faults::new();
        let folder = config.folder.as_deref().map(|root| Folder::open(root, config.prune)).transpose()?.map(Arc::new);
        let depot = folder.clone().map(|folder| Arc::new(Depot::new(folder, &config, faults.clone())));
        let shelf = match folder {
            Some(folder) => {
                let pace = config.models.first().cloned().unwrap_or_else(|| Model::completion("any"));
                Shelf::Folder { folder, pace: Box::new(pace) }
            }
            None => Shelf::told(&config.models),
        };
        let fake = Arc::new(Fake {
            version: config.version,
            keep_alive: config.keep_alive,
            shelf,
            runners: Arc::new(runners),
            ledger,
            faults,
            depot,
        });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, fake.clone(), config.control));
        Ok(Self { address, fake, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn faults(&self) -> Faults {
        self.fake.faults.clone()
    }

    pub fn counts(&self) -> Counts {
        self.fake.ledger.now()
    }

    /// Waits until the counts are `so`.
    pub async fn until(&self, so: impl FnMut(&Counts) -> bool, limit: Duration) -> Result<Counts, TooLate> {
        self.fake.ledger.until(so, limit).await
    }

    /// The inferences that ended, as long as there is room to remember them.
    pub fn served(&self) -> Vec<Served> {
        self.fake.ledger.served()
    }

    /// After it the port is free, nothing runs any more, and the counts are final.
    pub async fn stop(mut self) -> Counts {
        self.serving.shutdown().await;
        self.counts()
    }
}

async fn serve(listener: TcpListener, fake: Arc<Fake>, control: bool) {
    connections::accept(listener, move |stream| {
        if fake.faults.refuses() {
            fake.ledger.add(|counts| counts.refused += 1);
            // Without it the client would see a clean end.
            let _ = stream.set_zero_linger();
            return None;
        }
        Some(converse(stream, fake.clone(), control))
    })
    .await;
}

async fn converse(stream: TcpStream, fake: Arc<Fake>, control: bool) {
    let _open = fake.ledger.hold(
        |counts| {
            counts.connections += 1;
            counts.connections_open += 1;
        },
        |counts| counts.connections_open -= 1,
    );
    connections::converse(stream, |request| {
        let fake = fake.clone();
        async move { answer(&fake, request, control).await }
    })
    .await;
}

async fn answer(fake: &Fake, request: Request<Incoming>, control: bool) -> Response<Body> {
    let (head, body) = request.into_parts();
    if control && head.uri.path() == "/__fault" {
        return respond(order(fake, &head.method, body).await.unwrap_or_else(Answer::from), None).await;
    }
    fake.ledger.add(|counts| counts.requests += 1);
    let path = head.uri.path();
    let inference = is_inference(path);
    let transfer = transfer::Route::of(path).filter(|_| fake.depot.is_some());
    let changes = transfer.is_some() || ["/api/copy", "/api/delete"].contains(&path);
    // Requests of other routes have no faults but those of all.
    let routes = if inference {
        Routes::Inference
    } else if changes {
        Routes::Models
    } else {
        Routes::All
    };
    let fault = fake.faults.of_request(routes);
    fake.faults.thawed().await;
    match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Status { status }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return respond(Refusal::new(status, "the fake was told to fail").into(), None).await;
        }
        _ => {}
    }
    if let Some(status) = stranger(&head.headers) {
        return respond(Answer::Empty(status), None).await;
    }
    if inference {
        fake.ledger.add(|counts| counts.inferences += 1);
    }
    let routed = match (&fake.depot, transfer) {
        (Some(depot), Some(route)) => transferred(depot, &head.method, &route, body, fault.clone()).await,
        _ => match read(body).await {
            Ok(body) => self::route(fake, &head.method, path, &body, fault.clone()).await,
            Err(refusal) => Err(refusal),
        },
    };
    let answer = routed.unwrap_or_else(|refusal| {
        fake.ledger.add(|counts| counts.refused += 1);
        refusal.into()
    });
    respond(answer, fault.as_ref()).await
}

async fn route(fake: &Fake, method: &Method, path: &str, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let methods: &[Method] = match path {
        "/" | "/api/version" | "/api/tags" => &[Method::GET, Method::HEAD],
        "/api/ps" => &[Method::GET],
        "/api/show" | "/api/copy" => &[Method::POST],
        "/api/delete" => &[Method::DELETE],
        _ if is_inference(path) => &[Method::POST],
        _ => return Ok(Answer::Text(StatusCode::NOT_FOUND, "text/plain", "404 page not found")),
    };
    if !methods.contains(method) {
        return Ok(not_allowed());
    }
    match path {
        "/" => Ok(Answer::Text(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running")),
        "/api/version" => Ok(Answer::json(json!({ "version": fake.version }))),
        "/api/tags" => Ok(fake.shelf.tags()),
        "/api/ps" => Ok(ps(&fake.runners)),
        "/api/show" => fake.shelf.show(body),
        "/api/copy" => fake.shelf.copy(body),
        "/api/delete" => fake.shelf.delete(body, &fake.runners),
        "/api/generate" => generate::generate(fake, body, fault).await,
        "/api/chat" => chat::chat(fake, body, fault).await,
        "/api/embed" => embed::embed(fake, body, fault.as_ref()).await,
        _ => embed::embeddings(fake, body, fault.as_ref()).await,
    }
}

async fn transferred(
    depot: &Arc<Depot>,
    method: &Method,
    route: &transfer::Route,
    body: Incoming,
    fault: Option<Fault>,
) -> Result<Answer, Refusal> {
    if !route.methods().contains(method) {
        return Ok(not_allowed());
    }
    match route {
        // It may be longer than fits into memory.
        transfer::Route::Blob(digest) if *method == Method::POST => depot.receive(digest, body).await,
        _ => depot.tell(route, &read(body).await?, fault).await,
    }
}

fn not_allowed() -> Answer {
    Answer::Text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "405 method not allowed")
}

fn is_inference(path: &str) -> bool {
    ["/api/generate", "/api/chat", "/api/embed", "/api/embeddings"].contains(&path)
}

async fn order(fake: &Fake, method: &Method, body: Incoming) -> Result<Answer, Refusal> {
    if *method == Method::DELETE {
        fake.faults.clear();
        return Ok(Answer::Empty(StatusCode::OK));
    }
    let body = read(body).await?;
    let order: Order = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    fake.faults.order(order);
    Ok(Answer::Empty(StatusCode::OK))
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let read = Limited::new(body, BODY_BYTES_MAX).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| Refusal::bad_request(error.to_string()))
}

/// Ollama on a loopback port wants a `Host` that is of this machine, and no `Origin` but a known one.
fn stranger(headers: &HeaderMap) -> Option<StatusCode> {
    let text = |name| headers.get(name).map(|value: &hyper::header::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(HOST).unwrap_or_default();
    if !is_near(without_port(host)) {
        return Some(StatusCode::FORBIDDEN);
    }
    let origin = text(ORIGIN)?;
    let (scheme, rest) = origin.split_once("://").unwrap_or(("", origin));
    let known = match scheme {
        "app" | "file" | "tauri" | "vscode-webview" | "vscode-file" => true,
        "chrome-extension" | "moz-extension" | "safari-web-extension" => true,
        "http" | "https" => rest == host || ["localhost", "127.0.0.1", "0.0.0.0"].contains(&without_port(rest)),
        _ => false,
    };
    (!known).then_some(StatusCode::FORBIDDEN)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.trim_matches(['[', ']']),
        _ => host,
    }
}

fn is_near(host: &str) -> bool {
    let near = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unspecified(),
    };
    let suffixes = [".localhost", ".local", ".internal"];
    host.is_empty()
        || host == "localhost"
        || suffixes.iter().any(|suffix| host.ends_with(suffix))
        || host.parse().is_ok_and(near)
}
