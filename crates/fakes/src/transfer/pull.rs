//! `/api/pull`: the manifest, what it names, and then the manifest again, on disk.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use super::download::Found;
use super::progress::{Progress, Reporter, Wanted};
use super::remote::Remote;
use super::{Depot, digest_of, failed};
use crate::body::Answer;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::folder::Manifest;
use crate::json::Fields;
use crate::name::Name;
use crate::refusal::Refusal;

pub(super) async fn pull(depot: &Arc<Depot>, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let fields = Fields::read("PullRequest", body)?;
    let name = Name::parse(&fields.model()?).ok_or_else(Refusal::invalid_name)?;
    let insecure = fields.flag("insecure")?.unwrap_or(false);
    let stream = fields.flag("stream")?.unwrap_or(true);
    let spoilt = fault == Some(Fault::Mismatch);
    let work = {
        let depot = depot.clone();
        |reporter| async move { fetch(&depot, &name, insecure, spoilt, &reporter).await }
    };
    Progress::begin(depot, Wanted { stream, fault }, work).await
}

/// With `spoilt`, what comes is found to be something else than it should be.
pub(super) async fn fetch(
    depot: &Depot,
    name: &Name,
    insecure: bool,
    spoilt: bool,
    reporter: &Reporter,
) -> Result<(), Refusal> {
    let folder = &depot.folder;
    let name = folder.spelling(name);
    let mut unused: BTreeSet<Digest> = match folder.find(&name) {
        Some(before) if folder.prunes() => before.manifest.blobs().map(|layer| layer.digest.clone()).collect(),
        _ => BTreeSet::new(),
    };
    reporter.say("pulling manifest").await;
    let of_manifest = |refusal: Refusal| failed(format!("pull model manifest: {}", refusal.text));
    let remote = Arc::new(Remote::new(depot, &name, insecure)?);
    let bytes = remote.manifest().await.map_err(of_manifest)?;
    let manifest = Manifest::parse(&bytes).map_err(|error| of_manifest(failed(error)))?;
    let mut fetched = BTreeSet::new();
    for layer in manifest.blobs() {
        match depot.downloads.find(&layer.digest, &remote) {
            Found::Here { size } => reporter.blob("pulling", &layer.digest, size, size).await,
            Found::Coming(download) => {
                download.wait(reporter).await?;
                fetched.insert(&layer.digest);
            }
        }
        unused.remove(&layer.digest);
    }
    reporter.say("verifying sha256 digest").await;
    for digest in fetched {
        let path = folder.blob(digest);
        let found = if spoilt { Digest::of(b"something else") } else { digest_of(&path).await.map_err(failed)? };
        if found != *digest {
            // Another pull that waited for it may have removed it.
            let _ = fs::remove_file(path);
            let words = format!("digest mismatch, file must be downloaded again: want {digest}, got {found}");
            return Err(failed(words));
        }
    }
    reporter.say("writing manifest").await;
    folder.write_manifest(&name, &bytes).map_err(failed)?;
    if !unused.is_empty() {
        reporter.say("removing unused layers").await;
        if let Err(error) = folder.remove_unused(unused.iter()) {
            reporter.say(&format!("couldn't remove unused layers: {error}")).await;
        }
    }
    reporter.say("success").await;
    Ok(())
}
