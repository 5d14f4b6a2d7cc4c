//! Fetching a model from the registry its name begins with.
//!
//! A node does this itself and not through the Ollama beside it: a node with the engine alone can pull as well, what a
//! registry sends us elsewhere is looked at before it is followed, and a cut goes on where it was. What a registry says is
//! believed by nobody: sizes, digests and addresses are checked, and only registries that the operator allows are asked.

mod address;
mod exchange;
mod parts;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, SeekFrom};
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use hyper::Method;
use ollama::manifest::{Layer, MANIFEST_BYTES_MAX, Manifest};
use ollama::{Digest, ModelName, Origin};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use exchange::{Page, Roads};
use parts::Parts;

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// At once for one layer. More take more from whoever shares the line, and hardly bring more.
const STREAMS: usize = 4;
/// Parts asked for in one request.
const RUN_PARTS: usize = 8;
/// Times one request is sent anew without a byte of progress.
const TRIES: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// No model has a layer of more.
const LAYER_BYTES_MAX: u64 = 4 << 40;
/// Of what a registry says went wrong.
const WORDS_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("models are not fetched from `{0}`")]
    NotAllowed(String),
    #[error("the registry has no such model")]
    NotFound,
    #[error("the registry wants to know who asks")]
    Unauthorized,
    #[error("the registry answered with status {status}: {text}")]
    Said { status: u16, text: String },
    #[error("`{host}` cannot be reached: {why}")]
    Unreachable { host: String, why: String },
    #[error("the registry leads to `{host}`, which is `{address}`, an address of a private network")]
    Private { host: String, address: IpAddr },
    #[error("the registry sends us elsewhere more than {0} times")]
    Redirects(usize),
    #[error("the registry answers with {0}")]
    Strange(String),
    #[error("the answer broke off")]
    Broken,
    #[error("what came as `{wanted}` is `{found}`")]
    OtherDigest { wanted: Digest, found: Digest },
    #[error("failed to keep what is fetched in `{}`", path.display())]
    Disk { path: PathBuf, source: io::Error },
}

/// Fetches models from registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstream {
    roads: Roads,
}

/// A model as a registry has it.
#[derive(Debug, Clone)]
pub struct Offered {
    /// As they came: their digest is the model's.
    pub bytes: Vec<u8>,
    pub manifest: Manifest,
}

impl Error {
    fn unreachable(at: &Origin, why: &str) -> Self {
        Self::Unreachable { host: at.host().to_owned(), why: why.to_owned() }
    }

    /// Whether another node may have more luck.
    pub fn may_differ_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Broken | Self::Disk { .. } | Self::Said { status: 429 | 500.., .. }
        )
    }

    /// Whether the same request may do better in a moment.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken | Self::Said { status: 429 | 500.., .. })
    }

    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAllowed(_) => Some("`omx config set registries.allow …` says which registries are asked"),
            Self::Unauthorized => {
                Some("pull it with the Ollama that has the key: a model that appears there is noticed by the mesh")
            }
            Self::Private { .. } => Some("a registry in a private network is named itself in `registries.allow`"),
            _ => None,
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self { roads: Roads::new() }
    }
}

impl Upstream {
    pub async fn manifest(&self, name: &ModelName, allowed: &[Origin]) -> Result<Offered, Error> {
        let [_, namespace, model, tag] = name.parts();
        let page = Page { origin: origin(name, allowed)?, path: format!("/v2/{namespace}/{model}/manifests/{tag}") };
        let answer = self.roads.ask(&Method::GET, &page, &[("accept", MANIFEST_TYPE)]).await?;
        if answer.status != 200 {
            return Err(refusal(answer).await);
        }
        let bytes = answer.whole(MANIFEST_BYTES_MAX as usize).await?;
        let manifest = Manifest::parse(&bytes).map_err(|error| Error::Strange(format!("no manifest: {error}")))?;
        if manifest.layers.is_empty() || manifest.blobs().any(|layer| layer.size == 0 || layer.size > LAYER_BYTES_MAX) {
            return Err(Error::Strange("a manifest whose layers have impossible sizes".to_owned()));
        }
        let mut sizes = BTreeMap::new();
        if manifest.blobs().any(|layer| sizes.insert(layer.digest, layer.size).is_some_and(|other| other != layer.size))
        {
            return Err(Error::Strange("a manifest that gives a layer two sizes".to_owned()));
        }
        Ok(Offered { bytes, manifest })
    }

