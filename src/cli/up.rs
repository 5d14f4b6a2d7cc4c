//! `omx up`: this process is a node until it is told to stop.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use gateway::Tls;
use node::{FIRST_MODEL, NewKey, ParseTokenError, Token};
use types::Secret;

use self::life::Brought;
use super::Session;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::folder;
use crate::logging::Logging;
use crate::run_file::from_here;
use crate::settings::{File, Key, Settings};
use crate::table::facts;

pub(super) mod failed;
mod life;
mod signals;

const VERBOSE: &str = "debug,openraft=info,libp2p=info,sled=warn";
const VERY_VERBOSE: &str = "trace";

pub(super) const TOKEN_HINT: &str = "copy the whole of what `omx token create` printed";

/// Start a node on this machine
///
/// In an empty data folder it makes a mesh of one and says how the next machine joins. With a token it joins; it tries for
/// ever and says why it waits. Later starts need no token; other flags are not remembered, `omx.toml` is. Ctrl-C stops it
/// in good order; a second one ends it at once.
///
/// Every setting can stand in `omx.toml` in the data folder or in a variable too: docs/config.md, `omx config show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx up                        a mesh of one, or this node as it was\n  \
    omx up --join TOKEN           join a mesh; `omx token create` prints the token there\n  \
    omx up --api 0.0.0.0:11435    serve other machines; needs an API key first\n  \
    omx up --api 0.0.0.0:11435 --tls-cert cert.pem --tls-key key.pem    the same, encrypted\n  \
    omx up --data-dir d2 --api 127.0.0.1:0 --mesh 127.0.0.1:0")]
pub(super) struct Up {
    /// What people call this node: 1 to 63 of `a-z 0-9 - .` [env: OMX_NAME] [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where to listen for HTTP [env: OMX_API] [default: 127.0.0.1:11435]
    #[arg(long, value_name = "ADDR:PORT")]
    api: Option<String>,
    /// Where to listen for other nodes, TCP and QUIC [env: OMX_MESH] [default: 0.0.0.0:11436]
    #[arg(long, value_name = "ADDR:PORT")]
    mesh: Option<String>,
    /// Where to listen for joins and large transfers [env: OMX_BULK] [default: port 11437 beside `--mesh`]
    #[arg(long, value_name = "ADDR:PORT")]
    bulk: Option<String>,
    /// Join with this token; a member already does not need it [env: OMX_JOIN]
    #[arg(long, value_name = "TOKEN", value_parser = secret, conflicts_with = "join_file")]
    join: Option<Secret<String>>,
    /// Join with the token in this file
    #[arg(long, value_name = "FILE")]
    join_file: Option<PathBuf>,
    /// Neither announce this node on the local network nor look for members there [env: OMX_MDNS=false]
    #[arg(long)]
    no_mdns: bool,
    /// One more name by which browsers and proxies may ask for this node [env: OMX_ALLOW_HOST]
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Let callers from anywhere do what callers on this machine may [env: OMX_INSECURE_NO_AUTH]
    #[arg(long)]
    insecure_no_auth: bool,
    /// Encrypt the API with the certificate in this file, PEM, its chain after it [env: OMX_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The certificate's key, PEM; both files are read at each start [env: OMX_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Where the mesh has no API key yet, make the one in this file the first; it opens everything
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Use the Ollama there, of several all, or `none` [env: OMX_OLLAMA] [default: where one answers, at OLLAMA_HOST or
    /// port 11434]
    #[arg(long, value_name = "URL|none")]
    ollama: Vec<String>,
    /// The folder that Ollama keeps its models in; where it is ours to use, models get there without a second copy
    /// [env: OMX_OLLAMA_MODELS] [default: looked for]
    #[arg(long, value_name = "DIR")]
    ollama_models: Option<String>,
    /// Run models by the built-in engine: `on`, `off`, or `auto` where no Ollama is [env: OMX_ENGINE] [default: auto]
    #[arg(long, value_name = "on|off|auto")]
    engine: Option<String>,
    /// Requests that each Ollama runs at once, as its OLLAMA_NUM_PARALLEL says: 1 to 32, or `auto` to learn it
    /// [env: OMX_SLOTS] [default: auto]
    #[arg(long, value_name = "N|auto")]
    slots: Option<String>,
    /// How much of models may leave for other nodes, a second, such as `20MB` [env: OMX_UP_LIMIT] [default: none]
    #[arg(long, value_name = "RATE|none")]
    up_limit: Option<String>,
    /// How much of models may come from other nodes, a second [env: OMX_DOWN_LIMIT] [default: none]
    #[arg(long, value_name = "RATE|none")]
    down_limit: Option<String>,
    /// What to log, such as `warn` or `info,net=debug` [env: OMX_LOG]
    #[arg(long, value_name = "LEVELS")]
    log: Option<String>,
}

fn parsed(token: &Secret<String>) -> Result<Token, Failure> {
    let wrong = |error: ParseTokenError| Failure::new(Exit::Usage, error).hint(TOKEN_HINT.to_owned());
    token.expose().parse().map_err(wrong)
}

pub(super) fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

impl Up {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let path = session.folder.join("omx.toml");
        let file = File::read(&path)?;
        let variable = |name: &str| std::env::var(name).ok();
        let settings = Settings::resolve(&self.flags(session.verbose), variable, &file)?;
        let tls =
            settings.tls(&path)?.map(|(cert, key)| Tls::read(cert, key)).transpose().map_err(failed::to_encrypt)?;
        let join = self.token(variable("OMX_JOIN"))?.map(|token| parsed(&token)).transpose()?;
        let first_key = self.api_key_file.as_deref().map(key_in).transpose()?;
        let brought = Brought { tls, first_key };
        let logging = Logging::start(&settings.log.value)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::General, error))?;
        let ended = runtime.block_on(life::live(session, &settings, join, &brought, &logging));
        // What still runs has had its time, or a second signal says that there is none.
        runtime.shutdown_background();
        ended
    }

    /// What was typed, as settings.
    fn flags(&self, verbose: u8) -> Vec<(Key, String)> {
        let on = |given: bool, text: &str| given.then(|| text.to_owned());
        let by_verbosity = match verbose {
            0 => None,
            1 => Some(VERBOSE.to_owned()),
            _ => Some(VERY_VERBOSE.to_owned()),
        };
        let given = [
            (Key::Name, self.name.clone()),
            (Key::Api, self.api.clone()),
            (Key::Mesh, self.mesh.clone()),
            (Key::Bulk, self.bulk.clone()),
            (Key::Mdns, on(self.no_mdns, "false")),
            (Key::AllowHost, on(!self.allow_host.is_empty(), &self.allow_host.join(","))),
            (Key::InsecureNoAuth, on(self.insecure_no_auth, "true")),
            (Key::TlsCert, self.tls_cert.clone()),
            (Key::TlsKey, self.tls_key.clone()),
            (Key::Ollama, on(!self.ollama.is_empty(), &self.ollama.join(","))),
            (Key::OllamaModels, self.ollama_models.clone()),
            (Key::Engine, self.engine.clone()),
            (Key::Slots, self.slots.clone()),
            (Key::UpLimit, self.up_limit.clone()),
            (Key::DownLimit, self.down_limit.clone()),
            (Key::Log, self.log.clone().or(by_verbosity)),
        ];
        given.into_iter().filter_map(|(key, text)| Some((key, text?))).collect()
    }

    /// The token, from wherever it was given.
    fn token(&self, variable: Option<String>) -> Result<Option<Secret<String>>, Failure> {
        if let Some(token) = &self.join {
            return Ok(Some(token.clone()));
        }
        if let Some(path) = &self.join_file {
            return secret_in(path).map(Some);
        }
        Ok(variable.filter(|text| !text.is_empty()).map(Secret::new))
    }
}

