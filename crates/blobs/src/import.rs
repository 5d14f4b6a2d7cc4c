//! Takes in what is on this disk: both hashes in one pass, and nothing copied.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use ollama::Digest;
use sha2::{Digest as _, Sha256};
use types::BlobHash;

use crate::chunks::{Builder, CHUNK_BYTES, Chunks, SIZE_MAX};
use crate::disk::{self, Stamp};
use crate::error::Error;
use crate::folder::{Entry, Reference};
use crate::shared::Shared;
use crate::state::{Known, State};

/// Chunks between the two hashes. SHA-256 is the slower; this evens out what the disk and the scheduler do.
const AHEAD: usize = 4;

/// Blocks for as long as it takes to read the file, unless it is known and unchanged. `tell` hears how many bytes are done.
pub(crate) fn refer(shared: &Shared, path: &Path, tell: impl Fn(u64)) -> Result<Known, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    if path.to_str().is_none() {
        return Err(Error::Path { path, reason: "it is not UTF-8" });
    }
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let metadata = file.metadata().map_err(Error::io("look at", &path))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path });
    }
    let stamp = Stamp::of(&metadata);
    if stamp.size > SIZE_MAX {
        return Err(Error::TooLarge { path, size: stamp.size });
    }
    if let Some(known) = shared.shelf().at(&path, &stamp) {
        tell(known.size);
        return Ok(known);
    }
    let (list, sha256) = both_hashes(&file, tell).map_err(Error::io("read", &path))?;
    let after = file.metadata().map_err(Error::io("look at", &path))?;
    let now = path.metadata().map_err(Error::io("look at", &path))?;
    if Stamp::of(&after) != stamp || Stamp::of(&now) != stamp || list.size() != stamp.size {
        return Err(Error::Changed { path });
    }
    let known = Known { hash: list.root(), sha256, size: list.size() };
    shared.keep_list(&list)?;
    let reference = Reference { path, stamp };
    let entry = {
        let shelf = shared.shelf();
        let mut entry = shelf.with_reference(&known, reference);
        // Which of the files was found to be damaged is not known: this one is good.
        if matches!(shelf.state(&known.hash), Some(State::Damaged { .. })) {
            entry.references.truncate(1);
        }
        entry
    };
    shared.note(known.hash, |_| entry)?;
    let mut shelf = shared.shelf();
    if shelf.own(&known.hash).is_none() {
        // What is served now was just read from end to end.
        shelf.set_damaged(&known.hash, Default::default());
    }
    drop(shelf);
    shared.close(&known.hash);
    shared.tell_damage();
    Ok(known)
}

/// Blocks.
pub(crate) fn adopt(shared: &Shared, bytes: &[u8]) -> Result<Known, Error> {
    let mut builder = Builder::default();
    bytes.chunks(CHUNK_BYTES).for_each(|chunk| builder.push(chunk));
    let list = builder.finish();
    let known = Known { hash: list.root(), sha256: Digest::of(bytes), size: list.size() };
    if matches!(shared.shelf().state(&known.hash), Some(State::Whole { ours: true, .. })) {
        return Ok(known);
    }
    shared.keep_list(&list)?;
    let note = |entry: Option<&Entry>| Entry {
        size: known.size,
        sha256: known.sha256,
        references: entry.map_or_else(Vec::new, |entry| entry.references.clone()),
    };
    // The record first: no whole blob is ever without one.
    shared.folder.write_known(&known.hash, &note(shared.shelf().entry(&known.hash)))?;
    shared.keep_bytes(&known.hash, bytes)?;
    shared.note(known.hash, note)?;
    is_good_again(shared, &known.hash);
    Ok(known)
}

