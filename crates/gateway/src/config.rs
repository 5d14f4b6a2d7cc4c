//! Where a node can be spoken to, and how long it listens to someone who says nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::Tls;

#[derive(Debug, Clone)]
pub struct Config {
    /// Default: `127.0.0.1:11435`, beside Ollama's own port.
    pub api: SocketAddr,
    pub local: Local,
    /// Default: none, the API is not encrypted. The local socket never is: it does not leave the machine.
    pub tls: Option<Tls>,
    /// Gives callers from anywhere what callers on loopback may do without a key. Default: no.
    pub insecure_no_auth: bool,
    /// Names, beside its own, by which browsers and proxies may ask for this node.
    pub allowed_hosts: Vec<String>,
    pub limits: Limits,
}

/// How the owner of this machine proves to be that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// A unix socket that nobody else can open.
    Socket(PathBuf),
    /// Where there are no such sockets: a file that nobody else can read, its content sent as a key over loopback.
    Cookie(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Limits {
    /// At the limit the connection that has waited longest without a request gives way; where all are busy, the new
    /// one is closed. Default: 1,024.
    pub connections: usize,
    /// The same, of one source address. Default: 64.
    pub connections_per_ip: usize,
    /// From a connection's start, or the first byte of a later request, to the end of the headers; a handshake counts
    /// in. Default: 10 s.
    pub head: Duration,
    /// Between two requests of one connection. Default: 60 s.
    pub idle: Duration,
    /// From the end of the headers to the end of a body that is read whole. Default: 10 s.
    pub body: Duration,
    /// Without a byte of the answer accepted by the client. Default: 30 s.
    pub stalled: Duration,
}

impl Config {
    pub fn new(local: Local) -> Self {
        Self {
            api: (Ipv4Addr::LOCALHOST, 11_435).into(),
            local,
            tls: None,
            insecure_no_auth: false,
            allowed_hosts: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            connections_per_ip: 64,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            body: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
        }
    }
}
