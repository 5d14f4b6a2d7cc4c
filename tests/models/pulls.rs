//! Models from a registry: once for the whole mesh.

use anyhow::{Result, ensure};
use fakes::registry;

use crate::{Door, Mesh};

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
