//! A node's life as a process: started in order, spoken to, stopped in reverse.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway::{Local, Tls};
use node::{Api, NewKey, Node, Progress, RunInfo, Token};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{NodeName, Scope};

use super::signals::Signals;
use super::{Models, Open, failed};
use crate::cli::{Session, engine};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::Logging;
use crate::out;
use crate::plain::plain;
use crate::settings::Settings;
use crate::times::rough;

/// Below the data folder: whoever may not look into that cannot get as far as the socket.
const SOCKET: &str = "run/omx.sock";

/// For what runs when the node is told to stop, its own clients' and other nodes'. What takes longer is cut.
const FINISH_MAX: Duration = Duration::from_secs(60);
/// For the engine to serve, before the greeting is printed without it.
const ENGINE_MAX: Duration = Duration::from_secs(20);
/// For others to take over what this node leads and votes for.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// What was read for the API before anything was started.
pub(super) struct Brought {
    pub(super) tls: Option<Tls>,
    pub(super) first_key: Option<NewKey>,
}

/// Starts a node, and stops it when it is told to or cannot go on.
pub(super) async fn live(
    session: &Session,
    settings: &Settings,
    join: Option<Token>,
    brought: &Brought,
    logging: &Logging,
) -> Result<Exit, Failure> {
    let mut signals = Signals::take().map_err(|error| Failure::new(Exit::General, error))?;
    let api = settings.api.value;
    // Let go at once: whether it will do is to be known before the mesh hears of this node.
    TcpListener::bind(api).map(drop).map_err(|error| failed::taken(api, error))?;
    // A mesh that is made here has no key but that of the file; one that is joined may have some.
    let makes_a_mesh = join.is_none() && !session.folder.join("registry").exists();
    let opens = settings.insecure_no_auth.value || brought.first_key.is_some() || api.ip().to_canonical().is_loopback();
    if makes_a_mesh && !opens {
        return Err(failed::to_open(gateway::Error::NoKey { address: api }));
    }

    let log_folder = session.folder.join("log");
    let tell = |progress: Progress<'_>| {
        // The node has something to tell once the data folder is its own.
        if let Err(error) = logging.to_files(&log_folder) {
            tracing::warn!(%error, "there is no log but this one");
        }
        eprintln!("{}", plain(&told(&progress)));
    };
    let mut node = tokio::select! {
        started = Node::start(config(session, settings, join), tell) => started.map_err(failed::to_start)?,
        () = signals.next() => return Ok(Exit::Ok),
    };

    let stop_serving = CancellationToken::new();
    let mut server = JoinSet::new();
    let ended = match serve(&node, session, settings, brought, logging, &stop_serving, &mut server).await {
        Ok(greeting) => tokio::select! {
            () = signals.next() => None,
            failure = greet(node.api().clone(), greeting) => Some(failure),
            end = node.ended() => failed::to_go_on(end),
            _ = server.join_next() => Some(Failure::new(Exit::General, "the API has stopped, which is a bug")),
        },
        Err(failure) => Some(failure),
    };
    tracing::info!("stopping; a second signal ends at once");
    let stopping = async {
        stop_serving.cancel();
        let served = tokio::time::timeout(FINISH_MAX, server.join_next());
        let (served, finished) = tokio::join!(served, node.api().inference().finish(FINISH_MAX));
        if served.is_err() || !finished {
            tracing::warn!("requests were still running after {FINISH_MAX:?} and are cut");
        }
        server.shutdown().await;
        node.stop(HAND_OVER_MAX).await;
    };
    let in_order = tokio::select! {
        () = stopping => true,
        () = signals.next() => false,
    };
    match ended {
        Some(failure) => Err(failure),
        None if in_order => Ok(Exit::Ok),
        None => Ok(Exit::General),
    }
}

fn config(session: &Session, settings: &Settings, join: Option<Token>) -> node::Config {
    node::Config {
        data_dir: session.folder.clone(),
        name: settings.name.value.clone().unwrap_or_else(|| NodeName::from_host(&host_name())),
        mesh: settings.mesh.value,
        bulk: settings.bulk.value,
        mdns: settings.mdns.value,
        join,
        ollama_models: settings.ollama_models.value.clone(),
        up_limit: settings.up_limit.value,
        down_limit: settings.down_limit.value,
        backend: node::Wanted {
            ollama: settings.ollama.value.clone(),
            engine: settings.engine.value,
            slots: settings.slots.value,
            program: engine::program(&session.folder),
        },
    }
}

