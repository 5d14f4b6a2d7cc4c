//! A mesh of one in memory, for the tests of what stands on this crate. Its registry is the real one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Belonging, Candidate, Cluster, Live, Outside, Parts, Shelf, Start};
use net::mem::Fabric;
use net::{Clock, Keypair};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{MeshId, RaftId, Role};

use crate::api::{Api, Event, now};
use crate::backend::Backend;
use crate::catalogue::{self, Said};
use crate::inference::Inference;
use crate::placement::Placement;

/// A node without a disk or a network. Dropped, it is gone.
#[derive(Debug)]
pub struct Solo {
    pub api: Api,
    _tasks: JoinSet<()>,
    _scratch: tempfile::TempDir,
}

impl Solo {
    /// Returns when it leads. Nothing on it runs models.
    pub async fn start() -> Self {
        Self::with(Backend::none("a test needs none".to_owned())).await
    }

    /// With something that speaks as Ollama there.
    pub async fn before(ollama: SocketAddr) -> Self {
        let at = format!("http://{ollama}").parse().expect("an address makes an endpoint");
        Self::with(Backend::ollama(vec![at], None, "the test says so".to_owned())).await
    }

    async fn with(backend: Backend) -> Self {
        let keypair = Keypair::generate();
        let (net, net_task) = Fabric::new(1, Clock::tokio()).join(keypair.node_id());
        let log = store::Log::memory();
        let random = || {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("the operating system has a random source");
            bytes
        };
        let parts = Parts {
            keypair: keypair.clone(),
            net: net.clone(),
            log: log.clone(),
            shelf: Shelf::Memory(Arc::default()),
            outside: Outside { wall_clock: Arc::new(now), random: Arc::new(random) },
        };
        let incarnation = [1; 16];
        let belonging = Belonging { mesh: MeshId::random(), raft: RaftId(1), role: Role::Node, incarnation };
        let name = "solo".parse().expect("it is a name");
        let addresses = cluster::Addresses::default();
        let founder = Candidate { id: keypair.node_id(), name, addresses, incarnation };
        let config = cluster::Config { patience: Duration::from_secs(5), ..cluster::Config::default() };
        let opened = Cluster::<Live>::open(config, parts, belonging, Start::Found(founder)).await;
        let (cluster, task) = opened.expect("nothing in memory stands in the way of a mesh");
        let mut tasks = JoinSet::new();
        let (inference, services, inferring) = Inference::new(&cluster, &net, keypair, &backend);
        inferring.into_iter().for_each(|task| drop(tasks.spawn(task)));
        let scratch = tempfile::tempdir().expect("there is room for a folder");
        let blobs = blobs::new(blobs::Config::new(scratch.path().join("blobs")), net.clone());
        let (blobs, blobs_task) = blobs.expect("an empty folder can be used");
        let (models, models_task) = models::new(models::Parts {
            cluster: cluster.clone(),
            net: net.clone(),
            blobs: blobs.clone(),
            beside: catalogue::beside(&backend, &scratch.path().join("models"), Some(&scratch.path().join("ollama"))),
            incoming: scratch.path().to_owned(),
            memory: catalogue::memory(),
        });
        let services = models.services(blobs.services(services));
        tasks.spawn(blobs_task.run(CancellationToken::new()));
        tasks.spawn(models_task.run(CancellationToken::new()));
        tasks.spawn(net_task.run(services, CancellationToken::new()));
        tasks.spawn(async move {
            task.run(CancellationToken::new()).await;
        });
        let (placement, placing) = Placement::new(cluster.clone(), inference.clone(), Arc::new(Said(models.clone())));
        tasks.spawn(placing.run());
        Self {
            api: Api::new(cluster, net, log, backend, inference, models, placement),
            _tasks: tasks,
            _scratch: scratch,
        }
    }

    /// Makes something happen.
    pub fn tell(&self, event: Event) {
        self.api.tell(event);
    }
}
