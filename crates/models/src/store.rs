//! The store of an Ollama or engine beside us: what lies in it, and how a model gets into it.
//!
//! There are two ways in. Where its folder can be used, files are linked in and the name is given by rename: nothing is
//! copied. Where it cannot (another user's, another machine's, inside a container), the Ollama pulls from a listener of
//! ours on loopback, under a name of the moment. Afterwards it is asked: only what it lists by the right digest is there.

mod access;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ollama::client::{self, Client};
use ollama::folder::{self, Came, Folder};
use ollama::manifest::Layer;
use ollama::{Digest, ModelName};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::UnixMillis;

pub use self::access::Access;
use self::access::{is_this_machine, judge};
use crate::serve::{self, Offers};

/// An Ollama tells of a pull many times a second, but for the time it takes to hash a large file.
const PULL_SILENCE_MAX: Duration = Duration::from_secs(300);
/// A folder that cannot be used may be given free, or named otherwise after a restart.
const JUDGE_EVERY: Duration = Duration::from_secs(60);
/// What cannot be reached is rarely moved to where it can.
const TRY_EVERY: Duration = Duration::from_secs(600);
/// A passing name this old was left behind by somebody who was cut off. Nobody pulls for so long without a word.
const PASSING_MAX: Duration = Duration::from_secs(24 * 3600);

/// How it is spoken to just now, or why not: an engine that was started anew listens elsewhere.
pub type FindClient = Box<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// What is known of a store from the start.
pub struct Beside {
    /// For people: an address, or `engine`.
    pub label: String,
    pub client: FindClient,
    /// Where it runs, as far as its address tells; none where it is a child of ours.
    pub host: Option<String>,
    /// Where its folder may be, the likeliest first.
    pub folders: Vec<PathBuf>,
    /// Nobody else puts models there: what no name needs is ours to remove.
    pub ours: bool,
}

pub struct Store {
    beside: Beside,
    judged: Mutex<Judged>,
    /// Held while names in it change: two who give the same name do so one after the other.
    changing: tokio::sync::Mutex<()>,
}

/// What was found out about the ways in.
#[derive(Debug)]
struct Judged {
    access: Access,
    /// When it is looked at again.
    again: Option<Instant>,
    /// Whether it can pull from this machine's loopback, or why not.
    pulls: Result<(), String>,
    /// Folders into which something was put that it did not list.
    refuted: BTreeSet<PathBuf>,
}

/// A name it lists itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: ModelName,
    pub digest: Digest,
    /// When it came to mean this.
    pub since: UnixMillis,
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
    #[error("nothing can be put into it from here: {0}")]
    Elsewhere(String),
    #[error("a file of it is not what its name says, and its folder is not ours to change: `{}`", .0.display())]
    Wrong(PathBuf),
    #[error("it lists `{name}` as `{found}` and not as `{wanted}`")]
    OtherDigest { name: Box<ModelName>, wanted: Digest, found: String },
    #[error("failed to listen for it")]
    Listen(#[source] io::Error),
}

impl Error {
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Elsewhere(_) => {
                Some("run a node on the machine that it runs on, or name its folder with `--ollama-models`")
            }
            Self::Wrong(_) => Some("remove the model with the backend's own command, and have it brought here again"),
            _ => None,
        }
    }
}

impl Store {
    pub fn new(beside: Beside) -> Self {
        let judged = Judged { access: Access::Unknown, again: None, pulls: Ok(()), refuted: BTreeSet::new() };
        Self { beside, judged: Mutex::new(judged), changing: tokio::sync::Mutex::default() }
    }

    pub fn label(&self) -> &str {
        &self.beside.label
    }

    /// Whether nobody but us takes anything away there.
    pub fn is_ours(&self) -> bool {
        self.beside.ours
    }

    /// Finds out how models get in, unless that is known. What cannot be used is looked at again after a while.
    pub async fn access(&self) -> Access {
        let (access, again, refuted) = {
            let judged = self.judged();
            (judged.access.clone(), judged.again, judged.refuted.clone())
        };
        if access != Access::Unknown && again.is_none_or(|again| Instant::now() < again) {
            return access;
        }
        let Ok(listed) = self.all_listed().await else { return access };
        let folders = self.beside.folders.clone();
        let is_near = match &self.beside.host {
            Some(host) => is_this_machine(host).await,
            None => true,
        };
        let looked = blocking(move || judge(&folders, &listed, &refuted)).await;
        self.judged().pulls = match is_near {
            true => Ok(()),
            false => Err("it runs on another machine, which cannot pull from this one's loopback".to_owned()),
        };
        self.learn(looked)
    }

