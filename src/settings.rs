//! What concerns this machine alone: where it listens, what it is called. A flag wins over the environment, that over
//! `omx.toml`, that over the default, and each value remembers where it came from.
//!
//! Pure: flags, environment and the file's text come in, settings or what is wrong with them come out. What concerns
//! the whole mesh is in the registry and unknown here.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU64};
use std::path::{Path, PathBuf};

use node::{Endpoint, EngineWanted, OllamaWanted, SLOTS_MAX};
use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use types::NodeName;

use crate::exit::Exit;
use crate::failure::Failure;

/// openraft warns of things that are ordinary in a founding or an election, and mean nothing to whoever runs a node.
/// Each of them may take seconds to say that it is not there, and they are asked one after another.
const OLLAMAS_MAX: usize = 8;
const LOG_DEFAULT: &str = "info,openraft=error,libp2p=warn,sled=warn";

/// Every setting: a key of `omx.toml`, a variable and a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "one of the settings is a key")]
pub(crate) enum Key {
    Name,
    Api,
    Mesh,
    Bulk,
    Mdns,
    AllowHost,
    InsecureNoAuth,
    TlsCert,
    TlsKey,
    Ollama,
    OllamaModels,
    Engine,
    Slots,
    UpLimit,
    DownLimit,
    Log,
}

impl Key {
    pub(crate) const ALL: [Self; 16] = [
        Self::Name,
        Self::Api,
        Self::Mesh,
        Self::Bulk,
        Self::Mdns,
        Self::AllowHost,
        Self::InsecureNoAuth,
        Self::TlsCert,
        Self::TlsKey,
        Self::Ollama,
        Self::OllamaModels,
        Self::Engine,
        Self::Slots,
        Self::UpLimit,
        Self::DownLimit,
        Self::Log,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Api => "api",
            Self::Mesh => "mesh",
            Self::Bulk => "bulk",
            Self::Mdns => "mdns",
            Self::AllowHost => "allow_host",
            Self::InsecureNoAuth => "insecure_no_auth",
            Self::TlsCert => "tls_cert",
            Self::TlsKey => "tls_key",
            Self::Ollama => "ollama",
            Self::OllamaModels => "ollama_models",
            Self::Engine => "engine",
            Self::Slots => "slots",
            Self::UpLimit => "up_limit",
            Self::DownLimit => "down_limit",
            Self::Log => "log",
        }
    }

    pub(crate) fn variable(self) -> String {
        format!("OMX_{}", self.name().to_ascii_uppercase())
    }

    pub(crate) fn flag(self) -> String {
        match self {
            // On by default, so that the flag can only turn it off.
            Self::Mdns => "--no-mdns".to_owned(),
            _ => format!("--{}", self.name().replace('_', "-")),
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Environment,
    File { line: usize },
    Default,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Default: the machine's name.
    pub(crate) name: Setting<Option<NodeName>>,
    /// Default: `127.0.0.1:11435`; Ollama owns the port before it.
    pub(crate) api: Setting<SocketAddr>,
    /// Default: `0.0.0.0:11436`.
    pub(crate) mesh: Setting<SocketAddr>,
    /// Default: port 11437 on the address of `mesh`; any free port when `mesh` takes any.
    pub(crate) bulk: Setting<SocketAddr>,
    /// Default: true.
    pub(crate) mdns: Setting<bool>,
    /// More names by which browsers and proxies may ask for this node. Default: none.
    pub(crate) allow_host: Setting<Vec<String>>,
    /// Default: false.
    pub(crate) insecure_no_auth: Setting<bool>,
    /// Files in PEM. Default: none, the API is not encrypted.
    pub(crate) tls_cert: Setting<Option<PathBuf>>,
    pub(crate) tls_key: Setting<Option<PathBuf>>,
    /// Ollamas by their addresses, `none`, or nothing: whichever answers at `OLLAMA_HOST` or its usual port.
    pub(crate) ollama: Setting<OllamaWanted>,
    /// The folder of that Ollama's models. Default: looked for where Ollama keeps them by itself.
    pub(crate) ollama_models: Setting<Option<PathBuf>>,
    /// Default: `auto`, which is where there is no Ollama.
    pub(crate) engine: Setting<EngineWanted>,
    /// Requests that each Ollama runs at once. Default: it is learned.
    pub(crate) slots: Setting<Option<NonZeroU16>>,
    /// Bytes a second of models that leave for other nodes, and that come from them. Default: as many as go through.
    pub(crate) up_limit: Setting<Option<NonZeroU64>>,
    pub(crate) down_limit: Setting<Option<NonZeroU64>>,
    /// Levels by target, as in `info,net=debug`.
    pub(crate) log: Setting<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{place} cannot be `{value}`")]
    Bad { place: String, value: String, source: Reason },
    #[error("unknown key `{key}` in line {line} of `{}`", .path.display())]
    UnknownKey { path: PathBuf, line: usize, key: String, near: Option<Key> },
    #[error("line {line} of `{}` is not TOML", .path.display())]
    Syntax { path: PathBuf, line: usize, source: Reason },
    #[error("failed to read `{}`", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{place} means nothing without `{}`", .missing.flag())]
    Alone { place: String, missing: Key },
}

/// What is wrong with a value, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Reason(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match &error {
            Error::UnknownKey { near: Some(key), .. } => Some(format!("did you mean `{}`?", key.name())),
            Error::UnknownKey { near: None, .. } => {
                Some(format!("the keys are {}", Key::ALL.map(|key| format!("`{}`", key.name())).join(", ")))
            }
            Error::Alone { .. } => Some("TLS takes a certificate and its key, each in a file".to_owned()),
            Error::Bad { .. } | Error::Syntax { .. } | Error::Unreadable { .. } => None,
        };
        let exit = match &error {
            Error::Unreadable { .. } => Exit::General,
            Error::Bad { .. } | Error::UnknownKey { .. } | Error::Syntax { .. } | Error::Alone { .. } => Exit::Usage,
        };
        Self::new(exit, error).hint(hint)
    }
}

