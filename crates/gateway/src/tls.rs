//! The API's certificate and key: read once, at the start, and then what every connection is greeted with.
//!
//! A file that changes later is taken in by the next start: a node that is told to read again could find half of a new
//! pair, and would have to go on with the old one without anybody seeing it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig, version};

/// A certificate with its key, found to fit each other. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    certificate: PathBuf,
    valid: Validity,
}

/// In seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: i64,
    until: i64,
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the TLS {what} `{}`", .path.display())]
    Unreadable { what: What, path: PathBuf, source: io::Error },
    #[error("`{}` holds no {what} in PEM", .path.display())]
    Missing { what: What, path: PathBuf },
    #[error("the {what} in `{}` cannot be used", .path.display())]
    Unusable { what: What, path: PathBuf, source: Reason },
    #[error("the key in `{}` is not that of the certificate in `{}`", .key.display(), .certificate.display())]
    Misfit { certificate: PathBuf, key: PathBuf },
}

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Certificate,
    Key,
}

/// What the library found wrong, in its words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Reason(String);

impl Error {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { .. } => return None,
            Self::Missing { what: What::Certificate, .. } | Self::Unusable { what: What::Certificate, .. } => {
                "a chain is needed that begins with the node's own certificate, each as `-----BEGIN CERTIFICATE-----`"
                    .to_owned()
            }
            Self::Missing { what: What::Key, .. } | Self::Unusable { what: What::Key, .. } => {
                "an RSA, ECDSA or Ed25519 key without a passphrase is needed, as `-----BEGIN PRIVATE KEY-----`; \
                 `openssl pkey -in KEY -out NEW` makes it of one with a passphrase"
                    .to_owned()
            }
            Self::Misfit { .. } => "the first certificate in the file must be the one of that key, the chain comes \
                after it; look whether both files are of the same renewal"
                .to_owned(),
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
        })
    }
}

impl Tls {
    /// Reads both files, in PEM, and finds out whether they can be used.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let chain = chain(certificate)?;
        let first = chain.first().ok_or_else(|| missing(What::Certificate, certificate))?;
        let valid = Validity::of(first).map_err(|why| unusable(What::Certificate, certificate, why))?;
        let secret = PrivateKeyDer::from_pem_slice(&content(What::Key, key)?).map_err(|error| match error {
            pem::Error::NoItemsFound => missing(What::Key, key),
            other => unusable(What::Key, key, other),
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("the provider has cipher suites of both versions")
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => {
                    Error::Misfit { certificate: certificate.to_owned(), key: key.to_owned() }
                }
                rustls::Error::InvalidCertificate(_) => unusable(What::Certificate, certificate, error),
                other => unusable(What::Key, key, other),
            })?;
        // The one version of HTTP that is spoken here: whoever insists on another learns it in the handshake.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), certificate: certificate.to_owned(), valid })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Where clients that check the time will refuse the certificate: nothing that a node must stop for, since the
    /// clock may be the wrong one.
    pub(crate) fn doubt(&self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let path = self.certificate.display();
        if now > self.valid.until {
            Some(format!("the TLS certificate in `{path}` has expired: clients will refuse it"))
        } else if now < self.valid.from {
            Some(format!("the TLS certificate in `{path}` is not valid yet: clients will refuse it"))
        } else {
            None
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the configuration, which holds the key.
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Validity {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, read) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
        let validity = read.validity();
        Ok(Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
    }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = content(What::Certificate, path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>();
    chain.map_err(|error| unusable(What::Certificate, path, error))
}

fn content(what: What, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Unreadable { what, path: path.to_owned(), source })
}

fn missing(what: What, path: &Path) -> Error {
    Error::Missing { what, path: path.to_owned() }
}

fn unusable(what: What, path: &Path, why: impl fmt::Display) -> Error {
    Error::Unusable { what, path: path.to_owned(), source: Reason(why.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    struct Files {
        certificate: PathBuf,
        key: PathBuf,
        _folder: TempDir,
    }

    /// A pair, with its texts changed.
    fn files(change: impl FnOnce(&mut String, &mut String)) -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["tower.lan".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2001, 2, 3);
        params.not_after = date_time_ymd(2004, 5, 6);
        let mut texts = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        change(&mut texts.0, &mut texts.1);
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        fs::write(&certificate, texts.0).unwrap();
        fs::write(&key, texts.1).unwrap();
        Files { certificate, key, _folder: folder }
    }

    fn read(change: impl FnOnce(&mut String, &mut String)) -> Result<Tls, Error> {
        let files = files(change);
        Tls::read(&files.certificate, &files.key)
    }

    #[test]
    fn what_cannot_be_served_with_says_which_file_and_why() {
        let refused = |change: fn(&mut String, &mut String)| {
            let error = read(change).unwrap_err();
            assert!(error.hint().is_some(), "{error:?}");
            error
        };
        let no_certificate = refused(|certificate, _| *certificate = "hello".to_owned());
        assert!(no_certificate.to_string().ends_with("cert.pem` holds no certificate in PEM"), "{no_certificate}");
        let swapped = refused(std::mem::swap);
        assert!(matches!(swapped, Error::Missing { what: What::Certificate, .. }), "{swapped:?}");
        let no_key = refused(|_, key| key.clear());
        assert!(no_key.to_string().ends_with("key.pem` holds no key in PEM"), "{no_key}");
        let locked = refused(|_, key| *key = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
        assert!(matches!(locked, Error::Missing { what: What::Key, .. }), "{locked:?}");
        let other = refused(|_, key| *key = KeyPair::generate().unwrap().serialize_pem());
        assert!(matches!(other, Error::Misfit { .. }), "{other:?}");
        let broken = refused(|certificate, _| {
            *certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
        });
        assert!(matches!(broken, Error::Unusable { what: What::Certificate, .. }), "{broken:?}");
        let cut = refused(|certificate, _| certificate.truncate(certificate.len() / 2));
        assert!(matches!(cut, Error::Unusable { what: What::Certificate, .. }), "{cut:?}");
        let broken = refused(|_, key| {
            *key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned();
        });
        assert!(matches!(broken, Error::Unusable { what: What::Key, .. }), "{broken:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let files = files(|_, _| {});
        let missing = Path::new("no/such/file.pem");
        let error = Tls::read(missing, &files.key).unwrap_err();
        assert_eq!(error.to_string(), "failed to read the TLS certificate `no/such/file.pem`");
        let error = Tls::read(&files.certificate, missing).unwrap_err();
        assert_eq!(error.to_string(), "failed to read the TLS key `no/such/file.pem`");
    }

    #[test]
    fn a_certificate_out_of_its_time_is_a_doubt_and_no_error() {
        let tls = read(|_, _| {}).unwrap();
        let at = |days: u64| tls.doubt(UNIX_EPOCH + Duration::from_hours(24 * days));
        assert!(at(12_000).is_none());
        assert!(at(20_000).is_some_and(|doubt| doubt.contains("cert.pem` has expired")));
        assert!(at(1_000).is_some_and(|doubt| doubt.contains("not valid yet")));
    }

    #[test]
    fn the_key_does_not_print_itself() {
        let shown = format!("{:?}", read(|_, _| {}).unwrap());
        assert!(shown.starts_with("Tls { certificate: ") && !shown.contains("key"), "{shown}");
    }
}
