//! What is measured, set up as somebody would who has read its manual: connections are kept, nothing is logged that need
//! not be, several requests may go to a backend at once.

use std::fs::{self, DirBuilder, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testnet::{Testnet, wait_until};

use crate::arguments;
use crate::backend::{Backend, MODEL, Script};
use crate::child;
use crate::client::{Api, Client, End, Target};

/// From the start of its processes to its first good answer.
const READY_LIMIT: Duration = Duration::from_secs(40);

/// Something to send requests to. Its processes end with it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) target: Target,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Omx(Testnet),
    Proxy(Proxy),
}

#[derive(Debug)]
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        child::end(&mut self.0);
    }
}

/// Programs of others, each where it was given.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) nginx: Option<PathBuf>,
    /// A Python that has `sglang_router`.
    pub(crate) sglang: Option<PathBuf>,
    pub(crate) ollamamq: Option<PathBuf>,
}

impl Peers {
    pub(crate) fn given() -> Result<Self> {
        let path = |name| {
            let given = arguments::argument(name, PathBuf::new())?;
            Ok::<_, anyhow::Error>(Some(given).filter(|path| !path.as_os_str().is_empty()))
        };
        Ok(Self { nginx: path("nginx")?, sglang: path("sglang")?, ollamamq: path("ollamamq")? })
    }
}

impl Subject {
    /// No proxy at all: what the others are held against.
    pub(crate) fn direct(backend: &Backend) -> Self {
        let target = Target { at: backend.at(), api: Api::Ollama };
        Self { name: "direct".to_owned(), target, running: Running::Nothing }
    }

    /// A mesh with so many nodes, of which each has the backend that stands in its place, or none. The first is asked.
    pub(crate) fn omx(name: &str, binary: &Path, dir: &Path, backends: &[Option<&Backend>]) -> Result<Self> {
        let ollama = |backend: &Option<&Backend>| backend.map_or_else(|| "none".to_owned(), Backend::url);
        let each = backends.iter().map(|backend| vec!["--ollama".to_owned(), ollama(backend)]).collect();
        let options = testnet::Options { each, ..arguments::node_alone() };
        let omx = Testnet::up(binary, &dir.join("omx"), backends.len(), &options)?;
        let target = Target { at: omx.nodes()[0].run()?.api, api: Api::Ollama };
        Ok(Self { name: name.to_owned(), target, running: Running::Omx(omx) })
    }

    pub(crate) fn nginx(program: &Path, dir: &Path, backends: &[Backend]) -> Result<Self> {
        let (dir, at) = (folder(dir, "nginx")?, free_port()?);
        let servers: String =
            backends.iter().map(|one| format!("server {} max_fails=1 fail_timeout=10s; ", one.at())).collect();
        let settings = format!(
            "daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log error;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
               fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
               keepalive_requests 1000000;\n\
               upstream backends {{ least_conn; {servers}keepalive 64; keepalive_requests 1000000; }}\n\
               server {{\n\
                 listen {at};\n\
                 location / {{\n\
                   proxy_pass http://backends; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                   proxy_buffering off; proxy_connect_timeout 2s;\n\
                   proxy_next_upstream error timeout http_502 http_503 non_idempotent;\n\
                 }}\n\
               }}\n\
             }}\n",
            dir = dir.display(),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, settings)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(&dir).arg("-c").arg(&file).arg("-e").arg(dir.join("error.log"));
        Self::proxy("nginx", command, &dir, Target { at, api: Api::Ollama })
    }

    pub(crate) fn sglang(python: &Path, policy: &str, dir: &Path, backends: &[Backend]) -> Result<Self> {
        let (name, at, metrics) = (format!("sglang-router {policy}"), free_port()?, free_port()?);
        let dir = folder(dir, &format!("sglang-{policy}"))?;
        let mut command = Command::new(python);
        command.args(["-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--log-level", "error"]);
        command.args(["--port", &at.port().to_string(), "--policy", policy]);
        command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics.port().to_string()]);
        // Half a minute between looks at its workers is not for a test of so short a time.
        command.args(["--worker-startup-check-interval", "1", "--worker-urls"]);
        command.args(backends.iter().map(Backend::url));
        Self::proxy(&name, command, &dir, Target { at, api: Api::OpenAi })
    }

    pub(crate) fn ollamamq(program: &Path, dir: &Path, backends: &[Backend]) -> Result<Self> {
        let (dir, at) = (folder(dir, "ollamamq")?, free_port()?);
        let urls: String = backends.iter().map(|one| format!("  - {}\n", one.url())).collect();
        // Else one request at a time goes to a backend.
        let settings = format!(
            "backends:\n{urls}settings:\n  max_concurrent_per_backend: 64\n\
             models:\n  - name: \"{MODEL}\"\n    max_concurrent_requests: 64\n"
        );
        let file = dir.join("appconf.yaml");
        fs::write(&file, settings)?;
        let mut command = Command::new(program);
        command.args(["--no-tui", "--port", &at.port().to_string(), "--model-config"]).arg(&file);
        // It logs requests to a file of its own; the program's other log is at `info` unless told.
        command.env("RUST_LOG", "error");
        Self::proxy("ollamaMQ", command, &dir, Target { at, api: Api::Ollama })
    }

    fn proxy(name: &str, mut command: Command, dir: &Path, target: Target) -> Result<Self> {
        let log = File::create(dir.join("log"))?;
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name: name.to_owned(), target, running: Running::Proxy(Proxy(child)) })
    }

    /// Waits for a first good answer.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let what = format!("a good answer of {}", self.name);
        let script = Script { streams: false, tokens: 1, reading: Duration::ZERO, pace: Duration::ZERO };
        wait_until(&what, READY_LIMIT, || {
            if let Running::Proxy(Proxy(child)) = &mut self.running
                && let Some(status) = child.try_wait()?
            {
                bail!("it has ended: {status}");
            }
            match Client::new(self.target, Duration::from_secs(5)).ask(script, 0, 0).end {
                End::Whole => Ok(()),
                other => bail!("{other:?}"),
            }
        })
    }

    /// The same, asked in another way.
    pub(crate) fn at(&self, api: Api) -> Target {
        Target { api, ..self.target }
    }

    /// Its processes: those of each machine it would run on.
    pub(crate) fn machines(&self) -> Result<Vec<Vec<u32>>> {
        match &self.running {
            Running::Nothing => Ok(Vec::new()),
            Running::Omx(omx) => Ok(omx.nodes().iter().filter_map(testnet::Node::pid).map(|pid| vec![pid]).collect()),
            Running::Proxy(Proxy(child)) => Ok(vec![child::family(child.id())?]),
        }
    }

    /// The node of that number, counted from one, where there are nodes.
    pub(crate) fn node(&mut self, number: usize) -> Result<&mut testnet::Node> {
        match &mut self.running {
            Running::Omx(omx) => omx.node(&format!("n{number}")),
            Running::Nothing | Running::Proxy(_) => bail!("{} has no nodes", self.name),
        }
    }
}

/// A new folder that all may enter: nginx' workers are of another user.
fn folder(parent: &Path, name: &str) -> Result<PathBuf> {
    let path = parent.join(name);
    DirBuilder::new().mode(0o755).create(&path).with_context(|| format!("failed to make `{}`", path.display()))?;
    Ok(path)
}

/// Free a moment ago, which has to do: peers cannot say which port they took.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
