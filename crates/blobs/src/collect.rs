//! Gives back the room of what nobody needs. What we only refer to is forgotten and stays where it is.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ollama::Digest;
use types::BlobHash;

use crate::disk;
use crate::error::Error;
use crate::journal::Journal;
use crate::shared::{Shared, blocking};
use crate::state::Known;

/// Something that is gone, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    pub hash: BlobHash,
    /// Of one that was whole.
    pub sha256: Option<Digest>,
    pub size: u64,
    /// Bytes of our own on the disk; 0 for what we only referred to, or what has another name besides ours.
    pub freed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Dry,
    Real,
}

/// Each blob is judged once more when it is its turn: what is being fetched or held by then stays.
pub(crate) async fn collect(
    shared: &Arc<Shared>,
    keep: &BTreeSet<BlobHash>,
    mode: Mode,
) -> Result<Vec<Collected>, Error> {
    let mut collected = Vec::new();
    let all = shared.shelf().all();
    for hash in all {
        let found = {
            let shelf = shared.shelf();
            let goes = shelf.own(&hash).is_some_and(|own| !disk::has_other_names(own));
            shelf.known(&hash).map(|Known { sha256, size, .. }| Collected {
                hash,
                sha256: Some(sha256),
                size,
                freed: if goes { size } else { 0 },
            })
        };
        let is_young = || age(&shared.folder.known(&hash)).is_none_or(|age| age < shared.config.young_max);
        if let Some(found) = found.filter(|_| is_free(shared, keep, &hash) && !is_young()) {
            drop_all(shared, hash, mode).await?;
            collected.push(found);
        }
    }
    let with = shared.clone();
    for (hash, size, freed) in blocking(move || unfinished(&with)).await? {
        if is_free(shared, keep, &hash) {
            drop_all(shared, hash, mode).await?;
            collected.push(Collected { hash, sha256: None, size, freed });
        }
    }
    if mode == Mode::Real {
        let with = shared.clone();
        blocking(move || sweep(&with)).await?;
    }
    Ok(collected)
}

fn is_free(shared: &Shared, keep: &BTreeSet<BlobHash>, hash: &BlobHash) -> bool {
    !keep.contains(hash) && !shared.running().contains_key(hash) && !shared.held().contains_key(hash)
}

async fn drop_all(shared: &Arc<Shared>, hash: BlobHash, mode: Mode) -> Result<(), Error> {
    if mode == Mode::Dry {
        return Ok(());
    }
    let taken = shared.take(hash).await;
    let with = shared.clone();
    blocking(move || {
        let _taken = taken;
        with.drop_all(&hash)
    })
    .await
}

/// What fetches have left and nobody has touched for too long.
fn unfinished(shared: &Shared) -> Result<Vec<(BlobHash, u64, u64)>, Error> {
    let mut found = Vec::new();
    for hash in shared.folder.scan("partial")? {
        let (path, journal) = (shared.folder.partial(&hash), shared.folder.journal(&hash));
        if age(&journal).or_else(|| age(&path)).is_some_and(|age| age >= shared.config.partial_age_max) {
            let size = Journal::look(&journal, &hash).map_or(0, |found| found.size);
            let freed = path.metadata().map_or(0, |found| found.len());
            found.push((hash, size, freed));
        }
    }
    Ok(found)
}

/// Removes lists and whole files that belong to nothing: rests of what was cut off half-way.
fn sweep(shared: &Shared) -> Result<(), Error> {
    for part in ["whole", "lists"] {
        for hash in shared.folder.scan(part)? {
            let is_known = shared.shelf().entry(&hash).is_some() || shared.folder.partial(&hash).exists();
            // An import writes its list before its record.
            let age = age(&shared.folder.dir.join(part).join(hash.hex()));
            let is_young = || age.is_none_or(|age| age < shared.config.young_max);
            if !is_known && !shared.running().contains_key(&hash) && !is_young() {
                let path = shared.folder.dir.join(part).join(hash.hex());
                disk::remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
    }
    Ok(())
}

fn age(path: &Path) -> Option<Duration> {
    path.metadata().ok()?.modified().ok()?.elapsed().ok()
}
