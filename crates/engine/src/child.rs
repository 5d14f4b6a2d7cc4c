//! The engine's process from the inside: from the secret on stdin to the end of stdin.

use std::io::{self, BufRead, Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ollama::Folder;
use ollama::folder::Texts;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::library::{self, Library};
use crate::llama::{self, Llama};
use crate::serve::{self, Secret, Server};

#[derive(Debug)]
pub struct Config {
    pub models: PathBuf,
    /// What `/api/version` says.
    pub version: String,
    /// Put into a folder that has no models, so that there is somebody to ask.
    pub first: First,
}

#[derive(Debug)]
pub struct First {
    pub name: &'static str,
    pub weights: &'static [u8],
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to speak with the node that started this process")]
    Pipe(#[source] io::Error),
    #[error("no secret came on stdin; `omx up` starts the engine by itself")]
    NoSecret,
    #[error("failed to open the models folder")]
    Folder(#[from] ollama::folder::Error),
    #[error("failed to listen on loopback")]
    Listen(#[source] io::Error),
}

/// For what runs to finish once the node is gone.
const FINISH_MAX: Duration = Duration::from_secs(4);

/// Serves until stdin ends.
pub fn run(config: Config) -> Result<(), Error> {
    let mut secret = String::new();
    io::stdin().lock().take(256).read_line(&mut secret).map_err(Error::Pipe)?;
    let secret = secret.trim();
    if secret.is_empty() {
        return Err(Error::NoSecret);
    }
    let secret = Secret::from_text(secret);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let served = runtime.map_err(Error::Listen)?.block_on(serve(config, secret));
    // A model in the middle of a step is not waited for: the process ends with all it holds.
    served
}

async fn serve(config: Config, secret: Secret) -> Result<(), Error> {
    let folder = Folder::open(&config.models)?;
    if folder.list()?.is_empty() {
        let First { name, mut weights } = config.first;
        let name = name.parse().expect("the first model has a good name");
        folder.install(&name, &mut weights, &Texts::default())?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::Listen)?;
    let address = listener.local_addr().map_err(Error::Listen)?;
    let (library, task) = Library::new(library::Config::default(), Arc::new(Llama::new(llama::Config::default())));
    let server = Server::new(serve::Config { secret, version: config.version }, folder, library);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(stop.clone()));
    tasks.spawn(server.run(listener, stop.clone()));
    let gone = stop.clone();
    // A thread of its own: reading from a pipe cannot be taken back.
    let watching = thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        gone.cancel();
    });
    watching.map_err(Error::Pipe)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{address}").and_then(|()| stdout.flush()).map_err(Error::Pipe)?;
    drop(stdout);
    stop.cancelled().await;
    let _ = tokio::time::timeout(FINISH_MAX, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}
