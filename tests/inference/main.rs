//! Running models over a mesh of real processes, each before something that answers as Ollama does.
#![cfg(unix)]

mod cancels;
mod client;
mod continuation;
#[cfg(feature = "engine")]
mod engine;
mod enrolled;
mod routing;
mod survival;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Node, Options, Testnet, wait_until};
use tokio::runtime::Runtime;

pub(crate) const MODEL: &str = "tiny:latest";

/// For what takes an election or a machine that is busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How quick a fake is: slots, tokens a second, seconds to load.
pub(crate) fn fake(slots: usize, decode: f64, load: Duration) -> fakes::Config {
    let model = fakes::Model { decode, load, ..fakes::Model::completion(MODEL) };
    fakes::Config { models: vec![model], slots, ..fakes::Config::default() }
}

/// A mesh with a node before each fake, and a last one, before nothing.
pub(crate) struct Mesh {
    pub(crate) runtime: Runtime,
    pub(crate) fakes: Vec<fakes::Ollama>,
    pub(crate) testnet: Testnet,
    _scratch: tempfile::TempDir,
}

impl Mesh {
    /// Returns when the last node knows of the model at every other.
    pub(crate) fn before(configs: Vec<fakes::Config>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let start = |config| runtime.block_on(fakes::Ollama::start(config)).map_err(anyhow::Error::from);
        let fakes = configs.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let of_fake = |fake: &fakes::Ollama| vec!["--ollama".to_owned(), fake.url()];
        let nothing = ["--ollama", "none", "--engine", "off"].map(str::to_owned).into();
        let each = fakes.iter().map(of_fake).chain([nothing]).collect();
        let scratch = tempfile::tempdir()?;
        let binary = Path::new(env!("CARGO_BIN_EXE_omx"));
        let options = Options { each, ..Options::default() };
        let testnet = Testnet::up(binary, scratch.path(), fakes.len() + 1, &options)?;
        let mesh = Self { runtime, fakes, testnet, _scratch: scratch };
        wait_until("the last node to know what all have", LIMIT, || {
            let offering = offering(mesh.entry())?;
            ensure!(offering.len() == mesh.fakes.len(), "{offering:?}");
            Ok(())
        })?;
        Ok(mesh)
    }

    /// The node that has no backend of its own.
    pub(crate) fn entry(&self) -> &Node {
        self.testnet.nodes().last().expect("there is one more than fakes")
    }

    /// Of the last node's `/metrics`.
    pub(crate) fn figure(&self, name: &str) -> Result<f64> {
        figure_of(&self.runtime, self.entry().run()?.api, name)
    }

    pub(crate) fn ask(&self, body: serde_json::Value) -> Result<client::Said> {
        let api = self.entry().run()?.api;
        self.runtime.block_on(client::ask(api, "/api/chat", &body))
    }
}

/// The nodes that have the model and can be asked, by what this one was told.
pub(crate) fn offering(node: &Node) -> Result<Vec<String>> {
    let queue = node.json(&["ps", "--all"])?;
    let nodes = queue["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let offers = |node: &&serde_json::Value| {
        let has_model = node["models"].as_array().is_some_and(|models| !models.is_empty());
        let backend_runs = node["backends"][0]["state"] == "up";
        node["up"] == true && has_model && backend_runs
    };
    Ok(nodes.iter().filter(offers).filter_map(|node| Some(node["node"].as_str()?.to_owned())).collect())
}

pub(crate) fn figure_of(runtime: &Runtime, api: SocketAddr, name: &str) -> Result<f64> {
    let text = runtime.block_on(client::get(api, "/metrics"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no `{name}` in\n{text}"))?.parse().context("it is a number")
}

pub(crate) fn tokens(count: u32) -> String {
    (0..count).map(fakes::token).collect()
}
