//! `cargo xtask fake-registry`: a registry to pull models from and push them to, until it is interrupted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use fakes::registry::{Config, Ordered, Storage};
use fakes::{Registry, Release};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// On 127.0.0.1; any free port where it is 0
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// `name=SIZE`, of weights made from the seed, or `name=FILE.gguf`. A size is a number of KB, MB or GB
    #[arg(long, value_delimiter = ',', default_value = "tiny:1b=1MB")]
    models: Vec<Model>,
    /// Other weights for another one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Say that blobs lie at the address that was asked, by 200, rather than at `localhost`, by 307
    #[arg(long)]
    here: bool,
    /// Ask for this token, which is given for any signature
    #[arg(long)]
    token: Option<String>,
    /// For every request of a step (manifest, head, locate, data, push): `data:cut=BYTES`, `data:stall=BYTES`,
    /// `data:slow=BYTES_A_SECOND`, `data:flip=BYTE`, `data:overrun=BYTES`, `data:whole`, `head:announce=BYTES`,
    /// `locate:redirect=URL`, `locate:nowhere`, and for any of them `hang` or `status=CODE`
    #[arg(long)]
    fault: Vec<Ordered>,
    /// Take faults by `POST /__fault`, as in `{"at_step":"data","fault":"cut","at":1000,"next":2}`, and forget them by
    /// `DELETE /__fault`
    #[arg(long)]
    control: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    name: String,
    weights: Weights,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Weights {
    Made { size: u64 },
    File(PathBuf),
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime for it")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let storage = if arguments.here { Storage::Here } else { Storage::Elsewhere };
    let config = Config { address, storage, token: arguments.token.clone(), control: arguments.control };
    let registry = Registry::start(config).await.with_context(|| format!("cannot listen on `{address}`"))?;
    for (seed, Model { name, weights }) in (arguments.seed..).zip(&arguments.models) {
        let release = match weights {
            Weights::Made { size } => Release::made(seed, *size),
            Weights::File(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                if !bytes.starts_with(b"GGUF") {
                    bail!("`{}` is no GGUF file", path.display());
                }
                Release::of(bytes)
            }
        };
        registry.publish(name, &release)?;
        println!("{} {}", registry.name_of(name)?, release.digest());
    }
    for order in &arguments.fault {
        registry.faults().order(order.clone());
    }
    println!("{}", registry.url());
    tokio::signal::ctrl_c().await.context("cannot wait for an interrupt")?;
    eprintln!("{:#?}", registry.stop().await);
    Ok(())
}

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weights) = text.split_once('=').ok_or("write `name=SIZE` or `name=FILE.gguf`")?;
        let weights = match size(weights) {
            Some(size) => Weights::Made { size },
            None if weights.ends_with(".gguf") => Weights::File(weights.into()),
            None => return Err(format!("`{weights}` is neither a size nor a GGUF file")),
        };
        Ok(Self { name: name.to_owned(), weights })
    }
}

fn size(text: &str) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fakes::registry::{Fault, Step};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_command_line_says_what_the_registry_holds() {
        let words = ["x", "--models", "a:1b=40MB,me/b=weights/b.gguf", "--fault=data:cut=9", "--here"];
        let arguments = Line::parse_from(words).arguments;
        let made = Model { name: "a:1b".to_owned(), weights: Weights::Made { size: 40_000_000 } };
        let file = Model { name: "me/b".to_owned(), weights: Weights::File("weights/b.gguf".into()) };
        assert_eq!(arguments.models, [made, file]);
        assert_eq!(arguments.fault, [Ordered { step: Step::Data, fault: Fault::Cut { at: 9 }, next: None }]);
        for wrong in ["--models=a", "--models=a=1TB", "--models=a=99999999999GB", "--fault=cut=9"] {
            assert!(Line::try_parse_from(["x", wrong]).is_err(), "{wrong}");
        }
    }
}
