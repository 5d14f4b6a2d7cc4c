//! `cargo xtask fake-ollama`: a stand-in for Ollama to point a node or a client at, until it is interrupted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use fakes::{Config, Fault, Model, Ollama};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// On 127.0.0.1; any free port where it is 0
    #[arg(long, default_value_t = 11434)]
    port: u16,
    /// `name` or `name=trait+trait` with the traits embedding, thinking, tools
    #[arg(long, value_delimiter = ',', default_value = "fake:1b,fake-embed=embedding")]
    models: Vec<Model>,
    /// Requests each model answers at once
    #[arg(long, default_value_t = 1)]
    slots: usize,
    /// How long a load takes
    #[arg(long, default_value_t = 1000)]
    load_ms: u64,
    /// Prompt tokens a second
    #[arg(long, default_value_t = 1000.0, value_parser = rate)]
    prefill: f64,
    /// Answer tokens a second
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    decode: f64,
    /// Tokens of an answer that nothing cuts short; by model and seed where there is none
    #[arg(long)]
    tokens: Option<u32>,
    /// For every inference: refuse, hang, garbage, wrong-model, freeze, status=CODE, hang-inside=LINES,
    /// error-inside=LINES, end-early=LINES, cut=BYTES, slow=TIMES
    #[arg(long)]
    fault: Vec<Fault>,
    /// For every request that changes which models there are, the same ones, and mismatch
    #[arg(long)]
    models_fault: Vec<Fault>,
    /// A models folder in Ollama's layout: its models, rather than `--models`, and pull, push, create and blobs
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Leave in the folder what no manifest names, as with OLLAMA_NOPRUNE
    #[arg(long, requires = "folder")]
    noprune: bool,
    /// Who answers as registry.ollama.ai, as `127.0.0.1:5000` does by `cargo xtask fake-registry`; nobody, by default.
    /// Other registries are asked by plain HTTP, and on this machine alone
    #[arg(long, requires = "folder")]
    upstream: Option<SocketAddr>,
    /// Take faults by `POST /__fault`, as in `{"fault":"cut","at":100,"next":3}`, and forget them by `DELETE /__fault`.
    /// With `"of":"models"` they are for requests that change which models there are, with `"of":"all"` for all
    #[arg(long)]
    control: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime for it")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let ollama = Ollama::start(config(arguments)).await.with_context(|| format!("cannot listen on `{address}`"))?;
    for fault in &arguments.fault {
        ollama.faults().always(fault.clone());
    }
    for fault in &arguments.models_fault {
        ollama.faults().of_models(None, fault.clone());
    }
    println!("{}", ollama.url());
    tokio::signal::ctrl_c().await.context("cannot wait for an interrupt")?;
    eprintln!("{:#?}", ollama.stop().await);
    Ok(())
}

fn config(arguments: &Arguments) -> Config {
    let paced = |model: &Model| Model {
        load: Duration::from_millis(arguments.load_ms),
        prefill: arguments.prefill,
        decode: arguments.decode,
        answer_tokens: arguments.tokens,
        ..model.clone()
    };
    Config {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port)),
        models: arguments.models.iter().map(paced).collect(),
        slots: arguments.slots,
        control: arguments.control,
        folder: arguments.folder.clone(),
        prune: !arguments.noprune,
        upstream: arguments.upstream,
        ..Config::default()
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "no number".to_owned())?;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("a rate is more than nothing".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_command_line_says_what_the_fake_is_like() {
        let words = ["x", "--port=0", "--models", "a:1b=tools,b=embedding", "--slots=3", "--decode=7", "--fault=cut=9"];
        let arguments = Line::parse_from(words).arguments;
        let config = config(&arguments);
        let names: Vec<_> = config.models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!((names, config.slots, config.models[0].tools), (vec!["a:1b", "b"], 3, true));
        let with_folder = ["x", "--folder=models", "--noprune", "--upstream=127.0.0.1:5000"];
        let kept = self::config(&Line::parse_from(with_folder).arguments);
        assert_eq!((kept.folder, kept.prune), (Some("models".into()), false));
        assert_eq!(kept.upstream.map(|address| address.port()), Some(5000));
        assert_eq!((config.models[1].decode, &arguments.fault[0]), (7.0, &Fault::Cut { at: 9 }));
        assert_eq!((config.folder, config.prune, config.upstream), (None, true, None));
        for wrong in ["--decode=0", "--fault=melt", "--models=a b", "--noprune"] {
            assert!(Line::try_parse_from(["x", wrong]).is_err(), "{wrong}");
        }
    }
}
