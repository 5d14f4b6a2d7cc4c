//! `cargo xtask build`: the binary users get, in the release profile.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{engine_tools, tools};

/// Builds `omx` and returns where it is: `target/release/omx`, or wherever the reader's own settings of cargo put it.
pub(crate) fn user_binary() -> anyhow::Result<PathBuf> {
    tools::need_c_compiler()?;
    engine_tools::need()?;
    built(&["--release", "--package=omx", "--bin=omx", "--features=engine"])
}

/// The one that the tests have built: the same selection, so that nothing is compiled again.
pub(crate) fn tested_binary() -> anyhow::Result<PathBuf> {
    built(&["--profile=ci", "--workspace", "--bins", "--features=omx/engine"])
}

fn built(selection: &[&str]) -> anyhow::Result<PathBuf> {
    let output = tools::cargo()
        .args(["build", "--locked"])
        .args(selection)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("failed to run cargo")?;
    if !output.status.success() {
        bail!("`omx` does not build");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages).context("cargo built `omx` without saying where")
}

/// The path in cargo's stream of messages, one JSON object per line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == "omx")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_where_cargo_says_it_is() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"types"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"omx"},"executable":"/t/release/omx"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/omx")));
    }

    #[test]
    fn a_build_without_a_binary_is_not_taken_for_one() {
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
