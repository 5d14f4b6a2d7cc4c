//! `cargo xtask newcomer`: what the README tells a newcomer to type, typed into a fresh clone on a machine without Ollama.
//!
//! The commands are read out of the README and out of what `omx up` prints, never repeated here, so that neither can go
//! stale. Outcomes are asserted, times are only told.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::clients::{Entry, faq};
use crate::tools::{Hinted, workspace};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Use this machine's cargo home and `CARGO_TARGET_DIR` as they are, instead of beginning with nothing
    #[arg(long)]
    warm: bool,
    /// Type `cargo xtask test` too
    #[arg(long)]
    tests: bool,
}

/// For a first build with everything still to be fetched, on a slow machine.
const BUILD_MAX: Duration = Duration::from_secs(2 * 3600);
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// More than a node gives itself to end in good order.
const END_MAX: Duration = Duration::from_secs(40);

/// The last thing `omx up` says once it is up.
const LAST_WORD: &str = "next machine";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let scratch = env::temp_dir().join(format!("omx-newcomer-{}", std::process::id()));
    let outcome = Newcomer::arrive(&scratch, arguments.warm).and_then(|newcomer| newcomer.go(arguments.tests));
    let _ = fs::remove_dir_all(&scratch);
    outcome
}

/// Somebody with a home of their own, in which there is nothing yet.
struct Newcomer {
    clone: PathBuf,
    home: PathBuf,
    programs: PathBuf,
    cargo_home: PathBuf,
    rustup_home: PathBuf,
    target: Option<OsString>,
}

impl Newcomer {
    fn arrive(scratch: &Path, warm: bool) -> anyhow::Result<Self> {
        let usual = env::home_dir().context("there is no home folder")?;
        let of_cargo = env::var_os("CARGO_HOME").map_or_else(|| usual.join(".cargo"), PathBuf::from);
        let newcomer = Self {
            clone: scratch.join("clone"),
            home: scratch.join("home"),
            programs: scratch.join("home/bin"),
            cargo_home: if warm { of_cargo.clone() } else { scratch.join("home/.cargo") },
            rustup_home: env::var_os("RUSTUP_HOME").map_or_else(|| usual.join(".rustup"), PathBuf::from),
            target: env::var_os("CARGO_TARGET_DIR").filter(|_| warm),
        };
        fs::create_dir_all(&newcomer.programs).context("failed to make a home")?;
        if !warm {
            fs::create_dir_all(&newcomer.cargo_home).context("failed to make a home for cargo")?;
            // Where crates come from is the network's business and not the newcomer's.
            let config = of_cargo.join("config.toml");
            if config.is_file() {
                fs::copy(&config, newcomer.cargo_home.join("config.toml"))
                    .context("failed to copy cargo's settings")?;
            }
        }
        Ok(newcomer)
    }

    fn go(&self, tests: bool) -> anyhow::Result<()> {
        self.step("git clone", || self.clone_head())?;
        let readme = fs::read_to_string(self.clone.join("README.md")).context("failed to read the README")?;
        let lines = commands(&readme);
        let up = the_one(&lines, "cargo xtask up")?;
        let test = the_one(&lines, "cargo xtask test")?;
        let asked: Vec<&str> = lines.iter().copied().filter(|line| line.contains("omx-guide")).collect();
        ensure!(asked.len() >= 2, "the README asks the first model nothing");

        let (mut node, said) = self.step(up, || self.up(up))?;
        let printed = said.iter().filter_map(|line| line_to_type(line));
        let answered = self.step("cargo xtask build", || self.put_on_path()).and_then(|()| {
            let printed: Vec<&str> = printed.collect();
            ensure!(printed.len() == 2, "`omx up` printed no line for each of curl and omx: {said:?}");
            asked.iter().chain(&printed).try_for_each(|line| self.step(line, || self.answered(line)))
        });
        let ended = self.step("Ctrl-C", || end(&mut node));
        answered.and(ended)?;
        if tests {
            self.step(test, || {
                ensure!(self.typed(test).status().context("failed to start it")?.success(), "it failed");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Does it and tells how long it took. What failed is told by its name.
    fn step<T>(&self, name: &str, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let done = act().with_context(|| format!("`{name}` did not do what the README says"))?;
        println!("{:>8.1} s  {name}", begun.elapsed().as_secs_f64());
        Ok(done)
    }

    /// A line as a person types it, in the clone.
    fn typed(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.clone).stdin(Stdio::null());
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_not_of_a_newcomer) {
                command.env_remove(name);
            }
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.programs.clone()).chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(path).expect("it was split at the same sign"));
        command.env("HOME", &self.home).env("CARGO_HOME", &self.cargo_home).env("RUSTUP_HOME", &self.rustup_home);
        if let Some(target) = &self.target {
            command.env("CARGO_TARGET_DIR", target);
        }
        command
    }

