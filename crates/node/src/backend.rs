//! What runs models on this machine: an Ollama that is there already, or the engine that this node starts. Which of them
//! is decided once, when the node starts.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use engine::keeper::{self, Program, State};
use engine::serve::SECRET_HEADER;
use models::store::Beside;
use ollama::{Endpoint, client};
use types::Secret;
use vitals::BackendKind;

use crate::inference::Source;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub ollama: OllamaWanted,
    pub engine: EngineWanted,
    /// Requests that each Ollama runs at once; where nobody says it, it is learned.
    pub slots: Option<NonZeroU16>,
    /// How the engine is started; `None` where this program was built without it.
    pub program: Option<Program>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OllamaWanted {
    /// Used where one answers there.
    Found(Endpoint),
    /// Used whether they answer now or not, all of them. At least one.
    At(Vec<Endpoint>),
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineWanted {
    /// Where no Ollama is.
    Auto,
    On,
    Off,
}

/// What was decided, and why, in words for people.
#[derive(Debug, Clone)]
pub struct Backend {
    kind: Kind,
    why: String,
}

#[derive(Debug, Clone)]
enum Kind {
    /// All of them are used, side by side.
    Ollama {
        all: Vec<Endpoint>,
        slots: Option<NonZeroU16>,
    },
    Engine(keeper::Handle),
    None,
}

/// How the backend is spoken to just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub at: Endpoint,
    /// A header without which it does not answer.
    pub secret: Option<(&'static str, Secret<String>)>,
}

/// Why nothing here runs models just now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("nothing on this node runs models: {0}")]
    Nothing(String),
    #[error("the engine is starting")]
    Starting,
    #[error("the engine is down and is started again: {0}")]
    Down(String),
}

/// For `status` and `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    pub kind: &'static str,
    pub address: Option<String>,
    pub why: String,
    /// Its version, or why it does not answer.
    pub answers: Result<String, String>,
}

/// What an engine without models is given, so that the first question has an answer.
pub const FIRST_MODEL: &str = "omx-guide";

/// An Ollama on this machine answers in a moment or is not there.
const FIND_MAX: Duration = Duration::from_secs(1);

/// The engine takes so many at once, fewer only where memory is short; then the rest waits inside.
const ENGINE_SLOTS: NonZeroU16 = NonZeroU16::new(4).expect("it is not zero");

/// What is decided before anything is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Ollama(Vec<Endpoint>),
    Engine(Program),
    Nothing,
}

impl Wanted {
    pub(crate) async fn choose(&self) -> (Choice, String) {
        let found = match &self.ollama {
            OllamaWanted::Found(at) if self.engine != EngineWanted::On => {
                client::version(at, None, FIND_MAX).await.map_err(|error| error.to_string())
            }
            OllamaWanted::Found(_) | OllamaWanted::At(_) | OllamaWanted::None => Err(String::new()),
        };
        self.decide(found)
    }

    /// `found` is the version of the Ollama that was looked for, or why there is none.
    fn decide(&self, found: Result<String, String>) -> (Choice, String) {
        let engine = |why: String| match &self.program {
            Some(program) => (Choice::Engine(program.clone()), why),
            None => (Choice::Nothing, format!("{why}, and this program was built without the engine")),
        };
        match (&self.ollama, self.engine, found) {
            (_, EngineWanted::On, _) => engine("the engine was asked for".to_owned()),
            (OllamaWanted::At(all), ..) => (Choice::Ollama(all.clone()), "it was asked for by its address".to_owned()),
            (OllamaWanted::Found(at), _, Ok(version)) => {
                (Choice::Ollama(vec![at.clone()]), format!("Ollama {version} answers at {at}"))
            }
            (OllamaWanted::Found(at), EngineWanted::Auto, Err(why)) => engine(format!("no Ollama at {at}: {why}")),
            (OllamaWanted::None, EngineWanted::Auto, _) => engine("no Ollama is to be used".to_owned()),
            (OllamaWanted::Found(at), EngineWanted::Off, Err(why)) => {
                (Choice::Nothing, format!("no Ollama at {at}: {why}; the engine is switched off"))
            }
            (OllamaWanted::None, EngineWanted::Off, _) => {
                (Choice::Nothing, "no Ollama is to be used, and the engine is switched off".to_owned())
            }
        }
    }
}

