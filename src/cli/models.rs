//! `omx models`: which models the mesh has, where they are and should be, and how they get there.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use gateway::wire::{
    CollectGarbage, Collected, CopyModel, Done, Holder, ImportModel, Model, ModelShown, NameModel, PinModel,
    PlaceModel, RollBackModel, Rule, VerifyModel,
};

use self::progress::follow;
use super::Session;
use crate::client::{Client, Method, query};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out::Out;
use crate::sizes::bytes;
use crate::table::Table;

pub(super) mod progress;

const PATH: &str = "/omx/v1/models";

/// List, fetch, place, check and remove models
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  omx models ls\n  omx models pull llama3.2\n  \
    omx models import ./qwen.gguf --name qwen\n  omx models place qwen --replicas 2\n  omx models show qwen --json")]
pub(crate) enum Models {
    /// List the models of the mesh, and which nodes have each
    Ls,
    /// Show one model: its versions, its layers, who has it and who should
    Show { name: String },
    /// Bring a model into the mesh from the registry its name begins with
    ///
    /// From other nodes where they have it already, else from the registry, once for the whole mesh. Ctrl-C ends the watching;
    /// the node goes on, and another `pull` of the same name watches it again.
    Pull { name: String },
    /// Make a model of a GGUF file on this machine
    ///
    /// Nothing is copied where the file lies on the same file system as the models: leave it in place and unchanged.
    Import(Import),
    /// Say on how many nodes a model should be, and on which
    Place(Place),
    /// Read all files of a model again on all nodes that have it; exit code 0 when they are whole
    ///
    /// What is damaged is fetched again from other nodes by itself; `--repair` waits for that. A node whose files cannot be
    /// read, or that is down, is named, and then not all was looked at: exit code 1.
    Verify {
        name: String,
        /// Fetch what is damaged from other nodes
        #[arg(long)]
        repair: bool,
    },
    /// Give a model one more name
    Cp { from: String, to: String },
    /// Keep a name from moving and from being deleted
    Pin {
        name: String,
        /// Let it move again
        #[arg(long)]
        off: bool,
    },
    /// Make a name mean again what it meant before
    Rollback {
        name: String,
        /// To the change of this index, as `omx models show` lists them [default: the one before the last]
        #[arg(long, value_name = "INDEX")]
        to: Option<u64>,
    },
    /// Remove a name from the mesh; `restore` brings it back until its files are collected
    Rm { name: String },
    /// Bring back a name that was removed
    Restore { name: String },
    /// Free what no model needs any more, on this node; what came within an hour stays
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A GGUF file
    file: PathBuf,
    /// What it shall be called, such as `qwen` or `me/qwen:q4`
    #[arg(long)]
    name: String,
    /// A file with the prompt's template, in Ollama's language [default: what the model file says]
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// What the model is told before each conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// An option of Ollama's, such as `temperature=0.2`; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = param)]
    param: Vec<(String, serde_json::Value)>,
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    name: String,
    /// How many copies, or `all` for one on each node that may have it
    #[arg(long, required_unless_present = "off", conflicts_with = "off", value_parser = replicas)]
    replicas: Option<Replicas>,
    /// Only on nodes with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "off")]
    on: Vec<String>,
    /// Not on nodes with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "off")]
    never: Vec<String>,
    /// Copies are never given up to make room
    #[arg(long, conflicts_with = "off")]
    pin: bool,
    /// Take the rule away; copies stay where they are
    #[arg(long)]
    off: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replicas {
    All,
    Count(u32),
}

impl Models {
    pub(super) async fn run(self, session: &Session) -> Result<(String, Exit), Failure> {
        let (client, out) = (session.client()?, &session.out);
        let text = match self {
            Self::Ls => {
                let answer = client.get(PATH).await?;
                out.answer(&answer, |models: Vec<Model>| list(&models, out))?
            }
            Self::Show { name } => {
                let answer = client.get(&query(&format!("{PATH}/show"), "name", &name)).await?;
                out.answer(&answer, |model: ModelShown| show(&model, out))?
            }
            Self::Pull { name } => {
                let body = serde_json::json!({ "model": name });
                follow(client.lines("/api/pull", &body).await?, out, &format!("`{name}` is in the mesh\n")).await?
            }
            Self::Import(import) => {
                let name = import.name.clone();
                let lines = client.lines(&format!("{PATH}/import"), &import.read()?).await?;
                follow(lines, out, &format!("`{name}` is in the mesh\n")).await?
            }
            Self::Verify { name, repair } => {
                let asked = VerifyModel { name: name.clone(), repair };
                let lines = client.lines(&format!("{PATH}/verify"), &asked).await?;
                follow(lines, out, &format!("`{name}` is whole\n")).await?
            }
            Self::Place(place) => place.send(&client, out).await?,
            Self::Cp { from, to } => {
                let done = format!("`{to}` is what `{from}` is\n");
                change(&client, out, "copy", &CopyModel { from, to }, done).await?
            }
            Self::Pin { name, off } => {
                let done = if off { format!("`{name}` may move\n") } else { format!("`{name}` stays what it is\n") };
                change(&client, out, "pin", &PinModel { name, pinned: !off }, done).await?
            }
            Self::Rollback { name, to } => {
                let done = format!("`{name}` is what it was\n");
                change(&client, out, "rollback", &RollBackModel { name, to }, done).await?
            }
            Self::Rm { name } => {
                let done = format!("`{name}` is removed; `omx models restore {name}` brings it back\n");
                change(&client, out, "remove", &NameModel { name }, done).await?
            }
            Self::Restore { name } => {
                let done = format!("`{name}` is back\n");
                change(&client, out, "restore", &NameModel { name }, done).await?
            }
            Self::Gc { dry_run } => {
                let answer = client.send(Method::POST, &format!("{PATH}/gc"), &CollectGarbage { dry: dry_run }).await?;
                out.answer(&answer, |gone: Vec<Collected>| collected(&gone, dry_run, out))?
            }
        };
        Ok((text, Exit::Ok))
    }
}

impl Import {
    fn read(self) -> Result<ImportModel, Failure> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error| Failure::new(Exit::General, format!("cannot read `{path}`: {error}"))
        };
        let file = self.file.canonicalize().map_err(failed(&self.file))?;
        let template = match &self.template {
            Some(path) => Some(std::fs::read_to_string(path).map_err(failed(path))?),
            None => None,
        };
        let path = file.to_str().ok_or_else(|| Failure::new(Exit::General, "the file's name is not UTF-8"))?;
        let params = self.param.into_iter().collect();
        Ok(ImportModel { path: path.to_owned(), name: self.name, template, system: self.system, params })
    }
}

