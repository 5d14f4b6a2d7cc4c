//! The direct way between two nodes: TCP and TLS, one connection for each stream, the protocol's name as ALPN.
//!
//! Both ends prove their id in the handshake, and the server decides on membership and role before a handler sees the
//! first byte. Next to streams inside the mesh connection this is about twice as fast on one core, and more connections
//! use more cores.

mod dial;
mod gate;
mod listen;
mod tls;

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

pub(crate) use dial::{Dialer, Failure};
pub(crate) use listen::Listener;
pub(crate) use tls::Identity;

/// A peer whose machine has vanished is noticed after about a minute, even on a stream where nobody speaks.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// Both ends want small words sent at once and a vanished peer noticed.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
