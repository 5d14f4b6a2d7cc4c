//! The store of an Ollama or engine beside us: what lies in it, and how a model gets into it.
//!
//! There are two ways in. Where its folder can be used, files are linked in and the name is given by rename: nothing is
//! copied. Where it cannot (another user's, another machine's, inside a container), the Ollama pulls from a listener of
//! ours on loopback, under a name of the moment. Afterwards it is asked: only what it lists by the right digest is there.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ollama::client::{self, Client};
use ollama::folder::{self, Came, Folder, Installed};
use ollama::manifest::Layer;
use ollama::{Digest, ModelName};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use types::UnixMillis;

use crate::serve::{self, Offers};

/// An Ollama tells of a pull many times a second, but for the time it takes to hash a large file.
const PULL_SILENCE_MAX: Duration = Duration::from_secs(300);

/// How it is spoken to just now, or why not: an engine that was started anew listens elsewhere.
pub type FindClient = Box<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// What is known of a store from the start.
pub struct Beside {
    /// For people: an address, or `engine`.
    pub label: String,
    pub client: FindClient,
    /// Where its folder may be, the likeliest first.
    pub folders: Vec<PathBuf>,
    /// Nobody else puts models there: what no name needs is ours to remove.
    pub ours: bool,
}

pub struct Store {
    beside: Beside,
    folder: Mutex<Access>,
}

/// A name it lists itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: ModelName,
    pub digest: Digest,
    /// When it came to mean this.
    pub since: UnixMillis,
}

/// How models get in, and whether what lies there can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Nobody has looked yet.
    Unknown,
    /// Files are linked in.
    Folder(PathBuf),
    /// What lies there can be read; what comes in is pulled.
    ReadOnly { folder: PathBuf, why: String },
    /// Its folder is not known or not ours to read: what comes in is pulled, and nothing goes out.
    Closed { why: String },
}

/// A model whose every file is here and verified.
#[derive(Debug, Clone)]
pub struct Ready {
    pub digest: Digest,
    /// Byte by byte as it was published first.
    pub manifest: Vec<u8>,
    pub layers: Vec<(Layer, PathBuf)>,
}

