//! A node's life: its parts, built in order, and stopped in reverse.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cluster::{Addresses, Belonging, Candidate, Cluster, End, JoinError, Outside, Parts, Shelf, Start, Token, Welcome};
use net::{Keypair, Net, Services};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use types::{MeshId, NodeName, RaftId, Role};

use crate::api::{Api, now};
use crate::backend::{Backend, Choice, Wanted};
use crate::catalogue;
use crate::events;
use crate::folder::{self, Folder};
use crate::inference::Inference;
use crate::parts::{PartEnded, Parts as Running};
use crate::placement::Placement;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    /// What people call it. Taken up when it founds or joins a mesh.
    pub name: NodeName,
    pub mesh: std::net::SocketAddr,
    pub bulk: std::net::SocketAddr,
    pub mdns: bool,
    pub join: Option<Token>,
    pub backend: Wanted,
    /// The folder of Ollama's models, where the operator says which it is.
    pub ollama_models: Option<PathBuf>,
    /// Bytes a second of models to and from all other nodes; `None`: as many as go through.
    pub up_limit: Option<NonZeroU64>,
    pub down_limit: Option<NonZeroU64>,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    api: Api,
    folder: Folder,
    cluster: Cluster,
    log: store::Log,
    worker: store::Worker,
    registry_ended: tokio::task::JoinHandle<End>,
    stop_registry: CancellationToken,
    stop_net: CancellationToken,
    running: Running,
}

/// Why a node does not go on.
#[derive(Debug)]
pub enum Ended {
    Registry(End),
    /// Something panicked, or did what it never should.
    Part(PartEnded),
}