impl Backend {
    pub(crate) fn ollama(all: Vec<Endpoint>, slots: Option<NonZeroU16>, why: String) -> Self {
        Self { kind: Kind::Ollama { all, slots }, why }
    }

    pub(crate) fn engine(handle: keeper::Handle, why: String) -> Self {
        Self { kind: Kind::Engine(handle), why }
    }

    pub(crate) fn none(why: String) -> Self {
        Self { kind: Kind::None, why }
    }

    /// At least one.
    pub fn ways(&self) -> Result<Vec<Way>, Unavailable> {
        match &self.kind {
            Kind::Ollama { all, .. } => Ok(all.iter().map(|at| Way { at: at.clone(), secret: None }).collect()),
            Kind::None => Err(Unavailable::Nothing(self.why.clone())),
            Kind::Engine(handle) => Ok(vec![Self::engine_way(handle)?]),
        }
    }

    /// What agents are put before.
    pub(crate) fn sources(&self) -> Vec<Source> {
        match &self.kind {
            Kind::None => Vec::new(),
            Kind::Ollama { all, slots } => all.iter().map(|at| Source::ollama(at.clone(), *slots)).collect(),
            Kind::Engine(handle) => {
                let running = handle.clone();
                let find = move || match Self::engine_way(&running) {
                    Ok(Way { at, secret }) => Ok(agent::Way { at, secret }),
                    Err(unavailable) => Err(unavailable.to_string()),
                };
                let mut starting = handle.clone();
                let begun = Box::pin(async move { drop(starting.serving(Duration::MAX).await) });
                vec![Source { kind: BackendKind::Engine, find: Box::new(find), begun, slots: Some(ENGINE_SLOTS) }]
            }
        }
    }

    /// Where models get in, and where the folder of each may be.
    pub(crate) fn stores(&self, engine: PathBuf, folders: impl Fn(&Endpoint) -> Vec<PathBuf>) -> Vec<Beside> {
        match &self.kind {
            Kind::None => Vec::new(),
            Kind::Ollama { all, .. } => {
                let beside = |at: &Endpoint| {
                    let way = Way { at: at.clone(), secret: None };
                    let client = Box::new(move || Ok(crate::catalogue::client(way.clone())));
                    let host = Some(at.host().to_owned());
                    Beside { label: at.to_string(), client, host, folders: folders(at), ours: false }
                };
                all.iter().map(beside).collect()
            }
            Kind::Engine(handle) => {
                let running = handle.clone();
                let client = move || match Self::engine_way(&running) {
                    Ok(way) => Ok(crate::catalogue::client(way)),
                    Err(unavailable) => Err(unavailable.to_string()),
                };
                vec![Beside {
                    label: "engine".to_owned(),
                    client: Box::new(client),
                    host: None,
                    folders: vec![engine],
                    ours: true,
                }]
            }
        }
    }

    fn engine_way(handle: &keeper::Handle) -> Result<Way, Unavailable> {
        match handle.state() {
            State::Serving(serving) => {
                let secret = Secret::new(serving.secret.expose().to_owned());
                Ok(Way { at: serving.at.clone(), secret: Some((SECRET_HEADER, secret)) })
            }
            State::Starting => Err(Unavailable::Starting),
            State::Waiting { why } => Err(Unavailable::Down(why)),
            State::Stopped => Err(Unavailable::Down("the node is stopping".to_owned())),
        }
    }

    /// Waits for an engine that is starting. Returns whether the backend can be asked now.
    pub async fn ready(&self, limit: Duration) -> bool {
        if let Kind::Engine(handle) = &self.kind {
            handle.clone().serving(limit).await;
        }
        self.ways().is_ok()
    }

    pub fn is_engine(&self) -> bool {
        matches!(self.kind, Kind::Engine(_))
    }

