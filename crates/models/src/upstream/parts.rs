//! A file that is being fetched in parts: which are there is kept beside it, so that a restart goes on where it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ollama::manifest::Layer;

/// Small enough that a cut costs little, large enough that asking for it costs nothing beside it.
pub(crate) const PART_BYTES: u64 = 8 << 20;

const DATA: &str = "data";

/// The parts that are missing, and the file they go to. Which parts are there is known by the name of an empty file for
/// each, made after the part was synced: nothing of what a crash may leave half done is believed.
#[derive(Debug)]
pub(crate) struct Parts {
    folder: PathBuf,
    size: u64,
    missing: BTreeSet<u64>,
}

impl Parts {
    /// Goes on with what is there of this layer.
    pub(crate) fn open(root: &Path, layer: &Layer) -> io::Result<Self> {
        let folder = root.join(layer.digest.hex());
        let mut parts = Self { folder, size: layer.size, missing: (0..layer.size.div_ceil(PART_BYTES)).collect() };
        if !parts.look()? {
            // Of another size, or none: what is said beside it is of something else.
            match fs::remove_dir_all(&parts.folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(&parts.folder)?,
            }
            File::create(parts.data())?.set_len(layer.size)?;
        }
        Ok(parts)
    }

    /// What opening it would find missing. Nothing is changed, and what cannot be read counts as missing.
    pub(crate) fn missing_bytes(root: &Path, layer: &Layer) -> u64 {
        // Not a set of all parts: the size is somebody's word, and nothing was begun of most.
        let folder = root.join(layer.digest.hex());
        if !fs::metadata(folder.join(DATA)).is_ok_and(|data| data.len() == layer.size) {
            return layer.size;
        }
        Self::open(root, layer).map_or(layer.size, |parts| layer.size - parts.done())
    }

    /// Finds out which parts are there. `false` where there is no file of this size.
    fn look(&mut self) -> io::Result<bool> {
        if !fs::metadata(self.data()).is_ok_and(|data| data.len() == self.size) {
            return Ok(false);
        }
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if let Some(part) = name.to_str().and_then(|name| name.parse().ok()) {
                self.missing.remove(&part);
            }
        }
        Ok(true)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join(DATA)
    }

    /// Bytes that are there.
    pub(crate) fn done(&self) -> u64 {
        self.size - self.missing.iter().map(|part| self.range(*part)).map(|range| range.end - range.start).sum::<u64>()
    }

    pub(crate) fn missing(&self) -> impl Iterator<Item = (u64, Range<u64>)> {
        self.missing.iter().map(|part| (*part, self.range(*part)))
    }

    /// To be called once the part's bytes are synced.
    pub(crate) fn came(&mut self, part: u64) -> io::Result<()> {
        File::create(self.folder.join(part.to_string()))?;
        self.missing.remove(&part);
        Ok(())
    }

    /// All of it was for nothing: what came is not what was asked for.
    pub(crate) fn discard(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }

    fn range(&self, part: u64) -> Range<u64> {
        let start = part * PART_BYTES;
        start..(start + PART_BYTES).min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use ollama::Digest;

    use super::*;

    #[test]
    fn what_came_is_not_asked_for_again() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = Layer { media_type: String::new(), digest: Digest::of(b"x"), size: 2 * PART_BYTES + 5 };
        assert_eq!(Parts::missing_bytes(scratch.path(), &layer), layer.size);
        assert!(fs::read_dir(scratch.path()).unwrap().next().is_none(), "looking makes nothing");
        let mut parts = Parts::open(scratch.path(), &layer).unwrap();
        assert_eq!((parts.missing().count(), parts.done()), (3, 0));
        assert_eq!(parts.missing().last(), Some((2, 2 * PART_BYTES..2 * PART_BYTES + 5)));
        parts.came(2).unwrap();
        parts.came(0).unwrap();
        let mut parts = Parts::open(scratch.path(), &layer).unwrap();
        assert_eq!(
            (parts.missing().collect::<Vec<_>>(), parts.done()),
            (vec![(1, PART_BYTES..2 * PART_BYTES)], PART_BYTES + 5)
        );
        assert_eq!(Parts::missing_bytes(scratch.path(), &layer), PART_BYTES);
        parts.came(1).unwrap();
        assert_eq!((parts.done(), Parts::missing_bytes(scratch.path(), &layer)), (layer.size, 0));
        // A file of another size is another file.
        File::options().write(true).open(parts.data()).unwrap().set_len(7).unwrap();
        let parts = Parts::open(scratch.path(), &layer).unwrap();
        assert_eq!(parts.done(), 0);
        parts.discard().unwrap();
        assert!(fs::read_dir(scratch.path()).unwrap().next().is_none());
    }
}
