//! A node that is killed while it receives: what had come is there when it starts again.
//!
//! `OMX_KILLS` says how often, by hand; the usual number keeps the test short.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testnet::wait_until;

use crate::{Door, LIMIT, Mesh};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;
/// What may be fetched a second time after each end.
const AGAIN_MAX: u64 = 16 * MIB;
const KILLS: usize = 12;

/// The fetch of the weights, as the receiver shows it; nothing where it is over or not begun.
fn transfer(mesh: &Mesh) -> Result<Option<Value>> {
    let transfers = mesh.node(1).json(&["transfers"])?;
    let transfers = transfers.as_array().context("no list")?;
    Ok(transfers.iter().find(|transfer| number(&transfer["total"]) >= SIZE / 2).cloned())
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// What came since the node started.
fn came(transfer: &Value) -> u64 {
    transfer["sources"].as_array().map_or(0, |sources| sources.iter().map(|source| number(&source["bytes"])).sum())
}

/// Whole pieces that lie in the receiver's folder, by what is in them: none of these weights is nothing but zeros.
fn on_disk(node: &Path) -> Result<u64> {
    let mut found = 0;
    for part in ["partial", "whole"] {
        for entry in std::fs::read_dir(node.join("blobs").join(part))? {
            let path = entry?.path();
            if path.extension().is_none() && std::fs::metadata(&path)?.len() >= SIZE / 2 {
                let bytes = std::fs::read(path)?;
                found +=
                    bytes.chunks(MIB as usize).filter(|piece| piece.iter().any(|byte| *byte != 0)).count() as u64 * MIB;
            }
        }
    }
    Ok(found)
}

#[test]
fn killed_at_any_byte_a_receiver_fetches_little_again_and_nothing_wrong() -> Result<()> {
    let kills = match std::env::var("OMX_KILLS") {
        Ok(said) => said.parse().context("`OMX_KILLS` is no number")?,
        Err(_) => KILLS,
    };
    let seed = std::env::var("OMX_SEED").map_or(Ok(7), |said| said.parse()).context("`OMX_SEED` is no number")?;
    println!("{kills} kills, seed {seed} (OMX_KILLS, OMX_SEED)");
    let mut mesh = Mesh::with(&[Door::Folder, Door::Folder], &["--down-limit", "24MB"])?;
    let (mut random, mut killed, mut round, mut judged, mut worst) = (seed, 0, 0, 0, 0);
    while killed < kills {
        round += 1;
        let model = format!("m{round}");
        let file = mesh.weights(100 + round, SIZE)?;
        mesh.node(0).text(&["models", "import", file.to_str().context("a path of ours")?, "--name", &model])?;
        mesh.node(0).text(&["models", "place", &model, "--replicas", "2"])?;
        // What lay there when it was killed last.
        let mut before = None;
        while killed < kills {
            random = mix(random);
            let enough = random % (8 * MIB);
            let begun = Instant::now();
            let seen = loop {
                let seen = transfer(&mesh)?;
                let has_enough = seen.as_ref().is_some_and(|seen| came(seen) >= enough && seen["stage"] == "fetching");
                if has_enough || mesh.holders(&model)?.iter().filter(|(_, state)| state == "verified").count() == 2 {
                    break seen.filter(|_| has_enough);
                }
                ensure!(begun.elapsed() < LIMIT, "neither comes nor has come: {seen:?}");
            };
            let Some(seen) = seen else { break };
            if let Some(before) = before {
                let kept = number(&seen["bytes"]).saturating_sub(came(&seen));
                let again = u64::saturating_sub(before, kept);
                ensure!(again <= AGAIN_MAX, "{before} bytes were there, {kept} of them after the kill {killed}");
                worst = worst.max(again);
                judged += 1;
            }
            mesh.testnet.nodes_mut()[1].kill9()?;
            killed += 1;
            before = Some(on_disk(&mesh.node(1).dir())?);
            mesh.testnet.nodes_mut()[1].start()?;
        }
        mesh.wait_for_holders(&model, 2, "verified")?;
        let name = mesh.listed(0)?.into_iter().find(|(name, _)| name.starts_with(&model)).context("it is listed")?;
        wait_until("the receiver to list it", LIMIT, || {
            ensure!(mesh.listed(1)?.contains(&name));
            Ok(())
        })?;
        let weights = std::fs::read(&file)?;
        let blobs = std::fs::read_dir(mesh.folders[1].join("blobs"))?.map(|entry| Ok(std::fs::read(entry?.path())?));
        ensure!(blobs.collect::<Result<Vec<_>>>()?.contains(&weights), "what came is what was sent");
        // A node that has much to do just now may not be heard of in time.
        wait_until("all to be whole", LIMIT, || mesh.node(0).text(&["models", "verify", &model]).map(drop))?;
    }
    println!("killed {killed} times, {round} models came through; at most {worst} bytes came again");
    ensure!(judged * 3 >= kills, "only {judged} of {kills} ends were in the middle of one");
    Ok(())
}

fn mix(seed: u64) -> u64 {
    seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 3
}
