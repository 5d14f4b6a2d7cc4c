//! The sockets of a node's faces, bound before anything is served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use node::Api;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use types::Secret;

use crate::config::{Config, Local};
use crate::error::Error;
use crate::face::Face;
use crate::host::Hosts;
use crate::serve::Task;
use crate::{cookie, socket};

/// Listens, and serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    hosts: Hosts,
    address: SocketAddr,
    tcp: TcpListener,
    socket: Option<socket::Door>,
    cookie: Option<Secret<String>>,
}

/// Where a node can be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub api: SocketAddr,
    pub local: Local,
}

pub async fn bind(config: Config) -> Result<Bound, Error> {
    let hosts = Hosts::new(&config.allowed_hosts)?;
    let address = config.api;
    let tcp = TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { address },
        _ => Error::Listen { address, source },
    })?;
    let address = tcp.local_addr().map_err(|source| Error::Listen { address, source })?;
    let (socket, cookie) = match &config.local {
        Local::Socket(path) => (Some(socket::Door::open(path).await?), None),
        Local::Cookie(path) => {
            let cookie = cookie::make(path).map_err(|source| Error::Cookie { path: path.clone(), source })?;
            (None, Some(cookie))
        }
    };
    Ok(Bound { config, hosts, address, tcp, socket, cookie })
}

impl Bound {
    pub fn addresses(&self) -> Addresses {
        Addresses { api: self.address, local: self.config.local.clone() }
    }

    /// What serves a node on these sockets, once it is run and until `shutdown`. Refuses to stand open to strangers.
    pub fn open(mut self, api: Api, shutdown: CancellationToken) -> Result<Task, Error> {
        let beyond_loopback = !self.address.ip().to_canonical().is_loopback();
        if beyond_loopback && !self.config.insecure_no_auth && !api.has_keys() {
            return Err(Error::NoKey { address: self.address });
        }
        match &self.config.tls {
            None if beyond_loopback => tracing::warn!(
                address = %self.address,
                "the API is open beyond loopback, and not encrypted: keys and conversations can be read on the way; \
                 `--tls-cert` and `--tls-key` encrypt it"
            ),
            None => {}
            Some(tls) => {
                if let Some(doubt) = tls.doubt(SystemTime::now()) {
                    tracing::warn!("{doubt}");
                }
            }
        }
        if self.config.insecure_no_auth {
            tracing::warn!("whoever reaches the API may use it: it was started with `--insecure-no-auth`");
        }
        if let Some(me) = api.members().into_iter().find(|member| member.id == api.id()) {
            self.hosts.allow(me.name.as_str());
        }
        let face = Face::new(api, self.hosts, self.cookie, &self.config, shutdown);
        Ok(Task::new(Arc::new(face), self.tcp, self.config.tls, self.socket))
    }
}
