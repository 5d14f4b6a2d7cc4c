//! What the commands need on the machine: found, installed where we may, or named with the line to type.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An error that its reader can do something about. The hint is printed last, apart from what happened.
#[derive(Debug)]
pub(crate) struct Hinted {
    pub(crate) what: String,
    pub(crate) hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Hinted {}

impl Hinted {
    pub(crate) fn new(what: &str, line_to_type: &str) -> Self {
        Self { what: what.to_owned(), hint: format!("type `{line_to_type}`") }
    }
}

/// The cargo that runs us, in the workspace's folder, so that the commands work from any folder below it.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The checkout these commands were built from.
pub(crate) fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies in crates/xtask")
}

/// `rustfmt` and `clippy` are parts of the toolchain, not of the system: rustup may add them.
pub(crate) fn need_component(component: &'static str, subcommand: &str) -> anyhow::Result<()> {
    if runs(cargo().args([subcommand, "--version"])) {
        return Ok(());
    }
    eprintln!("{component} is missing, asking rustup for it");
    let added = Command::new("rustup").args(["component", "add", component]).status().is_ok_and(|s| s.success());
    if added && runs(cargo().args([subcommand, "--version"])) {
        return Ok(());
    }
    Err(Hinted::new(&format!("{component} is missing"), &format!("rustup component add {component}")).into())
}

/// Some dependencies compile C. On Windows the linker that Rust itself asks for brings the compiler along.
pub(crate) fn need_c_compiler() -> anyhow::Result<()> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    if cfg!(windows) || runs(Command::new(compiler).arg("--version")) {
        return Ok(());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let has = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    Err(Hinted::new("a C compiler is missing", c_compiler_line(cfg!(target_os = "macos"), has)).into())
}

/// How this system's own package manager spells it.
fn c_compiler_line(macos: bool, has: impl Fn(&str) -> bool) -> &'static str {
    const LINES: [(&str, &str); 6] = [
        ("apt-get", "sudo apt-get install -y build-essential"),
        ("dnf", "sudo dnf install -y gcc make"),
        ("pacman", "sudo pacman -S --needed base-devel"),
        ("zypper", "sudo zypper install -y gcc make"),
        ("apk", "doas apk add build-base"),
        ("nix-shell", "nix-shell -p gcc"),
    ];
    if macos {
        return "xcode-select --install";
    }
    let known = LINES.iter().find(|(manager, _)| has(manager));
    known.map_or("CC=/path/to/a/c/compiler cargo xtask build", |(_, line)| line)
}

pub(crate) fn runs(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_the_folder_with_the_lock_file() {
        assert!(workspace().join("Cargo.lock").is_file());
    }

    #[test]
    fn the_line_to_type_is_the_one_of_the_package_manager_that_is_there() {
        assert_eq!(c_compiler_line(false, |program| program == "dnf"), "sudo dnf install -y gcc make");
        assert_eq!(c_compiler_line(true, |_| false), "xcode-select --install");
        assert!(c_compiler_line(false, |_| false).starts_with("CC="));
    }

    #[test]
    fn a_program_that_is_not_there_does_not_run() {
        assert!(!runs(&mut Command::new("no-such-program-anywhere")));
        assert!(runs(cargo().arg("--version")));
    }
}
