//! The command line: what can be typed, and who carries it out. One module per noun.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::client::Client;
use crate::exit::{self, Exit};
use crate::failure::Failure;
use crate::folder;
use crate::out::{self, Out};

mod completions;
mod config;
mod confirm;
mod doctor;
mod engine;
mod events;
mod keys;
mod leave;
mod models;
mod nodes;
mod ps;
mod run;
mod status;
mod token;
mod trace;
mod transfers;
mod up;

/// Many machines, one Ollama: a mesh of nodes, and the commands to look after it
#[derive(Debug, Parser)]
#[command(name = "omx", version, max_term_width = 110, after_help = "`omx help VERB` shows examples.", after_long_help = after_help())]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// The node's folder: its key, its registry; one node per folder
    ///
    /// Default: `$XDG_DATA_HOME/omx` or `~/.local/share/omx`; on macOS `~/Library/Application Support/omx`.
    #[arg(long, global = true, value_name = "DIR", env = "OMX_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// Print JSON for scripts instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(Box<up::Up>),
    #[command(flatten)]
    Question(Question),
    Run(run::Run),
    Events(events::Events),
    Completions(completions::Completions),
    #[cfg(feature = "engine")]
    #[command(hide = true)]
    Engine(engine::Engine),
}

/// What ends with one answer.
#[derive(Debug, Subcommand)]
enum Question {
    Status(status::Status),
    Ps(ps::Ps),
    Trace(trace::TraceOf),
    #[command(subcommand)]
    Models(models::Models),
    Transfers(transfers::Transfers),
    #[command(subcommand)]
    Nodes(nodes::Nodes),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Keys(keys::Keys),
    Leave(leave::Leave),
    Doctor(doctor::Doctor),
}

impl Question {
    /// What goes to stdout, and how the program ends.
    async fn ask(self, session: &Session) -> Result<(String, Exit), Failure> {
        let text = match self {
            Self::Status(status) => status.run(session).await?,
            Self::Ps(ps) => ps.run(session).await?,
            Self::Trace(trace) => trace.run(session).await?,
            Self::Nodes(nodes) => nodes.run(session).await?,
            Self::Token(token) => token.run(session).await?,
            Self::Config(config) => config.run(session).await?,
            Self::Keys(keys) => keys.run(session).await?,
            Self::Leave(leave) => leave.run(session).await?,
            Self::Models(models) => return models.run(session).await,
            Self::Transfers(transfers) => return transfers.run(session).await,
            Self::Doctor(doctor) => return doctor.run(session).await,
        };
        Ok((text, Exit::Ok))
    }
}

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Freshness {
    /// Show what this node has, without asking the others; works without a quorum
    #[arg(long)]
    local: bool,
}

impl Freshness {
    /// The path of a question, with what it says about freshness.
    fn of(self, path: &str) -> String {
        if self.local { format!("{path}?consistency=local") } else { path.to_owned() }
    }
}

/// What a command has to work with.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) folder: PathBuf,
    pub(crate) verbose: u8,
    pub(crate) out: Out,
}

impl Session {
    fn client(&self) -> Result<Client, Failure> {
        Ok(Client::of(&self.folder)?)
    }
}

fn after_help() -> String {
    format!(
        "Examples:\n  \
           omx up                            start a node on this machine\n  \
           omx token create                  make the token with which one more machine joins\n  \
           omx up --join TOKEN               start a node there, as a member of the same mesh\n  \
           omx status                        see how the mesh is\n  \
           omx run omx-guide                 ask the model that comes along\n\n{}",
        exit::help()
    )
}

/// Carries out one command.
pub(crate) fn run(cli: Cli) -> Result<Exit, Failure> {
    let Globals { data_dir, json, verbose } = cli.globals;
    let folder = data_dir.map_or_else(folder::default, Ok)?;
    // Lines to be typed are typed elsewhere.
    let folder = std::path::absolute(&folder).map_err(|error| Failure::new(Exit::General, error))?;
    let session = Session { folder, verbose, out: Out::new(json) };
    match cli.verb {
        Verb::Up(up) => up.run(&session),
        Verb::Run(run) => wait_for(run.run(&session)),
        Verb::Events(events) => wait_for(events.run(&session)),
        Verb::Completions(completions) => out::print(&completions.script()).map(|()| Exit::Ok),
        #[cfg(feature = "engine")]
        Verb::Engine(engine) => engine.run(),
        Verb::Question(question) => {
            let (text, exit) = wait_for(question.ask(&session))?;
            out::print(&text).map(|()| exit)
        }
    }
}

/// A command asks one thing after the other: one thread is enough.
fn wait_for<T>(doing: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::General, error))?.block_on(doing)
}

#[cfg(test)]
mod tests;
