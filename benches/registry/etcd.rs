//! Three members of Debian's `etcd-server` on loopback, each with its own data folder, synced as it is by default.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testnet::wait_until;

use crate::http;

const START_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Etcd {
    members: Vec<Child>,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    pub(crate) fn up(dir: &Path) -> Result<Self> {
        let (clients, peers) = (free_ports()?, free_ports()?);
        let listed: Vec<String> = peers.iter().enumerate().map(|(at, peer)| format!("e{at}=http://{peer}")).collect();
        let mut etcd = Self { members: Vec::new(), clients };
        for (at, peer) in peers.iter().enumerate() {
            let (name, client) = (format!("e{at}"), format!("http://{}", etcd.clients[at]));
            let log = File::create(dir.join(format!("{name}.log")))?;
            let member = Command::new("etcd")
                .args(["--name", &name, "--data-dir"])
                .arg(dir.join(&name))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .args(["--initial-cluster", &listed.join(","), "--logger", "zap", "--log-level", "error"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("failed to start `etcd`; Debian has it in `etcd-server`")?;
            etcd.members.push(member);
        }
        wait_until("a leader of etcd", START_LIMIT, || etcd.leader_first())?;
        Ok(etcd)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }

    /// Where clients are served, the leader's address first.
    pub(crate) fn leader_first(&self) -> Result<Vec<SocketAddr>> {
        let (mut first, mut others) = (Vec::new(), Vec::new());
        for client in &self.clients {
            let status = http::post(*client, "/v3/maintenance/status", "{}")?;
            let leader = &status["leader"];
            ensure!(matches!(leader, Value::String(id) if id != "0"), "no leader: {status}");
            if *leader == status["header"]["member_id"] { first.push(*client) } else { others.push(*client) }
        }
        ensure!(first.len() == 1, "{} leaders", first.len());
        first.extend(others);
        Ok(first)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended by itself, and there is nobody left to tell.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// Free a moment ago, which has to do: etcd cannot say which port it took.
fn free_ports() -> Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>()?)
}