/// `omx.toml`: the text of each key it has, and its line.
#[derive(Debug, Default)]
pub(crate) struct File {
    path: PathBuf,
    values: Vec<(Key, String, usize)>,
}

impl File {
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| Error::Syntax {
            path: path.to_owned(),
            line: line_of(error.span().map_or(0, |span| span.start)),
            source: Reason(error.message().to_owned()),
        })?;
        let mut values = Vec::new();
        for (name, value) in table.into_inner() {
            let line = line_of(name.span().start);
            let Some(key) = Key::ALL.into_iter().find(|key| key.name() == name.get_ref()) else {
                let key: String = name.get_ref().chars().take(100).collect();
                let near = nearest(&key);
                return Err(Error::UnknownKey { path: path.to_owned(), line, key, near });
            };
            let text = match value.get_ref() {
                DeValue::String(text) => text.clone().into_owned(),
                DeValue::Boolean(on) => on.to_string(),
                DeValue::Integer(_) => text[value.span()].to_owned(),
                other => {
                    return Err(Error::Bad {
                        place: place(key, Origin::File { line }, path),
                        value: text[value.span()].chars().take(100).collect(),
                        source: Reason(format!(
                            "a text in quotes, a whole number, `true` or `false` is needed, not of type {}",
                            other.type_str()
                        )),
                    });
                }
            };
            values.push((key, text, line));
        }
        Ok(Self { path: path.to_owned(), values })
    }

    /// A file that is not there sets nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Unreadable { path: path.to_owned(), source }),
        }
    }
}

impl Settings {
    pub(crate) fn resolve(
        flags: &[(Key, String)],
        environment: impl Fn(&str) -> Option<String>,
        file: &File,
    ) -> Result<Self, Error> {
        let layers = Layers { flags, environment, file };
        let mesh = layers.setting(Key::Mesh, address, || any_interface(11_436))?;
        let beside_mesh = SocketAddr::new(mesh.value.ip(), if mesh.value.port() == 0 { 0 } else { 11_437 });
        Ok(Self {
            name: layers.setting(Key::Name, |text| said(text.parse()).map(Some), || None)?,
            api: layers.setting(Key::Api, address, || SocketAddr::from((Ipv4Addr::LOCALHOST, 11_435)))?,
            bulk: layers.setting(Key::Bulk, address, || beside_mesh)?,
            mesh,
            mdns: layers.setting(Key::Mdns, switch, || true)?,
            allow_host: layers.setting(Key::AllowHost, |text| Ok(list(text)), Vec::new)?,
            insecure_no_auth: layers.setting(Key::InsecureNoAuth, switch, || false)?,
            tls_cert: layers.path(Key::TlsCert)?,
            tls_key: layers.path(Key::TlsKey)?,
            ollama: layers.setting(Key::Ollama, ollama, || OllamaWanted::Found(usual_ollama(&layers.environment)))?,
            ollama_models: layers.path(Key::OllamaModels)?,
            engine: layers.setting(Key::Engine, engine, || EngineWanted::Auto)?,
            slots: layers.setting(Key::Slots, slots, || None)?,
            up_limit: layers.setting(Key::UpLimit, rate, || None)?,
            down_limit: layers.setting(Key::DownLimit, rate, || None)?,
            log: layers.setting(Key::Log, levels, || LOG_DEFAULT.to_owned())?,
        })
    }