    /// Of what is committed, whichever branch that is on.
    fn clone_head(&self) -> anyhow::Result<()> {
        let git = |arguments: &[&str], folder: &Path| -> anyhow::Result<String> {
            let output = Command::new("git").args(arguments).current_dir(folder).output().context("no git")?;
            ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let head = git(&["rev-parse", "HEAD"], workspace())?;
        let clone = self.clone.display().to_string();
        git(&["clone", "--quiet", "--no-checkout", ".", &clone], workspace())?;
        git(&["checkout", "--quiet", "--detach", &head], &self.clone).map(drop)
    }

    /// The node's process, and what it said on stdout. `exec`: what the shell starts keeps the shell's pid.
    fn up(&self, line: &str) -> anyhow::Result<(Child, Vec<String>)> {
        let mut node = self.typed(&format!("exec {line}")).stdout(Stdio::piped()).spawn().context("no shell")?;
        let stdout = node.stdout.take().expect("it is piped");
        let (sender, receiver) = mpsc::channel();
        // Ends with the process it reads from.
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        match greeting(&receiver) {
            Ok(said) => Ok((node, said)),
            Err(error) => {
                let _ = end(&mut node);
                Err(error)
            }
        }
    }

    /// As the README says: what the build prints is put on the `PATH` as `omx`.
    fn put_on_path(&self) -> anyhow::Result<()> {
        let output = self.typed("cargo xtask build").stderr(Stdio::inherit()).output().context("no shell")?;
        ensure!(output.status.success(), "it failed");
        let printed = String::from_utf8_lossy(&output.stdout);
        let binary = Path::new(printed.trim());
        ensure!(binary.is_file(), "it printed `{}`, which is no file", binary.display());
        fs::copy(binary, self.programs.join("omx")).context("failed to put it on the path").map(drop)
    }

    /// Types a line that asks the first model, and holds the answer against the FAQ.
    fn answered(&self, line: &str) -> anyhow::Result<()> {
        let faq = faq()?;
        let expected = expected(&faq, line).context("the FAQ of the first model has no such question")?;
        let output = testnet::output_within(&mut self.typed(line), ANSWER_MAX)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).context("the answer is no text")?;
        let answer = if line.starts_with("curl") { text_of(&said)? } else { said };
        ensure!(answer.trim() == expected, "another answer than the FAQ's: {answer}");
        Ok(())
    }
}

/// Set by those who work on this repository, by cargo for what it runs, or for an Ollama that is not to be there.
fn is_not_of_a_newcomer(variable: &str) -> bool {
    let starts = ["OMX_", "OLLAMA_", "CARGO_PKG_", "CARGO_MANIFEST_"];
    let whole = ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN", "XDG_DATA_HOME"];
    starts.iter().any(|start| variable.starts_with(start)) || whole.contains(&variable)
}

/// What stands in the shell blocks of a Markdown text, a line each, without its remark.
fn commands(markdown: &str) -> Vec<&str> {
    let blocks = markdown.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).map(|line| line.split("  #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn the_one<'a>(lines: &[&'a str], command: &str) -> anyhow::Result<&'a str> {
    let found = lines.iter().copied().find(|line| *line == command);
    found.with_context(|| format!("the README no longer says `{command}`"))
}

/// Everything up to the last word, or why there was none.
fn greeting(lines: &Receiver<String>) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + BUILD_MAX;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => said.push(line),
            Err(RecvTimeoutError::Timeout) => bail!("it was not up after {BUILD_MAX:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended; it had said {said:?}"),
        }
        if said.last().is_some_and(|line| line.starts_with(LAST_WORD)) {
            break;
        }
    }
    if let Some(line) = said.iter().find(|line| line.contains("Ollama at ")) {
        let what = format!("this machine is not without Ollama: {line}");
        bail!(Hinted { what, hint: "stop it for as long as this takes".to_owned() });
    }
    Ok(said)
}