impl Place {
    async fn send(self, client: &Client, out: &Out) -> Result<String, Failure> {
        let Self { name, replicas, on, never, pin, off } = self;
        let (rule, done) = match (off, replicas) {
            (false, Some(replicas)) => {
                let (count, text) = match replicas {
                    Replicas::All => (None, "every node that may have it".to_owned()),
                    Replicas::Count(1) => (Some(1), "1 node".to_owned()),
                    Replicas::Count(count) => (Some(count), format!("{count} nodes")),
                };
                let done = format!("`{name}` goes to {text}; `omx models show {name}` tells how far it is\n");
                (Some(Rule { replicas: count, on, never, pin }), done)
            }
            _ => (None, format!("`{name}` stays where it is, and goes nowhere by itself\n")),
        };
        change(client, out, "place", &PlaceModel { name, rule }, done).await
    }
}

async fn change(
    client: &Client,
    out: &Out,
    what: &str,
    asked: &impl serde::Serialize,
    done: String,
) -> Result<String, Failure> {
    let answer = client.send(Method::POST, &format!("{PATH}/{what}"), asked).await?;
    out.answer(&answer, |_: Done| done)
}

fn list(models: &[Model], out: &Out) -> String {
    if models.is_empty() {
        return "no models yet; `omx models pull NAME` or `omx models import FILE --name NAME` brings one in\n"
            .to_owned();
    }
    let mut table = Table::new(["NAME", "DIGEST", "SIZE", "RULE", "NODES"]);
    for model in models {
        let pinned = if model.pinned { " (pinned)" } else { "" };
        let aliases: String = model.aliases.iter().map(|alias| format!(", {alias}")).collect();
        table.row([
            format!("{}{aliases}{pinned}", model.name),
            short(&model.digest),
            bytes(model.bytes),
            model.rule.as_ref().map_or_else(String::new, rule),
            model.holders.iter().map(|holder| held(holder, model.bytes)).collect::<Vec<_>>().join(", "),
        ]);
    }
    table.render(out.width)
}

