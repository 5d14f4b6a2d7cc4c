//! What a name meant before: there when somebody goes back to it, whatever an Ollama has cleared away meanwhile, and never
//! half of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use testnet::wait_until;

use crate::{Door, LIMIT, Mesh};

const SIZE: u64 = 12 << 20;

/// Makes a model of new weights under the name, and tells its digest.
fn import(mesh: &Mesh, seed: u64) -> Result<String> {
    let file = mesh.weights(seed, SIZE)?;
    mesh.node(0).text(&["models", "import", file.to_str().context("a path of ours")?, "--name", "m"])?;
    // The Ollama's own file stays, and nothing of ours stands in for it.
    std::fs::remove_file(file)?;
    digest(mesh)
}

fn digest(mesh: &Mesh) -> Result<String> {
    let shown = mesh.node(0).json(&["models", "show", "m"])?;
    Ok(shown["digest"].as_str().context("no digest")?.to_owned())
}

fn wait_until_listed(mesh: &Mesh, place: usize, expected: Option<&str>) -> Result<()> {
    let expected: Vec<_> = expected.map(|digest| ("m:latest".to_owned(), digest.to_owned())).into_iter().collect();
    wait_until("the Ollama to list it", LIMIT, || {
        let listed = mesh.listed(place)?;
        ensure!(listed == expected, "{listed:?}");
        Ok(())
    })
}

/// As Ollama does at each start, with files that are old enough.
fn prune(mesh: &Mesh, place: usize) -> Result<usize> {
    let folder = &mesh.folders[place];
    let mut named = String::new();
    let mut folders = vec![folder.join("manifests")];
    while let Some(path) = folders.pop() {
        for entry in std::fs::read_dir(path)? {
            let path: PathBuf = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => named += &std::fs::read_to_string(path)?,
            }
        }
    }
    let mut pruned = 0;
    for entry in std::fs::read_dir(folder.join("blobs"))? {
        let entry = entry?;
        let digest = entry.file_name().to_string_lossy().replace("sha256-", "sha256:");
        if !named.contains(&digest) {
            std::fs::remove_file(entry.path())?;
            pruned += 1;
        }
    }
    Ok(pruned)
}

#[test]
fn what_an_ollama_clears_away_can_still_be_gone_back_to() -> Result<()> {
    // Alone: there is nobody to fetch it from.
    let mesh = Mesh::of(&[Door::Folder])?;
    let old = import(&mesh, 11)?;
    let weights = std::fs::read(mesh.weights_at(0)?)?;
    let new = import(&mesh, 12)?;
    mesh.node(0).text(&["models", "place", "m", "--replicas", "1"])?;
    wait_until_listed(&mesh, 0, Some(&new))?;
    ensure!(prune(&mesh, 0)? > 0, "something was there that no name needs");
    mesh.node(0).text(&["models", "rollback", "m"])?;
    wait_until_listed(&mesh, 0, Some(&old))?;
    mesh.ask(0, "m")?;
    mesh.node(0).text(&["models", "verify", "m"])?;

    mesh.node(0).text(&["models", "rm", "m"])?;
    wait_until_listed(&mesh, 0, None)?;
    ensure!(prune(&mesh, 0)? > 0);
    // What was needed a moment ago is not collected yet.
    mesh.node(0).text(&["models", "gc"])?;
    mesh.node(0).text(&["models", "restore", "m"])?;
    wait_until_listed(&mesh, 0, Some(&old))?;
    let files = std::fs::read_dir(mesh.folders[0].join("blobs"))?.map(|entry| Ok(std::fs::read(entry?.path())?));
    ensure!(files.collect::<Result<Vec<_>>>()?.contains(&weights), "it is the old one");
    mesh.ask(0, "m")
}

#[test]
fn under_load_a_name_is_the_old_model_or_the_new_one_and_nothing_between() -> Result<()> {
    let mesh = Mesh::of(&[Door::Folder, Door::Folder])?;
    let digests = BTreeSet::from([import(&mesh, 13)?, import(&mesh, 14)?]);
    mesh.node(0).text(&["models", "place", "m", "--replicas", "2"])?;
    for place in 0..2 {
        wait_until_listed(&mesh, place, Some(&digest(&mesh)?))?;
    }
    let is_over = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| -> Result<usize> {
        let (mesh, is_over, digests) = (&mesh, &is_over, &digests);
        let asking = |place: usize| {
            scope.spawn(move || -> Result<usize> {
                let mut asked = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let listed = mesh.listed(place)?;
                    let [(name, digest)] = listed.as_slice() else { bail!("{listed:?}") };
                    ensure!(name == "m:latest" && digests.contains(digest), "{listed:?}");
                    mesh.answered_by(place, "m")?;
                    asked += 1;
                }
                Ok(asked)
            })
        };
        let all = [asking(0), asking(1), asking(0), asking(1)];
        let moved = (0..6).try_for_each(|_| -> Result<()> {
            mesh.node(1).text(&["models", "rollback", "m"])?;
            (0..2).try_for_each(|place| wait_until_listed(mesh, place, Some(&digest(mesh)?)))
        });
        is_over.store(true, Ordering::Relaxed);
        let asked = all.into_iter().map(|asking| asking.join().expect("it does not panic")).sum::<Result<usize>>();
        moved?;
        asked
    })?;
    ensure!(asked > 20, "only {asked} asked meanwhile");
    // Each was answered from the weights of one or the other.
    for ollama in &mesh.ollamas {
        let contents: BTreeSet<String> = ollama.served().into_iter().map(|served| served.content).collect();
        ensure!(contents.len() <= 2, "{contents:?}");
    }
    Ok(())
}