/// What `start` tells while it takes its time.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The disk of this node was damaged; it is kept there and the node joins as one that has lost its disk.
    SetAside(&'a std::path::Path),
    Joining,
    /// It did not work yet.
    Waiting {
        attempt: u32,
        error: &'a JoinError,
        next: Duration,
    },
    Joined {
        name: &'a NodeName,
        role: Role,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Folder(#[from] folder::Error),
    #[error("failed to load the identity of this node")]
    Identity(#[from] net::identity::Error),
    #[error(transparent)]
    Net(#[from] net::Error),
    #[error("failed to open the registry on disk")]
    Store(#[from] store::Error),
    #[error("failed to open the blobs")]
    Blobs(#[from] blobs::Error),
    #[error("failed to open the registry")]
    Registry(#[from] cluster::Error),
    #[error("cannot join the mesh")]
    Join(#[source] JoinError),
    #[error("this data folder belongs to mesh `{here}`, the token to mesh `{token}`")]
    OtherMesh { here: MeshId, token: MeshId },
    /// Its registry was damaged and set aside, and it has not been let in again since.
    #[error("this node has lost its registry, kept in `{}`, and is in no mesh yet", .kept.display())]
    InNoMesh { kept: PathBuf },
    #[error("this node is no member of its mesh any more")]
    NoMember,
}

impl StartError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Net(error) => error.hint(),
            Self::Store(store::Error::Damaged { .. }) => Some(
                "run `omx token create` on another member, then start here with `--join TOKEN`: the damaged registry is \
                 kept aside and this node joins anew"
                    .to_owned(),
            ),
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::Blobs(error) => error.hint().map(str::to_owned),
            Self::Registry(error) => error.hint(),
            Self::Join(error) => error.hint(),
            Self::OtherMesh { .. } => Some("start with another, empty `--data-dir`".to_owned()),
            Self::InNoMesh { .. } => Some(
                "run `omx token create` on another member, then start here with `--join TOKEN`; a mesh of its own wants \
                 an empty `--data-dir`"
                    .to_owned(),
            ),
            Self::NoMember => {
                Some("start with an empty data folder and a new token to join as a new node".to_owned())
            }
        }
    }
}

const BELONGING: &str = "belonging";
const INCARNATION: &str = "incarnation";

const JOIN_PAUSE_MIN: Duration = Duration::from_millis(500);
const JOIN_PAUSE_MAX: Duration = Duration::from_secs(15);

impl Node {
    /// Brings a node up: a mesh of its own, the one it belongs to, or the one it is invited to. Tries to join for ever
    /// where trying again can help. May be dropped at any time; nothing half done is left behind.
    pub async fn start(config: Config, tell: impl Fn(Progress<'_>)) -> Result<Self, StartError> {
        let folder = Folder::open(&config.data_dir)?;
        let keypair = Keypair::load_or_create(&folder.identity())?;
        let net_config = net::Config {
            keypair: keypair.clone(),
            mesh: config.mesh,
            bulk: config.bulk,
            mdns: config.mdns,
            limits: net::Limits::default(),
        };
        let (net, net_task) = net::new(net_config.clone()).await?;
        let OnDisk { log, worker, shelf, belonging, incarnation } =
            open_or_set_aside(&folder, config.join.is_some(), &tell)?;
        let candidate = Candidate { id: keypair.node_id(), name: config.name, addresses: addresses(&net), incarnation };
        let (belonging, start) = match (belonging, config.join) {
            (Some(found), Some(token)) if token.mesh() != found.mesh => {
                return Err(StartError::OtherMesh { here: found.mesh, token: token.mesh() });
            }
            // The founder may have died before its mesh was in its own log.
            (Some(found), _) if found.raft == FOUNDER => (found, Start::Found(candidate)),
            (Some(found), _) => (found, Start::Resumed),
            (None, Some(token)) => {
                let welcome = join(net_config, &token, &candidate, &tell).await?;
                let Welcome { mesh, raft, role, registry, .. } = welcome;
                let belonging = Belonging { mesh, raft, role, incarnation };
                // In this order: a node that belongs somewhere must know where that is.
                cluster::keep_joined(&Shelf::Folder(shelf.clone()), &registry).await?;
                keep(&shelf, BELONGING, &belonging)?;
                (belonging, Start::Joined(Box::new(registry)))
            }
            (None, None) => {
                // A mesh of its own in place of the one it was in would look as if all had gone well.
                if let Some(kept) = folder.kept_aside() {
                    return Err(StartError::InNoMesh { kept });
                }
                let belonging = Belonging { mesh: MeshId::random(), raft: FOUNDER, role: Role::Node, incarnation };
                keep(&shelf, BELONGING, &belonging)?;
                (belonging, Start::Found(candidate))
            }
        };
        let parts = Parts {
            keypair: keypair.clone(),
            net: net.clone(),
            log: log.clone(),
            shelf: Shelf::Folder(shelf),
            outside: outside(),
        };
        let (cluster, cluster_task) = Cluster::open(cluster::Config::default(), parts, belonging, start).await?;
        if cluster.view(|registry| registry.is_removed(&cluster.id())) {
            return Err(StartError::NoMember);
        }
        let (stop_registry, stop_net) = (CancellationToken::new(), CancellationToken::new());
        let mut running = Running::default();
        let backend = match config.backend.choose().await {
            (Choice::Ollama(all), why) => Backend::ollama(all, config.backend.slots, why),
            (Choice::Nothing, why) => Backend::none(why),
            (Choice::Engine(program), why) => {
                let (handle, task) = engine::keeper::new(program);
                running.spawn("keeper of the engine", task.run(stop_net.clone()));
                Backend::engine(handle, why)
            }
        };
        let (inference, services, inferring) = Inference::new(&cluster, &net, keypair, &backend);
        let (blobs, blobs_task) = blobs::new(blobs_config(&folder, config.up_limit, config.down_limit), net.clone())?;
        let (models, models_task) = models::new(models::Parts {
            cluster: cluster.clone(),
            net: net.clone(),
            blobs: blobs.clone(),
            beside: catalogue::beside(&backend, &folder.models(), config.ollama_models.as_deref()),
            incoming: folder.make_incoming()?,
            memory: catalogue::memory(),
        });
        let services = models.services(blobs.services(services));
        running.spawn("blobs", blobs_task.run(stop_net.clone()));
        running.spawn("models", models_task.run(stop_net.clone()));
        let (giving_way, stopping) = (catalogue::give_way(blobs, inference.clone()), stop_net.clone());
        running.spawn("priority of inference", async move {
            stopping.run_until_cancelled(giving_way).await;
        });
        let said = Arc::new(catalogue::Said(models.clone()));
        let (placement, placing) = Placement::new(cluster.clone(), inference.clone(), said);
        let stopping = stop_net.clone();
        running.spawn("placement", async move {
            stopping.run_until_cancelled(placing.run()).await;
        });
        let api = Api::new(cluster.clone(), net.clone(), log.clone(), backend, inference, models, placement);
        running.spawn("network", net_task.run(services, stop_net.clone()));
        for task in inferring {
            let stopping = stop_net.clone();
            running.spawn("inference", async move {
                stopping.run_until_cancelled(task).await;
            });
        }
        let stopping = stop_net.clone();
        let watching = futures::future::join(events::run(api.clone()), watch_for_sleep(cluster.clone()));
        running.spawn("watch", async move {
            stopping.run_until_cancelled(watching).await;
        });
        #[expect(clippy::disallowed_methods, reason = "its end is the node's own; `ended` and `stop` wait for it")]
        let registry_ended = tokio::spawn(cluster_task.run(stop_registry.clone()));
        Ok(Self { api, folder, cluster, log, worker, registry_ended, stop_registry, stop_net, running })
    }

    pub fn api(&self) -> &Api {
        &self.api
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn addresses(&self) -> net::Addresses {
        self.api.net().addresses()
    }

    /// Returns when the node cannot go on by itself: it was removed, or something failed for good. May be dropped.
    pub async fn ended(&mut self) -> Ended {
        let of_registry = |ended: Result<End, task::JoinError>| match ended {
            Ok(end) => end,
            Err(panic) => End::Failed(cluster::Error::Consensus(panic.to_string())),
        };
        tokio::select! {
            ended = &mut self.registry_ended => Ended::Registry(of_registry(ended)),
            part = self.running.ended() => Ended::Part(part),
        }
    }

    /// Stops in order: others take over, the registry stops, peers are told, the disk is flushed. `limit` is for the
    /// first of these; the rest has nothing to wait for.
    pub async fn stop(self, limit: Duration) {
        let Self { folder, cluster, log, worker, mut registry_ended, stop_registry, stop_net, running, .. } = self;
        if !registry_ended.is_finished() {
            cluster.step_aside(limit).await;
        }
        stop_registry.cancel();
        if !registry_ended.is_finished() && tokio::time::timeout(STOP_MAX, &mut registry_ended).await.is_err() {
            tracing::warn!("the registry did not stop within {STOP_MAX:?}");
        }
        stop_net.cancel();
        if tokio::time::timeout(STOP_MAX, running.end()).await.is_err() {
            tracing::warn!("the network did not stop within {STOP_MAX:?}");
        }
        drop(cluster);
        if let Err(error) = log.close().await {
            tracing::warn!(%error, "the log did not close in good order");
        }
        worker.join();
        folder.withdraw();
    }
}

/// Each part that stops is waited for so long; what is late is named in the log.
const STOP_MAX: Duration = Duration::from_secs(5);

fn blobs_config(folder: &Folder, up: Option<NonZeroU64>, down: Option<NonZeroU64>) -> blobs::Config {
    blobs::Config { up, down, ..blobs::Config::new(folder.blobs()) }
}

const FOUNDER: RaftId = RaftId(1);

/// What the registry's folder holds.
struct OnDisk {
    log: store::Log,
    worker: store::Worker,
    shelf: PathBuf,
    belonging: Option<Belonging>,
    incarnation: [u8; 16],
}

impl OnDisk {
    fn open(folder: &Folder) -> Result<Self, StartError> {
        let config = store::Config::new(folder.registry());
        let shelf = config.snapshots();
        let (log, worker) = store::Log::open(config)?;
        match beside_the_log(&shelf) {
            Ok((belonging, incarnation)) => Ok(Self { log, worker, shelf, belonging, incarnation }),
            Err(error) => {
                // Whoever sets the folder aside next finds nobody at work in it: without its last handle the worker ends.
                drop(log);
                worker.join();
                Err(error)
            }
        }
    }
}

/// Whatever is kept beside the log counts as much as the log: one damaged piece, and all of it is.
fn beside_the_log(shelf: &std::path::Path) -> Result<(Option<Belonging>, [u8; 16]), StartError> {
    for name in store::snapshot::list(shelf)? {
        store::snapshot::read(shelf, &name)?;
    }
    Ok((kept(shelf, BELONGING)?, incarnation(shelf)?))
}

/// Opens the registry's folder. A damaged one is kept aside where there is a way back into the mesh.
fn open_or_set_aside(folder: &Folder, can_join: bool, tell: &impl Fn(Progress<'_>)) -> Result<OnDisk, StartError> {
    match OnDisk::open(folder) {
        Err(StartError::Store(store::Error::Damaged { path, what })) if can_join => {
            tracing::error!(path = %path.display(), what, "the registry is damaged");
            let aside = folder.set_aside()?;
            tell(Progress::SetAside(&aside));
            OnDisk::open(folder)
        }
        opened => opened,
    }
}

fn keep<T: codec::Record>(shelf: &std::path::Path, name: &str, record: &T) -> Result<(), StartError> {
    let bytes = codec::encode(record).expect("an id and two numbers are within the limit");
    Ok(store::snapshot::write(shelf, name, &bytes)?)
}

fn kept<T: codec::Record>(shelf: &std::path::Path, name: &str) -> Result<Option<T>, StartError> {
    if !store::snapshot::list(shelf)?.iter().any(|kept| kept == name) {
        return Ok(None);
    }
    let bytes = store::snapshot::read(shelf, name)?;
    let path = shelf.join(name);
    let unreadable = |error: codec::Error| store::Error::Damaged { path, what: error.to_string() };
    Ok(Some(codec::decode(&bytes).map_err(unreadable)?))
}

/// Random, made with the registry's folder and lost with it.
fn incarnation(shelf: &std::path::Path) -> Result<[u8; 16], StartError> {
    if let Some(Incarnation(known)) = kept(shelf, INCARNATION)? {
        return Ok(known);
    }
    let mut new = [0; 16];
    getrandom::fill(&mut new).expect("the operating system has a random source");
    keep(shelf, INCARNATION, &Incarnation(new))?;
    Ok(new)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Incarnation([u8; 16]);

impl codec::Record for Incarnation {
    const VERSION: u8 = 1;
    const LIMIT: usize = 64;
}

fn addresses(net: &Net) -> Addresses {
    let known = net.addresses();
    Addresses { mesh: known.mesh.into_iter().collect(), bulk: known.bulk.into_iter().collect() }
}

pub(crate) fn outside() -> Outside {
    let random = || {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        bytes
    };
    Outside { wall_clock: Arc::new(now), random: Arc::new(random) }
}

/// Knocks until somebody opens or says that nobody ever will.
async fn join(
    config: net::Config,
    token: &Token,
    candidate: &Candidate,
    tell: &impl Fn(Progress<'_>),
) -> Result<Welcome, StartError> {
    tell(Progress::Joining);
    let mut pause = JOIN_PAUSE_MIN;
    for attempt in 1.. {
        let error = match attempt_join(&config, token, candidate).await? {
            Ok(welcome) => {
                tell(Progress::Joined { name: &welcome.name, role: welcome.role });
                return Ok(welcome);
            }
            Err(error) if error.retry() => error,
            Err(error) => return Err(StartError::Join(error)),
        };
        tell(Progress::Waiting { attempt, error: &error, next: pause });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(JOIN_PAUSE_MAX);
    }
    unreachable!("attempts have no end")
}

/// One attempt, through a network of its own: the node's sockets are bound already, and open to peers only once there
/// is a registry to answer from.
async fn attempt_join(
    config: &net::Config,
    token: &Token,
    candidate: &Candidate,
) -> Result<Result<Welcome, JoinError>, StartError> {
    with_passing_net(config, async |net| cluster::join::<cluster::Live>(net, token, candidate, now()).await).await
}

pub(crate) async fn with_passing_net<T>(
    config: &net::Config,
    talk: impl AsyncFnOnce(&Net) -> T,
) -> Result<T, StartError> {
    let any = |address: std::net::SocketAddr| std::net::SocketAddr::new(address.ip(), 0);
    let passing = net::Config { mesh: any(config.mesh), bulk: any(config.bulk), mdns: false, ..config.clone() };
    let (net, task) = net::new(passing).await?;
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(task.run(Services::new(), stop.clone()));
    let said = talk(&net).await;
    stop.cancel();
    while serving.join_next().await.is_some() {}
    Ok(said)
}

/// Between two looks at the clocks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A machine that slept does not know it: its monotonic clock stood still, the wall clock did not. Runs for ever.
async fn watch_for_sleep(cluster: Cluster) {
    let slept_at_least = cluster::Timing::default().silence_max();
    let (mut wall, mut steady) = (SystemTime::now(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (wall_now, steady_now) = (SystemTime::now(), Instant::now());
        let passed = wall_now.duration_since(wall).unwrap_or_default();
        let asleep = passed.saturating_sub(steady_now.duration_since(steady));
        if asleep > slept_at_least {
            tracing::warn!(?asleep, "this machine was asleep, or its clock was set");
            // Whoever leads should be somebody who was awake. Reads ask a majority anyway before they answer.
            cluster.hand_over().await;
        }
        (wall, steady) = (wall_now, steady_now);
    }
}

/// What a stranger's token would meet, step by step: for `omx doctor join`.
pub async fn would_join(data_dir: &std::path::Path, token: &Token) -> Result<std::net::SocketAddr, StartError> {
    let identity = data_dir.join("identity.key");
    // A machine that has never been started asks under a key of the moment.
    let keypair = if identity.exists() { Keypair::load_or_create(&identity)? } else { Keypair::generate() };
    let any: std::net::SocketAddr = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
    let limits = net::Limits::default();
    let config = net::Config { keypair: keypair.clone(), mesh: any, bulk: any, mdns: false, limits };
    let candidate = Candidate {
        id: keypair.node_id(),
        name: NodeName::from_host("doctor"),
        addresses: Addresses::default(),
        incarnation: [0; 16],
    };
    let asked = with_passing_net(&config, async |net| {
        cluster::would_join::<cluster::Live>(net, token, &candidate, now()).await
    });
    asked.await?.map_err(StartError::Join)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{EngineWanted, OllamaWanted};

    #[tokio::test]
    async fn a_node_does_not_outlive_a_part_that_panics() {
        let folder = tempfile::tempdir().unwrap();
        let any: std::net::SocketAddr = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let backend = Wanted { ollama: OllamaWanted::None, engine: EngineWanted::Off, slots: None, program: None };
        let config = Config {
            data_dir: folder.path().join("node"),
            name: "brittle".parse().unwrap(),
            mesh: any,
            bulk: any,
            mdns: false,
            join: None,
            ollama_models: None,
            up_limit: None,
            down_limit: None,
            backend,
        };
        let mut node = Node::start(config, |_| {}).await.unwrap();
        node.running.spawn("nerve", async { panic!("as the test wants it") });
        let ended = tokio::time::timeout(Duration::from_secs(60), node.ended()).await.expect("it ends");
        assert!(matches!(&ended, Ended::Part(part) if part.to_string().contains("its nerve")), "{ended:?}");
        node.stop(Duration::from_secs(5)).await;
    }
}
