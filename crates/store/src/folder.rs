//! The store's folder: what lies in it, how it comes to be, and which release may open it.
//!
//! Made in this order, each step durable before the next: the mark file, blank; the format file; sled's files; the first
//! segment; the first mark. So a blank mark says that the store was never used, and a power cut while it is made leaves nothing to mourn.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Error,
    disk::{Disk, sync_dir, write_atomically},
    kv::{segment::SegmentLog, values::Values},
    mark::{self, Found, MarkFile},
};

/// Raised when an older release could no longer make sense of the folder.
const FORMAT: u32 = 3;
const FORMAT_PREFIX: &str = "omx store ";

pub(crate) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Makes the folder if it is new. Touches nothing in one of a newer format.
    pub(crate) fn prepare(dir: &Path) -> Result<Folder, Error> {
        let folder = Folder { dir: dir.into() };
        match fs::read_to_string(folder.format()) {
            Ok(text) => folder.check_format(&text)?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => folder.create()?,
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::damaged(&folder.format(), "it is not text"));
            }
            Err(cause) => return Err(Error::io("read", &folder.format(), cause)),
        }
        Ok(folder)
    }

    /// Opens log and mark. sled's files from an unfinished making are put aside, once it is plain that they are that.
    pub(crate) fn open(&self, disk: &Arc<dyn Disk>) -> Result<(SegmentLog, MarkFile), Error> {
        // Judged before sled is let near the folder, since opening writes to it.
        let found = mark::look(&self.mark())?;
        match found {
            Found::Missing => return Err(Error::damaged(&self.mark(), "it is missing")),
            Found::Unreadable => return Err(Error::damaged(&self.mark(), "none of its slots can be read")),
            Found::Mark(_) if !self.sled().join("db").exists() => {
                return Err(Error::damaged(&self.sled(), "sled's files are missing beside the mark"));
            }
            Found::Mark(_) if !SegmentLog::exists(&self.segments()) => {
                return Err(Error::damaged(&self.segments(), "the log is missing beside its mark"));
            }
            Found::Mark(_) | Found::Blank => {}
        }
        let values = match Values::open(&self.sled(), disk.clone()) {
            Err(Error::Damaged { .. }) if matches!(found, Found::Blank) => {
                let aside = self.dir.join("unfinished");
                let set_aside = || {
                    remove_dir(&aside)?;
                    fs::rename(self.sled(), &aside)?;
                    sync_dir(&self.dir)
                };
                set_aside().map_err(|cause| Error::io("put aside", &self.sled(), cause))?;
                Values::open(&self.sled(), disk.clone())?
            }
            opened => opened?,
        };
        let log = SegmentLog::open(&self.segments(), values, disk.clone())?;
        sync_dir(&self.dir).map_err(|cause| Error::io("sync", &self.dir, cause))?;
        Ok((log, MarkFile::open(&self.mark(), disk.clone())?))
    }

    fn check_format(&self, text: &str) -> Result<(), Error> {
        let found = text.trim_end().strip_prefix(FORMAT_PREFIX).and_then(|number| number.parse().ok());
        match found {
            None | Some(0) => Err(Error::damaged(&self.format(), "it names no format")),
            Some(found) if found > FORMAT => Err(Error::TooNew { path: self.dir.clone(), found, known: FORMAT }),
            Some(FORMAT) => Ok(()),
            Some(found) => {
                let what = format!("format `{found}` is from before the first release and is no longer read");
                Err(Error::damaged(&self.format(), what))
            }
        }
    }

    fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(|cause| Error::io("create", &self.dir, cause))?;
        let marked = match mark::look(&self.mark())? {
            Found::Missing | Found::Blank => false,
            Found::Mark(_) | Found::Unreadable => true,
        };
        if marked || self.sled().exists() || self.segments().exists() {
            return Err(Error::damaged(&self.format(), "it is missing beside a store that was in use"));
        }
        MarkFile::create(&self.mark())?;
        write_atomically(&self.format(), &[format!("{FORMAT_PREFIX}{FORMAT}\n").as_bytes()])
            .map_err(|cause| Error::io("create", &self.format(), cause))?;
        let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(|cause| Error::io("sync", parent, cause))
    }

    fn format(&self) -> PathBuf {
        self.dir.join("format")
    }

    fn mark(&self) -> PathBuf {
        self.dir.join("mark")
    }

    fn sled(&self) -> PathBuf {
        self.dir.join("sled")
    }

    fn segments(&self) -> PathBuf {
        self.dir.join("segments")
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}