/// A file may end with a newline, as files do.
fn secret_in(path: &Path) -> Result<Secret<String>, Failure> {
    let unreadable = |source| Failure::new(Exit::General, SecretFile { path: path.to_owned(), source });
    let text = fs::read_to_string(path).map_err(unreadable)?;
    Ok(Secret::new(text.trim().to_owned()))
}

fn key_in(path: &Path) -> Result<NewKey, Failure> {
    let none = || Failure::new(Exit::Usage, format!("`{}` holds no key: a key begins with `omx_`", path.display()));
    NewKey::from_text(secret_in(path)?.expose()).ok_or_else(none)
}

#[derive(Debug, thiserror::Error)]
#[error("failed to read `{}`", .path.display())]
struct SecretFile {
    path: PathBuf,
    source: std::io::Error,
}

/// What runs models here, for the greeting.
enum Models {
    Engine,
    Ollama(String),
    None(String),
}

/// Whom the API answers on this machine, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Whoever asks, without a key.
    Anyone,
    /// Whoever has a key.
    WithKey,
    /// Over TLS, whose certificate names whatever it names: hardly the address of loopback.
    Encrypted,
}

/// Where the node is and what to type next, in this order. A line that does not work is worse than a longer one: where
/// curl would need a key, or could not trust whom it reaches, it is shown the local socket.
fn greeting(api: SocketAddr, open: Open, socket: &Path, data_folder: &Path, models: &Models) -> String {
    let scheme = if open == Open::Encrypted { "https" } else { "http" };
    let url = format!("{scheme}://{}", from_here(api));
    let curl = |path: &str| match open {
        Open::Anyone => format!("curl {url}{path}"),
        Open::WithKey | Open::Encrypted => {
            let socket = folder::quoted(&socket.display().to_string());
            format!("curl --unix-socket {socket} http://localhost{path}")
        }
    };
    let create = format!("omx{} token create", folder::flag(data_folder));
    let (models, asks) = match models {
        Models::Engine => {
            let question = "What is OllamaMax?";
            let body = format!(r#"'{{"model":"{FIRST_MODEL}","prompt":"{question}","stream":false}}'"#);
            let run = format!("omx{} run {FIRST_MODEL} \"{question}\"", folder::flag(data_folder));
            ("the built-in engine".to_owned(), [format!("{} -d {body}", curl("/api/generate")), run])
        }
        Models::Ollama(at) => (format!("Ollama at {at}"), [curl("/api/tags"), curl("/omx/v1/status")]),
        Models::None(why) => {
            (why.clone(), [curl("/omx/v1/status"), format!("omx{} doctor", folder::flag(data_folder))])
        }
    };
    let [first, second] = asks;
    facts(&[
        ("API", url),
        ("models", models),
        ("try it", first),
        ("or", second),
        ("next machine", format!("omx up --join TOKEN    (TOKEN: what `{create}` prints here)")),
    ])
}

#[cfg(test)]
mod tests;