    /// Whether a model can be put in, as far as is known.
    pub fn takes(&self) -> bool {
        let judged = self.judged();
        matches!(judged.access, Access::Folder(_) | Access::Unknown) || judged.pulls.is_ok()
    }

    /// Names and digests, as it lists them itself; what runs elsewhere left out, and what is there for a moment only.
    pub async fn listed(&self) -> Result<Vec<Found>, Error> {
        let tags = self.client()?.tags().await?;
        let local = tags.models.iter().filter(|model| model.remote_host.is_empty());
        Ok(local.filter_map(found).filter(|found| !found.name.is_passing()).collect())
    }

    /// Everything that has a manifest, as a folder has.
    async fn all_listed(&self) -> Result<Vec<Found>, Error> {
        let tags = self.client()?.tags().await?;
        Ok(tags.models.iter().filter_map(found).filter(|found| !found.name.is_passing()).collect())
    }

    /// What lies in its folder, where that can be read.
    pub fn folder(&self) -> Option<Folder> {
        match self.known() {
            Access::Folder(folder) | Access::ReadOnly { folder, .. } => Some(Folder::of_another(folder)),
            Access::Unknown | Access::Closed { .. } | Access::Elsewhere { .. } => None,
        }
    }

    /// Where a layer lies in it, by its name and its size. What it holds is another question.
    pub fn file(&self, layer: &Layer) -> Option<PathBuf> {
        self.folder().filter(|folder| folder.has(layer)).map(|folder| folder.blob(&layer.digest))
    }

