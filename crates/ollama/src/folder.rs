//! A models folder in Ollama's layout, so that an Ollama beside us can read it, and we its.
//!
//! Blobs first, each under a temporary name outside `blobs/`, synced, renamed to its digest; then the manifest in the
//! same way. So whoever looks sees a model whole or not at all, and a power cut leaves at most a temporary file. What
//! lies in the folder may come from anyone who could write to it: it is read within limits, and only paths made of
//! parsed names and digests are opened.

mod error;
mod share;
mod write;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};

pub use crate::compose::{TEXT_BYTES_MAX, Texts};
pub use error::Error;
pub use share::Came;

use crate::manifest::{Config, Layer, LayerKind, MANIFEST_BYTES_MAX, Manifest};
use crate::wire::Message;
use crate::{Digest, Head, ModelName};

/// More entries than this in one folder are not looked at, and listing says so.
pub const ENTRIES_MAX: usize = 1 << 16;

const LOCK_NAME: &str = "lock";

#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

/// A model that has a manifest here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub name: ModelName,
    /// Of the manifest's bytes.
    pub digest: Digest,
    pub modified: SystemTime,
    pub manifest: Manifest,
}

/// What its small blobs say.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub config: Config,
    /// In Go's template language.
    pub template: Option<String>,
    pub system: Option<String>,
    pub licenses: Vec<String>,
    pub params: Map<String, Value>,
    pub messages: Vec<Message>,
}

impl Folder {
    /// Makes the folder where there is none.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = Self { root: root.into() };
        for path in [folder.blobs(), folder.manifests(), folder.incoming()] {
            fs::create_dir_all(&path).map_err(|source| Error::Io { path, source })?;
        }
        folder.sweep()?;
        Ok(folder)
    }

    /// All models whose manifests can be read, newest first. What is no model is passed over, as Ollama does.
    pub fn list(&self) -> Result<Vec<Installed>, Error> {
        let mut models: Vec<Installed> = self.names()?.into_iter().filter_map(|name| self.read(name).ok()).collect();
        models.sort_by(|one, other| other.modified.cmp(&one.modified).then_with(|| one.name.cmp(&other.name)));
        Ok(models)
    }

    /// The case of letters does not matter.
    pub fn find(&self, name: &ModelName) -> Result<Installed, Error> {
        self.read(self.spelling(name)?)
    }

    /// Where a blob is, or would be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.file_name())
    }

    /// The file of weights.
    pub fn weights(&self, installed: &Installed) -> Result<PathBuf, Error> {
        let layer = installed.manifest.layer(LayerKind::Model);
        let layer = layer.ok_or_else(|| Error::NoWeights { model: installed.name.clone() })?;
        Ok(self.blob(&layer.digest))
    }

    /// The beginning of the weights, which says what they are.
    pub fn head(&self, installed: &Installed) -> Result<Head, Error> {
        let path = self.weights(installed)?;
        Head::read(&path).map_err(|source| Error::Io { path, source })
    }

    pub fn model(&self, installed: &Installed) -> Result<Model, Error> {
        let manifest = &installed.manifest;
        let mut model = Model { config: self.json(&manifest.config)?, ..Model::default() };
        for layer in &manifest.layers {
            match layer.kind() {
                LayerKind::Template => model.template = Some(self.text(layer)?),
                LayerKind::System => model.system = Some(self.text(layer)?),
                LayerKind::License => model.licenses.push(self.text(layer)?),
                LayerKind::Params => model.params = self.json(layer)?,
                LayerKind::Messages => model.messages = self.json(layer)?,
                LayerKind::Model | LayerKind::Projector | LayerKind::Adapter | LayerKind::Other => {}
            }
        }
        Ok(model)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// For files that are not whole yet. Ollama does not look here.
    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Held while manifests change, so that no blob goes while another model comes to need it: by us, in this process
    /// or another. Released when dropped.
    fn lock(&self) -> Result<File, Error> {
        let path = self.incoming().join(LOCK_NAME);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| Error::Io { path, source })
    }

    fn manifest_path(&self, name: &ModelName) -> PathBuf {
        self.manifests().join(name.path())
    }

    fn read(&self, name: ModelName) -> Result<Installed, Error> {
        let path = self.manifest_path(&name);
        let failed = |source| Error::Io { path: path.clone(), source };
        let bytes = match read_at_most(&path, MANIFEST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound { model: name }),
            // A part of the name is a file where a folder should be, or the other way round.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
                return Err(Error::NotFound { model: name });
            }
            Err(source) => return Err(failed(source)),
        };
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(failed)?;
        let manifest = Manifest::parse(&bytes).map_err(|error| Error::Json { path: path.clone(), source: error })?;
        Ok(Installed { name, digest: Digest::of(&bytes), modified, manifest })
    }

    fn text(&self, layer: &Layer) -> Result<String, Error> {
        let path = self.blob(&layer.digest);
        let bytes = read_at_most(&path, TEXT_BYTES_MAX);
        let bytes = bytes.map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn json<T: serde::de::DeserializeOwned>(&self, layer: &Layer) -> Result<T, Error> {
        let text = self.text(layer)?;
        serde_json::from_str(&text).map_err(|source| Error::Json { path: self.blob(&layer.digest), source })
    }

    /// Every place of a name below `manifests/`.
    fn names(&self) -> Result<Vec<ModelName>, Error> {
        let mut names = Vec::new();
        let root = self.manifests();
        for host in entries(&root)? {
            for namespace in entries(&root.join(&host))? {
                for model in entries(&root.join(&host).join(&namespace))? {
                    for tag in entries(&root.join(&host).join(&namespace).join(&model))? {
                        names.extend(ModelName::from_parts(&host, &namespace, &model, &tag));
                    }
                }
            }
        }
        Ok(names)
    }

    /// The name as the folder spells it: each part exactly, else the first that differs in case alone, else as asked.
    fn spelling(&self, name: &ModelName) -> Result<ModelName, Error> {
        let mut path = self.manifests();
        let mut spelt = Vec::new();
        for part in name.parts() {
            let known = entries(&path)?;
            let same = || known.iter().find(|known| known.eq_ignore_ascii_case(part));
            let part = known.get(part).or_else(same).map_or(part, String::as_str);
            path.push(part);
            spelt.push(part.to_owned());
        }
        let spelt = ModelName::from_parts(&spelt[0], &spelt[1], &spelt[2], &spelt[3]);
        Ok(spelt.expect("a part that differs in case alone is as good as the one it is like"))
    }
}

/// Names of what is in a folder, sorted; nothing where there is no folder.
fn entries(path: &Path) -> Result<BTreeSet<String>, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(BTreeSet::new());
        }
        Err(source) => return Err(failed(source)),
    };
    let mut names = BTreeSet::new();
    for (count, entry) in listing.enumerate() {
        if count == ENTRIES_MAX {
            return Err(Error::TooManyEntries { path: path.to_owned() });
        }
        // Names that are no text are no part of a model's name.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// All of a regular file: pipes and devices, which might never end, are refused.
fn read_at_most(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
