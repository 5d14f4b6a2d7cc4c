//! A model from a file: on the nodes it is placed on, whole, under its names.

use anyhow::{Result, ensure};
use testnet::wait_until;

use crate::{Door, LIMIT, Mesh};

const SIZE: u64 = 20 << 20;

#[test]
fn a_file_runs_on_every_node_it_is_placed_on_whichever_way_it_gets_in() -> Result<()> {
    let mut mesh = Mesh::of(&[Door::Folder, Door::Folder, Door::Pull])?;
    let file = mesh.weights(1, SIZE)?;
    let file = file.to_str().expect("a path of ours");
    mesh.node(0).text(&["models", "import", file, "--name", "m", "--system", "be brief"])?;
    mesh.wait_for_holders("m", 1, "verified")?;
    ensure!(mesh.listed(1)?.is_empty() && mesh.listed(2)?.is_empty());

    mesh.node(1).text(&["models", "place", "m", "--replicas", "all"])?;
    mesh.wait_for_holders("m", 2, "verified")?;
    wait_until("the third one to list it", LIMIT, || {
        let listed = mesh.listed(2)?;
        ensure!(listed == mesh.listed(0)? && listed.len() == 1, "{listed:?}");
        Ok(())
    })?;
    // One file under two names where the folder is ours to use.
    let blob = |place: usize| -> Result<std::fs::Metadata> {
        let largest = std::fs::read_dir(mesh.folders[place].join("blobs"))?
            .map(|entry| Ok(entry?.metadata()?))
            .collect::<Result<Vec<_>>>()?;
        Ok(largest.into_iter().max_by_key(std::fs::Metadata::len).expect("there are some"))
    };
    ensure!(blob(1)?.len() == std::fs::metadata(file)?.len() && blob(2)?.len() == blob(1)?.len());
    mesh.node(2).text(&["models", "verify", "m"])?;

    // The receivers answer with the source switched off.
    mesh.testnet.nodes_mut()[0].kill9()?;
    mesh.ask(1, "m")?;
    mesh.ask(2, "m")
}

#[test]
fn what_flips_at_rest_is_found_and_fetched_anew() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    let file = mesh.weights(2, SIZE)?;
    mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
    mesh.node(0).text(&["models", "place", "m", "--replicas", "2"])?;
    mesh.wait_for_holders("m", 2, "verified")?;
    // The second one's copy is its own file.
    let path = std::fs::read_dir(mesh.folders[1].join("blobs"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).map(|found| found.len()).unwrap_or_default())
        .expect("there are some");
    let modified = std::fs::metadata(&path)?.modified()?;
    let mut bytes = std::fs::read(&path)?;
    bytes[10_000_000] ^= 4;
    std::fs::write(&path, &bytes)?;
    std::fs::File::options().write(true).open(&path)?.set_modified(modified)?;
    let refused = mesh.node(0).cli(&["models", "verify", "m"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    mesh.node(0).text(&["models", "verify", "m", "--repair"])?;
    mesh.node(0).text(&["models", "verify", "m"])?;
    bytes[10_000_000] ^= 4;
    wait_until("the Ollama's own file to be whole", LIMIT, || {
        ensure!(std::fs::read(&path)? == bytes);
        Ok(())
    })
}

#[test]
fn a_name_moves_back_and_goes_and_comes_on_all_nodes() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    for seed in [3, 4] {
        let file = mesh.weights(seed, SIZE)?;
        mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
        mesh.node(0).text(&["models", "place", "m", "--replicas", "2"])?;
        mesh.wait_for_holders("m", 2, "verified")?;
    }
    let shown = mesh.node(1).json(&["models", "show", "m"])?;
    let digest = |at: usize| shown["history"][at]["digest"].as_str().unwrap_or_default().to_owned();
    let all_list = |digest: String| {
        wait_until("both to list it", LIMIT, || {
            for place in 0..2 {
                let listed = mesh.listed(place)?;
                ensure!(listed.contains(&("m:latest".to_owned(), digest.clone())), "{place}: {listed:?}");
            }
            Ok(())
        })
    };
    all_list(digest(1))?;
    mesh.node(1).text(&["models", "rollback", "m"])?;
    all_list(digest(0))?;

    mesh.node(0).text(&["models", "pin", "m"])?;
    ensure!(!mesh.node(1).cli(&["models", "rm", "m"])?.status.success());
    mesh.node(0).text(&["models", "pin", "m", "--off"])?;
    mesh.node(1).text(&["models", "rm", "m"])?;
    wait_until("the name to be gone", LIMIT, || {
        ensure!(mesh.listed(0)?.is_empty() && mesh.listed(1)?.is_empty());
        Ok(())
    })?;
    mesh.node(0).text(&["models", "restore", "m"])?;
    all_list(digest(0))
}
