//! A model from a file: on the nodes it is placed on, whole, under its names.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

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
    // One file under two names where the folder is ours to use, and no second copy anywhere.
    let inode = |path: &Path| Ok::<_, anyhow::Error>(std::fs::metadata(path)?.ino());
    ensure!(inode(&mesh.weights_at(0)?)? == inode(Path::new(file))?);
    for place in 1..3 {
        ensure!(std::fs::metadata(mesh.weights_at(place)?)?.len() == std::fs::metadata(file)?.len());
        wait_until("our own copy to be gone", LIMIT, || {
            let own = mesh.own_bytes(place)?;
            ensure!(own == 0, "{own} bytes beside the Ollama's own at {place}");
            Ok(())
        })?;
    }
    mesh.wait_for_holders("m", 1, "listed")?;
    // What the third one has cannot be looked at: that is said, and is not the same as whole.
    let verified = mesh.node(2).cli(&["models", "verify", "m"])?;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned() + &String::from_utf8_lossy(&verified.stderr);
    ensure!(!verified.status.success() && said.contains("1 of 3 nodes"), "{said}");
    ensure!(said.contains("not looked at: nobody but its backend can read"), "{said}");

    // The receivers answer with the source switched off, each from its own.
    mesh.testnet.nodes_mut()[0].kill9()?;
    for place in 1..3 {
        let expected = mesh.node(place).name().to_owned();
        wait_until("the others to know that it is off", LIMIT, || {
            let by = mesh.answered_by(place, "m")?;
            ensure!(by == expected, "{by} answered at {expected}");
            Ok(())
        })?;
    }
    Ok(())
}

/// One bit, at rest: the file is as old and as long as before.
fn flip(path: &Path) -> Result<Vec<u8>> {
    let modified = std::fs::metadata(path)?.modified()?;
    let good = std::fs::read(path)?;
    let file = std::fs::File::options().write(true).open(path)?;
    file.write_all_at(&[good[10_000_000] ^ 4], 10_000_000)?;
    file.set_modified(modified)?;
    Ok(good)
}

#[test]
fn what_flips_at_rest_is_found_and_fetched_anew_by_itself() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    let file = mesh.weights(2, SIZE)?;
    mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
    mesh.node(0).text(&["models", "place", "m", "--replicas", "2"])?;
    mesh.wait_for_holders("m", 2, "verified")?;
    // The second one's copy is its own file.
    let path = mesh.weights_at(1)?;
    let good = flip(&path)?;
    let refused = mesh.node(0).cli(&["models", "verify", "m"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    // Nobody asks for it.
    wait_until("the Ollama's own file to be whole", LIMIT, || {
        ensure!(std::fs::read(&path)? == good);
        Ok(())
    })?;
    wait_until("all to be whole", LIMIT, || mesh.node(0).text(&["models", "verify", "m"]).map(drop))?;
    // And where somebody waits for it.
    flip(&path)?;
    mesh.node(0).text(&["models", "verify", "m", "--repair"])?;
    ensure!(std::fs::read(&path)? == good);
    mesh.node(0).text(&["models", "verify", "m"])?;
    Ok(())
}

#[test]
fn damage_that_nobody_can_repair_is_told_and_given_to_nobody() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    let file = mesh.weights(7, SIZE)?;
    mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
    mesh.wait_for_holders("m", 1, "verified")?;
    let good = flip(&mesh.weights_at(0)?)?;
    ensure!(!mesh.node(1).cli(&["models", "verify", "m"])?.status.success());
    mesh.wait_for_holders("m", 1, "damaged")?;
    mesh.node(1).text(&["models", "place", "m", "--replicas", "2"])?;
    let refused = mesh.node(1).cli(&["models", "verify", "m", "--repair"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    ensure!(mesh.weights_at(1).is_err() && mesh.own_bytes(1)? == 0, "nothing came of it");
    // Somebody brings the good one back.
    std::fs::remove_file(&file)?;
    std::fs::write(&file, &good)?;
    mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
    mesh.wait_for_holders("m", 2, "verified")?;
    ensure!(std::fs::read(mesh.weights_at(0)?)? == good && std::fs::read(mesh.weights_at(1)?)? == good);
    Ok(())
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_not_taken_for_it() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    let file = mesh.weights(8, SIZE)?;
    mesh.node(0).text(&["models", "import", file.to_str().expect("a path of ours"), "--name", "m"])?;
    mesh.wait_for_holders("m", 1, "verified")?;
    // As long as it should be, and something else.
    let good = mesh.weights_at(0)?;
    let bad: PathBuf = mesh.folders[1].join("blobs").join(good.file_name().expect("a file"));
    std::fs::create_dir_all(mesh.folders[1].join("blobs"))?;
    std::fs::write(&bad, vec![7; std::fs::read(&good)?.len()])?;
    mesh.node(0).text(&["models", "place", "m", "--replicas", "2"])?;
    mesh.wait_for_holders("m", 2, "verified")?;
    ensure!(std::fs::read(&bad)? == std::fs::read(&good)?);
    Ok(())
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
