//! `omx`: one binary that is a node, and the commands to look after one.
//!
//! Arguments, logging, signals and exit codes are here. What a node does is in `node`, what it answers in `gateway`;
//! every command but `up` is a client of a running node and has no other source.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::exit::Exit;

mod cli;
mod client;
mod exit;
mod failure;
mod folder;
mod logging;
mod out;
mod plain;
mod run_file;
mod settings;
mod sizes;
mod table;
mod times;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Help and version come this way too, with stdout as their place; where nobody reads, nothing is lost.
            let _ = told.print();
            return if told.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    match cli::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprint!("{failure}");
            failure.exit.into()
        }
    }
}