    /// Certificate and key, both or none. `file` is where `omx.toml` is.
    pub(crate) fn tls(&self, file: &Path) -> Result<Option<(&Path, &Path)>, Error> {
        let alone = |key, origin, missing| Err(Error::Alone { place: place(key, origin, file), missing });
        match (&self.tls_cert, &self.tls_key) {
            (Setting { value: Some(cert), .. }, Setting { value: Some(key), .. }) => Ok(Some((cert, key))),
            (Setting { value: None, .. }, Setting { value: None, .. }) => Ok(None),
            (Setting { origin, .. }, Setting { value: None, .. }) => alone(Key::TlsCert, *origin, Key::TlsKey),
            (Setting { value: None, .. }, Setting { origin, .. }) => alone(Key::TlsKey, *origin, Key::TlsCert),
        }
    }

    /// Each key with its value as text and where that comes from.
    pub(crate) fn rows(&self) -> [(Key, String, Origin); 16] {
        let name = self.name.value.as_ref().map_or_else(String::new, NodeName::to_string);
        let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        [
            (Key::Name, name, self.name.origin),
            (Key::Api, self.api.value.to_string(), self.api.origin),
            (Key::Mesh, self.mesh.value.to_string(), self.mesh.origin),
            (Key::Bulk, self.bulk.value.to_string(), self.bulk.origin),
            (Key::Mdns, self.mdns.value.to_string(), self.mdns.origin),
            (Key::AllowHost, self.allow_host.value.join(","), self.allow_host.origin),
            (Key::InsecureNoAuth, self.insecure_no_auth.value.to_string(), self.insecure_no_auth.origin),
            (Key::TlsCert, path(&self.tls_cert.value), self.tls_cert.origin),
            (Key::TlsKey, path(&self.tls_key.value), self.tls_key.origin),
            (Key::Ollama, ollama_text(&self.ollama.value), self.ollama.origin),
            (Key::OllamaModels, path(&self.ollama_models.value), self.ollama_models.origin),
            (Key::Engine, engine_text(self.engine.value).to_owned(), self.engine.origin),
            (Key::Slots, slots_text(self.slots.value), self.slots.origin),
            (Key::UpLimit, rate_text(self.up_limit.value), self.up_limit.origin),
            (Key::DownLimit, rate_text(self.down_limit.value), self.down_limit.origin),
            (Key::Log, self.log.value.clone(), self.log.origin),
        ]
    }
}

/// Where values are looked for, the first that has one wins.
struct Layers<'a, E> {
    flags: &'a [(Key, String)],
    environment: E,
    file: &'a File,
}

impl<E: Fn(&str) -> Option<String>> Layers<'_, E> {
    fn setting<T>(
        &self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, Reason>,
        default: impl FnOnce() -> T,
    ) -> Result<Setting<T>, Error> {
        let Some((text, origin)) = self.look_up(key) else {
            return Ok(Setting { value: default(), origin: Origin::Default });
        };
        match parse(&text) {
            Ok(value) => Ok(Setting { value, origin }),
            Err(source) => {
                let value = text.chars().take(100).collect();
                Err(Error::Bad { place: place(key, origin, &self.file.path), value, source })
            }
        }
    }

    /// What the file names is looked for from where the file is: a node may be started from anywhere.
    fn path(&self, key: Key) -> Result<Setting<Option<PathBuf>>, Error> {
        let mut path = self.setting(key, |text| Ok(Some(PathBuf::from(text))), || None)?;
        if let (Origin::File { .. }, Some(folder)) = (path.origin, self.file.path.parent()) {
            path.value = path.value.map(|path| folder.join(path));
        }
        Ok(path)
    }

    fn look_up(&self, key: Key) -> Option<(String, Origin)> {
        let flag = self.flags.iter().find(|(flag, _)| *flag == key).map(|(_, text)| (text.clone(), Origin::Flag));
        // A variable that is set to nothing is how scripts unset one.
        let variable = || (self.environment)(&key.variable()).filter(|text| !text.is_empty());
        let in_file = || self.file.values.iter().find(|(in_file, ..)| *in_file == key);
        flag.or_else(|| variable().map(|text| (text, Origin::Environment)))
            .or_else(|| in_file().map(|(_, text, line)| (text.clone(), Origin::File { line: *line })))
    }
}

fn place(key: Key, origin: Origin, file: &Path) -> String {
    match origin {
        Origin::Flag => format!("`{}`", key.flag()),
        Origin::Environment => format!("`{}`", key.variable()),
        Origin::File { line } => format!("`{}` in line {line} of `{}`", key.name(), file.display()),
        Origin::Default => format!("the default of `{}`", key.name()),
    }
}

impl Origin {
    /// For `config show --origin`.
    pub(crate) fn of(self, key: Key) -> String {
        match self {
            Self::Flag => key.flag(),
            Self::Environment => key.variable(),
            Self::File { line } => format!("omx.toml:{line}"),
            Self::Default => "default".to_owned(),
        }
    }
}

