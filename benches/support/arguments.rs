//! `NAME=VALUE` arguments. Cargo adds flags of its own, which are passed over.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};

pub(crate) fn argument<T: FromStr>(name: &str, default: T) -> Result<T> {
    let given = std::env::args().skip(1).find_map(|text| {
        let (key, value) = text.split_once('=')?;
        (key == name).then(|| value.to_owned())
    });
    match given {
        Some(text) => text.parse().ok().with_context(|| format!("`{name}={text}` cannot be read")),
        None => Ok(default),
    }
}

/// Without what runs models beside it: that is measured by itself.
pub(crate) fn node_alone() -> testnet::Options {
    testnet::Options { arguments: ["--engine", "off"].map(str::to_owned).into(), ..testnet::Options::default() }
}

/// Which `omx` is measured: by default the one cargo has just built with this profile.
pub(crate) fn binary() -> Result<PathBuf> {
    argument("binary", PathBuf::from(env!("CARGO_BIN_EXE_omx")))
}

/// Where the nodes put their data: the disk that is measured. The folder is new and goes with the returned value.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let parent = argument("dir", std::env::temp_dir())?;
    tempfile::Builder::new()
        .prefix("omx-bench-")
        .tempdir_in(&parent)
        .with_context(|| format!("failed to make a folder in `{}`", parent.display()))
}
