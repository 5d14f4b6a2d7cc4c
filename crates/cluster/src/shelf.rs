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
    Memory(Arc<Mutex<Memory>>),
}

#[derive(Debug, Default)]
pub struct Memory {
    kept: BTreeMap<&'static str, Bytes>,
    /// Nothing more can be saved.
    pub full: bool,
}

impl Shelf {
    /// Durable when it returns. To be awaited to its end: a save that is dropped may still happen.
    pub(crate) async fn save(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Bytes + Send + 'static,
    ) -> io::Result<Bytes> {
        let shelf = self.clone();
        self.aside(move || {
            let bytes = make();
            match shelf {
                Self::Folder(folder) => store::snapshot::write(&folder, name, &bytes).map_err(io::Error::other)?,
                Self::Memory(kept) => {
                    let mut memory = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    if memory.full {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                    memory.kept.insert(name, bytes.clone());
                }
            }
            Ok(bytes)
        })
        .await
    }

    /// What was saved last under this name, and its bytes.
    pub(crate) async fn load<T>(&self, name: &'static str) -> io::Result<Option<(T, Bytes)>>
    where
        T: codec::Record + Send + 'static,
    {
        let shelf = self.clone();
        self.aside(move || {
            let bytes = match shelf {
                Self::Folder(folder) => {
                    let names = store::snapshot::list(&folder).map_err(io::Error::other)?;
                    if !names.iter().any(|kept| kept == name) {
                        return Ok(None);
                    }
                    store::snapshot::read(&folder, name).map_err(io::Error::other)?.into()
                }
                Self::Memory(kept) => {
                    let memory = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(bytes) = memory.kept.get(name) else { return Ok(None) };
                    bytes.clone()
                }
            };
            Ok(Some((codec::decode(&bytes).map_err(io::Error::other)?, bytes)))
        })
        .await
    }

    /// Megabytes are coded and moved where nobody else is kept waiting. In a simulation no time passes meanwhile.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        match self {
            Self::Folder(_) => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
            Self::Memory(_) => work(),
        }
    }
}