/// Opens the node's faces.
async fn serve(
    node: &Node,
    session: &Session,
    settings: &Settings,
    brought: &Brought,
    logging: &Logging,
    stop: &CancellationToken,
    server: &mut JoinSet<()>,
) -> Result<Greeting, Failure> {
    logging.to_files(&session.folder.join("log"))?;
    let socket = node.folder().path().join(SOCKET);
    let bound = gateway::bind(gateway::Config {
        api: settings.api.value,
        insecure_no_auth: settings.insecure_no_auth.value,
        allowed_hosts: settings.allow_host.value.clone(),
        tls: brought.tls.clone(),
        ..gateway::Config::new(Local::Socket(socket.clone()))
    });
    let bound = bound.await.map_err(failed::to_open)?;
    if let Some(key) = &brought.first_key {
        let by = node.api().user(owner(node.folder().path()));
        node.api().adopt_first_key(by, key).await.map_err(failed::to_adopt)?;
    }
    let api = bound.addresses().api;
    let task = bound.open(node.api().clone(), stop.clone()).map_err(failed::to_open)?;
    server.spawn(task.run());
    let info = run_info(node, settings, api);
    node.folder().announce(&info).map_err(|error| failed::to_start(error.into()))?;
    if session.out.json {
        out::print(&(serde_json::to_string(&info).expect("addresses are texts") + "\n"))?;
        return Ok(Greeting::Said);
    }
    Ok(Greeting::ToSay { api, encrypted: brought.tls.is_some(), socket, data_folder: session.folder.clone() })
}

/// What is left to be told once models run.
enum Greeting {
    Said,
    ToSay { api: SocketAddr, encrypted: bool, socket: PathBuf, data_folder: PathBuf },
}

/// Says where the node is, and then nothing more: returns only what went wrong.
async fn greet(node: Api, greeting: Greeting) -> Failure {
    if let Greeting::ToSay { api, encrypted, socket, data_folder } = greeting {
        let models = models(&node).await;
        let may = |scope| node.anonymous().allows(scope);
        let open = match may(Scope::Read) && may(Scope::Infer) {
            _ if encrypted => Open::Encrypted,
            true => Open::Anyone,
            false => Open::WithKey,
        };
        if let Err(failure) = out::print(&super::greeting(api, open, &socket, &data_folder, &models)) {
            return failure;
        }
    }
    std::future::pending().await
}

/// For an engine that is starting this waits: what is printed should work when it is read.
async fn models(node: &Api) -> Models {
    let backend = node.backend();
    let ready = backend.ready(ENGINE_MAX).await;
    match backend.ways() {
        Ok(_) if backend.is_engine() && ready => Models::Engine,
        Ok(ways) => {
            let all: Vec<String> = ways.iter().map(|way| way.at.to_string()).collect();
            Models::Ollama(all.join(", "))
        }
        Err(unavailable) => Models::None(unavailable.to_string()),
    }
}

fn run_info(node: &Node, settings: &Settings, api: SocketAddr) -> RunInfo {
    let known = node.addresses();
    // As it was asked for, with the port that was found: started with this again, the node is where it was.
    let asked = settings.bulk.value;
    let port = known.bulk.iter().next().map_or(asked.port(), SocketAddr::port);
    RunInfo {
        api,
        mesh: known.mesh.into_iter().collect(),
        bulk: SocketAddr::new(asked.ip(), port),
        pid: std::process::id(),
        peer_id: node.api().id(),
        version: env!("CARGO_PKG_VERSION"),
        socket: PathBuf::from(SOCKET),
    }
}

/// One line for whoever watches the node start.
fn told(progress: &Progress<'_>) -> String {
    match progress {
        Progress::SetAside(path) => set_aside(path),
        Progress::Joining => "joining the mesh".to_owned(),
        Progress::Waiting { attempt, error, next } => {
            let mut why = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                why = format!("{why}: {error}");
                cause = error.source();
            }
            let hint = error.hint().map_or_else(String::new, |hint| format!(" (hint: {hint})"));
            let next = if next.as_secs() == 0 { "at once".to_owned() } else { format!("in {}", rough(*next)) };
            format!("waiting to join: attempt {attempt} failed: {why}; next try {next}{hint}")
        }
        Progress::Joined { name, role } => format!("joined as `{name}`, a {role}"),
    }
}

fn set_aside(path: &Path) -> String {
    format!("the registry of this node was damaged; it is kept in `{}`, and the node joins anew", path.display())
}

/// Whoever owns the data folder is who the node runs for.
#[cfg(unix)]
fn owner(folder: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;

    std::fs::metadata(folder).map_or(0, |metadata| metadata.uid())
}

#[cfg(not(unix))]
fn owner(_folder: &Path) -> u32 {
    0
}

#[cfg(unix)]
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use node::JoinError;

    use super::*;

    #[test]
    fn whoever_waits_learns_why_and_for_how_long() {
        let error = JoinError::NotNow("no leader".to_owned());
        let waiting = |next| told(&Progress::Waiting { attempt: 3, error: &error, next });
        let expected = "waiting to join: attempt 3 failed: the mesh cannot take a member now: no leader; next try in 4 s \
                        (hint: it goes on by itself once most of the nodes that vote are up)";
        assert_eq!(waiting(Duration::from_secs(4)), expected);
        assert!(waiting(Duration::from_millis(500)).contains("next try at once"));
        let name = "attic".parse().unwrap();
        assert_eq!(told(&Progress::Joined { name: &name, role: types::Role::Worker }), "joined as `attic`, a worker");
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(!host_name().is_empty());
    }
}
