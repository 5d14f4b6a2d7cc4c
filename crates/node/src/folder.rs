//! The data folder: whose it is, which format it has, where everything lies in it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use types::NodeId;

/// The layout this version writes. A folder with a higher one is left alone.
const FORMAT: u32 = 1;
const FORMAT_HEAD: &str = "omx data ";

/// A data folder that no other process uses while this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// Where a running node is to be found, for commands and scripts.
#[derive(Debug, Clone, Serialize)]
pub struct RunInfo {
    pub api: SocketAddr,
    /// Multiaddresses.
    pub mesh: Vec<String>,
    pub bulk: SocketAddr,
    pub pid: u32,
    pub peer_id: NodeId,
    pub version: &'static str,
    /// Below the data folder, or absolute.
    pub socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another node runs on data folder `{0}`")]
    InUse(PathBuf),
    #[error("data folder `{path}` has format {found}; this version knows up to {FORMAT}")]
    TooNew { path: PathBuf, found: u32 },
    #[error("`{0}` is not a data folder of omx: there is something else in it")]
    Foreign(PathBuf),
    #[error("others than its owner may look into data folder `{path}` (mode `{mode:03o}`)")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("failed to {what} `{path}`")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InUse(_) => "talk to it with `omx status`, or choose another `--data-dir`".to_owned(),
            Self::TooNew { .. } => "update this omx, or choose another `--data-dir`".to_owned(),
            Self::Foreign(_) => "choose an empty folder, or one that does not exist yet".to_owned(),
            Self::Exposed { path, .. } => format!("run `chmod 700 {}`", path.display()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "choose a `--data-dir` that you may write to".to_owned()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "free some disk space".to_owned(),
            Self::Io { .. } => return None,
        })
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

impl Folder {
    /// Makes the folder where there is none, and makes sure that it is ours alone.
    pub fn open(path: &Path) -> Result<Self, Error> {
        make_private(path)?;
        let format = path.join("format");
        // Looked at before anything is written: a folder of somebody else's, or of a newer version, stays as it is.
        let known = match fs::read_to_string(&format) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &format)(error)),
        };
        match known.as_deref().map(|text| text.trim().strip_prefix(FORMAT_HEAD).and_then(|n| n.parse().ok())) {
            Some(Some(found)) if found > FORMAT => return Err(Error::TooNew { path: path.to_owned(), found }),
            Some(Some(_)) => {}
            Some(None) => return Err(Error::Foreign(path.to_owned())),
            None if holds_something_else(path)? => return Err(Error::Foreign(path.to_owned())),
            None => {}
        }
        let lock_path = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error)),
        }
        if known.is_none() {
            write_whole(&format, format!("{FORMAT_HEAD}{FORMAT}\n").as_bytes())?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is addressed by its content.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// The engine's models, in Ollama's layout.
    pub(crate) fn models(&self) -> PathBuf {
        self.path.join("models")
    }

    /// What comes from registries, until it is whole.
    pub(crate) fn make_incoming(&self) -> Result<PathBuf, Error> {
        let path = self.path.join("incoming");
        fs::create_dir_all(&path).map_err(failed("make", &path))?;
        Ok(path)
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.path.join("identity.key")
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.path.join("registry")
    }

    /// A free name for a registry that is to be kept out of the way.
    pub(crate) fn set_aside(&self) -> Result<PathBuf, Error> {
        let names = (1..).map(|number| self.path.join(format!("registry.damaged-{number}")));
        let mut free = names.skip_while(|path| path.exists());
        let aside = free.next().expect("there are more numbers than folders");
        fs::rename(self.registry(), &aside).map_err(failed("rename", &self.registry()))?;
        Ok(aside)
    }

    /// A registry that was kept out of the way.
    pub(crate) fn kept_aside(&self) -> Option<PathBuf> {
        let first = self.path.join("registry.damaged-1");
        first.exists().then_some(first)
    }

    /// Tells commands where this node is. They find nothing there once it has stopped in good order.
    pub fn announce(&self, info: &RunInfo) -> Result<(), Error> {
        let path = self.run_json();
        let text = serde_json::to_vec_pretty(info).map_err(|error| failed("write", &path)(error.into()))?;
        write_whole(&path, &text)
    }

    pub fn withdraw(&self) {
        if let Err(error) = fs::remove_file(self.run_json())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.run_json().display(), "could not be removed");
        }
    }

    fn run_json(&self) -> PathBuf {
        self.path.join("run.json")
    }
}

/// There in full or not at all: written beside, then renamed.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    write().map_err(failed("write", path))
}

fn holds_something_else(path: &Path) -> Result<bool, Error> {
    let ours = ["lock", "omx.toml", "log", "format.tmp"];
    let mut entries = fs::read_dir(path).map_err(failed("read", path))?.filter_map(Result::ok);
    Ok(entries.any(|entry| !entry.file_name().to_str().is_some_and(|name| ours.contains(&name))))
}

#[cfg(unix)]
fn make_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
    let mode = fs::metadata(path).map_err(failed("look at", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Folders of a user's profile are the user's alone there.
#[cfg(not(unix))]
fn make_private(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(failed("make", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_process_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/node");
        let first = Folder::open(&path).unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::InUse(_))));
        drop(first);
        Folder::open(&path).unwrap();
    }

    #[test]
    fn a_newer_or_foreign_folder_is_left_as_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("node");
        drop(Folder::open(&path).unwrap());
        fs::write(path.join("format"), "omx data 2\n").unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::TooNew { found: 2, .. })));
        fs::write(path.join("format"), "something else").unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::Foreign(_))));
        fs::remove_file(path.join("format")).unwrap();
        fs::write(path.join("letters.txt"), "dear").unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::Foreign(_))));
        assert!(!path.join("format").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("node");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::Exposed { mode: 0o755, .. })));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_in_the_way_of_a_file_is_an_error_with_its_path() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "").unwrap();
        let error = Folder::open(&path).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
