//! The repository's own commands: `cargo xtask up | build | test | clients | testnet | fake-ollama | fake-registry |
//! golden | newcomer`.
//!
//! They link none of the product's crates, so that they are there within seconds on a fresh machine.

mod build;
mod clients;
mod engine_tools;
mod fake_ollama;
mod fake_registry;
mod golden;
mod newcomer;
mod test;
mod testnet;
mod tools;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::tools::Hinted;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The repository's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build what users get and start a node with it
    #[command(disable_help_flag = true)]
    Up {
        /// Handed to `omx up` as they are, `--help` too
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build what users get and say where it is
    Build,
    /// Run every check: format, lints, documentation, fences, tests
    Test,
    /// Run the last of the checks alone: other people's clients for Python and JavaScript against three nodes
    Clients,
    /// Run several nodes on this machine, and make them fail
    Testnet(testnet::Arguments),
    /// Serve Ollama's API without a model: numbered tokens at a set pace, and faults
    FakeOllama(fake_ollama::Arguments),
    /// Serve models as the registry does that Ollama pulls from: made from a seed or of your own, and faults
    FakeRegistry(fake_registry::Arguments),
    /// Hold a server against the table of what Ollama answers
    Golden(golden::Arguments),
    /// Type what the README says into a fresh clone, as on a machine without Ollama; builds what users get
    Newcomer(newcomer::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  cause: {cause}");
            }
            if let Some(hinted) = error.downcast_ref::<Hinted>() {
                eprintln!("hint: {}", hinted.hint);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { arguments } => up::run(&arguments),
        Command::Build => {
            println!("{}", build::user_binary()?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Test => test::run(),
        Command::Clients => match clients::run(&build::tested_binary()?)? {
            clients::Outcome::Good => Ok(ExitCode::SUCCESS),
            clients::Outcome::NotRun(missing) => anyhow::bail!("not run: {missing}"),
        },
        Command::Testnet(arguments) => testnet::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::FakeOllama(arguments) => fake_ollama::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::FakeRegistry(arguments) => fake_registry::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Golden(arguments) => golden::run(&arguments),
        Command::Newcomer(arguments) => newcomer::run(&arguments).map(|()| ExitCode::SUCCESS),
    }
}
