//! Room on the disk, promised once: fetches that run side by side do not each count on the same free bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use types::BlobHash;

use crate::disk::Disk;

/// What has to be free beyond what is needed: one in as many bytes.
const MARGIN: u64 = 20;

pub(crate) struct Space {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    /// Bytes that each running fetch will still write and has no blocks for.
    promised: Mutex<BTreeMap<BlobHash, u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) needed: u64,
    pub(crate) free: u64,
}

impl Space {
    pub(crate) fn new(dir: PathBuf, disk: Arc<dyn Disk>) -> Self {
        Self { dir, disk, promised: Mutex::default() }
    }

    /// Promises room for `bytes` more. Replaces what the blob was promised before; the room is the blob's until `settle`.
    pub(crate) fn promise(&self, hash: BlobHash, bytes: u64) -> io::Result<Result<(), Short>> {
        let mut promised = self.promised.lock().expect("no holder panics");
        let others: u64 = promised.iter().filter(|(other, _)| **other != hash).map(|(_, bytes)| bytes).sum();
        let needed = bytes.saturating_add(bytes / MARGIN);
        let free = self.disk.free(&self.dir)?.saturating_sub(others);
        if needed > free {
            return Ok(Err(Short { needed, free }));
        }
        promised.insert(hash, bytes);
        Ok(Ok(()))
    }

    /// So many bytes of the blob are still without blocks; 0 ends the promise.
    pub(crate) fn settle(&self, hash: &BlobHash, bytes: u64) {
        let mut promised = self.promised.lock().expect("no holder panics");
        match bytes {
            0 => _ = promised.remove(hash),
            left => _ = promised.insert(*hash, left),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    struct Free(u64);

    impl Disk for Free {
        fn free(&self, _: &Path) -> io::Result<u64> {
            Ok(self.0)
        }
    }

    #[test]
    fn two_fetches_do_not_count_on_the_same_bytes() {
        let space = Space::new(PathBuf::new(), Arc::new(Free(1000)));
        let [one, other] = [1, 2].map(|n| BlobHash::from_bytes([n; 32]));
        assert_eq!(space.promise(one, 960).unwrap(), Err(Short { needed: 1008, free: 1000 }));
        assert_eq!(space.promise(one, 600).unwrap(), Ok(()));
        assert_eq!(space.promise(other, 400).unwrap(), Err(Short { needed: 420, free: 400 }));
        assert_eq!(space.promise(one, 600).unwrap(), Ok(()), "its own promise is not in its way");
        space.settle(&one, 500);
        assert_eq!(space.promise(other, 400).unwrap(), Ok(()));
        space.settle(&one, 0);
        assert_eq!(space.promise(other, 900).unwrap(), Ok(()));
    }
}
