//! Putting models into the folder, under other names, and out of it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Folder, Installed, LOCK_NAME};
use crate::compose::{Texts, TooLong, compose, describe};
use crate::manifest::{Layer, LayerKind};
use crate::{Digest, Head, ModelName};

/// A file that nobody has written to for so long will not be finished.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(3600);

impl Folder {
    /// Makes a model of a GGUF file. A name that exists comes to mean the new one; the old one's blobs stay until it
    /// is deleted under all its names. Safe to repeat: the same file and texts give the same model.
    pub fn install(&self, name: &ModelName, weights: &mut impl Read, texts: &Texts) -> Result<Installed, Error> {
        let weights = self.add(weights)?;
        let path = self.blob(&weights.digest);
        let head = Head::read(&path).map_err(|source| Error::Io { path, source })?;
        let composed = match head.header() {
            Ok(header) => {
                let composed = compose(vec![weights.clone()], &describe(&header), texts);
                composed.map_err(|TooLong { bytes, max }| Error::TextTooLong { bytes, max })
            }
            Err(source) => Err(Error::Gguf { source }),
        };
        let composed = match composed {
            Ok(composed) => composed,
            Err(error) => {
                self.remove_unused([weights.digest])?;
                return Err(error);
            }
        };
        for (_, text) in &composed.small {
            self.add_bytes(text)?;
        }
        self.put(name, &composed.bytes)
    }

    /// Byte by byte, so that both names mean one digest.
    pub fn copy(&self, from: &ModelName, to: &ModelName) -> Result<(), Error> {
        let _changing = self.lock()?;
        let source = self.find(from)?;
        let path = self.manifest_path(&source.name);
        let bytes = super::read_at_most(&path, super::MANIFEST_BYTES_MAX);
        let bytes = bytes.map_err(|source| Error::Io { path, source })?;
        self.put_manifest(&self.spelling(to)?, &bytes)
    }

    /// First the name, then the blobs no other name needs. Where some other manifest cannot be read nobody knows what
    /// it needs, and all blobs stay.
    pub fn delete(&self, name: &ModelName) -> Result<(), Error> {
        let _changing = self.lock()?;
        let gone = self.find(name)?;
        self.remove_manifest(&gone.name)?;
        self.remove_blobs(gone.manifest.blobs().map(|layer| layer.digest))
    }

    /// To be called with the lock held, and a name as the folder spells it.
    pub(super) fn remove_manifest(&self, name: &ModelName) -> Result<(), Error> {
        let path = self.manifest_path(name);
        fs::remove_file(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let parents = path.ancestors().skip(1).take_while(|parent| *parent != self.manifests());
        for parent in parents {
            // Ends at the first that still holds something.
            if fs::remove_dir(parent).is_err() {
                sync_folder(parent).map_err(|source| Error::Io { path: parent.to_owned(), source })?;
                break;
            }
        }
        Ok(())
    }

    pub(super) fn remove_unused(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), Error> {
        let _changing = self.lock()?;
        self.remove_blobs(digests)
    }

    /// To be called with the lock held.
    fn remove_blobs(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), Error> {
        let names = self.names()?;
        let Ok(others) = names.into_iter().map(|name| self.read(name)).collect::<Result<Vec<_>, _>>() else {
            return Ok(());
        };
        let used =
            |digest: &Digest| others.iter().any(|other| other.manifest.blobs().any(|layer| layer.digest == *digest));
        for digest in digests.into_iter().filter(|digest| !used(digest)) {
            let path = self.blob(&digest);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::Io { path, source }),
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&self, source: &mut impl Read) -> Result<Layer, Error> {
        let mut draft = Draft::new(&self.incoming())?;
        let path = draft.path.clone();
        let failed = |source| Error::Io { path: path.clone(), source };
        let (digest, size) = Digest::of_all(source, |chunk| draft.file.write_all(chunk)).map_err(failed)?;
        let layer = Layer { media_type: LayerKind::Model.media_type(), digest, size };
        let blob = self.blob(&digest);
        if self.has(&layer) {
            // Ollama prunes blobs that nobody names and that are old: this one is about to be named.
            self.renew(&blob).map_err(failed)?;
        } else {
            draft.publish(&blob)?;
        }
        Ok(layer)
    }

    /// To be called with the lock held.
    pub(super) fn put_manifest(&self, name: &ModelName, bytes: &[u8]) -> Result<(), Error> {
        let mut draft = Draft::new(&self.incoming())?;
        draft.write_all(bytes)?;
        let path = self.manifest_path(name);
        let mut folder = self.manifests();
        for part in &name.parts()[..3] {
            let parent = folder.clone();
            folder.push(part);
            match fs::create_dir(&folder) {
                Ok(()) => sync_folder(&parent).map_err(|source| Error::Io { path: parent, source })?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { path: folder, source }),
            }
        }
        draft.publish(&path)
    }

    /// Removes what an install that did not finish left behind. One that still runs, in another process, writes on.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        for name in super::entries(&self.incoming())?.into_iter().filter(|name| name != LOCK_NAME) {
            let path = self.incoming().join(name);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = modified.map(|modified| modified.elapsed().unwrap_or_default());
            let removed = match age {
                Ok(age) if age > DRAFT_AGE_MAX => fs::remove_file(&path),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::Io { path, source }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A file that is not whole yet. Gone when dropped before it is published.
pub(super) struct Draft {
    path: PathBuf,
    file: BufWriter<File>,
    published: bool,
}

impl Draft {
    pub(super) fn new(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(random_name());
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { path, file: BufWriter::new(file), published: false }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Durable once this returns.
    pub(super) fn publish(mut self, to: &Path) -> Result<(), Error> {
        let failed = |source| Error::Io { path: to.to_owned(), source };
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        fs::rename(&self.path, to).map_err(failed)?;
        self.published = true;
        sync_folder(to.parent().expect("it is a file in a folder of ours")).map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What stays is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// For a file that has no better name yet.
pub(super) fn random_name() -> String {
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the operating system has a random source");
    format!("{:016x}", u64::from_le_bytes(random))
}

/// A rename is durable once its folder is synced, on systems where a folder can be opened.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}
