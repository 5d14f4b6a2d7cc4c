//! TLS 1.3 where both certificates prove a node's id, as libp2p's do: self-signed, with the node's key signing for the
//! certificate's. No secret of a session is ever written down: `SSLKEYLOGFILE` has no effect here.

use std::sync::{Arc, OnceLock};

use libp2p::identity;
use libp2p::tls::certificate;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, sign};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    version,
};
use types::NodeId;

use crate::protocol::Protocol;

/// This node's certificate, made anew at each start, and what it takes to use it.
#[derive(Clone)]
pub(crate) struct Identity {
    key: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
}

/// Checks a peer's certificate and leaves its id behind.
#[derive(Debug)]
struct Verifier {
    /// `None` on the listening side: everyone may prove who they are.
    expected: Option<NodeId>,
    found: Arc<OnceLock<NodeId>>,
}

impl Identity {
    pub(crate) fn new(keypair: &identity::Keypair) -> Result<Self, String> {
        let (certificate, key) = certificate::generate(keypair).map_err(|error| error.to_string())?;
        let key = sign::any_ecdsa_type(&key).map_err(|error| error.to_string())?;
        let mut provider = default_provider();
        // AES first: as fast as ChaCha20 with wide vector units, twice as fast without.
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let key = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
        Ok(Self { key: Arc::new(key), provider: Arc::new(provider) })
    }

    /// Offers these protocols and no other: a client that asks for none of them fails in the handshake.
    pub(crate) fn server(&self, protocols: impl Iterator<Item = Protocol>) -> Arc<ServerConfig> {
        let verifier = Arc::new(Verifier { expected: None, found: Arc::default() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .expect("the cipher suites are those of TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.key.clone());
        config.alpn_protocols = protocols.map(|protocol| protocol.name().into()).collect();
        // A resumed session would skip the proof of who is there.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// For one connection: fails before our own certificate is shown unless the peer is `expected`. Who was there
    /// instead is in the second part then.
    pub(crate) fn client(&self, expected: NodeId, protocol: Protocol) -> (Arc<ClientConfig>, Arc<OnceLock<NodeId>>) {
        let found = Arc::default();
        let verifier = Arc::new(Verifier { expected: Some(expected), found: Arc::clone(&found) });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .expect("the cipher suites are those of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.key.clone());
        config.alpn_protocols = vec![protocol.name().into()];
        config.resumption = Resumption::disabled();
        // The name in the handshake would tell a listener on the wire nothing it may know.
        config.enable_sni = false;
        (Arc::new(config), found)
    }
}

/// The id a verified certificate proves.
pub(crate) fn proven_id(chain: Option<&[CertificateDer<'_>]>) -> Option<NodeId> {
    let [certificate] = chain? else { return None };
    id_of(certificate).ok()
}

fn id_of(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let peer = certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?.peer_id();
    // A key of another kind than ed25519 belongs to no node of ours.
    NodeId::from_peer_id_bytes(&peer.to_bytes()).ok_or(Error::from(CertificateError::ApplicationVerificationFailure))
}

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !more.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        let id = id_of(certificate)?;
        match self.expected {
            Some(expected) if expected != id => {
                let _ = self.found.set(id);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
        certificate
            .verify_signature(signed.scheme, message, signed.signature())
            .map_err(|_| CertificateError::BadSignature)?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn schemes() -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384, SignatureScheme::ED25519]
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