/// What became of a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Where each of them lies in the store now, as far as we may look.
    pub files: Vec<(Digest, PathBuf)>,
    pub linked: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the backend cannot be asked: {0}")]
    NoWay(String),
    #[error("the backend did not do it")]
    Backend(#[from] client::Error),
    #[error("failed to put files into its folder")]
    Folder(#[from] folder::Error),
    #[error("it did not pull the model: {0}")]
    Pull(String),
    #[error("it lists `{name}` as `{found}` and not as `{wanted}`")]
    OtherDigest { name: Box<ModelName>, wanted: Digest, found: String },
    #[error("failed to listen for it")]
    Listen(#[source] io::Error),
}

impl Store {
    pub fn new(beside: Beside) -> Self {
        Self { beside, folder: Mutex::new(Access::Unknown) }
    }

    pub fn label(&self) -> &str {
        &self.beside.label
    }

    /// Finds out how models get in, unless that is known.
    pub async fn access(&self) -> Access {
        let known = self.known();
        if known != Access::Unknown {
            return known;
        }
        let Ok(listed) = self.listed().await else { return Access::Unknown };
        let folders = self.beside.folders.clone();
        let looked = tokio::task::spawn_blocking(move || judge(&folders, &listed)).await;
        self.learn(looked.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic())))
    }

    /// Names and digests, as it lists them itself; what runs elsewhere left out.
    pub async fn listed(&self) -> Result<Vec<Found>, Error> {
        let tags = self.client()?.tags().await?;
        let local = tags.models.iter().filter(|model| model.remote_host.is_empty());
        let found = local.filter_map(|model| {
            let (name, digest) = (model.name.parse().ok()?, bare(&model.digest)?);
            Some(Found { name, digest, since: UnixMillis(model.modified_at_ms) })
        });
        Ok(found.collect())
    }

    /// What lies in its folder, where that can be read.
    pub fn folder(&self) -> Option<Folder> {
        match self.known() {
            Access::Folder(folder) | Access::ReadOnly { folder, .. } => Some(Folder::of_another(folder)),
            Access::Unknown | Access::Closed { .. } => None,
        }
    }

    /// Puts a model in under a name. Whatever that name meant, it means this once this returns, and nothing else before.
    pub async fn publish(&self, name: &ModelName, model: &Ready) -> Result<Published, Error> {
        if let Access::Folder(folder) = self.access().await {
            match self.link(Folder::of_another(folder.clone()), name, model).await {
                Ok(linked) => {
                    match self.lists(name, model.digest).await {
                        Ok(()) => return Ok(linked.published),
                        Err(Error::OtherDigest { .. }) => {}
                        // Nobody knows yet whether it looks here: what was put stays.
                        Err(error) => return Err(error),
                    }
                    // It looks elsewhere: what lies there now is of no use to anybody.
                    let (undoing, name, ours) =
                        (Folder::of_another(folder.clone()), name.clone(), model.manifest.clone());
                    let _ = blocking(move || linked.undo(&undoing, &name, &ours)).await;
                    self.learn(Access::Closed { why: format!("it does not look into `{}`", folder.display()) });
                }
                Err(folder::Error::Io { source, .. }) if is_forbidden(&source) => {
                    let why = format!("`{}` is not ours to write: {source}", folder.display());
                    self.learn(Access::ReadOnly { folder, why });
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.pull(name, model).await?;
        let files = match self.folder() {
            None => Vec::new(),
            Some(folder) => {
                let there = model.layers.iter().filter(|(layer, _)| folder.has(layer));
                there.map(|(layer, _)| (layer.digest, folder.blob(&layer.digest))).collect()
            }
        };
        Ok(Published { files, linked: false })
    }

    /// Takes a name away. The files stay where the folder is ours, and go with the name otherwise.
    pub async fn unname(&self, name: &ModelName) -> Result<(), Error> {
        if let Access::Folder(folder) = self.access().await {
            let name = name.clone();
            let done = blocking(move || Folder::of_another(folder).unname(&name)).await;
            return match done {
                Err(folder::Error::NotFound { .. }) => Ok(()),
                done => Ok(done?),
            };
        }
        match self.client()?.delete(name).await {
            Err(client::Error::Said { status: 404, .. }) => Ok(()),
            done => Ok(done?),
        }
    }

    /// By its own means, for a model that the mesh knows nothing of.
    pub async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<(), Error> {
        Ok(self.client()?.copy(from, to).await?)
    }

    /// Likewise.
    pub async fn delete(&self, name: &ModelName) -> Result<(), Error> {
        Ok(self.client()?.delete(name).await?)
    }

    /// Removes files that no name needs any more, where nobody else keeps any.
    pub async fn prune(&self, digests: Vec<Digest>) -> Result<(), Error> {
        let Access::Folder(folder) = self.known() else { return Ok(()) };
        if !self.beside.ours {
            return Ok(());
        }
        Ok(blocking(move || Folder::of_another(folder).prune(digests)).await?)
    }

    /// Puts a good file in place of one that is not what its name says. `None` where nothing of that name lies here.
    pub async fn mend(&self, layer: &Layer, from: PathBuf) -> Result<Option<PathBuf>, Error> {
        let Access::Folder(folder) = self.known() else { return Ok(None) };
        let (folder, layer) = (Folder::of_another(folder), layer.clone());
        let at = folder.blob(&layer.digest);
        if !folder.has(&layer) {
            return Ok(None);
        }
        blocking(move || folder.replace(&layer, &from)).await?;
        Ok(Some(at))
    }

    async fn link(&self, folder: Folder, name: &ModelName, model: &Ready) -> Result<Linked, folder::Error> {
        let (name, model) = (name.clone(), model.clone());
        blocking(move || {
            let (mut linked, mut new) = (true, Vec::new());
            for (layer, from) in &model.layers {
                let came = folder.link(layer, from)?;
                linked &= came != Came::Copied;
                if came != Came::Known {
                    new.push(layer.digest);
                }
            }
            let before = folder.manifest_bytes(&name).ok();
            folder.put(&name, &model.manifest)?;
            let files = model.layers.iter().map(|(layer, _)| (layer.digest, folder.blob(&layer.digest))).collect();
            Ok(Linked { published: Published { files, linked }, before, new })
        })
        .await
    }

    async fn pull(&self, name: &ModelName, model: &Ready) -> Result<(), Error> {
        let client = self.client()?;
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::Listen)?;
        let port = listener.local_addr().map_err(Error::Listen)?.port();
        // Nobody else on this machine can guess what is offered for a moment.
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the operating system has a random source");
        let namespace: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let passing = format!("127.0.0.1:{port}/{namespace}/{}:{}", name.model(), name.tag());
        let passing: ModelName = passing.parse().expect("parts of a good name, an address and hexadecimal digits");
        let offer = One { namespace, name: name.clone(), model: model.clone() };
        let mut serving = JoinSet::new();
        serving.spawn(serve::serve(listener, Arc::new(offer)));
        let mut pulling = client.pull(&passing, true).await?;
        loop {
            let line = tokio::time::timeout(PULL_SILENCE_MAX, pulling.next()).await;
            let line = line.map_err(|_| Error::Pull(format!("nothing for {} s", PULL_SILENCE_MAX.as_secs())))?;
            let Some(line) = line else { break };
            let line = line?;
            if !line.error.is_empty() {
                return Err(Error::Pull(line.error.chars().take(300).collect()));
            }
        }
        drop(serving);
        let named = match self.lists(&passing, model.digest).await {
            Ok(()) => client.copy(&passing, name).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        // The blobs stay with the other name, if there is one.
        let removed = client.delete(&passing).await;
        named?;
        removed?;
        self.lists(name, model.digest).await
    }

    /// Whether it lists the name by this digest.
    async fn lists(&self, name: &ModelName, wanted: Digest) -> Result<(), Error> {
        let listed = self.listed().await?;
        match listed.into_iter().find(|found| found.name == *name) {
            Some(found) if found.digest == wanted => Ok(()),
            found => {
                let found = found.map_or_else(|| "nothing".to_owned(), |found| found.digest.to_string());
                Err(Error::OtherDigest { name: Box::new(name.clone()), wanted, found })
            }
        }
    }

    fn client(&self) -> Result<Client, Error> {
        (self.beside.client)().map_err(Error::NoWay)
    }

    pub(crate) fn known(&self) -> Access {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, access: Access) -> Access {
        tracing::info!(store = self.label(), ?access, "how models get to this backend");
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = access.clone();
        access
    }
}

/// Which of the folders is the one whose models are listed. One that is empty like the list may be: what is put there
/// first will show.
fn judge(folders: &[PathBuf], listed: &[Found]) -> Access {
    let mut last = "nobody said where its folder is".to_owned();
    for path in folders {
        let is_listed =
            |model: &Installed| listed.iter().any(|found| found.name == model.name && found.digest == model.digest);
        let same = |models: &[Installed]| models.len() == listed.len() && models.iter().all(is_listed);
        match readable(path) {
            Err(why) => last = format!("`{}`: {why}", path.display()),
            Ok(models) if !same(&models) => last = format!("`{}` holds other models than it lists", path.display()),
            Ok(_) => {
                return match writable(path) {
                    Ok(()) => Access::Folder(path.clone()),
                    Err(why) => Access::ReadOnly { folder: path.clone(), why: why.to_string() },
                };
            }
        }
    }
    Access::Closed { why: last }
}

fn readable(path: &std::path::Path) -> io::Result<Vec<Installed>> {
    std::fs::read_dir(path)?;
    let models = Folder::of_another(path).list().map_err(io::Error::other)?;
    // A manifest that can be read says nothing of the blobs, which may have another owner.
    if let Some(layer) = models.iter().flat_map(|model| model.manifest.blobs()).next() {
        std::fs::File::open(Folder::of_another(path).blob(&layer.digest))?;
    }
    Ok(models)
}

/// Tries what publishing begins with, and leaves nothing behind.
fn writable(path: &std::path::Path) -> io::Result<()> {
    for folder in [path.join("blobs"), path.join("manifests")] {
        std::fs::create_dir_all(&folder)?;
    }
    let trial = path.join("incoming");
    std::fs::create_dir_all(&trial)?;
    let file = trial.join(format!("trial-{}", std::process::id()));
    let (from, to) = (file.clone(), path.join("blobs").join(format!("trial-{}", std::process::id())));
    std::fs::write(&file, b"")?;
    let moved = std::fs::rename(&from, &to);
    let _ = std::fs::remove_file(if moved.is_ok() { &to } else { &from });
    moved
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn bare(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}

/// What was done to a folder, so that it can be undone.
struct Linked {
    published: Published,
    /// What the name meant.
    before: Option<Vec<u8>>,
    /// Files that were not there.
    new: Vec<Digest>,
}

impl Linked {
    /// As it was, unless somebody else has given the name another meaning since.
    fn undo(self, folder: &Folder, name: &ModelName, ours: &[u8]) -> Result<(), folder::Error> {
        if folder.manifest_bytes(name).is_ok_and(|now| now == ours) {
            match self.before {
                Some(before) => drop(folder.put(name, &before)?),
                None => folder.unname(name)?,
            }
        }
        folder.prune(self.new)
    }
}

/// One model, for one Ollama, for as long as it pulls.
struct One {
    namespace: String,
    name: ModelName,
    model: Ready,
}

impl Offers for One {
    fn manifest(&self, namespace: &str, model: &str, tag: &str) -> Option<Vec<u8>> {
        let asked = namespace == self.namespace && model == self.name.model() && tag == self.name.tag();
        asked.then(|| self.model.manifest.clone())
    }

    fn blob(&self, namespace: &str, model: &str, digest: &Digest) -> Option<(PathBuf, u64)> {
        let asked = namespace == self.namespace && model == self.name.model();
        let (layer, path) = self.model.layers.iter().find(|(layer, _)| asked && layer.digest == *digest)?;
        Some((path.clone(), layer.size))
    }

    fn admits(&self, from: IpAddr) -> bool {
        from.is_loopback()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("label", &self.beside.label).field("folder", &self.folder).finish()
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("label", &self.label).field("folders", &self.folders).finish_non_exhaustive()
    }
}
