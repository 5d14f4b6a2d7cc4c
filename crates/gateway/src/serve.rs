//! Taking connections in and seeing them out.

use std::convert::Infallible;
use std::future::{self, Future, Ready};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_util::sync::CancellationToken;

use crate::access::Peer;
use crate::crowd::{Crowd, Room};
use crate::face::{Face, Service};
use crate::lanes::Lanes;
use crate::pace::{Answer, Pace, Paced};
use crate::tls::Tls;
use crate::{socket, table};

const HEADERS_MAX: usize = 100;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What a connection may hold of unread or unsent bytes.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// The command line opens one at a time.
const LOCAL_CONNECTIONS_MAX: usize = 64;
/// When the system has no more descriptors, asking again at once does not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is told to stop.
#[derive(Debug)]
pub struct Task {
    face: Arc<Face>,
    tcp: TcpListener,
    tls: Option<Tls>,
    socket: Option<socket::Door>,
}

impl Task {
    pub(crate) fn new(face: Arc<Face>, tcp: TcpListener, tls: Option<Tls>, socket: Option<socket::Door>) -> Self {
        Self { face, tcp, tls, socket }
    }

    /// Runs until the shutdown; then takes nothing new, lets running requests finish and ends streams of events.
    /// Dropping the future ends everything at once: whoever runs it sets the last deadline.
    pub async fn run(self) {
        let Self { face, tcp, tls, socket } = self;
        let service = table::service(face.clone());
        let (limits, shutdown) = (face.limits(), face.shutdown());
        let lanes = &Lanes::start().await;
        let open = async {
            let crowd = Crowd::new(limits.connections, limits.connections_per_ip);
            match tls {
                Some(tls) => {
                    receive(Encrypted { tcp, acceptor: tls.acceptor() }, crowd, lanes, &service, shutdown).await
                }
                None => receive(tcp, crowd, lanes, &service, shutdown).await,
            }
        };
        let local = async {
            if let Some(socket) = socket {
                let crowd = Crowd::new(LOCAL_CONNECTIONS_MAX, LOCAL_CONNECTIONS_MAX);
                receive(socket, crowd, lanes, &service, shutdown).await;
            }
        };
        futures::join!(open, local);
    }
}

/// Where connections come in.
trait Entrance {
    /// What a connection is at first.
    type Raw: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What requests come over.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What lies between.
    type Greeting: Future<Output = io::Result<Self::Stream>> + Unpin + Send + 'static;

    /// May be dropped at any time.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Raw, Peer)>> + Send;

    /// Gives it to the runtime that is entered.
    fn hand_over(raw: Self::Raw) -> io::Result<Self::Raw>;

    /// Takes as long as the client likes: it belongs to the connection's own task, below its deadlines.
    fn greet(&self, raw: Paced<Self::Raw>) -> Self::Greeting;
}

impl Entrance for TcpListener {
    type Raw = TcpStream;
    type Stream = Paced<TcpStream>;
    type Greeting = Ready<io::Result<Paced<TcpStream>>>;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        loop {
            let (stream, remote) = self.accept().await?;
            // Fails where the client is gone already: no reason to keep the next one waiting.
            if let (Ok(()), Ok(local)) = (stream.set_nodelay(true), stream.local_addr()) {
                return Ok((stream, Peer::Tcp { remote, local }));
            }
        }
    }

    fn hand_over(raw: TcpStream) -> io::Result<TcpStream> {
        TcpStream::from_std(raw.into_std()?)
    }

    fn greet(&self, raw: Paced<TcpStream>) -> Self::Greeting {
        future::ready(Ok(raw))
    }
}

/// The same with TLS.
struct Encrypted {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Entrance for Encrypted {
    type Raw = TcpStream;
    /// The pace is taken below TLS, where a client that reads nothing shows: what lies above has a buffer between.
    type Stream = TlsStream<Paced<TcpStream>>;
    type Greeting = Accept<Paced<TcpStream>>;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        self.tcp.next().await
    }

