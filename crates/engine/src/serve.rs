//! The engine's HTTP face: Ollama's routes on a loopback port, for the node that started this process and nobody else.
//!
//! Every request must bring the secret of this start: other users of the machine reach the port too. A request is
//! carried by its connection's task; when the client goes, the task's future goes, and with it the answer it was
//! reading, which cancels it in the runner. So nothing here outlives who asked for it.

mod body;
mod embed;
mod failure;
mod infer;
mod known;
mod manage;
mod reply;
mod route;
mod stalled;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ollama::Folder;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::known::Shelf;
use self::stalled::Stalled;
use crate::library::Library;

/// The header that has to bring the secret.
pub const SECRET_HEADER: &str = "omx-engine-secret";

/// Beyond them, new connections wait in the system's queue: the node keeps its own number small.
const CONNECTIONS_MAX: usize = 512;
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// For the first byte of a request as well as its last header: an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what is there for it. Then its request ends, and its slot is free.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// When the system has no more descriptors, asking again at once does not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a request must know to be served. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

#[derive(Debug)]
pub struct Config {
    pub secret: Secret,
    /// What `/api/version` says.
    pub version: String,
}

/// What all requests share.
#[derive(Debug)]
pub struct Server {
    config: Config,
    folder: Arc<Folder>,
    library: Library,
    shelf: Shelf,
}

impl Secret {
    /// 128 random bits from the operating system, as text.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As it came from whoever started this process.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes as long for a wrong one as for the right one; an empty one is right for nobody.
    fn is(&self, given: &[u8]) -> bool {
        !self.0.is_empty() && bool::from(self.0.as_bytes().ct_eq(given))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Server {
    pub fn new(config: Config, folder: Folder, library: Library) -> Self {
        Self { config, folder: Arc::new(folder), library, shelf: Shelf::default() }
    }

    /// Serves until the shutdown; then takes nothing new and lets what runs finish. Dropping the future ends all at
    /// once.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let server = Arc::new(self);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, server.clone(), shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// One connection, to its end.
async fn converse(stream: TcpStream, server: Arc<Server>, shutdown: CancellationToken) {
    if let Err(error) = no_delay(&stream) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let service = service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(route::answer(server, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_header_size(HEAD_BYTES_MAX);
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let io = TokioIo::new(Stalled::new(stream, STALL_TIMEOUT));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Tokens are small, and each should leave at once.
fn no_delay(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

#[cfg(test)]
mod tests;