    /// Of the first that answers, else of the first.
    pub async fn info(&self) -> BackendInfo {
        let (mut address, mut answers) = (None, Err(String::new()));
        match self.ways() {
            Err(unavailable) => answers = Err(unavailable.to_string()),
            Ok(ways) => {
                for way in ways {
                    let version = way.version().await;
                    if address.is_none() || version.is_ok() {
                        (address, answers) = (Some(way.at.to_string()), version);
                    }
                    if answers.is_ok() {
                        break;
                    }
                }
            }
        }
        let kind = match &self.kind {
            Kind::Ollama { .. } => "ollama",
            Kind::Engine(_) => "engine",
            Kind::None => "none",
        };
        BackendInfo { kind, address, why: self.why.clone(), answers }
    }
}

impl Way {
    async fn version(&self) -> Result<String, String> {
        let header = self.secret.as_ref().map(|(name, value)| (*name, value.expose().as_str()));
        client::version(&self.at, header, FIND_MAX).await.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn program() -> Program {
        Program { file: "omx".into(), arguments: Vec::new() }
    }

    fn wanted(ollama: OllamaWanted, engine: EngineWanted) -> Wanted {
        Wanted { ollama, engine, slots: None, program: Some(program()) }
    }

    #[test]
    fn an_ollama_that_answers_is_used_and_else_the_engine_runs() {
        let found = OllamaWanted::Found(Endpoint::local());
        let auto = wanted(found.clone(), EngineWanted::Auto);
        assert_eq!(auto.decide(Ok("0.6.2".into())).0, Choice::Ollama(vec![Endpoint::local()]));
        let (choice, why) = auto.decide(Err("nothing listens there".into()));
        assert_eq!(choice, Choice::Engine(program()));
        assert!(why.contains("no Ollama at http://127.0.0.1:11434: nothing listens there"), "{why}");
        let (choice, why) = Wanted { program: None, ..auto }.decide(Err("nothing listens there".into()));
        assert_eq!(choice, Choice::Nothing);
        assert!(why.contains("built without the engine"), "{why}");
        let off = wanted(found, EngineWanted::Off);
        assert_eq!(off.decide(Err(String::new())).0, Choice::Nothing);
    }

    #[test]
    fn what_was_asked_for_by_name_is_used_whether_it_answers_or_not() {
        let all: Vec<Endpoint> = ["attic:1", "cellar:2"].map(|at| at.parse().unwrap()).into();
        let named = wanted(OllamaWanted::At(all.clone()), EngineWanted::Auto);
        assert_eq!(named.decide(Err(String::new())).0, Choice::Ollama(all));
        let on = wanted(OllamaWanted::Found(Endpoint::local()), EngineWanted::On);
        assert_eq!(on.decide(Ok("0.6.2".into())).0, Choice::Engine(program()));
        assert_eq!(
            wanted(OllamaWanted::None, EngineWanted::Auto).decide(Err(String::new())).0,
            Choice::Engine(program())
        );
        assert_eq!(wanted(OllamaWanted::None, EngineWanted::Off).decide(Err(String::new())).0, Choice::Nothing);
    }

    /// Says a version to whoever asks, once.
    async fn ollama() -> (Endpoint, tokio::net::TcpListener) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        (listener.local_addr().unwrap().to_string().parse().unwrap(), listener)
    }

    async fn answer_once(listener: &tokio::net::TcpListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 18\r\nconnection: close\r\n\r\n{\"version\":\"9.9\"}\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn of_several_the_first_that_answers_is_told() {
        let (gone, listener) = ollama().await;
        drop(listener);
        let (there, listener) = ollama().await;
        let backend = Backend::ollama(vec![gone.clone(), there.clone()], None, String::new());
        let (info, ()) = tokio::join!(backend.info(), answer_once(&listener));
        assert_eq!((info.address, info.answers), (Some(there.to_string()), Ok("9.9".to_owned())));
        drop(listener);
        let info = backend.info().await;
        assert_eq!(info.address, Some(gone.to_string()));
        assert!(info.answers.is_err());
    }
}
