//! This project's own way.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blobs::{Blobs, Known, Want};
use net::{Keypair, Limits, Member, Net, Services};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{NodeId, Role};

use crate::{Taken, process};

/// What became of many that fetched at once.
pub(crate) struct Spread {
    pub(crate) last: Duration,
    pub(crate) copies: f64,
    pub(crate) wasted: u64,
}

struct Node {
    net: Net,
    blobs: Blobs,
}

/// Nodes that know each other, until it is dropped.
struct Mesh {
    nodes: Vec<Node>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

pub(crate) async fn fetch(file: &Path, folder: &Path, sources: u8) -> Result<Taken> {
    let mesh = Mesh::start(folder, sources + 1).await?;
    let (receiver, holders) = mesh.nodes.split_last().context("there is a receiver")?;
    let mut known = None;
    for holder in holders {
        known = Some(holder.blobs.refer(file, |_| {}).await?);
    }
    let Known { hash, sha256, size } = known.context("there is a holder")?;
    let ids: Vec<NodeId> = holders.iter().map(|node| node.net.local()).collect();
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let fetch = receiver.blobs.fetch(Want { hash, size, sha256 }, move || ids.clone());
    let mut progress = fetch.progress();
    let there = async {
        // That it ended is told by `done`.
        let _ = progress.wait_for(|progress| progress.bytes == progress.total).await;
        start.elapsed()
    };
    let (there, path) = tokio::join!(there, fetch.done());
    let taken = Taken { there, lasting: start.elapsed(), cpu_seconds: cpu_seconds()? - cpu };
    ensure!(path?.metadata()?.len() == size, "what came is as long as what was sent");
    mesh.end().await;
    Ok(taken)
}

/// Each receiver has all others for sources, whole or not.
pub(crate) async fn spread(file: &Path, folder: &Path, receivers: u8, rate: NonZeroU64) -> Result<Spread> {
    let mesh = Mesh::start(folder, receivers + 1).await?;
    let (origin, receiving) = mesh.nodes.split_first().context("there is an origin")?;
    let Known { hash, sha256, size } = origin.blobs.refer(file, |_| {}).await?;
    mesh.nodes.iter().for_each(|node| node.blobs.set_limits(Some(rate), Some(rate)));
    let start = Instant::now();
    let mut fetches = JoinSet::new();
    for node in receiving {
        let others = mesh.nodes.iter().map(|node| node.net.local()).filter(|id| *id != node.net.local());
        let others: Vec<NodeId> = others.collect();
        let fetch = node.blobs.fetch(Want { hash, size, sha256 }, move || others.clone());
        fetches.spawn(async move { fetch.done().await });
    }
    while let Some(path) = fetches.join_next().await {
        ensure!(path??.metadata()?.len() == size, "what came is as long as what was sent");
    }
    let last = start.elapsed();
    let copies = origin.blobs.figures().bytes_out as f64 / size as f64;
    let wasted = receiving.iter().map(|node| node.blobs.figures().bytes_wasted).sum();
    mesh.end().await;
    Ok(Spread { last, copies, wasted })
}

impl Mesh {
    async fn start(folder: &Path, count: u8) -> Result<Self> {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let mut nodes = Vec::new();
        let mut members = Vec::new();
        for seed in 0..count {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let keypair = Keypair::from_seed([seed + 1; 32]);
            let config = net::Config { keypair, mesh: address, bulk: address, mdns: false, limits: Limits::default() };
            let (net, task) = Box::pin(net::new(config)).await?;
            let (blobs, carrier) = blobs::new(blobs::Config::new(folder.join(seed.to_string())), net.clone())?;
            tasks.spawn(task.run(blobs.services(Services::new()), stop.clone()));
            tasks.spawn(carrier.run(stop.clone()));
            let addresses = net.addresses();
            let (mesh, bulk) = (addresses.mesh.into_iter().collect(), addresses.bulk.into_iter().collect());
            members.push(Member { id: net.local(), role: Role::Worker, mesh, bulk });
            nodes.push(Node { net, blobs });
        }
        nodes.iter().for_each(|node| node.net.admit(members.clone()));
        Ok(Self { nodes, tasks, stop })
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Both hashes over a file, as it is taken in.
pub(crate) fn import(runtime: &Runtime, file: &Path, folder: &Path) -> Result<Taken> {
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    runtime.block_on(async {
        let (net, _task) = net::mem::Fabric::new(0, net::Clock::tokio()).join(NodeId::from_public_key([1; 32]));
        let (blobs, _carrier) = blobs::new(blobs::Config::new(folder), net)?;
        blobs.refer(file, |_| {}).await.context("failed to import")
    })?;
    let both = start.elapsed();
    fs::remove_dir_all(folder)?;
    Ok(Taken { there: both, lasting: both, cpu_seconds: cpu_seconds()? - cpu })
}

/// The slower of the two, alone.
pub(crate) fn sha256(file: &Path) -> Result<Taken> {
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    ollama::Digest::of_all(&mut File::open(file)?, |_| Ok(()))?;
    let alone = start.elapsed();
    Ok(Taken { there: alone, lasting: alone, cpu_seconds: cpu_seconds()? - cpu })
}

fn cpu_seconds() -> Result<f64> {
    process::cpu_seconds(&[std::process::id()])
}
