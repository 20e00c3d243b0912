//! Decides about the certificates of others, on both sides of a handshake.
//!
//! A certificate must be signed by this cluster's CA, be valid now, name this cluster, and be of a role that belongs on
//! this side: whoever answers is a node (the one that was dialled), whoever dials is a node or holds a join token.
//! Which of the two it was, the acceptor holds against the protocol that it asked for, before it reads a stream.

use std::sync::Arc;

use holdfast_protocol::{ClusterId, NodeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore};

use super::PkiError;
use super::ca::{ClusterCa, Role, Subject, facts};

const NAME_SUFFIX: &str = ".node.holdfast";

/// The name under which a node is dialled. It is no host's: it carries the id to the verifier.
pub fn server_name(node: NodeId) -> String {
    format!("{node}{NAME_SUFFIX}")
}

/// Why a certificate that the CA signed is refused all the same.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the certificate cannot be read: {0}")]
    Unreadable(PkiError),
    #[error("the certificate is for {found}, which is not a node of cluster {cluster}")]
    Cluster { found: Subject, cluster: ClusterId },
    #[error("the certificate is for {found}, but node {expected} was dialled")]
    Node { found: Subject, expected: NodeId },
    #[error("the certificate is for {0}, which has no business here")]
    Role(Subject),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// The verifier of one cluster.
#[derive(Debug)]
pub struct PeerVerifier {
    cluster: ClusterId,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// A short name of what was wrong, for metrics.
pub fn reason(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "foreign_ca",
            CertificateError::Other(OtherError(refusal)) => match refusal.downcast_ref::<Refusal>() {
                Some(Refusal::Cluster { .. }) => "other_cluster",
                Some(Refusal::Node { .. }) => "wrong_node",
                Some(Refusal::Role(_)) => "role",
                _ => "certificate",
            },
            _ => "certificate",
        },
        Error::NoCertificatesPresented => "no_certificate",
        _ => "tls",
    }
}

fn counted<T>(side: &'static str, result: Result<T, Error>) -> Result<T, Error> {
    if let Err(error) = &result {
        metrics::counter!("holdfast_peer_handshake_failures_total", "side" => side, "reason" => reason(error))
            .increment(1);
    }
    result
}

impl PeerVerifier {
    /// For the cluster that has this CA.
    ///
    /// # Errors
    /// [`PkiError::Certificate`].
    pub fn new(
        cluster: ClusterId,
        ca: CertificateDer<'static>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, PkiError> {
        let unusable = |error: &dyn std::fmt::Display| PkiError::Certificate(format!("the CA's: {error}"));
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(|error| unusable(&error))?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&error))?;
        Ok(Arc::new(Self { cluster, roots, provider, clients }))
    }

    fn subject(&self, certificate: &CertificateDer<'_>) -> Result<Subject, Error> {
        let subject = facts(certificate).map_err(Refusal::Unreadable)?.subject;
        if subject.cluster != self.cluster {
            return Err(Refusal::Cluster { found: subject, cluster: self.cluster }.into());
        }
        Ok(subject)
    }

    fn check_server(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let found = self.subject(certificate)?;
        let ServerName::DnsName(name) = name else {
            return Err(Refusal::Role(found).into());
        };
        let expected = name.as_ref().strip_suffix(NAME_SUFFIX).and_then(|node| node.parse().ok());
        match expected {
            Some(expected) if found.role == Role::Node(expected) => Ok(()),
            Some(expected) => Err(Refusal::Node { found, expected }.into()),
            None => Err(Refusal::Role(found).into()),
        }
    }

    fn check_client(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.clients.verify_client_cert(certificate, intermediates, now)?;
        let found = self.subject(certificate)?;
        match found.role {
            Role::Node(_) | Role::Enrol => Ok(()),
            Role::Ca => Err(Refusal::Role(found).into()),
        }
    }
}

/// Whether a certificate of this node's own would be accepted by others.
pub(super) fn check_own(ca: &ClusterCa, certificate: &CertificateDer<'_>) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        PeerVerifier::new(ca.cluster(), ca.certificate().clone(), provider).map_err(|error| error.to_string())?;
    verifier.check_client(certificate, &[], UnixTime::now()).map_err(|error| error.to_string())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        counted("dialling", self.check_server(end_entity, intermediates, server_name, now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whoever dials has one certificate, and strangers need not learn the cluster's name.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        counted("answering", self.check_client(end_entity, intermediates, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
