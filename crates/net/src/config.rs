//! What the network is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::Keypair;

#[derive(Debug, Clone)]
pub struct Config {
    pub keypair: Keypair,
    /// Where the mesh listens, over TCP and QUIC. With port 0 each takes a free one.
    pub mesh: SocketAddr,
    /// Where the bulk listener listens.
    pub bulk: SocketAddr,
    /// Whether to look for members, and be found, by multicast on the local network.
    pub mdns: bool,
    pub limits: Limits,
}

/// How much peers may ask of us before we know who they are, and of the connections we keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a connection may take to prove who it is.
    pub handshake: Duration,
    /// Bulk connections from addresses of members that have not yet proven who they are. One more is closed at once.
    pub handshakes_max: usize,
    /// The same from other addresses, all together.
    pub stranger_handshakes_max: usize,
    /// The same from one other address.
    pub stranger_handshakes_per_address_max: usize,
    /// Bulk connections one other address may begin in a minute.
    pub stranger_connections_per_minute: u32,
    /// Mesh connections from members.
    pub mesh_connections_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            handshakes_max: 256,
            stranger_handshakes_max: 64,
            stranger_handshakes_per_address_max: 16,
            stranger_connections_per_minute: 240,
            mesh_connections_max: 4096,
        }
    }
}
