//! The local socket: whoever can open it owns this machine's node.

#[cfg(not(unix))]
pub(crate) use elsewhere::{Door, Stream};
#[cfg(unix)]
pub(crate) use unix::{Door, Stream};

#[cfg(unix)]
mod unix {
    use std::fs::{self, DirBuilder, Permissions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use tokio::net::{UnixListener, UnixStream};

    use crate::error::Error;

    pub(crate) type Stream = UnixStream;

    const ROOT: u32 = 0;

    #[derive(Debug)]
    pub(crate) struct Door {
        listener: UnixListener,
        owner: u32,
        path: PathBuf,
    }

    impl Door {
        /// The caller holds the lock of the data folder: two who open the same path at once would take it from each
        /// other.
        pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
            let failed = |source| Error::Socket { path: path.to_owned(), source };
            match UnixStream::connect(path).await {
                Ok(_) => return Err(Error::SocketTaken { path: path.to_owned() }),
                // What a process that died has left behind.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Err(_) => {}
            }
            let listener = guarded_folder(path).and_then(|()| UnixListener::bind(path)).map_err(failed)?;
            // Behind a closed folder, so that there is no moment at which others could connect.
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
            let owner = fs::metadata(path).map_err(failed)?.uid();
            Ok(Self { listener, owner, path: path.to_owned() })
        }

        /// The next connection of somebody who may speak here, and who that is.
        pub(crate) async fn accept(&self) -> io::Result<(UnixStream, u32)> {
            loop {
                let (stream, _) = self.listener.accept().await?;
                // Fails where the other end is gone already.
                let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else { continue };
                if uid == self.owner || uid == ROOT {
                    return Ok((stream, uid));
                }
                tracing::warn!(uid, "a user who does not own this node came to its local socket");
            }
        }
    }

    impl Drop for Door {
        fn drop(&mut self) {
            // It may be gone with its folder; then nothing is left to do.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Others must not get as far as the socket.
    fn guarded_folder(path: &Path) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::set_permissions(folder, Permissions::from_mode(0o700))
            }
            created => created,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn mode(path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        }

        #[tokio::test]
        async fn nobody_else_gets_to_the_socket_and_it_is_gone_with_its_node() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run/omx.sock");
            let door = Door::open(&path).await.unwrap();
            assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
            assert!(matches!(Door::open(&path).await, Err(Error::SocketTaken { .. })));
            drop(door);
            assert!(!path.exists());
        }

        #[tokio::test]
        async fn a_dead_process_leaves_its_socket_and_the_next_one_takes_it() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("omx.sock");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists(), "a listener of the standard library leaves its file");
            let door = Door::open(&path).await.unwrap();
            assert_eq!(mode(folder.path()), 0o700);
            let asked = UnixStream::connect(&path);
            let (asked, accepted) = tokio::join!(asked, door.accept());
            assert!(asked.is_ok());
            assert_eq!(accepted.unwrap().1, fs::metadata(&path).unwrap().uid());
        }

        #[tokio::test]
        async fn a_path_too_long_for_a_socket_has_a_hint() {
            let folder = tempfile::tempdir().unwrap();
            let error = Door::open(&folder.path().join("x".repeat(120))).await.unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains("--data-dir")), "{error:?}");
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    use std::io;
    use std::path::Path;

    use crate::error::Error;

    pub(crate) type Stream = tokio::net::TcpStream;

    /// There is none: a cookie does its work.
    #[derive(Debug)]
    pub(crate) enum Door {}

    impl Door {
        pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
            Err(Error::Socket { path: path.to_owned(), source: io::ErrorKind::Unsupported.into() })
        }

        pub(crate) async fn accept(&self) -> io::Result<(Stream, u32)> {
            match *self {}
        }
    }
}