    fn hand_over(raw: TcpStream) -> io::Result<TcpStream> {
        TcpListener::hand_over(raw)
    }

    fn greet(&self, raw: Paced<TcpStream>) -> Self::Greeting {
        self.acceptor.accept(raw)
    }
}

impl Entrance for socket::Door {
    type Raw = socket::Stream;
    type Stream = Paced<socket::Stream>;
    type Greeting = Ready<io::Result<Paced<socket::Stream>>>;

    async fn next(&self) -> io::Result<(socket::Stream, Peer)> {
        let (stream, uid) = self.accept().await?;
        Ok((stream, Peer::Socket { uid }))
    }

    fn hand_over(raw: socket::Stream) -> io::Result<socket::Stream> {
        socket::Stream::from_std(raw.into_std()?)
    }

    fn greet(&self, raw: Paced<socket::Stream>) -> Self::Greeting {
        future::ready(Ok(raw))
    }
}

async fn receive<E: Entrance>(
    entrance: E,
    mut crowd: Crowd<task::Id, AbortHandle>,
    lanes: &Lanes,
    service: &Service,
    shutdown: &CancellationToken,
) {
    // Dropped with this future, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                crowd.leave(id);
                continue;
            }
            accepted = entrance.next() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = match peer {
            Peer::Tcp { remote, .. } => Some(remote.ip().to_canonical()),
            Peer::Socket { .. } => None,
        };
        match crowd.room(source) {
            Room::Free => {}
            Room::InsteadOf(id) => {
                if let Some(handle) = crowd.leave(id) {
                    handle.abort();
                }
            }
            Room::None => {
                tracing::warn!(?peer, "too many connections are being served; this one was closed");
                continue;
            }
        }
        let lane = lanes.emptiest();
        let handed_over = {
            let _entered = lane.enter();
            E::hand_over(stream)
        };
        let stream = match handed_over {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be served");
                continue;
            }
        };
        let pace = Arc::new(Pace::new(Instant::now()));
        let greeting = entrance.greet(Paced { stream, pace: pace.clone() });
        let conversation = converse(greeting, peer, pace.clone(), service.clone(), shutdown.clone());
        let handle = connections.spawn_on(conversation, lane);
        crowd.enter(handle.id(), source, pace, handle);
    }
    // No more are taken from here on; those that run have their own ends.
    drop(entrance);
    while connections.join_next().await.is_some() {}
}

/// One connection, to its end.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut greeting: impl Future<Output = io::Result<S>> + Unpin,
    peer: Peer,
    pace: Arc<Pace>,
    service: Service,
    shutdown: CancellationToken,
) {
    let _counted = service.face().metrics().connection();
    let limits = service.face().limits();
    let mut exceeded = pin!(pace.exceeded(limits));
    let stream = tokio::select! {
        // The greeting first, for the same reason as below.
        biased;
        greeted = &mut greeting => match greeted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(?peer, %error, "a handshake failed");
                return;
            }
        },
        () = &mut exceeded => {
            tracing::debug!(?peer, "a handshake took too long and was cut off");
            return;
        }
        // Nothing has been asked yet.
        () = shutdown.cancelled() => return,
    };
    let answer = service_fn(|request| {
        pace.asked();
        let (service, pace) = (service.clone(), pace.clone());
        async move {
            let response = service.answer(peer, request).await;
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, pace)))
        }
    });
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_header_size(HEAD_BYTES_MAX).max_buf_size(BUFFER_BYTES_MAX);
    // Ours tells silence before the headers from silence between requests.
    builder.header_read_timeout(None);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let mut leaving = false;
    loop {
        tokio::select! {
            // The connection first: it is what the watcher looks at.
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(?peer, %error, "a connection ended early");
                }
                return;
            }
            () = &mut exceeded => {
                tracing::debug!(?peer, "a connection took too long and was closed");
                return;
            }
            () = shutdown.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
