//! What somebody who moves models between machines does with a folder: whole files come in by a link, manifests byte by
//! byte, and names go without what they name.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::write::{Draft, random_name, sync_folder};
use super::{Error, Folder, Installed};
use crate::manifest::{Layer, MANIFEST_BYTES_MAX, Manifest};
use crate::{Digest, ModelName};

/// How a file came into the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It lay there before.
    Known,
    /// One file under two names: nothing was copied.
    Linked,
    /// The file system may have shared the bytes, where it can.
    Copied,
}

impl Folder {
    /// A folder that somebody else keeps: nothing is made in it or removed from it before something is put there.
    pub fn of_another(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// As they lie there, which is what the model's digest is of.
    pub fn manifest_bytes(&self, name: &ModelName) -> Result<Vec<u8>, Error> {
        let path = self.manifest_path(&self.spelling(name)?);
        super::read_at_most(&path, MANIFEST_BYTES_MAX).map_err(|source| Error::Io { path, source })
    }

    /// Whether there is a file of this digest and this size. What it holds is not looked at.
    pub fn has(&self, layer: &Layer) -> bool {
        fs::metadata(self.blob(&layer.digest)).is_ok_and(|found| found.is_file() && found.len() == layer.size)
    }

    /// Brings a file in under its digest, which the caller has verified. Where it lies on the same file system nothing is
    /// copied, and both names are one file from then on. Durable once this returns.
    pub fn link(&self, layer: &Layer, from: &Path) -> Result<Came, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| Error::Io { path, source }
        };
        for path in [self.blobs(), self.incoming()] {
            fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        if self.has(layer) { Ok(Came::Known) } else { self.replace(layer, from) }
    }

    /// The same, in place of what lies there, which is not what its name says.
    pub fn replace(&self, layer: &Layer, from: &Path) -> Result<Came, Error> {
        let to = self.blob(&layer.digest);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| Error::Io { path, source }
        };
        let draft = Passing(self.incoming().join(random_name()));
        let came = match self.may_be_linked(from).map_err(failed(from))? && fs::hard_link(from, &draft.0).is_ok() {
            true => Came::Linked,
            // Another file system, one without links, or a file of another user's: Linux lets nobody link to those.
            false => {
                fs::copy(from, &draft.0).map_err(failed(&draft.0))?;
                readable_by_all(&draft.0).map_err(failed(&draft.0))?;
                Came::Copied
            }
        };
        let size = fs::metadata(&draft.0).map_err(failed(&draft.0))?.len();
        if size != layer.size {
            return Err(Error::OtherSize { path: from.to_owned(), bytes: size, expected: layer.size });
        }
        // It stays as old as it was: whoever refers to the file knows it by its time. An Ollama that starts before the name is
        // given may prune it, which `put` finds out.
        fs::rename(&draft.0, &to).map_err(failed(&to))?;
        sync_folder(&self.blobs()).map_err(failed(&self.blobs()))?;
        Ok(came)
    }

    /// Small bytes, under their own digest.
    pub fn add_bytes(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let layer = Layer { media_type: String::new(), digest, size: bytes.len() as u64 };
        for path in [self.blobs(), self.incoming()] {
            fs::create_dir_all(&path).map_err(|source| Error::Io { path, source })?;
        }
        let to = self.blob(&digest);
        if self.has(&layer) {
            self.renew(&to).map_err(|source| Error::Io { path: to, source })?;
            return Ok(digest);
        }
        let mut draft = Draft::new(&self.incoming())?;
        draft.write_all(bytes)?;
        draft.publish(&to)?;
        Ok(digest)
    }

    /// Makes a name mean these bytes, all of whose blobs must be there. Until then it means what it meant before.
    pub fn put(&self, name: &ModelName, manifest: &[u8]) -> Result<Installed, Error> {
        let parsed = Manifest::parse(manifest).map_err(|source| Error::Json { path: self.manifests(), source })?;
        let missing = |manifest: &Manifest| manifest.blobs().find(|layer| !self.has(layer)).cloned();
        if let Some(layer) = missing(&parsed) {
            return Err(Error::Missing { digest: layer.digest });
        }
        for path in [self.manifests(), self.incoming()] {
            fs::create_dir_all(&path).map_err(|source| Error::Io { path, source })?;
        }
        let _changing = self.lock()?;
        let name = self.spelling(name)?;
        self.put_manifest(&name, manifest)?;
        // A delete in another process may have taken a blob that no manifest named yet.
        if let Some(layer) = missing(&parsed) {
            let path = self.manifest_path(&name);
            fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
            return Err(Error::Missing { digest: layer.digest });
        }
        self.read(name)
    }

    /// The name goes, and all it named stays.
    pub fn unname(&self, name: &ModelName) -> Result<(), Error> {
        let _changing = self.lock()?;
        self.remove_manifest(&self.find(name)?.name)
    }

    /// Removes those of these that no manifest names.
    pub fn prune(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), Error> {
        self.remove_unused(digests)
    }

    /// Whether the folder's owner can read the file as it is. Who gave us a file to read did not ask us to show it to
    /// others: one that is kept to itself is copied.
    fn may_be_linked(&self, from: &Path) -> io::Result<bool> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let (file, folder) = (fs::metadata(from)?, fs::metadata(self.blobs())?);
            Ok(file.uid() == folder.uid() || file.mode() & 0o004 != 0)
        }
        #[cfg(not(unix))]
        fs::metadata(from).map(|_| true)
    }

    /// Makes a file that Ollama might prune as good as new.
    pub(super) fn renew(&self, path: &Path) -> io::Result<()> {
        let changed = File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        match changed {
            // A file of another user's is as old as its owner says.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            changed => changed,
        }
    }
}

/// A name that goes with this value, unless it was given away.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        // Renamed by now, where all went well; what stays is swept at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// The folder's owner may be another user than we are. Durable once this returns.
fn readable_by_all(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let metadata = fs::metadata(path)?;
        let wanted = metadata.mode() | 0o644;
        if metadata.mode() != wanted {
            fs::set_permissions(path, fs::Permissions::from_mode(wanted & 0o7777))?;
        }
    }
    File::open(path)?.sync_all()
}