/// Our own copy gives way to this file, which holds the same bytes. They are read if it is not the same file by another
/// name. Blocks.
pub(crate) fn release(shared: &Shared, hash: &BlobHash, now_at: &Path) -> Result<(), Error> {
    let path = std::path::absolute(now_at).map_err(Error::io("find", now_at))?;
    if path.to_str().is_none() {
        return Err(Error::Path { path, reason: "it is not UTF-8" });
    }
    let known = shared.shelf().known(hash).ok_or(Error::Absent { hash: *hash })?;
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let stamp = Stamp::of(&file.metadata().map_err(Error::io("look at", &path))?);
    let own = shared.folder.whole(hash);
    let is_same_file = is_known_file(shared, hash, &path, &stamp);
    if !is_same_file && (stamp.size != known.size || !holds(&file, hash).map_err(Error::io("read", &path))?) {
        return Err(Error::OtherContent { path, hash: *hash });
    }
    // The other copy is on the disk under its name before ours goes.
    file.sync_all().map_err(Error::io("sync", &path))?;
    let folder = path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    disk::sync_dir(&folder).map_err(Error::io("sync", &folder))?;
    let entry = shared.shelf().with_reference(&known, Reference { path, stamp });
    shared.note(*hash, |_| entry.clone())?;
    shared.close(hash);
    disk::remove(&own).map_err(Error::io("remove", &own))?;
    shared.refresh(hash);
    Ok(())
}

/// Whether this is a file whose content was seen to be the blob's: our own by another name, or one we refer to.
fn is_known_file(shared: &Shared, hash: &BlobHash, path: &Path, stamp: &Stamp) -> bool {
    let shelf = shared.shelf();
    let is_own = || shelf.own(hash).and_then(|own| own.metadata().ok()).is_some_and(|own| Stamp::of(&own) == *stamp);
    let referred = |other: &Reference| other.stamp == *stamp && (stamp.inode != 0 || other.path == path);
    let is_referred = || shelf.entry(hash).is_some_and(|entry| entry.references.iter().any(referred));
    matches!(shelf.state(hash), Some(State::Whole { .. })) && (stamp.inode != 0 && is_own() || is_referred())
}

/// Whether a file holds the blob. It is read unless its content was seen before; then it is known from now on. Blocks.
pub(crate) fn lies_at(shared: &Shared, hash: &BlobHash, path: &Path) -> Result<bool, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    if path.to_str().is_none() {
        return Err(Error::Path { path, reason: "it is not UTF-8" });
    }
    let known = shared.shelf().known(hash).ok_or(Error::Absent { hash: *hash })?;
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let metadata = file.metadata().map_err(Error::io("look at", &path))?;
    let stamp = Stamp::of(&metadata);
    if !metadata.is_file() || stamp.size != known.size {
        return Ok(false);
    }
    if !is_known_file(shared, hash, &path, &stamp) && !holds(&file, hash).map_err(Error::io("read", &path))? {
        return Ok(false);
    }
    let entry = shared.shelf().with_reference(&known, Reference { path, stamp });
    shared.note(*hash, |_| entry)?;
    Ok(true)
}

/// A file we refer to gets a name in our own folder, where the file system can do that. Blocks.
pub(crate) fn keep(shared: &Shared, hash: &BlobHash, path: &Path) -> Result<bool, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let (entry, is_own) = {
        let shelf = shared.shelf();
        (shelf.entry(hash).cloned().ok_or(Error::Absent { hash: *hash })?, shelf.own(hash).is_some())
    };
    if is_own {
        return Ok(true);
    }
    let Some(reference) = entry.references.iter().find(|reference| reference.path == path) else { return Ok(false) };
    let own = shared.folder.whole(hash);
    disk::remove(&own).map_err(Error::io("remove", &own))?;
    // Another file system, one without links, or a file of another user's, which Linux lets nobody link to.
    if fs::hard_link(&path, &own).is_err() {
        return Ok(false);
    }
    // What was linked is the file that was looked at, and no way to it.
    let is_it = fs::symlink_metadata(&own).is_ok_and(|own| own.is_file() && Stamp::of(&own) == reference.stamp);
    if !is_it {
        disk::remove(&own).map_err(Error::io("remove", &own))?;
        return Ok(false);
    }
    let dir = shared.folder.dir.join("whole");
    disk::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
    shared.note(*hash, |_| entry.clone())?;
    shared.close(hash);
    Ok(true)
}

fn holds(file: &File, hash: &BlobHash) -> io::Result<bool> {
    let mut builder = Builder::default();
    each_chunk(file, |chunk| {
        builder.push(&chunk);
        Ok(chunk)
    })?;
    Ok(builder.finish().root() == *hash)
}