    /// Bytes of a layer that `layer` would have to fetch.
    pub fn missing(&self, layer: &Layer, root: &Path) -> u64 {
        Parts::missing_bytes(root, layer)
    }

    /// Fetches a layer below a folder and says where it lies. What is there of it already is not fetched again; what is
    /// dropped half-way stays for the next time. `tell` hears how many bytes are there.
    pub async fn layer(
        &self,
        name: &ModelName,
        layer: &Layer,
        allowed: &[Origin],
        root: &Path,
        tell: &(impl Fn(u64) + Sync),
    ) -> Result<PathBuf, Error> {
        let [_, namespace, model, _] = name.parts();
        let path = format!("/v2/{namespace}/{model}/blobs/{}", layer.digest);
        let page = Page { origin: origin(name, allowed)?, path };
        let disk = |source| Error::Disk { path: root.to_owned(), source };
        let parts = Parts::open(root, layer).map_err(disk)?;
        tell(parts.done());
        let mut runs = runs(&parts);
        runs.reverse();
        let (parts, alone) = (Mutex::new(parts), tokio::sync::Mutex::default());
        let fetching = Fetching { roads: &self.roads, page, size: layer.size, parts, alone, tell };
        let runs = Mutex::new(runs);
        let next = || runs.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let streams = (0..STREAMS).map(async |_| {
            while let Some(run) = next() {
                fetching.run(run).await?;
            }
            Ok::<_, Error>(())
        });
        try_join_all(streams).await?;
        let parts = fetching.parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let data = parts.data();
        let found = digest_of(data.clone()).await.map_err(disk)?;
        if found == layer.digest {
            return Ok(data);
        }
        parts.discard().map_err(disk)?;
        Err(Error::OtherDigest { wanted: layer.digest, found })
    }
}

/// Neighbouring parts that are asked for together.
struct Run {
    parts: Vec<(u64, Range<u64>)>,
}

struct Fetching<'a, T> {
    roads: &'a Roads,
    page: Page,
    size: u64,
    parts: Mutex<Parts>,
    /// Held by whoever reads an answer from its beginning, since that is all the registry gives.
    alone: tokio::sync::Mutex<()>,
    tell: &'a T,
}

fn runs(parts: &Parts) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (part, range) in parts.missing() {
        match runs.last_mut() {
            Some(run)
                if run.parts.len() < RUN_PARTS && run.parts.last().is_some_and(|(_, last)| last.end == range.start) =>
            {
                run.parts.push((part, range));
            }
            _ => runs.push(Run { parts: vec![(part, range)] }),
        }
    }
    runs
}

