//! The same over sockets and TLS.

use std::net::{Ipv4Addr, SocketAddr};

use net::{Keypair, Limits, Member, Services};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::Role;

use super::rig::*;
use crate::Config;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_comes_over_sockets_from_two_nodes_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let (mut nodes, mut members) = (Vec::new(), Vec::new());
    for seed in 1..=3 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let keypair = Keypair::from_seed([seed; 32]);
        let config = net::Config { keypair, mesh: address, bulk: address, mdns: false, limits: Limits::default() };
        let (net, task) = Box::pin(net::new(config)).await.unwrap();
        let (blobs, carrier) = crate::new(Config::new(dir.path().join(seed.to_string())), net.clone()).unwrap();
        tasks.spawn(task.run(blobs.services(Services::new()), stop.clone()));
        tasks.spawn(carrier.run(stop.clone()));
        let addresses = net.addresses();
        let (mesh, bulk) = (addresses.mesh.into_iter().collect(), addresses.bulk.into_iter().collect());
        members.push(Member { id: net.local(), role: Role::Worker, mesh, bulk });
        nodes.push((net, blobs));
    }
    nodes.iter().for_each(|(net, _)| net.admit(members.clone()));
    let bytes = content(24 * MIB + 17, 61);
    for (seed, (_, blobs)) in nodes.iter().enumerate().take(2) {
        let path = dir.path().join(format!("file-{seed}"));
        std::fs::write(&path, &bytes).unwrap();
        blobs.refer(path, |_| {}).await.unwrap();
    }
    let ids: Vec<_> = nodes.iter().map(|(net, _)| net.local()).collect();
    let fetch = nodes[2].1.fetch(want(&bytes), move || ids.clone());
    assert_same(&within(fetch.done()).await.unwrap(), &bytes);
    assert_eq!(nodes[2].1.figures().bytes_in, bytes.len() as u64);
    let late = nodes[2].1.fetch(want(b"nobody has this"), Vec::new);
    stop.cancel();
    assert!(matches!(within(late.done()).await, Err(crate::FetchError::Stopping)));
    while tasks.join_next().await.is_some() {}
}
