//! Blobs on their way here. Each is fetched once, however many wait for it, in parts of which an interrupted download
//! keeps what it has.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::failed;
use super::http::Url;
use super::progress::Reporter;
use super::remote::Remote;
use crate::config::Transfer;
use crate::digest::Digest;
use crate::folder::Folder;
use crate::refusal::Refusal;

/// A blob is cut into about so many, and so many are fetched at once.
pub(super) const PARTS: u64 = 16;
/// A length that needs more of them is a lie.
const PARTS_MAX: u64 = 1 << 16;
const TRIES: u32 = 6;
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(60);

#[derive(Debug)]
pub(super) struct Downloads {
    folder: Arc<Folder>,
    transfer: Transfer,
    /// Those nobody waits for any more are swept out when another comes.
    running: Mutex<BTreeMap<Digest, Weak<Download>>>,
}

/// Dropped by the last who waits, it ends.
#[derive(Debug)]
pub(super) struct Download {
    digest: Digest,
    state: watch::Receiver<State>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
pub(super) enum Found {
    Here { size: u64 },
    Coming(Arc<Download>),
}

#[derive(Debug, Clone, Default)]
struct State {
    /// Known once the registry was asked.
    total: Option<u64>,
    completed: u64,
    end: Option<Result<(), Refusal>>,
}

/// As it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    n: u64,
    offset: u64,
    size: u64,
    completed: u64,
}

/// One download's own files.
struct Files {
    blob: PathBuf,
    partial: PathBuf,
}

/// Writes down how far a part is, also when its download is given up.
struct Kept {
    part: Part,
    path: PathBuf,
}

/// How often what fails is tried again, and after which wait.
struct Patience {
    next: Duration,
    left: u32,
}

enum Failure {
    /// Nothing came for too long, which is tried again without end.
    Stalled,
    Broken(Refusal),
    /// It would fail again.
    Here(Refusal),
}

impl Patience {
    fn new(transfer: Transfer) -> Self {
        Self { next: transfer.retry, left: TRIES }
    }

    /// Until it is to be tried again, if it is.
    async fn after(&mut self, failure: Failure) -> Result<(), Refusal> {
        match failure {
            Failure::Stalled => Ok(()),
            Failure::Here(refusal) => Err(refusal),
            Failure::Broken(refusal) => {
                self.left -= 1;
                if self.left == 0 {
                    return Err(failed(format!("max retries exceeded: {}", refusal.text)));
                }
                tokio::time::sleep(self.next).await;
                self.next *= 2;
                Ok(())
            }
        }
    }
}

impl Downloads {
    pub(super) fn new(folder: Arc<Folder>, transfer: Transfer) -> Self {
        Self { folder, transfer, running: Mutex::default() }
    }

    pub(super) fn find(&self, digest: &Digest, remote: &Arc<Remote>) -> Found {
        let mut running = self.running.lock().expect("nothing panics while it holds the lock");
        let files = Files::of(&self.folder, digest);
        if let Ok(metadata) = fs::metadata(&files.blob) {
            return Found::Here { size: metadata.len() };
        }
        running.retain(|_, download| download.strong_count() > 0);
        let known = running.get(digest).and_then(Weak::upgrade);
        if let Some(download) = known.filter(|download| download.state.borrow().end.is_none()) {
            return Found::Coming(download);
        }
        let (sender, state) = watch::channel(State::default());
        let mut task = JoinSet::new();
        task.spawn({
            let (digest, remote, transfer) = (digest.clone(), remote.clone(), self.transfer);
            async move {
                let end = fetch(&files, &digest, &remote, transfer, &sender).await;
                sender.send_modify(|state| state.end = Some(end));
            }
        });
        let download = Arc::new(Download { digest: digest.clone(), state, _task: task });
        running.insert(digest.clone(), Arc::downgrade(&download));
        Found::Coming(download)
    }
}

impl Download {
    /// Until it is there, telling how far it is.
    pub(super) async fn wait(&self, reporter: &Reporter) -> Result<(), Refusal> {
        let mut state = self.state.clone();
        // The sender goes with the task, and the task with us.
        let _ = state.wait_for(|state| state.total.is_some() || state.end.is_some()).await;
        loop {
            let State { total, completed, end } = state.borrow().clone();
            match (end, total) {
                (Some(Err(refusal)), _) => return Err(refusal),
                (end, total) => {
                    reporter.blob("pulling", &self.digest, total.unwrap_or(0), completed).await;
                    if end.is_some() {
                        return Ok(());
                    }
                }
            }
            let _ = tokio::time::timeout(TOLD_EVERY, state.wait_for(|state| state.end.is_some())).await;
        }
    }
}

/// In how large parts a blob is sent.
pub(super) fn part_bytes(total: u64, transfer: Transfer) -> u64 {
    (total / PARTS).clamp(transfer.part_bytes_min, transfer.part_bytes_max.max(transfer.part_bytes_min)).max(1)
}