impl<T: Fn(u64) + Sync> Fetching<'_, T> {
    /// Fetches all parts of a run, beginning anew at the first missing one where the registry breaks off.
    async fn run(&self, mut run: Run) -> Result<(), Error> {
        let (mut tries, mut pause) = (0, PAUSE_MIN);
        while !run.parts.is_empty() {
            let before = self.lock().missing().count();
            let Err(error) = self.attempt(&mut run).await else { continue };
            let has_more = self.lock().missing().count() < before;
            (tries, pause) = if has_more { (0, PAUSE_MIN) } else { (tries + 1, pause * 2) };
            if tries == TRIES || !error.may_pass() {
                return Err(error);
            }
            tracing::debug!(error = %error, tries, "a registry broke off; asking it again");
            tokio::time::sleep(pause.min(PAUSE_MAX)).await;
        }
        Ok(())
    }

    /// One request. Parts that came are gone from the run, whatever it ends with.
    async fn attempt(&self, run: &mut Run) -> Result<(), Error> {
        let (Some((_, first)), Some((_, last))) = (run.parts.first(), run.parts.last()) else { return Ok(()) };
        let (start, end) = (first.start, last.end);
        let range = format!("bytes={start}-{}", end - 1);
        let answer = self.roads.ask(&Method::GET, &self.page, &[("range", &range)]).await?;
        match answer.status {
            206 => {
                let said = answer.headers.get("content-range").and_then(|said| said.to_str().ok()).unwrap_or_default();
                if said != format!("bytes {start}-{}/{}", end - 1, self.size) {
                    return Err(Error::Strange("another range than was asked for".to_owned()));
                }
                self.take(answer, start, &mut run.parts).await
            }
            200 => {
                let taken = self.take_all(answer).await;
                let missing: Vec<u64> = self.lock().missing().map(|(part, _)| part).collect();
                run.parts.retain(|(part, _)| missing.contains(part));
                taken
            }
            _ => Err(refusal(answer).await),
        }
    }

    /// All of it, from its beginning: whatever is asked for, this registry sends the same. So one of us listens, to the
    /// end, and takes what is missing for all; the others wait for that.
    async fn take_all(&self, answer: exchange::Answer) -> Result<(), Error> {
        let Ok(_alone) = self.alone.try_lock() else {
            drop(answer);
            drop(self.alone.lock().await);
            return Ok(());
        };
        let mut missing: Vec<_> = self.lock().missing().collect();
        self.take(answer, 0, &mut missing).await
    }

    /// Writes these parts out of an answer that begins at `at`. Those that came are gone from them.
    async fn take(
        &self,
        mut answer: exchange::Answer,
        mut at: u64,
        parts: &mut Vec<(u64, Range<u64>)>,
    ) -> Result<(), Error> {
        let path = self.lock().data();
        let disk = |source| Error::Disk { path: path.clone(), source };
        let mut file = tokio::fs::File::options().write(true).open(&path).await.map_err(disk)?;
        let mut cursor = 0;
        while !parts.is_empty() {
            let Some(bytes) = answer.next().await else { return Err(Error::Broken) };
            let mut bytes = bytes?;
            while let Some((part, range)) = parts.first().cloned() {
                let before = range.start.saturating_sub(at).min(bytes.len() as u64);
                at += before;
                drop(bytes.split_to(usize::try_from(before).expect("no more than there are")));
                if bytes.is_empty() {
                    break;
                }
                if cursor != at {
                    file.seek(SeekFrom::Start(at)).await.map_err(disk)?;
                }
                let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(bytes.len());
                file.write_all(&bytes.split_to(wanted)).await.map_err(disk)?;
                at += wanted as u64;
                cursor = at;
                if at == range.end {
                    file.sync_data().await.map_err(disk)?;
                    parts.remove(0);
                    let mut here = self.lock();
                    here.came(part).map_err(disk)?;
                    (self.tell)(here.done());
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a name's registry is reached, if it may be.
fn origin(name: &ModelName, allowed: &[Origin]) -> Result<Origin, Error> {
    let [host, ..] = name.parts();
    allowed.iter().find(|origin| origin.is_named(host)).cloned().ok_or_else(|| Error::NotAllowed(host.to_owned()))
}

async fn refusal(answer: exchange::Answer) -> Error {
    match answer.status {
        404 => Error::NotFound,
        401 | 403 => Error::Unauthorized,
        status => {
            let words = answer.whole(WORDS_BYTES_MAX).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&words).chars().filter(|c| !c.is_control()).take(200).collect();
            Error::Said { status, text }
        }
    }
}

async fn digest_of(path: PathBuf) -> io::Result<Digest> {
    let hashing = move || Digest::of_all(&mut File::open(path)?, |_| Ok(())).map(|(digest, _)| digest);
    tokio::task::spawn_blocking(hashing)
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}
