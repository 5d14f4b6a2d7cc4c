//! The bulk listener.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gate::{Gate, Place};
use super::tls::{self, Identity};
use crate::config::Limits;
use crate::greeting;
use crate::reception::Reception;

/// After an error of `accept`, for example too many open files: the next try would fail the same way at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Listener {
    socket: TcpListener,
    identity: Identity,
    reception: Arc<Reception>,
    limits: Limits,
}

impl Listener {
    pub(crate) async fn bind(
        address: SocketAddr,
        identity: Identity,
        reception: Arc<Reception>,
        limits: Limits,
    ) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, identity, reception, limits })
    }

    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves for ever. Dropped, it takes its connections along.
    pub(crate) async fn run(self) {
        let protocols = self.reception.services().into_iter().flat_map(|services| services.streams());
        let acceptor = TlsAcceptor::from(self.identity.server(protocols.map(|spec| spec.protocol)));
        let gate = Arc::new(Mutex::new(Gate::new(self.limits)));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((socket, address)) => {
                        if let Some(pass) = Pass::new(&gate, &self.reception, address) {
                            let visit = Visit { socket, address, pass, handshake: self.limits.handshake };
                            connections.spawn(visit.run(acceptor.clone(), self.reception.clone()));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a bulk connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the handler of a stream failed");
                    }
                }
            }
        }
    }
}

/// One connection, from its first byte.
struct Visit {
    socket: TcpStream,
    address: SocketAddr,
    pass: Pass,
    handshake: Duration,
}

impl Visit {
    async fn run(self, acceptor: TlsAcceptor, reception: Arc<Reception>) {
        let Self { socket, address, pass, handshake } = self;
        if super::prepare(&socket).is_err() {
            return;
        }
        let secured = match tokio::time::timeout(handshake, acceptor.accept(socket)).await {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "a bulk handshake failed"),
            Err(_) => return tracing::debug!(%address, "a bulk handshake took too long"),
        };
        let (_, session) = secured.get_ref();
        let name = session.alpn_protocol().and_then(|name| String::from_utf8(name.to_vec()).ok());
        // Without a name there is nothing to serve: a client that offered none was not stopped by the handshake.
        let (Some(from), Some(name)) = (tls::proven_id(session.peer_certificates()), name) else { return };
        greeting::serve(reception, from, Some(address), Box::new(secured), Some(name), pass).await;
    }
}

/// A place at the gate; given back on drop.
struct Pass {
    gate: Arc<Mutex<Gate>>,
    place: Place,
}

impl Pass {
    fn new(gate: &Arc<Mutex<Gate>>, reception: &Reception, address: SocketAddr) -> Option<Self> {
        let of_member = reception.is_member_address(address.ip());
        let place = lock(gate).enter(address.ip(), of_member, reception.clock.elapsed())?;
        Some(Self { gate: gate.clone(), place })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.gate).leave(self.place);
    }
}

fn lock(gate: &Mutex<Gate>) -> MutexGuard<'_, Gate> {
    gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