/// The line to type in a row of what `omx up` prints: `try it  curl …`.
fn line_to_type(row: &str) -> Option<&str> {
    let asks = ["curl ", "omx run "].into_iter().filter_map(|program| row.find(program)).min()?;
    row.get(asks..).map(str::trim)
}

/// The answer to the question that stands in a line, where the model knows it.
fn expected<'a>(faq: &'a [Entry], line: &str) -> Option<&'a str> {
    let asks = |entry: &&Entry| entry.questions.iter().any(|question| line.contains(&format!("\"{question}\"")));
    faq.iter().find(asks).map(|entry| entry.answer.trim())
}

/// Of a chat or a completion in Ollama's shape, in one piece or in many.
fn text_of(reply: &str) -> anyhow::Result<String> {
    let parts = reply.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let text = line["message"]["content"].as_str().or(line["response"].as_str());
        text.map(str::to_owned).with_context(|| format!("no part of an answer: {line}"))
    });
    parts.collect()
}

/// As Ctrl-C does, by pid; by force where that is not enough.
fn end(node: &mut Child) -> anyhow::Result<()> {
    let told = Command::new("kill").args(["-INT", &node.id().to_string()]).status();
    let ended = testnet::wait_until("the end of the node", END_MAX, || node.try_wait()?.context("it runs"));
    if ended.is_err() {
        node.kill().context("it does not end")?;
        node.wait().context("it does not end")?;
    }
    ensure!(told.is_ok_and(|told| told.success()), "it was gone already");
    let status = ended?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_says_what_a_newcomer_is_to_type() {
        let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
        let lines = commands(&readme);
        assert!(the_one(&lines, "cargo xtask up").is_ok() && the_one(&lines, "cargo xtask test").is_ok());
        let asked: Vec<&&str> = lines.iter().filter(|line| line.contains("omx-guide")).collect();
        assert!(asked.iter().any(|line| line.starts_with("curl ")), "{asked:?}");
        assert!(asked.iter().any(|line| line.starts_with("omx run ")), "{asked:?}");
        let faq = faq().unwrap();
        assert!(asked.iter().all(|line| expected(&faq, line).is_some()), "{asked:?}");
    }

    #[test]
    fn a_remark_is_not_typed() {
        let text = "```sh\nomx up   # now\n# later\n\nomx run m \"#1\"\n```\nomx no\n```toml\nomx = 1\n```\n";
        assert_eq!(commands(text), ["omx up", "omx run m \"#1\""]);
    }

    #[test]
    fn what_omx_up_prints_is_typed_without_its_label() {
        assert_eq!(line_to_type("try it        curl http://a/ -d '{}'"), Some("curl http://a/ -d '{}'"));
        assert_eq!(line_to_type("or            omx run omx-guide \"Q?\""), Some("omx run omx-guide \"Q?\""));
        assert_eq!(line_to_type("next machine  omx up --join TOKEN"), None);
    }

    #[test]
    fn an_answer_is_put_together_and_an_error_is_none() {
        let chat = r#"{"message":{"content":"a "},"done":false}"#;
        assert_eq!(text_of(&format!("{chat}\n{chat}\n")).unwrap(), "a a ");
        assert_eq!(text_of(r#"{"response":"b","done":true}"#).unwrap(), "b");
        assert!(text_of(r#"{"error":"no"}"#).is_err() && text_of("no").is_err());
    }

    #[test]
    fn an_ollama_that_runs_and_a_node_that_ends_are_not_taken_for_a_first_start() {
        let after = |lines: &[&str]| {
            let (sender, receiver) = mpsc::channel();
            lines.iter().for_each(|line| sender.send((*line).to_owned()).unwrap());
            drop(sender);
            greeting(&receiver)
        };
        assert!(after(&["models        the built-in engine", "next machine  omx up"]).is_ok());
        assert!(after(&["models        Ollama at http://a/", "next machine  omx up"]).is_err());
        assert!(after(&["models        the built-in engine"]).is_err());
    }
}
