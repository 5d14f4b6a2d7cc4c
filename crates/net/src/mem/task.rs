//! One node's end of the wires.

use std::future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use types::NodeId;

use super::fabric::{Fabric, Fate};
use super::wire::{End, wire};
use crate::error::Error;
use crate::handle::{Addresses, Answer, Stranger, Transport};
use crate::protocol::{Protocol, Refusal};
use crate::reception::Reception;
use crate::services::Services;
use crate::stream::Carrier;

/// Where a node is plugged in.
#[derive(Clone)]
pub(crate) struct Port {
    pub(super) fabric: Fabric,
    pub(super) reception: Arc<Reception>,
    pub(super) address: SocketAddr,
}

pub(crate) struct Task {
    pub(super) port: Port,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) generation: u64,
}

pub(super) struct Delivery {
    from: NodeId,
    after: Duration,
    what: What,
}

enum What {
    Request { protocol: Protocol, body: Bytes, reply: oneshot::Sender<Reply> },
    Stream { address: SocketAddr, protocol: Protocol, reply: oneshot::Sender<Option<Result<End, Refusal>>> },
    Gossip { topic: &'static str, body: Bytes },
}

/// `None` is an answer that was lost on its way: the asker must not learn even that.
type Reply = Option<Answer>;

impl Port {
    fn local(&self) -> NodeId {
        self.reception.local
    }

    /// Puts something on the wire. `Ok(false)` where it is lost and nobody will ever know.
    fn send(&self, to: NodeId, bytes: usize, what: What) -> Result<bool, Error> {
        let Fate::Arrives { after } = self.fabric.set_out(self.local(), to, bytes) else { return Ok(false) };
        let delivery = Delivery { from: self.local(), after, what };
        let refused = |reason: &str| {
            self.fabric.count_refused();
            Error::Unreachable { peer: to, reason: reason.to_owned() }
        };
        match self.fabric.inbox(&to).map(|inbox| inbox.try_send(delivery)) {
            Some(Ok(())) => Ok(true),
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                self.fabric.count_refused();
                Ok(false)
            }
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => Err(refused("connection refused")),
        }
    }

    async fn open(&self, to: NodeId, protocol: Protocol) -> Result<Box<dyn Carrier>, Error> {
        let (reply, answer) = oneshot::channel();
        let what = What::Stream { address: self.address, protocol, reply };
        if !self.send(to, 0, what)? {
            return future::pending().await;
        }
        match answer.await {
            Ok(Some(Ok(stream))) => Ok(Box::new(stream)),
            Ok(Some(Err(refusal))) => Err(Error::Refused { peer: to, protocol, refusal }),
            Ok(None) => future::pending().await,
            Err(_) => Err(Error::Unreachable { peer: to, reason: "it went away".to_owned() }),
        }
    }
}

impl Transport for Port {
    fn request(&self, peer: NodeId, protocol: Protocol, body: Bytes) -> BoxFuture<'_, Result<Answer, Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if !self.send(peer, body.len(), What::Request { protocol, body, reply })? {
                return future::pending().await;
            }
            match answer.await {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => future::pending().await,
                Err(_) => Err(Error::Broken { peer, reason: "it went away".to_owned() }),
            }
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
            match self.fabric.at(&address) {
                Some(found) if found == expect => self.open(expect, protocol).await,
                Some(found) => Err(Error::WrongPeer { address, expected: expect, found }),
                None => Err(Error::NoAnswer { address, source: std::io::ErrorKind::ConnectionRefused.into() }),
            }
        })
    }

    fn publish(&self, topic: &'static str, body: Bytes) -> Result<(), Error> {
        for member in self.reception.welcome() {
            // Gossip is lost in silence.
            let _ = self.send(member.id, body.len(), What::Gossip { topic, body: body.clone() });
        }
        Ok(())
    }

    fn addresses(&self) -> Addresses {
        let mesh = format!("/ip4/{}/tcp/11436", self.address.ip());
        Addresses { mesh: [mesh].into(), bulk: [self.address].into() }
    }

    /// They never do.
    fn addresses_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(future::pending())
    }

    fn strangers_seen(&self) -> Vec<Stranger> {
        Vec::new()
    }
}

impl Task {
    pub(crate) fn open(&self, services: Services) {
        self.port.reception.open(services);
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let port = self.port.clone();
        let mut children: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut rewired = pin!(port.fabric.changed().notified());
        port.note_links();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = rewired.as_mut() => {
                    rewired.set(port.fabric.changed().notified());
                    port.note_links();
                }
                () = port.reception.changed.notified() => port.note_links(),
                Some(delivery) = self.deliveries.recv() => children.push(Box::pin(port.clone().receive(delivery))),
                Some(()) = children.next() => {}
            }
        }
    }
}

impl Drop for Task {
    /// Also when a test drops it half-way, which is how a node crashes.
    fn drop(&mut self) {
        self.port.reception.close();
        self.port.fabric.left(self.port.local(), self.generation);
    }
}

impl Port {
    async fn receive(self, Delivery { from, after, what }: Delivery) {
        let here = self.local();
        let arrived = self.fabric.carry(from, here, after).await;
        match what {
            What::Request { reply, .. } if !arrived => drop(reply.send(None)),
            What::Stream { reply, .. } if !arrived => drop(reply.send(None)),
            What::Gossip { .. } if !arrived => {}
            What::Request { protocol, body, reply } => {
                self.reception.heard(&from, None);
                let answer = self.reception.clone().serve(from, protocol.name(), body).await;
                let bytes = answer.as_ref().map_or(0, Bytes::len);
                let arrived = self.carry_back(from, bytes).await;
                let _ = reply.send(arrived.then_some(answer));
            }
            What::Stream { address, protocol, reply } => {
                let accepted = self.reception.accept(from, Some(address), protocol.name());
                if !self.carry_back(from, 0).await {
                    let _ = reply.send(None);
                    return;
                }
                match accepted {
                    Err(refusal) => drop(reply.send(Some(Err(refusal)))),
                    Ok(accepted) => {
                        let (theirs, wire, ours) = wire();
                        if reply.send(Some(Ok(theirs))).is_ok() {
                            tokio::join!(accepted.serve(Box::new(ours)), wire.run(&self.fabric, from, here));
                        }
                    }
                }
            }
            What::Gossip { topic, body } => {
                self.reception.heard(&from, None);
                self.reception.gossip(from, topic, body);
            }
        }
    }

    async fn carry_back(&self, to: NodeId, bytes: usize) -> bool {
        match self.fabric.set_out(self.local(), to, bytes) {
            Fate::Arrives { after } => self.fabric.carry(self.local(), to, after).await,
            Fate::Lost => false,
        }
    }

    fn note_links(&self) {
        for status in self.reception.peers() {
            match (self.fabric.linked(&self.local(), &status.id), status.connected) {
                (true, false) => self.reception.linked(&status.id, 1, "memory".to_owned()),
                (false, true) => self.reception.unlinked(&status.id, 0),
                _ => {}
            }
        }
    }
}