    /// Puts a model in under a name. Whatever that name meant, it means this once this returns, and nothing else before.
    pub async fn publish(&self, name: &ModelName, model: &Ready) -> Result<Published, Error> {
        let _alone = self.changing.lock().await;
        let access = self.access().await;
        let (there, is_listed) = (self.files(model), self.lists(name, model.digest).await);
        match is_listed {
            // Somebody else was quicker, or it was there all along.
            Ok(()) if self.folder().is_none() || there.len() == model.layers.len() => {
                return Ok(Published { files: there, linked: false });
            }
            Ok(()) | Err(Error::OtherDigest { .. }) => {}
            Err(error) => return Err(error),
        }
        if let Access::Folder(folder) = access {
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
                    let why = format!("it does not look into `{}`", folder.display());
                    self.judged().refuted.insert(folder);
                    self.learn(Access::Closed { why });
                }
                Err(folder::Error::Io { source, .. }) if is_forbidden(&source) => {
                    let why = format!("`{}` is not ours to write: {source}", folder.display());
                    self.learn(Access::ReadOnly { folder, why });
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.pull(name, model).await?;
        Ok(Published { files: self.files(model), linked: false })
    }

    fn files(&self, model: &Ready) -> Vec<(Digest, PathBuf)> {
        model.layers.iter().filter_map(|(layer, _)| Some((layer.digest, self.file(layer)?))).collect()
    }

    /// Takes a name away. The files stay where the folder is ours, and go with the name otherwise.
    pub async fn unname(&self, name: &ModelName) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
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

    /// Puts a good file in place of one that is not what its name says.
    pub async fn mend(&self, layer: &Layer, from: PathBuf) -> Result<(), Error> {
        let Access::Folder(folder) = self.known() else {
            let wrong = self.folder().map(|folder| folder.blob(&layer.digest)).unwrap_or_default();
            return Err(Error::Wrong(wrong));
        };
        let layer = layer.clone();
        blocking(move || Folder::of_another(folder).replace(&layer, &from)).await?;
        Ok(())
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
        if let Err(why) = &self.judged().pulls {
            return Err(Error::Elsewhere(why.clone()));
        }
        let client = self.client()?;
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::Listen)?;
        let port = listener.local_addr().map_err(Error::Listen)?.port();
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).expect("the operating system has a random source");
        let passing = name.passing(port, secret).ok_or_else(|| {
            Error::Elsewhere("it would have to pull from a port, for which this system has no name".to_owned())
        })?;
        let offer =
            Arc::new(One { passing: passing.clone(), model: model.clone(), was_reached: AtomicBool::new(false) });
        let mut serving = JoinSet::new();
        serving.spawn(serve::serve(listener, offer.clone()));
        let pulled = drain(&client, &passing).await;
        drop(serving);
        if let Err(Error::Pull(said)) = &pulled
            && !offer.was_reached.load(Ordering::Relaxed)
        {
            // In a container, most likely, or behind a port that is forwarded.
            let why = format!("it does not reach this machine's loopback: {said}");
            self.judged().pulls = Err(why.clone());
            let known = self.known();
            self.learn(known);
            return Err(Error::Elsewhere(why));
        }
        let named = match pulled {
            Ok(()) => match self.lists(&passing, model.digest).await {
                Ok(()) => client.copy(&passing, name).await.map_err(Error::from),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        // The blobs stay with the other name, if there is one.
        let removed = match client.delete(&passing).await {
            Err(client::Error::Said { status: 404, .. }) => Ok(()),
            removed => removed,
        };
        self.sweep(&client).await;
        named?;
        removed?;
        self.lists(name, model.digest).await
    }

    /// Takes away the passing names of nodes that were cut off in the middle of a pull, on whose blobs they hold.
    async fn sweep(&self, client: &Client) {
        let Ok(tags) = client.tags().await else { return };
        let old = |found: &Found| now().0.saturating_sub(found.since.0) >= PASSING_MAX.as_secs() * 1000;
        for left in tags.models.iter().filter_map(found).filter(|found| found.name.is_passing() && old(found)) {
            if let Err(error) = client.delete(&left.name).await {
                tracing::debug!(name = %left.name, %error, "a name that was left behind stays for now");
            }
        }
    }

    /// Whether it lists the name by this digest.
    async fn lists(&self, name: &ModelName, wanted: Digest) -> Result<(), Error> {
        let tags = self.client()?.tags().await?;
        match tags.models.iter().filter_map(found).find(|found| found.name == *name) {
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
        self.judged().access.clone()
    }

    fn learn(&self, access: Access) -> Access {
        let mut judged = self.judged();
        let access = match (access, &judged.pulls) {
            (Access::Closed { why } | Access::Elsewhere { why }, Err(cannot)) => {
                Access::Elsewhere { why: format!("{cannot}; {why}") }
            }
            (Access::Elsewhere { why }, Ok(())) => Access::Closed { why },
            (access, _) => access,
        };
        judged.again = match access {
            Access::Unknown | Access::Folder(_) => None,
            _ if judged.pulls.is_err() => Some(Instant::now() + TRY_EVERY),
            _ => Some(Instant::now() + JUDGE_EVERY),
        };
        if judged.access != access {
            tracing::info!(store = self.label(), ?access, "how models get to this backend");
        }
        judged.access = access.clone();
        access
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until it says that it has it.
async fn drain(client: &Client, passing: &ModelName) -> Result<(), Error> {
    let mut pulling = client.pull(passing, true).await?;
    loop {
        let line = tokio::time::timeout(PULL_SILENCE_MAX, pulling.next()).await;
        let line = line.map_err(|_| Error::Pull(format!("nothing for {} s", PULL_SILENCE_MAX.as_secs())))?;
        let Some(line) = line else { return Ok(()) };
        let line = line?;
        if !line.error.is_empty() {
            return Err(Error::Pull(line.error.chars().take(300).collect()));
        }
    }
}

fn found(model: &ollama::seen::Listed) -> Option<Found> {
    let (name, digest) = (model.name.parse().ok()?, bare(&model.digest)?);
    Some(Found { name, digest, since: UnixMillis(model.modified_at_ms) })
}

fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
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
    passing: ModelName,
    model: Ready,
    /// Whether anybody came.
    was_reached: AtomicBool,
}

impl Offers for One {
    fn manifest(&self, namespace: &str, model: &str, tag: &str) -> Option<Vec<u8>> {
        let [_, wanted, ..] = self.passing.parts();
        let asked = namespace == wanted && model == self.passing.model() && tag == self.passing.tag();
        asked.then(|| self.model.manifest.clone())
    }

    fn blob(&self, namespace: &str, model: &str, digest: &Digest) -> Option<(PathBuf, u64)> {
        let [_, wanted, ..] = self.passing.parts();
        let asked = namespace == wanted && model == self.passing.model();
        let (layer, path) = self.model.layers.iter().find(|(layer, _)| asked && layer.digest == *digest)?;
        Some((path.clone(), layer.size))
    }

    fn admits(&self, from: IpAddr) -> bool {
        self.was_reached.store(true, Ordering::Relaxed);
        from.is_loopback()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("label", &self.beside.label).field("judged", &self.judged).finish()
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("label", &self.label).field("folders", &self.folders).finish_non_exhaustive()
    }
}