/// A file of ours becomes a blob of ours, by moving it, if it is what its SHA-256 says.
pub(crate) fn take(shared: &Shared, path: &Path, sha256: Digest) -> Result<Known, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let (list, found) = both_hashes(&file, |_| ()).map_err(Error::io("read", path))?;
    let known = Known { hash: list.root(), sha256: found, size: list.size() };
    if found != sha256 {
        return Err(Error::OtherContent { path: path.to_owned(), hash: known.hash });
    }
    file.sync_all().map_err(Error::io("sync", path))?;
    shared.keep_list(&list)?;
    let note = |entry: Option<&Entry>| Entry {
        size: known.size,
        sha256,
        references: entry.map_or_else(Vec::new, |entry| entry.references.clone()),
    };
    // The record first: no whole blob is ever without one.
    shared.folder.write_known(&known.hash, &note(shared.shelf().entry(&known.hash)))?;
    shared.folder.publish(path, &known.hash)?;
    shared.note(known.hash, note)?;
    is_good_again(shared, &known.hash);
    Ok(known)
}

/// What lies in our own folder was just read or written from end to end.
fn is_good_again(shared: &Shared, hash: &BlobHash) {
    shared.shelf().set_damaged(hash, Default::default());
    shared.close(hash);
    shared.tell_damage();
}

/// One more name of a file that is known: what was linked is not read again.
pub(crate) fn also_at(shared: &Shared, hash: &BlobHash, path: &Path) -> Result<(), Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    if path.to_str().is_none() {
        return Err(Error::Path { path, reason: "it is not UTF-8" });
    }
    let known = shared.shelf().known(hash).ok_or(Error::Absent { hash: *hash })?;
    let stamp = Stamp::of(&path.metadata().map_err(Error::io("look at", &path))?);
    let is_same_file = stamp.inode != 0
        && shared.shelf().entry(hash).is_some_and(|entry| entry.references.iter().any(|other| other.stamp == stamp));
    if !is_same_file {
        return refer(shared, &path, |_| ()).and_then(|found| match found.hash == *hash {
            true => Ok(()),
            false => Err(Error::OtherContent { path, hash: *hash }),
        });
    }
    let entry = shared.shelf().with_reference(&known, Reference { path, stamp });
    shared.note(*hash, |_| entry)
}

/// BLAKE3 here, SHA-256 on a thread of its own, buffers going round between them.
fn both_hashes(file: &File, tell: impl Fn(u64)) -> io::Result<(Chunks, Digest)> {
    let mut builder = Builder::default();
    let sha256 = thread::scope(|scope| {
        let (to_sha, chunks) = mpsc::sync_channel::<Arc<Vec<u8>>>(AHEAD);
        let (give_back, given_back) = mpsc::channel();
        let sha = scope.spawn(move || {
            let mut sha = Sha256::new();
            for chunk in chunks {
                sha.update(chunk.as_slice());
                // Nobody takes them back at the end.
                let _ = give_back.send(chunk);
            }
            Digest::from_bytes(sha.finalize().into())
        });
        let mut done = 0;
        each_chunk(file, |chunk| {
            let chunk = Arc::new(chunk);
            let gone = || io::Error::other("the other hash ended before its time");
            to_sha.send(chunk.clone()).map_err(|_| gone())?;
            builder.push(&chunk);
            done += chunk.len() as u64;
            drop(chunk);
            tell(done);
            let free = given_back.try_iter().find_map(|chunk| Arc::try_unwrap(chunk).ok());
            Ok(free.unwrap_or_default())
        })?;
        drop(to_sha);
        sha.join().map_err(|_| io::Error::other("the other hash failed"))
    })?;
    Ok((builder.finish(), sha256))
}

/// Hands over each chunk of the file, in a buffer that is given back or replaced.
fn each_chunk(file: &File, mut each: impl FnMut(Vec<u8>) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut offset = 0;
    loop {
        buffer.resize(CHUNK_BYTES, 0);
        let read = disk::read_at(file, &mut buffer, offset)?;
        offset += read as u64;
        if read > 0 {
            buffer.truncate(read);
            buffer = each(buffer)?;
        }
        if read < CHUNK_BYTES || offset > SIZE_MAX {
            return Ok(());
        }
    }
}
