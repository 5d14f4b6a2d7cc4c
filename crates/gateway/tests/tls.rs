//! The API over TLS, as its clients meet it: with the library's own handshake, on real sockets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

#[path = "support/rig.rs"]
mod rig;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Limits, Tls};
use rcgen::{CertificateParams, CertifiedKey, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};

use rig::{PATIENCE, Rig, post, to_end};

struct Secure {
    rig: Rig,
    certificate: CertificateDer<'static>,
    _folder: TempDir,
}

impl Secure {
    async fn new(limits: Limits) -> Self {
        let CertifiedKey { cert, key_pair } = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tls = read(&folder, &cert.pem(), &key_pair.serialize_pem());
        let rig = Rig::with(|config| {
            config.limits = limits;
            config.tls = Some(tls);
        })
        .await;
        Self { rig, certificate: cert.der().clone(), _folder: folder }
    }

    /// A client that trusts this certificate alone.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    async fn greet(&self, client: &TlsConnector) -> io::Result<TlsStream<tokio::net::TcpStream>> {
        client.connect("localhost".try_into().unwrap(), self.rig.connect().await).await
    }

    async fn generate(&self, client: &TlsConnector) -> String {
        let mut stream = self.greet(client).await.unwrap();
        let body = r#"{"model":"tiny","prompt":"?"}"#;
        stream.write_all(post("/api/generate", body).as_bytes()).await.unwrap();
        to_end(&mut stream).await
    }
}

fn read(folder: &TempDir, certificate: &str, key: &str) -> Tls {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    Tls::read(&write("cert.pem", certificate), &write("key.pem", key)).unwrap()
}

fn short() -> Limits {
    let short = Duration::from_millis(300);
    Limits { head: short, idle: short, body: short, stalled: short, ..Limits::default() }
}

#[tokio::test]
async fn whoever_trusts_the_certificate_is_answered_in_both_versions() {
    let secure = Secure::new(Limits::default()).await;
    for (version, expected) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        for protocols in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
            let client = secure.client(&[version], protocols);
            let stream = secure.greet(&client).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(expected));
            let agreed = (!protocols.is_empty()).then_some(b"http/1.1".as_slice());
            assert_eq!(session.alpn_protocol(), agreed, "{protocols:?}");
            let said = secure.generate(&client).await;
            assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains(r#""done":true"#), "{said}");
        }
    }
}

#[tokio::test]
async fn several_requests_come_over_one_handshake() {
    let secure = Secure::new(Limits::default()).await;
    let mut stream = secure.greet(&secure.client(&[&version::TLS13], &[])).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /api/version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut said = String::new();
        while !said.ends_with('}') {
            let mut some = [0; 4_096];
            let count = tokio::time::timeout(PATIENCE, stream.read(&mut some)).await.unwrap().unwrap();
            assert!(count > 0, "closed after {said:?}");
            said.push_str(std::str::from_utf8(&some[..count]).unwrap());
        }
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("version"), "{said}");
    }
}

#[tokio::test]
async fn who_insists_on_another_protocol_or_another_certificate_gets_nowhere() {
    let secure = Secure::new(Limits::default()).await;
    let error = secure.greet(&secure.client(&[&version::TLS13], &["h2"])).await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    let other = Secure::new(Limits::default()).await;
    let error = secure.greet(&other.client(&[&version::TLS13], &[])).await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    assert!(secure.generate(&secure.client(&[&version::TLS13], &[])).await.contains(r#""done":true"#));
}

#[tokio::test]
async fn plain_http_gets_no_answer_in_http() {
    let secure = Secure::new(Limits::default()).await;
    let mut plain = secure.rig.connect().await;
    plain.write_all(post("/api/generate", r#"{"model":"tiny","prompt":"?"}"#).as_bytes()).await.unwrap();
    let said = to_end(&mut plain).await;
    assert!(!said.contains("HTTP"), "{said:?}");
    assert_eq!(secure.rig.fake.counts().inferences, 0);
}

#[tokio::test]
async fn who_breaks_off_or_drags_out_the_handshake_is_closed_while_others_are_served() {
    let secure = Secure::new(short()).await;
    let client = secure.client(&[&version::TLS13], &["http/1.1"]);
    let mut silent = secure.rig.connect().await;
    // The beginning of a ClientHello, and then one byte after the other.
    let (mut reading, mut writing) = secure.rig.connect().await.into_split();
    writing.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).await.unwrap();
    let dribble = async {
        // Ends when the server has closed the connection.
        while writing.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Greeted, and silent from then on.
    let mut greeted = secure.greet(&client).await.unwrap();
    let served = async {
        for _ in 0..10 {
            let said = secure.generate(&client).await;
            assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        }
    };
    let ends = async {
        assert_eq!(to_end(&mut silent).await, "");
        to_end(&mut reading).await;
        assert_eq!(to_end(&mut greeted).await, "");
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(served, ends, dribble) }).await.unwrap();
}

/// Clients judge that, and clocks are wrong at times: the node serves, and has warned.
#[tokio::test]
async fn an_expired_certificate_is_shown_as_it_is() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2004, 5, 6);
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tls = read(&folder, &certificate.pem(), &key.serialize_pem());
    let rig = Rig::with(|config| config.tls = Some(tls)).await;
    let secure = Secure { rig, certificate: certificate.der().clone(), _folder: folder };
    let error = secure.greet(&secure.client(&[&version::TLS13], &[])).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}
