//! The other end of the bulk listener.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, Error as TlsError};
use types::NodeId;

use super::tls::Identity;
use crate::greeting::{self, GREETING_MAX};
use crate::protocol::{Protocol, Refusal};
use crate::stream::Carrier;

/// On a local network an address answers at once or never.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Handshakes under way at once; the next waits. A burst beyond it would only make every one of them late.
const HANDSHAKES_MAX: usize = 32;
/// Addresses tried for one stream; with more, the slow ones would eat the time of the way round.
const ADDRESSES_TRIED_MAX: usize = 3;
/// Peers whose address is remembered; with more, all are forgotten, which costs one try each.
const REMEMBERED_MAX: usize = 4096;

pub(crate) struct Dialer {
    identity: Identity,
    slots: Semaphore,
    last_good: Mutex<BTreeMap<NodeId, SocketAddr>>,
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// It was there and said no: another way would end the same.
    Refused(Refusal),
    WrongPeer(NodeId),
    Io(io::Error),
}

impl Dialer {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, slots: Semaphore::new(HANDSHAKES_MAX), last_good: Mutex::default() }
    }

    /// Tries the addresses one after the other, the last good one first. The error is that of the last.
    pub(crate) async fn dial_any(
        &self,
        addresses: &[SocketAddr],
        expect: NodeId,
        protocol: Protocol,
    ) -> Result<Box<dyn Carrier>, Failure> {
        let last_good = self.last_good().get(&expect).copied().filter(|address| addresses.contains(address));
        let others = addresses.iter().copied().filter(|address| Some(*address) != last_good);
        let mut failure = Failure::Io(io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no direct address"));
        for address in last_good.into_iter().chain(others).take(ADDRESSES_TRIED_MAX) {
            match self.dial(address, expect, protocol).await {
                Ok(carrier) => {
                    self.remember(expect, address);
                    return Ok(carrier);
                }
                Err(refused @ Failure::Refused(_)) => return Err(refused),
                Err(other) => failure = other,
            }
        }
        Err(failure)
    }

    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        expect: NodeId,
        protocol: Protocol,
    ) -> Result<Box<dyn Carrier>, Failure> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let socket = within(CONNECT_MAX, TcpStream::connect(address)).await.map_err(Failure::Io)?;
        super::prepare(&socket).map_err(Failure::Io)?;
        let (config, found) = self.identity.client(expect, protocol);
        // Certificates name node ids; the address here is only what the interface asks for.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let secured = within(HANDSHAKE_MAX, TlsConnector::from(config).connect(name, socket)).await;
        let secured = secured.map_err(|error| match found.get() {
            Some(found) => Failure::WrongPeer(*found),
            None => handshake_failure(error),
        })?;
        let mut carrier: Box<dyn Carrier> = Box::new(secured);
        match tokio::time::timeout(GREETING_MAX, greeting::ask(&mut carrier, protocol)).await {
            Ok(Ok(())) => Ok(carrier),
            Ok(Err(greeting::Failed::Refused(refusal))) => Err(Failure::Refused(refusal)),
            // In TLS 1.3 the server judges our certificate and protocol after we take the handshake for done.
            Ok(Err(greeting::Failed::Unanswered(error))) => Err(handshake_failure(error)),
            Err(_) => Err(Failure::Io(io::ErrorKind::TimedOut.into())),
        }
    }

    fn remember(&self, peer: NodeId, address: SocketAddr) {
        let mut last_good = self.last_good();
        if last_good.len() >= REMEMBERED_MAX {
            last_good.clear();
        }
        last_good.insert(peer, address);
    }

    fn last_good(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, SocketAddr>> {
        self.last_good.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn handshake_failure(error: io::Error) -> Failure {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match alert {
        Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Failure::Refused(Refusal::UnknownProtocol { speaks: None })
        }
        _ => Failure::Io(error),
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
