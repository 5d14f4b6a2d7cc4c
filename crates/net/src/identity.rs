//! Who a node is: an ed25519 key pair, kept in one file for the life of the node.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use libp2p::identity::{self, ed25519};
use serde::{Deserialize, Serialize};
use types::NodeId;

/// The secret of a node. Prints as its public half.
#[derive(Clone)]
pub struct Keypair(ed25519::Keypair);

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "([u8; 32], [u8; 32])", into = "([u8; 32], [u8; 32])")]
pub struct Signature([u8; 64]);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the identity in `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to write the identity to `{path}`")]
    Write { path: PathBuf, source: io::Error },
    #[error("others than its owner may use the identity in `{path}` (mode `{mode:03o}`)")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("`{path}` holds no identity this version can read")]
    Format { path: PathBuf },
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, .. } => {
                Some(format!("run `chmod 600 {}`, if nobody else has read it", path.display()))
            }
            Self::Format { .. } => {
                Some("restore the file from a backup, or start with an empty data folder".to_owned())
            }
            Self::Read { .. } | Self::Write { .. } => None,
        }
    }
}

/// What stands in the file before the 32 secret bytes; the digit is the format's version.
const FILE_HEADER: &[u8; 14] = b"omx ed25519 1\n";

impl Keypair {
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system has a random source");
        Self::from_seed(seed)
    }

    pub fn from_seed(mut seed: [u8; 32]) -> Self {
        let secret = ed25519::SecretKey::try_from_bytes(&mut seed).expect("any 32 bytes are an ed25519 secret");
        Self(secret.into())
    }

    /// The key in `path`; where there is no such file, a new key that is on disk when this returns. The caller holds
    /// the lock of the folder: two creators at once would overwrite each other.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match File::open(path) {
            Ok(file) => Self::load(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keypair = Self::generate();
                keypair.store(path).map_err(|source| Error::Write { path: path.to_owned(), source })?;
                Ok(keypair)
            }
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }

    pub fn node_id(&self) -> NodeId {
        NodeId::from_public_key(self.0.public().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.0.sign(message);
        Signature(signature.try_into().expect("an ed25519 signature has 64 bytes"))
    }

    pub(crate) fn to_libp2p(&self) -> identity::Keypair {
        self.0.clone().into()
    }

    fn load(path: &Path, file: File) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(Error::Exposed { path: path.to_owned(), mode });
            }
        }
        let mut bytes = Vec::with_capacity(FILE_HEADER.len() + 33);
        // One byte more than there should be, so that a longer file is seen as such.
        file.take(FILE_HEADER.len() as u64 + 33).read_to_end(&mut bytes).map_err(unreadable)?;
        let seed = bytes.strip_prefix(FILE_HEADER).and_then(|seed| seed.try_into().ok());
        seed.map(Self::from_seed).ok_or_else(|| Error::Format { path: path.to_owned() })
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = path.with_extension("new");
        // Left behind by a crash before the rename: nobody has ever used the key in it.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(FILE_HEADER)?;
        file.write_all(self.0.secret().as_ref())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Windows can neither open a folder as a file nor needs it for the rename to last.
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        #[cfg(not(unix))]
        let _ = folder;
        Ok(())
    }
}

/// Whether the node with this id signed the message.
pub fn verify(signer: NodeId, message: &[u8], signature: &Signature) -> bool {
    ed25519::PublicKey::try_from_bytes(signer.public_key()).is_ok_and(|key| key.verify(message, &signature.0))
}

impl Signature {
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl From<([u8; 32], [u8; 32])> for Signature {
    fn from((first, second): ([u8; 32], [u8; 32])) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&first);
        bytes[32..].copy_from_slice(&second);
        Self(bytes)
    }
}

impl From<Signature> for ([u8; 32], [u8; 32]) {
    fn from(signature: Signature) -> Self {
        let (first, second) = signature.0.split_at(32);
        (first.try_into().expect("half of 64"), second.try_into().expect("half of 64"))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(")?;
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keypair").field(&self.node_id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_message_and_signer_only() {
        let (one, other) = (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]));
        let signature = one.sign(b"message");
        assert!(verify(one.node_id(), b"message", &signature));
        assert!(!verify(one.node_id(), b"massage", &signature));
        assert!(!verify(other.node_id(), b"message", &signature));
        let mut bent = *signature.as_bytes();
        bent[40] ^= 1;
        assert!(!verify(one.node_id(), b"message", &Signature::from_bytes(bent)));
        assert_eq!(Signature::from(<([u8; 32], [u8; 32])>::from(signature)), signature);
    }

    #[test]
    fn the_identity_in_the_file_is_the_same_at_every_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let made = Keypair::load_or_create(&path).unwrap();
        assert_eq!(Keypair::load_or_create(&path).unwrap().node_id(), made.node_id());
        assert!(!folder.path().join("identity.new").exists());
    }

    #[cfg(unix)]
    #[test]
    fn an_identity_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        Keypair::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keypair::load_or_create(&path).unwrap_err();
        assert!(matches!(error, Error::Exposed { mode: 0o640, .. }), "{error}");
        assert!(error.hint().unwrap().contains("chmod 600"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_no_identity_is_refused_and_left_alone() {
        use std::os::unix::fs::OpenOptionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        let header = FILE_HEADER.to_vec();
        for content in [b"".to_vec(), header.clone(), [header.clone(), vec![7; 33]].concat(), vec![7; 46]] {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&path).unwrap().write_all(&content).unwrap();
            assert!(matches!(Keypair::load_or_create(&path), Err(Error::Format { .. })));
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_key_pair_does_not_print_its_secret() {
        let keypair = Keypair::from_seed([0x5a; 32]);
        let shown = format!("{keypair:?}").to_lowercase();
        assert!(shown.contains(&keypair.node_id().to_string().to_lowercase()));
        assert!(!shown.contains("5a5a") && !shown.contains("90, 90"), "{shown}");
    }
}
