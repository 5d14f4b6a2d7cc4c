//! `cargo xtask golden`: holds a server against the table of what Ollama answers; a real Ollama too, which is how the
//! table itself is checked.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use fakes::golden::{Subject, Table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the server listens
    #[arg(default_value = "127.0.0.1:11434")]
    address: SocketAddr,
    /// A model it has, with its tag, that answers but neither thinks nor uses tools
    #[arg(long)]
    model: String,
    /// One that embeds; cases that need it are skipped where there is none
    #[arg(long)]
    embedder: Option<String>,
    /// `HOST:PORT` of a registry over plain HTTP that has `library/golden:1b`, as `cargo xtask fake-registry --models
    /// golden:1b=1MB` is; without one, pull, push and create are skipped. What is pulled and created is deleted again
    #[arg(long)]
    registry: Option<String>,
    /// Which of its APIs
    #[arg(long, value_enum, default_values = ["ollama", "openai"], value_delimiter = ',')]
    api: Vec<Api>,
    /// `name: value`, sent with every request
    #[arg(long, value_parser = header)]
    header: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Api {
    Ollama,
    Openai,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime for it")?;
    let subject = Subject {
        address: arguments.address,
        headers: arguments.header.clone(),
        model: arguments.model.clone(),
        embedder: arguments.embedder.clone(),
        registry: arguments.registry.clone(),
        differs: Vec::new(),
    };
    let mut equal = true;
    for api in &arguments.api {
        let table = match api {
            Api::Ollama => Table::ollama(),
            Api::Openai => Table::openai(),
        };
        let report = runtime.block_on(table.check(&subject));
        print!("{}", report.text());
        eprintln!(
            "{api:?}: {} cases checked, {} skipped, {} differ",
            report.checked,
            report.skipped,
            report.findings.len()
        );
        if report.checked == 0 {
            bail!("nothing was checked");
        }
        equal &= report.findings.is_empty();
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