fn any_interface(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn address(text: &str) -> Result<SocketAddr, Reason> {
    text.parse()
        .map_err(|_| Reason("an address and a port are needed, such as `127.0.0.1:11435` or `[::1]:0`".to_owned()))
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn switch(text: &str) -> Result<bool, Reason> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Reason("`true` or `false` is needed".to_owned())),
    }
}

fn ollama(text: &str) -> Result<OllamaWanted, Reason> {
    let named = list(text);
    match named.as_slice() {
        [none] if none == "none" => Ok(OllamaWanted::None),
        [] => {
            Err(Reason("an address such as `127.0.0.1:11434`, several with commas between, or `none` is needed".into()))
        }
        _ if named.len() > OLLAMAS_MAX => Err(Reason(format!("{OLLAMAS_MAX} of them are the most"))),
        _ if named.iter().any(|text| text == "none") => Err(Reason("`none` stands alone".to_owned())),
        _ => said(named.iter().map(|text| text.parse()).collect::<Result<_, _>>()).map(OllamaWanted::At),
    }
}

fn ollama_text(wanted: &OllamaWanted) -> String {
    match wanted {
        OllamaWanted::None => "none".to_owned(),
        OllamaWanted::Found(at) => at.to_string(),
        OllamaWanted::At(all) => all.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(","),
    }
}

/// Where Ollama's own programs would look. What cannot be understood is theirs to complain about.
fn usual_ollama(environment: impl Fn(&str) -> Option<String>) -> Endpoint {
    environment("OLLAMA_HOST").and_then(|text| text.parse().ok()).unwrap_or_else(Endpoint::local)
}

fn engine(text: &str) -> Result<EngineWanted, Reason> {
    match text {
        "auto" => Ok(EngineWanted::Auto),
        "on" => Ok(EngineWanted::On),
        "off" => Ok(EngineWanted::Off),
        _ => Err(Reason("`on`, `off` or `auto` is needed".to_owned())),
    }
}

fn engine_text(wanted: EngineWanted) -> &'static str {
    match wanted {
        EngineWanted::Auto => "auto",
        EngineWanted::On => "on",
        EngineWanted::Off => "off",
    }
}

fn slots(text: &str) -> Result<Option<NonZeroU16>, Reason> {
    match text.parse() {
        _ if text == "auto" => Ok(None),
        Ok(slots) if (1..=SLOTS_MAX).contains(&slots) => Ok(NonZeroU16::new(slots)),
        Ok(_) | Err(_) => Err(Reason(format!("a number from 1 to {SLOTS_MAX} or `auto` is needed"))),
    }
}

fn slots_text(slots: Option<NonZeroU16>) -> String {
    slots.map_or_else(|| "auto".to_owned(), |slots| slots.to_string())
}

/// Bytes a second, in thousands as lines and disks are sold.
const RATE_UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

fn rate(text: &str) -> Result<Option<NonZeroU64>, Reason> {
    let needed = || Reason("a number with `KB`, `MB` or `GB`, such as `20MB` a second, or `none` is needed".to_owned());
    if text == "none" {
        return Ok(None);
    }
    let found = RATE_UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = found.ok_or_else(needed)?;
    let bytes = number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.and_then(NonZeroU64::new).map(Some).ok_or_else(needed)
}

fn rate_text(rate: Option<NonZeroU64>) -> String {
    let Some(rate) = rate else { return "none".to_owned() };
    let (unit, bytes) = RATE_UNITS.into_iter().find(|(_, bytes)| rate.get().is_multiple_of(*bytes)).unwrap_or(("B", 1));
    format!("{}{unit}", rate.get() / bytes)
}

fn levels(text: &str) -> Result<String, Reason> {
    // A filter takes any single word for the name of a target, so that a mistyped level would silence everything.
    let bare = text.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    for word in bare {
        if word.parse::<LevelFilter>().is_err() {
            return Err(Reason(format!("`{word}` is none of `off`, `error`, `warn`, `info`, `debug`, `trace`")));
        }
    }
    said(EnvFilter::try_new(text)).map(|_| text.to_owned())
}

fn said<T, E: fmt::Display>(parsed: Result<T, E>) -> Result<T, Reason> {
    parsed.map_err(|error| Reason(error.to_string()))
}

/// The key that was probably meant: at least half of the letters fit.
fn nearest(typed: &str) -> Option<Key> {
    let distances = Key::ALL.into_iter().map(|key| (distance(typed, key.name()), key));
    let (distance, key) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= typed.chars().count().max(key.name().len()) / 2).then_some(key)
}

/// How many letters must be added, removed or changed to get from one to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (removed, letter) in (1..).zip(from.chars()) {
        let mut diagonal = std::mem::replace(&mut row[0], removed);
        for at in 0..to.len() {
            let changed = diagonal + usize::from(letter != to[at]);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
