//! Models from a registry: once for the whole mesh.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use fakes::registry;
use testnet::wait_until;

use crate::{Door, LIMIT, Mesh};

const SIZE: u64 = 40 << 20;

fn registry(mesh: &Mesh) -> Result<fakes::Registry> {
    let config = registry::Config { storage: registry::Storage::Here, ..registry::Config::default() };
    Ok(mesh.runtime.block_on(fakes::Registry::start(config))?)
}

#[test]
fn two_nodes_that_pull_at_once_cost_one_download() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder, Door::Pull])?;
    let upstream = registry(&mesh)?;
    let release = fakes::Release::made(5, SIZE);
    upstream.publish("library/m:1b", &release)?;
    let name = upstream.name_of("library/m:1b")?;
    let refused = mesh.node(0).cli(&["models", "pull", &name])?;
    ensure!(!refused.status.success() && upstream.asked().manifests == 0, "{refused:?}");

    mesh.node(0).text(&["config", "set", "registries.allow", &format!("registry.ollama.ai,{}", upstream.url())])?;
    std::thread::scope(|scope| {
        let (mesh, name) = (&mesh, &name);
        let pull = |place: usize| mesh.node(place).text(&["models", "pull", name]);
        let pulls: Vec<_> = (0..3).map(|place| scope.spawn(move || pull(place))).collect();
        pulls.into_iter().try_for_each(|pull| pull.join().expect("it does not panic").map(drop))
    })?;
    let weights = release.weights();
    let taken = upstream.taken(&weights.digest);
    ensure!(taken.bytes == weights.content.size(), "{taken:?} of {}", weights.content.size());
    for place in 0..3 {
        mesh.ask(place, &name)?;
    }
    Ok(())
}

#[test]
fn a_registry_that_has_no_such_model_or_gives_another_one_is_told_of() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder])?;
    let upstream = registry(&mesh)?;
    mesh.node(0).text(&["config", "set", "registries.allow", &upstream.url()])?;
    let name = upstream.name_of("library/none:1b")?;
    let missing = mesh.node(0).cli(&["models", "pull", &name])?;
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(!missing.status.success() && said.contains("file does not exist"), "{said}");

    let release = fakes::Release::made(6, SIZE);
    upstream.publish("library/m:1b", &release)?;
    upstream.faults().always(registry::Step::Data, registry::Fault::Flip { at: 12_345_678 });
    let name = upstream.name_of("library/m:1b")?;
    let wrong = mesh.node(0).cli(&["models", "pull", &name])?;
    ensure!(!wrong.status.success() && mesh.listed(0)?.is_empty(), "{wrong:?}");
    upstream.faults().clear();
    mesh.node(0).text(&["models", "pull", &name])?;
    mesh.ask(0, &name)
}

#[test]
fn a_pull_goes_on_when_its_client_leaves() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder])?;
    let upstream = registry(&mesh)?;
    mesh.node(0).text(&["config", "set", "registries.allow", &upstream.url()])?;
    let release = fakes::Release::made(7, SIZE);
    upstream.publish("library/m:1b", &release)?;
    // Until the client has gone nothing of the weights gets through.
    upstream.faults().always(registry::Step::Data, registry::Fault::Status { status: 503 });
    let name = upstream.name_of("library/m:1b")?;
    let body = format!(r#"{{"model":"{name}"}}"#);
    let mut client = TcpStream::connect(mesh.node(0).run()?.api)?;
    let head = format!(
        "POST /api/pull HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(head.as_bytes())?;
    wait_until("the weights to be asked for", LIMIT, || {
        ensure!(upstream.asked().requests > 1);
        Ok(())
    })?;
    let mut begun = [0; 12];
    client.read_exact(&mut begun)?;
    drop(client);
    upstream.faults().clear();
    wait_until("the Ollama to list it", LIMIT, || {
        ensure!(mesh.listed(0)?.iter().any(|(listed, _)| *listed == name), "{:?}", mesh.listed(0)?);
        Ok(())
    })?;
    ensure!(&begun == b"HTTP/1.1 200", "{begun:?}");
    Ok(())
}

#[test]
fn what_a_mesh_cannot_take_is_said_before_it_is_fetched() -> Result<()> {
    let Some((mesh, _mounted)) = Mesh::small(&[Door::Folder], 256)? else {
        println!("nothing can be mounted here: a disk that is too small is not tested");
        return Ok(());
    };
    let upstream = registry(&mesh)?;
    mesh.node(0).text(&["config", "set", "registries.allow", &upstream.url()])?;
    let texts: Vec<_> = (0..230).map(|n| ("license", fakes::Content::Bytes(format!("licence {n}").into()))).collect();
    upstream.publish("library/long:1b", &fakes::Release::assembled(&serde_json::json!({}), texts))?;
    upstream.publish("library/large:1b", &fakes::Release::made(8, 320 << 20))?;
    for (model, expected) in [("long", "where a mesh takes"), ("large", "there is no room for the model")] {
        let name = upstream.name_of(&format!("library/{model}:1b"))?;
        let refused = mesh.node(0).cli(&["models", "pull", &name])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains(expected), "{said}");
    }
    ensure!(upstream.asked().blobs.is_empty(), "{:?}", upstream.asked());
    Ok(())
}
