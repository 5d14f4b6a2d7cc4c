//! An Ollama on a machine without a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use testnet::wait_until;

use crate::{LIMIT, MODEL, Mesh, fake, offering};

#[test]
fn an_enrolled_backend_is_the_mesh_s_until_it_is_removed() -> Result<()> {
    let mesh = Mesh::before(Vec::new())?;
    let attic = mesh.runtime.block_on(fakes::Ollama::start(fake(2, 500.0, Duration::ZERO)))?;
    let entry = mesh.entry();
    // It listens on loopback here, which is this machine for all nodes of the test and only for them.
    entry.text(&["nodes", "backend", "add", "attic", &attic.url(), "--node", entry.name()])?;
    let listed = entry.text(&["nodes", "backend", "ls"])?;
    ensure!(listed.contains("attic"), "{listed}");
    wait_until("the backend to be offered", LIMIT, || {
        let offering = offering(entry)?;
        ensure!(offering == [entry.name()], "{offering:?}");
        Ok(())
    })?;
    let ask = || mesh.ask(json!({ "model": MODEL, "messages": [{ "role": "user", "content": "?" }], "stream": false }));
    let asked = ask()?;
    ensure!(asked.status == 200 && attic.counts().inferences == 1, "{asked:?}");
    entry.text(&["nodes", "backend", "rm", "attic"])?;
    wait_until("the backend to be offered no more", LIMIT, || {
        let offering = offering(entry)?;
        ensure!(offering.is_empty(), "{offering:?}");
        Ok(())
    })?;
    let asked = ask()?;
    ensure!(asked.status != 200 && attic.counts().inferences == 1, "{asked:?}");
    Ok(())
}
