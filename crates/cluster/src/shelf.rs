//! Where whole states are kept between starts, by name.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

#[derive(Debug, Clone)]
pub enum Shelf {
    Folder(PathBuf),
    /// For simulations: outlives the node, not the process.
    Memory(Arc<Mutex<BTreeMap<&'static str, Bytes>>>),
}

impl Shelf {
    /// Durable when it returns. To be awaited to its end: a save that is dropped may still happen.
    pub(crate) async fn save(&self, name: &'static str, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Folder(folder) => {
                let folder = folder.clone();
                let write = move || store::snapshot::write(&folder, name, &bytes).map_err(io::Error::other);
                tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
            }
            Self::Memory(kept) => {
                kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name, bytes);
                Ok(())
            }
        }
    }

    pub(crate) fn load(&self, name: &'static str) -> io::Result<Option<Bytes>> {
        match self {
            Self::Folder(folder) => {
                let names = store::snapshot::list(folder).map_err(io::Error::other)?;
                if !names.iter().any(|kept| kept == name) {
                    return Ok(None);
                }
                Ok(Some(store::snapshot::read(folder, name).map_err(io::Error::other)?.into()))
            }
            Self::Memory(kept) => Ok(kept.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()),
        }
    }
}
