//! `cargo xtask up`: from a fresh checkout to a running node in one line.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::build;

/// Builds the user's binary and becomes `omx up` with it.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let binary = build::user_binary()?;
    let mut command = Command::new(&binary);
    command.arg("up").args(arguments);
    become_it(&mut command).with_context(|| format!("failed to start `{}`", binary.display()))
}

/// Signals and the terminal then belong to the node alone; nothing stands between it and the person who started it.
#[cfg(unix)]
fn become_it(command: &mut Command) -> std::io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;

    Err(command.exec())
}

#[cfg(not(unix))]
fn become_it(command: &mut Command) -> std::io::Result<ExitCode> {
    let status = command.status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