fn show(model: &ModelShown, out: &Out) -> String {
    let mut text = format!("name      {}{}\n", model.name, if model.pinned { " (pinned)" } else { "" });
    text += &format!("digest    {}\nsize      {}\n", model.digest, bytes(model.bytes));
    if !model.aliases.is_empty() {
        text += &format!("aliases   {}\n", model.aliases.join(", "));
    }
    let rule = model.rule.as_ref().map_or_else(|| "none: it stays where it is".to_owned(), rule);
    text += &format!("rule      {rule}\n");
    if !model.assigned.is_empty() {
        text += &format!("assigned  {}\n", model.assigned.join(", "));
    }
    let mut holders = Table::new(["NODE", "STATE"]);
    for holder in &model.holders {
        let state = match holder.bytes {
            Some(there) => format!("{} {} of {}", holder.state, bytes(there), bytes(model.bytes)),
            None => holder.state.clone(),
        };
        holders.row([holder.node.clone(), state]);
    }
    let mut layers = Table::new(["LAYER", "BLAKE3", "SIZE"]);
    for layer in &model.layers {
        layers.row([short(&layer.digest), short(&layer.blake3), bytes(layer.bytes)]);
    }
    let mut history = Table::new(["INDEX", "DIGEST", "WHEN", "BY"]);
    for meant in model.history.iter().rev() {
        history.row([meant.index.to_string(), short(&meant.digest), out.ago(meant.at.0), meant.by.clone()]);
    }
    for table in [holders.render(out.width), layers.render(out.width), history.render(out.width)] {
        text += "\n";
        text += &table;
    }
    text
}

fn collected(gone: &[Collected], dry: bool, out: &Out) -> String {
    let freed: u64 = gone.iter().map(|blob| blob.freed).sum();
    let mut table = Table::new(["BLOB", "SIZE", "FREES"]);
    for blob in gone {
        table.row([short(&blob.blake3), bytes(blob.bytes), bytes(blob.freed)]);
    }
    let rows = if gone.is_empty() { String::new() } else { table.render(out.width) };
    let verb = if dry { "would be freed" } else { "freed" };
    format!("{rows}{} {verb}\n", bytes(freed))
}

fn rule(rule: &Rule) -> String {
    let mut text = rule.replicas.map_or_else(|| "all".to_owned(), |count| format!("{count}x"));
    for label in &rule.on {
        text += &format!(" on {label}");
    }
    for label in &rule.never {
        text += &format!(" never {label}");
    }
    if rule.pin {
        text += " pinned";
    }
    text
}

fn held(holder: &Holder, total: u64) -> String {
    match (holder.state.as_str(), holder.bytes) {
        ("verified", _) => holder.node.clone(),
        ("fetching", Some(there)) => format!("{} ({} %)", holder.node, there * 100 / total.max(1)),
        (state, _) => format!("{} ({state})", holder.node),
    }
}

/// As Ollama shortens them.
fn short(digest: &str) -> String {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.chars().take(12).collect()
}

fn replicas(text: &str) -> Result<Replicas, String> {
    match text {
        "all" => Ok(Replicas::All),
        text => text.parse().map(Replicas::Count).map_err(|_| "a number of copies, or `all`".to_owned()),
    }
}

/// A number, `true` or `false` where it is one, else text.
fn param(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').ok_or("write `key=value`")?;
    let value = match serde_json::from_str::<serde_json::Value>(value) {
        Ok(read) if read.is_number() || read.is_boolean() || read.is_array() => read,
        _ => value.into(),
    };
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood() {
        assert_eq!((replicas("all"), replicas("3")), (Ok(Replicas::All), Ok(Replicas::Count(3))));
        assert!(replicas("-1").is_err() && replicas("many").is_err());
        assert_eq!(param("temperature=0.2").unwrap(), ("temperature".to_owned(), serde_json::json!(0.2)));
        assert_eq!(param("stop=<|end|>").unwrap(), ("stop".to_owned(), serde_json::json!("<|end|>")));
        assert!(param("temperature").is_err());
    }

    #[test]
    fn a_list_tells_copies_that_count_from_those_that_do_not() {
        let holder = |node: &str, state: &str, bytes| Holder { node: node.to_owned(), state: state.to_owned(), bytes };
        let model = Model {
            name: "qwen:latest".to_owned(),
            digest: "sha256:0123456789abcdef".to_owned(),
            bytes: 2_000_000_000,
            pinned: true,
            aliases: vec!["q".to_owned()],
            rule: Some(Rule { replicas: Some(2), on: vec!["gpu=yes".to_owned()], never: Vec::new(), pin: false }),
            holders: vec![holder("tower", "verified", None), holder("attic", "fetching", Some(500_000_000))],
        };
        let out = Out { json: false, width: None, now: types::UnixMillis(0) };
        let shown = list(&[model], &out);
        assert!(
            shown.contains("qwen:latest, q (pinned)  0123456789ab  2.0 GB  2x on gpu=yes  tower, attic (25 %)"),
            "{shown}"
        );
    }
}
