//! A blob that is being fetched: its bytes, and which of its chunks are there.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{mpsc, watch};
use types::BlobHash;

use crate::bits::Bits;
use crate::chunks::{self, CHUNK_BYTES, Chunks};
use crate::disk::{self, Disk};
use crate::error::Error;
use crate::folder::Folder;
use crate::journal::Journal;
use crate::shared::Unread;

/// Written by one, read by many at the same time.
pub(crate) struct Partial {
    pub(crate) hash: BlobHash,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    file: File,
    disk: Arc<dyn Disk>,
    list: OnceLock<Arc<Chunks>>,
    here: Mutex<Bits>,
    journal: Mutex<Journal>,
    /// How many chunks are there; told at each change.
    count: watch::Sender<u32>,
    /// Chunks that were there and are not: to be fetched again. No more than there are chunks.
    lost: mpsc::UnboundedSender<u32>,
}

impl Partial {
    /// What an earlier fetch left, as far as it can be trusted, or a new one. Blocks.
    pub(crate) fn open(
        folder: &Folder,
        disk: Arc<dyn Disk>,
        hash: BlobHash,
        size: u64,
    ) -> Result<(Self, mpsc::UnboundedReceiver<u32>), Error> {
        let (path, journal_path) = (folder.partial(&hash), folder.journal(&hash));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let list = folder.read_list(&hash, size);
        let left = Journal::open(&journal_path, &hash).map_err(Error::io("read", &journal_path))?;
        let left = left.filter(|(_, found)| found.size == size);
        let (journal, here) = match (left, &list) {
            (Some((mut journal, found)), Some(list)) => {
                let length = file.metadata().map_err(Error::io("read", &path))?.len();
                let here = still_good(&file, length, list, &found.sure, &found.likely);
                let gone = found.sure.without(&here).chain(found.likely.without(&here));
                let noted: io::Result<()> =
                    gone.collect::<Vec<_>>().into_iter().try_for_each(|chunk| journal.lost(chunk));
                noted.map_err(Error::io("write", &journal_path))?;
                (journal, here)
            }
            _ => {
                let journal = Journal::create(&journal_path, &hash, size);
                (journal.map_err(Error::io("write", &journal_path))?, Bits::none(chunks::count(size)))
            }
        };
        let count = watch::Sender::new(here.count());
        let list = list.map_or_else(OnceLock::new, |list| OnceLock::from(Arc::new(list)));
        let (lost, losses) = mpsc::unbounded_channel();
        let (here, journal) = (Mutex::new(here), Mutex::new(journal));
        Ok((Self { hash, size, path, file, disk, list, here, journal, count, lost }, losses))
    }

    /// Bytes for which the file system has no blocks yet.
    pub(crate) fn unallocated(&self) -> io::Result<u64> {
        Ok(self.size.saturating_sub(fs4::FileExt::allocated_size(&self.file)?))
    }

    /// Takes the room it needs. `false` where the file system cannot; then the file has its length only.
    pub(crate) fn allocate(&self) -> io::Result<bool> {
        match self.disk.allocate(&self.file, self.size) {
            Ok(()) => Ok(true),
            Err(error) if crate::error::is_full(&error) => Err(error),
            Err(_) => self.file.set_len(self.size).map(|()| false),
        }
    }

    pub(crate) fn list(&self) -> Option<&Arc<Chunks>> {
        self.list.get()
    }

    pub(crate) fn set_list(&self, list: Arc<Chunks>) {
        let _ = self.list.set(list);
    }

    pub(crate) fn here(&self) -> Bits {
        self.bits().clone()
    }

    pub(crate) fn has(&self, chunk: u32) -> bool {
        self.bits().has(chunk)
    }

    /// How many chunks are there, and each change of it.
    pub(crate) fn watch(&self) -> watch::Receiver<u32> {
        self.count.subscribe()
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.bits().is_full()
    }

    /// The first chunk that is not there, from `from` on.
    pub(crate) fn first_missing(&self, from: u32) -> u32 {
        self.bits().first_missing(from)
    }

    /// Keeps a chunk that was verified. Blocks.
    pub(crate) fn write(&self, chunk: u32, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(&self.file, bytes, chunks::offset(chunk))?;
        self.journal.lock().expect("no holder panics").wrote(chunk)?;
        let count = {
            let mut here = self.bits();
            here.put(chunk);
            here.count()
        };
        self.count.send_replace(count);
        Ok(())
    }

    /// A chunk turned out not to be what it was. Blocks.
    fn lose(&self, chunk: u32) -> io::Result<()> {
        let (was_here, count) = {
            let mut here = self.bits();
            (here.take(chunk), here.count())
        };
        if was_here {
            self.count.send_replace(count);
            // Without a fetch the journal is all that has to know.
            let _ = self.lost.send(chunk);
            self.journal.lock().expect("no holder panics").lost(chunk)?;
        }
        Ok(())
    }

    /// A chunk that is there and still what it was; else it is lost. Blocks.
    pub(crate) fn read_verified(&self, chunk: u32, buffer: &mut [u8]) -> Result<(), Unread> {
        let list = self.list.get().filter(|_| self.has(chunk));
        let list = list.ok_or_else(|| Unread::Io(io::ErrorKind::NotFound.into()))?;
        let read = disk::read_at(&self.file, buffer, chunks::offset(chunk)).map_err(Unread::Io)?;
        if read == buffer.len() && list.verify(chunk, buffer) {
            return Ok(());
        }
        tracing::warn!(hash = %self.hash, chunk, "a chunk on this disk is not what it was; it is fetched again");
        self.lose(chunk).map_err(Unread::Io)?;
        Err(Unread::Damaged)
    }

    /// As it is on the disk, not verified. Blocks.
    pub(crate) fn read(&self, chunk: u32, buffer: &mut [u8]) -> io::Result<()> {
        match disk::read_at(&self.file, buffer, chunks::offset(chunk))? == buffer.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Makes what was written so far last, bytes first and what says so after. Blocks, the writer does not meanwhile.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let up_to = self.journal.lock().expect("no holder panics").length();
        self.file.sync_data()?;
        let journal = {
            let mut journal = self.journal.lock().expect("no holder panics");
            journal.synced(up_to)?;
            journal.file()?
        };
        journal.sync_data()
    }

    fn bits(&self) -> std::sync::MutexGuard<'_, Bits> {
        self.here.lock().expect("no holder panics")
    }
}

/// What is likely is hashed. Where the file is shorter than it should be, so is what was sure.
fn still_good(file: &File, length: u64, list: &Chunks, sure: &Bits, likely: &Bits) -> Bits {
    let whole = length == list.size();
    let mut here = if whole { sure.clone() } else { Bits::none(sure.len()) };
    let doubted = sure.iter().filter(|_| !whole).chain(likely.iter());
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in doubted {
        let buffer = &mut buffer[..list.length(chunk)];
        let read = disk::read_at(file, buffer, chunks::offset(chunk));
        if read.is_ok_and(|read| list.verify(chunk, &buffer[..read])) {
            here.put(chunk);
        }
    }
    here
}
