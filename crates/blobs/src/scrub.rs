//! Reads a blob again, finds what the disk has changed, and prepares what is to be repaired.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use types::BlobHash;

use crate::chunks::{self, Builder, CHUNK_BYTES, Chunks};
use crate::disk::{self, Stamp};
use crate::error::Error;
use crate::folder::{Reference, open_stamped};
use crate::journal::Journal;
use crate::shared::{Shared, Taken};
use crate::state::{Known, State};

/// What a look at every chunk has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub hash: BlobHash,
    pub chunks: u32,
    /// Not what they should be, before anything was repaired.
    pub damaged: BTreeSet<u32>,
    /// Whether they are good again.
    pub repaired: bool,
}

impl Report {
    /// Whether the blob is whole and right now.
    pub fn is_good(&self) -> bool {
        self.damaged.is_empty() || self.repaired
    }
}

/// Blocks for as long as it takes to read the blob.
pub(crate) fn verify(shared: &Shared, hash: &BlobHash) -> Result<Report, Error> {
    let (known, path) = place(shared, hash)?;
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let list = shared.folder.read_list(hash, known.size);
    let chunks = chunks::count(known.size);
    let mut builder = Builder::default();
    let mut damaged = BTreeSet::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in 0..chunks {
        let buffer = &mut buffer[..chunks::length(known.size, chunk)];
        // A chunk the disk refuses to read is as damaged as one it reads wrongly.
        let read = disk::read_at(&file, buffer, chunks::offset(chunk)).unwrap_or(0);
        match &list {
            Some(list) if read == buffer.len() && list.verify(chunk, buffer) => {}
            Some(_) => _ = damaged.insert(chunk),
            None if read > 0 => builder.push(&buffer[..read]),
            None => {}
        }
    }
    if list.is_none() {
        // Without its list only the whole can be judged.
        let list = builder.finish();
        match list.root() == *hash {
            true => shared.keep_list(&list)?,
            false => damaged.extend(0..chunks),
        }
    }
    let newly = damaged.len() as u64;
    {
        let mut shelf = shared.shelf();
        let before = match shelf.state(hash) {
            Some(State::Damaged { chunks, .. }) => chunks.intersection(&damaged).count() as u64,
            _ => 0,
        };
        shared.counters.damage_found.fetch_add(newly - before, Ordering::Relaxed);
        shelf.set_damaged(hash, damaged.clone());
    }
    shared.tell_damage();
    Ok(Report { hash: *hash, chunks, damaged, repaired: false })
}

/// Makes a partial blob of a damaged one, with the chunks that are good. A file of ours alone becomes it; of one that
/// others have too the good chunks are copied, and we let go of it. Blocks.
pub(crate) fn demote(shared: &Shared, taken: &Arc<Taken>, report: &Report) -> Result<(), Error> {
    let hash = report.hash;
    let (known, path) = place(shared, &hash)?;
    let list = shared.folder.read_list(&hash, known.size);
    shared.close(&hash);
    let stamp = path.metadata().ok().map(|metadata| Stamp::of(&metadata));
    let is_own = path == shared.folder.whole(&hash);
    let is_shared = !is_own || disk::has_other_names(&path);
    match (&list, is_shared) {
        (Some(list), false) => own_to_partial(shared, &path, report, list)?,
        (Some(_), true) => copy_to_partial(shared, taken, &path, stamp, report, &known)?,
        (None, _) => {}
    }
    if is_own {
        disk::remove(&path).map_err(Error::io("remove", &path))?;
    }
    let entry = shared.shelf().without_file(&hash, &path, stamp).ok_or(Error::Absent { hash })?;
    shared.note(hash, |_| entry)
}

fn own_to_partial(shared: &Shared, path: &Path, report: &Report, list: &Chunks) -> Result<(), Error> {
    let hash = report.hash;
    let (partial, journal_path) = (shared.folder.partial(&hash), shared.folder.journal(&hash));
    let write = Error::io("write", &journal_path);
    let noted = || {
        let mut journal = Journal::create(&journal_path, &hash, list.size())?;
        (0..list.count()).filter(|chunk| !report.damaged.contains(chunk)).try_for_each(|chunk| journal.wrote(chunk))?;
        // They were just read, from a file that is as old as the blob.
        journal.synced(journal.length())?;
        journal.file()?.sync_data()
    };
    noted().map_err(write)?;
    fs::rename(path, &partial).map_err(Error::io("set aside", path))?;
    for part in ["whole", "partial"] {
        let dir = shared.folder.dir.join(part);
        disk::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
    }
    Ok(())
}

/// What there is no room for is fetched; the fetch waits for room.
fn copy_to_partial(
    shared: &Shared,
    taken: &Arc<Taken>,
    path: &Path,
    stamp: Option<Stamp>,
    report: &Report,
    known: &Known,
) -> Result<(), Error> {
    let _taken = taken;
    // The one that was read just now, or none.
    let same = stamp.and_then(|stamp| open_stamped(&Reference { path: path.to_owned(), stamp }));
    let Some(file) = same else { return Ok(()) };
    let (partial, _losses) = shared.open_partial(known.hash, known.size)?;
    let at = partial.path.clone();
    let missing = partial.unallocated().map_err(Error::io("look at", &at))?;
    let promised = shared.space.promise(known.hash, missing).map_err(Error::io("measure the room of", &at))?;
    let copied = promised.is_ok().then(|| {
        partial.allocate()?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let list = partial.list().cloned();
        for chunk in (0..report.chunks).filter(|chunk| !report.damaged.contains(chunk)) {
            let buffer = &mut buffer[..chunks::length(known.size, chunk)];
            let read = disk::read_at(&file, buffer, chunks::offset(chunk))?;
            if read == buffer.len() && list.as_ref().is_some_and(|list| list.verify(chunk, buffer)) {
                partial.write(chunk, buffer)?;
            }
        }
        partial.sync()
    });
    shared.space.settle(&known.hash, 0);
    match copied {
        Some(Err(error)) if !crate::error::is_full(&error) => Err(Error::io("copy to", &at)(error)),
        _ => Ok(()),
    }
}

fn place(shared: &Shared, hash: &BlobHash) -> Result<(Known, PathBuf), Error> {
    shared.refresh(hash);
    let shelf = shared.shelf();
    let known = shelf.known(hash).ok_or(Error::Absent { hash: *hash })?;
    match shelf.state(hash) {
        Some(State::Whole { path, .. } | State::Damaged { path, .. }) => Ok((known, path)),
        _ => Err(Error::Absent { hash: *hash }),
    }
}
