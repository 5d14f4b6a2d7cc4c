//! Everything the store holds as one stream, and back: for backups, and for the day another store takes over.
//!
//! Magic, version, a header, the records one after the other, the snapshots, and a BLAKE3 hash over all of it. Nothing
//! of the way they lie on disk is in it.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Log, META_BYTES_MAX, Meta, RECORD_BYTES_MAX, Record,
    disk::{Os, sync_dir},
    folder::Folder,
    ledger::{Batch, Ledger},
    log::{SNAPSHOTS, Span},
    snapshot,
};

const MAGIC: &[u8; 8] = b"omxstore";
const HASH_BYTES: usize = 32;

/// Bytes of records read or written in one go.
const STEP_BYTES: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// Index and note of the last purge.
    purged: Option<(u64, Vec<u8>)>,
    vote: Option<Vec<u8>>,
    committed: Option<Vec<u8>>,
    /// First and last index.
    records: Option<(u64, u64)>,
    snapshots: Vec<String>,
}

impl codec::Record for Header {
    const VERSION: u8 = 1;
    const LIMIT: usize = 3 * META_BYTES_MAX + (64 << 10);
}

impl Log {
    /// Writes everything that can be read at this moment. Fails if records are purged or truncated meanwhile; try again.
    pub fn export(&self, out: impl Write) -> Result<(), Error> {
        let (mut header, dir) = self.contents();
        if let Some(dir) = &dir {
            header.snapshots = snapshot::list(dir)?;
        }
        let mut out = Sink { out, hasher: blake3::Hasher::new() };
        out.bytes(MAGIC)?;
        out.frame(&codec::encode(&header).map_err(|cause| Error::damaged(Path::new(STREAM), cause.to_string()))?)?;
        if let Some((mut next, last)) = header.records {
            while next <= last {
                let records = self.read_within(next..=last, STEP_BYTES)?;
                if records.first().is_none_or(|record| record.index != next) {
                    return Err(Error::damaged(Path::new(STREAM), "records went away while they were exported"));
                }
                for record in &records {
                    out.frame(&record.bytes)?;
                }
                next += records.len() as u64;
            }
        }
        for name in &header.snapshots {
            let dir = dir.as_ref().expect("names were listed from a folder");
            out.frame(&snapshot::read(dir, name)?)?;
        }
        out.finish()
    }

    fn contents(&self) -> (Header, Option<PathBuf>) {
        let Span { purged, records } = self.span();
        let (vote, committed) = (self.get(Meta::Vote), self.get(Meta::Committed));
        let header = Header { purged, vote, committed, records, snapshots: Vec::new() };
        (header, self.folder().map(|dir| dir.join(SNAPSHOTS)))
    }
}

/// Makes a store in `dir`, which must be empty or absent, of what was exported. It appears only when all of it was read
/// and found to be whole.
pub fn import(dir: &Path, input: impl Read) -> Result<(), Error> {
    match fs::read_dir(dir).map(|mut found| found.next().is_some()) {
        Ok(true) => return Err(Error::NotEmpty { path: dir.into() }),
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(Error::io("read", dir, cause)),
        _ => {}
    }
    let mut name = dir.as_os_str().to_owned();
    name.push(".import");
    let draft = PathBuf::from(name);
    discard(&draft)?;
    let filled = fill(&draft, input).and_then(|()| {
        let publish = || {
            // Renaming onto an empty folder is not possible everywhere.
            if dir.exists() {
                fs::remove_dir(dir)?;
            }
            fs::rename(&draft, dir)?;
            sync_dir(dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        publish().map_err(|cause| Error::io("publish", dir, cause))
    });
    if filled.is_err() {
        discard(&draft)?;
    }
    filled
}

fn fill(dir: &Path, input: impl Read) -> Result<(), Error> {
    let mut input = Source { input, hasher: blake3::Hasher::new() };
    if input.array::<8>()? != *MAGIC {
        return Err(malformed("it is not an export"));
    }
    let header: Header = match codec::decode(&input.frame(<Header as codec::Record>::LIMIT)?) {
        Err(codec::Error::TooNew { found, known }) => {
            return Err(Error::TooNew { path: STREAM.into(), found: found.into(), known: known.into() });
        }
        decoded => decoded.map_err(|cause| malformed(&cause.to_string()))?,
    };
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(Os);
    let (kv, marks) = Folder::prepare(dir)?.open(&disk)?;
    let (mut ledger, _) = Ledger::open(Arc::new(kv), Box::new(marks), dir, 0)?;
    if let Some((index, meta)) = header.purged {
        ledger.purge_to(index, meta)?;
    }
    ledger.write(Batch { vote: header.vote, committed: header.committed, ..Batch::default() })?;
    if let Some((first, last)) = header.records {
        let mut records = Vec::new();
        let mut bytes = 0;
        for index in first..=last {
            let frame = input.frame(RECORD_BYTES_MAX)?;
            bytes += frame.len();
            records.push(Record { index, bytes: frame.into() });
            if bytes >= STEP_BYTES || index == last {
                bytes = 0;
                ledger.write(Batch { records: std::mem::take(&mut records), ..Batch::default() })?;
            }
        }
    }
    for name in &header.snapshots {
        snapshot::write(&dir.join(SNAPSHOTS), name, &input.frame(usize::MAX)?)?;
    }
    ledger.settle(None)?;
    input.finish()
}

fn discard(draft: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(draft) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", draft, cause)),
        _ => Ok(()),
    }
}

/// What messages call the stream, which has no path of its own.
const STREAM: &str = "export";

fn malformed(what: &str) -> Error {
    Error::damaged(Path::new(STREAM), what)
}

struct Sink<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Sink<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(|cause| Error::io("write", Path::new(STREAM), cause))
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes(&(bytes.len() as u64).to_le_bytes())?;
        self.bytes(bytes)
    }

    fn finish(mut self) -> Result<(), Error> {
        let hash = self.hasher.finalize();
        self.out
            .write_all(hash.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(|cause| Error::io("write", Path::new(STREAM), cause))
    }
}

struct Source<R> {
    input: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Source<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|cause| Error::io("read", Path::new(STREAM), cause))?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Grows with what is really there, not with what is claimed.
    fn frame(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let len = u64::from_le_bytes(self.array()?);
        if len > limit as u64 {
            return Err(malformed("a part is longer than it may be"));
        }
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(len).read_to_end(&mut bytes);
        read.map_err(|cause| Error::io("read", Path::new(STREAM), cause))?;
        if bytes.len() as u64 != len {
            return Err(malformed("it ends too early"));
        }
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    fn finish(mut self) -> Result<(), Error> {
        let computed = *self.hasher.clone().finalize().as_bytes();
        if self.array::<HASH_BYTES>()? != computed {
            return Err(malformed("it does not match its checksum"));
        }
        Ok(())
    }
}
