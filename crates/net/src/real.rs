//! The real network, put together: the mesh connection and the bulk listener.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use libp2p_stream::{Control, IncomingStreams};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::NodeId;

use crate::bulk::{self, Identity, Listener};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::greeting::Failed;
use crate::handle::{self, Addresses, Answer, Inner, Net, Stranger, Transport};
use crate::protocol::Protocol;
use crate::reception::Reception;
use crate::services::Services;
use crate::stream::Carrier;
use crate::swarm::{self, Board, COMMANDS_MAX, Command};

/// Binds all sockets. Must be called inside a tokio runtime; nothing is served before the task runs.
pub async fn new(config: Config) -> Result<(Net, handle::Task), Error> {
    let reception = Reception::new(config.keypair.node_id(), Clock::tokio());
    let identity = Identity::new(&config.keypair.to_libp2p()).map_err(|what| Error::Setup { what })?;
    let bind = |source| Error::Bind { address: config.bulk, what: "bulk", source };
    let listener = Listener::bind(config.bulk, identity.clone(), reception.clone(), config.limits);
    let listener = listener.await.map_err(bind)?;
    let bulk = listener.local().map_err(bind)?;
    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    let board = Arc::new(Board::default());
    let bound = swarm::Task::bind(&config, reception.clone(), board.clone(), received, bulk);
    let (mesh, control, incoming) = Box::pin(bound).await?;
    let dialer = bulk::Dialer::new(identity);
    let port = Port { reception: reception.clone(), commands, control, dialer, board };
    let task = Task { reception: reception.clone(), mesh, incoming, listener };
    Ok((Net::new(reception, Arc::new(port)), handle::Task(Inner::Real(Box::new(task)))))
}

pub(crate) struct Task {
    reception: Arc<Reception>,
    mesh: swarm::Task,
    incoming: IncomingStreams,
    listener: Listener,
}

impl Task {
    pub(crate) fn open(&self, services: Services) {
        self.reception.open(services);
    }

    pub(crate) async fn run(self, shutdown: CancellationToken) {
        // Also where this future is dropped half-way: nobody shall wait for a network that is gone.
        let _closing = Closing(self.reception.clone());
        let mut parts = JoinSet::new();
        parts.spawn(self.listener.run());
        parts.spawn(swarm::serve(self.incoming, self.reception));
        parts.spawn(self.mesh.run(shutdown.clone()));
        // The mesh ends with the shutdown; of the others none ends by itself.
        match parts.join_next().await {
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(error)) => tracing::error!(%error, "a part of the network failed"),
            _ if !shutdown.is_cancelled() => tracing::error!("a part of the network ended"),
            _ => {}
        }
        parts.shutdown().await;
    }
}

struct Closing(Arc<Reception>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Port {
    reception: Arc<Reception>,
    commands: mpsc::Sender<Command>,
    control: Control,
    dialer: bulk::Dialer,
    board: Arc<Board>,
}

impl Port {
    /// Directly, else through the mesh connection.
    async fn open(&self, peer: NodeId, protocol: Protocol) -> Result<Box<dyn Carrier>, Error> {
        let member = self.reception.member(&peer).ok_or(Error::NotAMember { peer })?;
        let direct = match self.dialer.dial_any(&member.bulk, peer, protocol).await {
            Ok(carrier) => return Ok(carrier),
            Err(bulk::Failure::Refused(refusal)) => return Err(Error::Refused { peer, protocol, refusal }),
            Err(bulk::Failure::WrongPeer(found)) => format!("`{found}` is at its address"),
            Err(bulk::Failure::Io(error)) => error.to_string(),
        };
        if !self.reception.is_linked(&peer) {
            return Err(Error::Unreachable { peer, reason: format!("{direct}, and there is no mesh connection") });
        }
        swarm::open(self.control.clone(), &peer, protocol).await.map_err(|failed| match failed {
            Failed::Refused(refusal) => Error::Refused { peer, protocol, refusal },
            Failed::Unanswered(error) => {
                Error::Unreachable { peer, reason: format!("directly {direct}; through the mesh {error}") }
            }
        })
    }
}

impl Transport for Port {
    fn request(&self, peer: NodeId, protocol: Protocol, body: Bytes) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let command = Command::Request { peer, protocol, body, reply };
            self.commands.send(command).await.map_err(|_| Error::NotRunning)?;
            answer.await.map_err(|_| Error::NotRunning)?
        })
    }

    fn connect(&self, peer: NodeId, protocol: Protocol) -> BoxFuture<'_, Result<Box<dyn Carrier>, Error>> {
        Box::pin(self.open(peer, protocol))
    }

    fn connect_stranger(
        &self,
        address: SocketAddr,
        expect: NodeId,
        protocol: Protocol,
    ) -> BoxFuture<'_, Result<Box<dyn Carrier>, Error>> {
        Box::pin(async move {
            self.dialer.dial(address, expect, protocol).await.map_err(|failure| match failure {
                bulk::Failure::Refused(refusal) => Error::Refused { peer: expect, protocol, refusal },
                bulk::Failure::WrongPeer(found) => Error::WrongPeer { address, expected: expect, found },
                bulk::Failure::Io(source) => Error::NoAnswer { address, source },
            })
        })
    }

    fn publish(&self, topic: &'static str, body: Bytes) -> Result<(), Error> {
        self.commands.try_send(Command::Publish { topic, body }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::QueueFull,
            mpsc::error::TrySendError::Closed(_) => Error::NotRunning,
        })
    }

    fn addresses(&self) -> Addresses {
        self.board.addresses()
    }

    fn addresses_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.board.addresses_changed.notified())
    }

    fn strangers_seen(&self) -> Vec<Stranger> {
        self.board.strangers()
    }
}
