//! Why a node's faces cannot be opened.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to listen on `{address}`")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("port {} of `{}` is taken", .address.port(), .address.ip())]
    Taken { address: SocketAddr },
    #[error("refusing to open the API on `{address}`, beyond loopback, without a key")]
    NoKey { address: SocketAddr },
    #[error("failed to open the local socket `{path}`")]
    Socket { path: PathBuf, source: io::Error },
    #[error("another process answers on the local socket `{path}`")]
    SocketTaken { path: PathBuf },
    #[error("failed to write the cookie to `{path}`")]
    Cookie { path: PathBuf, source: io::Error },
    #[error("`{0}` is no host name to be asked for by")]
    Host(String),
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Taken { .. } => "stop what listens there, or choose another with `--api ADDR:PORT`".to_owned(),
            Self::NoKey { .. } => "listen on 127.0.0.1 and make a key with `omx keys create`, bring one with \
                `--api-key-file`, or let everybody in with `--insecure-no-auth`"
                .to_owned(),
            Self::Socket { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                "the path of a socket is limited to about 100 bytes; use a shorter `--data-dir`".to_owned()
            }
            Self::SocketTaken { .. } => "a node runs on this data folder already".to_owned(),
            Self::Host(_) => "a name or address without scheme, port or path".to_owned(),
            Self::Listen { .. } | Self::Socket { .. } | Self::Cookie { .. } => return None,
        })
    }
}
