//! `omx doctor`: looks at everything that usually goes wrong, and says what to do about it.
//!
//! Facts are gathered here; what they mean is decided in `checks`, without looking at anything.

use std::fs::{self, Metadata};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use gateway::wire;
use tokio::net::TcpStream;
use types::Secret;

use self::checks::{Check, Found, Verdict};
use super::{Session, up};
use crate::client::{Client, Error};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::run_file::{RunFile, from_here};

mod checks;
mod join;

/// A node that works answers within milliseconds, even without a quorum.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Look for what is wrong on this machine and in the mesh, and say what to do
///
/// Ends with code 1 if a check fails, with 10 if a token does not let this machine in; a warning is no failure.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx doctor\n  omx doctor --json | jq '.[] | select(.verdict == \"fail\")'\n  \
    omx doctor join TOKEN      before `omx up --join TOKEN`, or when that waits")]
pub(super) struct Doctor {
    #[command(subcommand)]
    about: Option<About>,
}

#[derive(Debug, Subcommand)]
enum About {
    /// Find out which step of joining with this token fails; the token is not used up
    Join {
        #[arg(value_parser = up::secret)]
        token: Secret<String>,
    },
}

impl Doctor {
    pub(super) async fn run(self, session: &Session) -> Result<(String, Exit), Failure> {
        let (checks, if_failed) = match self.about {
            None => (examine(&session.folder).await, Exit::General),
            Some(About::Join { token }) => (join::examine(&token, session).await?, Exit::JoinRefused),
        };
        let text = match session.out.json {
            true => serde_json::to_string(&checks).expect("checks are made of texts") + "\n",
            false => checks::render(&checks),
        };
        let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
        Ok((text, if failed { if_failed } else { Exit::Ok }))
    }
}

async fn examine(folder: &Path) -> Vec<Check> {
    let mut checks = vec![
        checks::data_folder(folder, &found(fs::metadata(folder)), me()),
        checks::identity(&folder.join("identity.key"), &found(fs::metadata(folder.join("identity.key")))),
        checks::space(fs4::available_space(folder)),
        checks::clock(SystemTime::now(), newest(folder)),
    ];
    let (node, status) = checks::node(folder, ask(folder).await);
    checks.push(node);
    let Some(status) = status else { return checks };
    if let Ok(Some(run)) = RunFile::read(folder) {
        checks.push(checks::listeners(&reach(&run).await));
    }
    checks.extend([checks::quorum(&status), checks::members(&status), checks::disk(&status), checks::models(&status)]);
    checks
}

async fn ask(folder: &Path) -> Result<wire::Status, Error> {
    let client = Client::of(folder)?;
    match tokio::time::timeout(ANSWER_LIMIT, client.get("/omx/v1/status")).await {
        Ok(answer) => answer?.read(),
        Err(_) => Err(Error::Silent { folder: folder.to_owned(), limit: ANSWER_LIMIT }),
    }
}

/// What each listener of `run.json` says to a connection.
async fn reach(run: &RunFile) -> Vec<(&'static str, SocketAddr, io::Result<()>)> {
    let mesh = run.mesh.iter().filter_map(|address| tcp(address)).map(|address| ("mesh", address));
    let listeners = [("api", run.api), ("bulk", run.bulk)].into_iter().chain(mesh);
    let mut reached = Vec::new();
    for (name, address) in listeners {
        let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(from_here(address))).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop);
        reached.push((name, address, connected));
    }
    reached
}

/// From `/ip4/10.0.0.7/tcp/11436`. A connection says nothing about a UDP port, so that those are left out.
fn tcp(multiaddress: &str) -> Option<SocketAddr> {
    let mut parts = multiaddress.strip_prefix('/')?.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("ip4" | "ip6"), Some(ip), Some("tcp"), Some(port)) => {
            Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
        }
        _ => None,
    }
}

/// When something in the folder was last written.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

#[cfg(unix)]
fn found(metadata: io::Result<Metadata>) -> io::Result<Found> {
    use std::os::unix::fs::MetadataExt;

    metadata.map(|found| Found {
        is_folder: found.is_dir(),
        owner: Some(found.uid()),
        mode: Some(found.mode() & 0o777),
    })
}

#[cfg(not(unix))]
fn found(metadata: io::Result<Metadata>) -> io::Result<Found> {
    metadata.map(|found| Found { is_folder: found.is_dir(), owner: None, mode: None })
}

#[cfg(unix)]
fn me() -> Option<u32> {
    Some(rustix::process::geteuid().as_raw())
}

#[cfg(not(unix))]
fn me() -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tcp_addresses_are_tried() {
        assert_eq!(tcp("/ip4/10.0.0.7/tcp/11436/p2p/x"), Some("10.0.0.7:11436".parse().unwrap()));
        assert_eq!(tcp("/ip4/10.0.0.7/udp/11436/quic-v1"), None);
        assert_eq!(tcp("10.0.0.7:11436"), None);
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_noticed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let run = |bulk| RunFile { api: open, mesh: vec![], bulk, pid: 1, socket: "s".into() };
        assert!(reach(&run(open)).await.iter().all(|(_, _, reached)| reached.is_ok()));
        drop(listener);
        assert!(reach(&run(open)).await.iter().all(|(_, _, reached)| reached.is_err()));
    }

    #[tokio::test]
    async fn an_empty_folder_fails_for_want_of_a_node_alone() {
        let folder = tempfile::tempdir().unwrap();
        let checks = examine(folder.path()).await;
        let failed: Vec<_> =
            checks.iter().filter(|check| check.verdict == Verdict::Fail).map(|check| check.name).collect();
        assert_eq!(failed, ["node"], "{checks:?}");
    }
}