async fn fetch(
    files: &Files,
    digest: &Digest,
    remote: &Remote,
    transfer: Transfer,
    state: &watch::Sender<State>,
) -> Result<(), Refusal> {
    let mut parts = files.parts();
    if parts.is_empty() {
        let total = remote.size(digest).await?.ok_or_else(|| failed("file does not exist"))?;
        parts = cut(total, part_bytes(total, transfer))?;
        for part in &parts {
            files.keep(part).map_err(failed)?;
        }
    }
    let total: u64 = parts.iter().map(|part| part.size).sum();
    let file = fs::File::options().create(true).truncate(false).write(true).open(&files.partial).map_err(failed)?;
    file.set_len(total).map_err(failed)?;
    state.send_modify(|state| {
        state.total = Some(total);
        state.completed = parts.iter().map(|part| part.completed).sum();
    });
    let mut patience = Patience::new(transfer);
    let place = loop {
        match remote.locate(digest).await {
            Ok(place) => break place,
            Err(refusal) => patience.after(Failure::Broken(refusal)).await?,
        }
    };
    let count = parts.len() as u64;
    let missing: Vec<Part> = parts.into_iter().filter(|part| part.completed < part.size).collect();
    let fetched = futures::stream::iter(missing)
        .map(|part| whole(files, part, &place, remote, transfer, state))
        .buffer_unordered(usize::try_from(PARTS).expect("a small number"));
    fetched.try_collect::<()>().await?;
    fs::rename(&files.partial, &files.blob).map_err(failed)?;
    (0..count).try_for_each(|n| fs::remove_file(files.part(n))).map_err(failed)
}

async fn whole(
    files: &Files,
    part: Part,
    place: &Url,
    remote: &Remote,
    transfer: Transfer,
    state: &watch::Sender<State>,
) -> Result<(), Refusal> {
    let mut patience = Patience::new(transfer);
    let mut kept = Kept { path: files.part(part.n), part };
    loop {
        let copied = copy(files, &mut kept.part, place, remote, transfer.stall, state).await;
        keep(&kept.part, &kept.path).map_err(failed)?;
        match copied {
            Ok(()) => return Ok(()),
            Err(failure) => patience.after(failure).await?,
        }
    }
}

/// What is missing of a part. The status of the answer is not looked at, and what is too much of it is left.
async fn copy(
    files: &Files,
    part: &mut Part,
    place: &Url,
    remote: &Remote,
    stall: Duration,
    state: &watch::Sender<State>,
) -> Result<(), Failure> {
    let here = |error: std::io::Error| Failure::Here(failed(error));
    let (first, last) = (part.offset + part.completed, part.offset + part.size - 1);
    let reply = tokio::time::timeout(stall, remote.part(place, first, last)).await;
    let mut reply = reply.map_err(|_| Failure::Stalled)?.map_err(Failure::Broken)?;
    let mut file = fs::File::options().write(true).open(&files.partial).map_err(here)?;
    file.seek(SeekFrom::Start(first)).map_err(here)?;
    while part.completed < part.size {
        let frame = tokio::time::timeout(stall, reply.body.frame()).await.map_err(|_| Failure::Stalled)?;
        let frame = frame.ok_or_else(|| Failure::Broken(failed("unexpected EOF")))?;
        let frame = frame.map_err(|error| Failure::Broken(failed(error)))?;
        let Some(bytes) = frame.data_ref() else { continue };
        let left = usize::try_from(part.size - part.completed).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        file.write_all(bytes).map_err(here)?;
        let length = bytes.len() as u64;
        part.completed += length;
        state.send_modify(|state| state.completed += length);
    }
    Ok(())
}

fn cut(total: u64, size: u64) -> Result<Vec<Part>, Refusal> {
    let count = total.div_ceil(size);
    if count > PARTS_MAX {
        return Err(failed(format!("{total} bytes are too many for a blob")));
    }
    let part = |n| Part { n, offset: n * size, size: size.min(total - n * size), completed: 0 };
    Ok((0..count).map(part).collect())
}

impl Files {
    fn of(folder: &Folder, digest: &Digest) -> Self {
        let partial = folder.blobs().join(format!("{}-partial", digest.file_name()));
        Self { blob: folder.blob(digest), partial }
    }

    fn part(&self, n: u64) -> PathBuf {
        let mut path = self.partial.clone().into_os_string();
        path.push(format!("-{n}"));
        path.into()
    }

    fn keep(&self, part: &Part) -> std::io::Result<()> {
        keep(part, &self.part(part.n))
    }

    /// As an interrupted download left them, if what it left makes sense.
    fn parts(&self) -> Vec<Part> {
        let read = |n| serde_json::from_slice::<Part>(&fs::read(self.part(n)).ok()?).ok();
        let mut end = 0;
        let parts: Vec<Part> = (0..PARTS_MAX).map_while(read).collect();
        let joins = |part: &Part| {
            let good = part.offset == end && part.completed <= part.size && part.size > 0;
            end = part.offset.saturating_add(part.size);
            good
        };
        if self.partial.is_file() && parts.iter().all(joins) { parts } else { Vec::new() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A part that is done may have been taken off with its blob's end; it is not to come back.
        if self.path.is_file() {
            let _ = keep(&self.part, &self.path);
        }
    }
}

fn keep(part: &Part, path: &Path) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(part)?;
    text.push(b'\n');
    fs::File::create(path)?.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_cut_as_ollama_cuts_it() {
        let transfer = Transfer::default();
        for (total, size) in [
            (0, 100_000_000),
            (1_600_000_000, 100_000_000),
            (3_200_000_000, 200_000_000),
            (40_000_000_000, 1_000_000_000),
        ] {
            assert_eq!(part_bytes(total, transfer), size, "{total}");
        }
        let parts = cut(250, 100).unwrap();
        let spans: Vec<_> = parts.iter().map(|part| (part.n, part.offset, part.size)).collect();
        assert_eq!(spans, [(0, 0, 100), (1, 100, 100), (2, 200, 50)]);
        assert!(cut(0, 100).unwrap().is_empty() && cut(u64::MAX, 1_000_000_000).is_err());
    }

    #[test]
    fn a_part_is_written_as_ollama_writes_it() {
        let part = Part { n: 1, offset: 100, size: 50, completed: 7 };
        assert_eq!(serde_json::to_string(&part).unwrap(), r#"{"N":1,"Offset":100,"Size":50,"Completed":7}"#);
    }
}
