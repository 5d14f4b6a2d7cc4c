//! What is deleted because nobody needs it. A blob that is young may be of a model that is just being put here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Folder, entries};
use crate::digest::Digest;

/// What is younger stays at a start.
const GRACE: Duration = Duration::from_hours(1);

impl Folder {
    /// At a start: blobs that no manifest names, files of other names among them, and empty folders. Nothing at all
    /// where a manifest cannot be read, for it may name anything.
    pub(super) fn prune(&self) -> io::Result<()> {
        let Some(used) = self.used() else { return Ok(()) };
        for entry in entries(&self.blobs()) {
            let path = self.blobs().join(&entry);
            let is_used = entry.parse().is_ok_and(|digest: Digest| used.contains(&digest));
            if !is_used && is_old(&path) {
                fs::remove_file(path)?;
            }
        }
        self.remove_empty(&self.manifests());
        Ok(())
    }

    /// Those of `digests` that no manifest names, however young.
    pub(crate) fn remove_unused<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> io::Result<()> {
        let Some(used) = self.used() else { return Ok(()) };
        let unused: BTreeSet<&Digest> = digests.filter(|digest| !used.contains(digest)).collect();
        for digest in unused {
            match fs::remove_file(self.blob(digest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Folders in which nothing is, from the innermost on.
    pub(super) fn remove_empty(&self, path: &Path) {
        for entry in entries(path) {
            let inner = path.join(entry);
            if inner.is_dir() {
                self.remove_empty(&inner);
                // One that is not empty stays, and so does one that was filled since.
                let _ = fs::remove_dir(&inner);
            }
        }
    }

    /// What manifests name. `None` where one of them cannot be read.
    fn used(&self) -> Option<BTreeSet<Digest>> {
        let names = self.names();
        let mut used = BTreeSet::new();
        for name in names {
            used.extend(self.read(name)?.manifest.blobs().map(|layer| layer.digest.clone()));
        }
        Some(used)
    }
}

fn is_old(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    path.is_file() && age.is_some_and(|age| age > GRACE)
}
