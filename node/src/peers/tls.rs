//! TLS for QUIC: who shows which certificate to whom.
//!
//! Sessions are not resumed: a resumed one is not verified again, so that a certificate could outlive its end.

use std::sync::Arc;

use holdfast_protocol::peer::{ALPN_ENROL, ALPN_PEER};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::pki::verify::PeerVerifier;
use crate::pki::{NodeIdentity, PkiError};

/// ring, with the cheapest cipher first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Shows the certificate that the node has now.
#[derive(Debug)]
struct Current(Arc<NodeIdentity>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified_key())
    }
}

/// Shows one certificate.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesClientCert for One {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn unusable(error: impl std::fmt::Display) -> PkiError {
    PkiError::Certificate(format!("it cannot be used for TLS: {error}"))
}

/// How this node answers: to nodes of its cluster and to those who hold a join token.
pub(crate) fn server(identity: &Arc<NodeIdentity>) -> Result<QuicServerConfig, PkiError> {
    let provider = provider();
    let verifier = PeerVerifier::new(identity.cluster(), identity.ca().certificate().clone(), Arc::clone(&provider))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Current(Arc::clone(identity))));
    config.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_ENROL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(unusable)
}

/// How somebody with this certificate dials.
pub(crate) fn client(
    verifier: Arc<PeerVerifier>,
    certificate: Arc<CertifiedKey>,
    alpn: &[u8],
) -> Result<QuicClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(One(certificate)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(unusable)
}
