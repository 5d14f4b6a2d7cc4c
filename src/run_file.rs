//! `run.json`: where the node of a data folder is to be found, while it runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The parts of it that commands need.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) api: SocketAddr,
    /// Multiaddresses.
    pub(crate) mesh: Vec<String>,
    pub(crate) bulk: SocketAddr,
    pub(crate) pid: u32,
    pub(crate) socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to read `{}`", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not what a node of this version writes", .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
}

impl RunFile {
    /// Nothing where no node runs, as far as one can see without asking it: one that was killed leaves its file behind.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join("run.json");
        match std::fs::read(&path) {
            Ok(text) => Self::parse(folder, &text).map(Some).map_err(|source| Error::Form { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Unreadable { path, source }),
        }
    }

    fn parse(folder: &Path, text: &[u8]) -> Result<Self, serde_json::Error> {
        let run: Self = serde_json::from_slice(text)?;
        Ok(Self { socket: folder.join(&run.socket), ..run })
    }
}

/// A listener on every interface is reached through loopback.
pub(crate) fn from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_from_its_folder_wherever_the_command_is_given() {
        let text = r#"{"api":"127.0.0.1:1","mesh":["/ip4/127.0.0.1/tcp/2"],"bulk":"127.0.0.1:3","pid":7,
            "peer_id":"x","version":"0.1.0","socket":"SOCKET"}"#;
        let socket = |name: &str| {
            let run = RunFile::parse(Path::new("/d"), text.replace("SOCKET", name).as_bytes()).unwrap();
            run.socket
        };
        assert_eq!(socket("run/omx.sock"), Path::new("/d/run/omx.sock"));
        assert_eq!(socket("/run/user/7/omx.sock"), Path::new("/run/user/7/omx.sock"));
    }

    #[test]
    fn a_listener_is_looked_for_where_it_can_be_reached() {
        let seen = |text: &str| from_here(text.parse().unwrap()).to_string();
        assert_eq!(seen("0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(seen("[::]:7"), "[::1]:7");
        assert_eq!(seen("10.0.0.7:7"), "10.0.0.7:7");
    }

    #[test]
    fn a_folder_without_the_file_has_no_node() {
        assert_eq!(RunFile::read(Path::new("no/such/folder")).unwrap(), None);
    }
}
