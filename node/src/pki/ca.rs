//! The cluster's certificate authority: ECDSA P-256, by ring.
//!
//! A certificate says who its holder is by one URI: `spiffe://holdfast/<cluster>/node/<id>` for a node, `…/enrol` for
//! whoever holds a join token, `…/ca` for the CA. Nothing else in it counts, names of machines least of all: nodes
//! move.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use holdfast_protocol::{ClusterId, NodeId};
use rand::RngCore as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;

use super::PkiError;

const SCHEME: &str = "spiffe://holdfast/";
/// Certificates are valid from so long before they are made, for clocks that differ.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);
/// How long a CA lives. It is not renewed: a cluster that gets this old is given another one.
const CA_LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What the holder of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A node of the cluster.
    Node(NodeId),
    /// Somebody who may ask, once, to become one.
    Enrol,
    /// The CA itself, which shows its certificate to nobody.
    Ca,
}

/// What a certificate says about its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// The cluster.
    pub cluster: ClusterId,
    /// What it is there.
    pub role: Role,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.cluster)?;
        match self.role {
            Role::Node(node) => write!(f, "node/{node}"),
            Role::Enrol => f.write_str("enrol"),
            Role::Ca => f.write_str("ca"),
        }
    }
}

impl FromStr for Subject {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let parse = || {
            let (cluster, role) = text.strip_prefix(SCHEME)?.split_once('/')?;
            let role = match role {
                "enrol" => Role::Enrol,
                "ca" => Role::Ca,
                node => Role::Node(node.strip_prefix("node/")?.parse().ok()?),
            };
            Some(Self { cluster: cluster.parse().ok()?, role })
        };
        parse().ok_or_else(|| PkiError::Certificate("it names no node of a Holdfast cluster".to_owned()))
    }
}

/// What is read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who its holder is.
    pub subject: Subject,
    /// Valid from, in seconds since 1970.
    pub not_before_unix_seconds: i64,
    /// Valid until, in seconds since 1970.
    pub not_after_unix_seconds: i64,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// The holder's public key.
    pub public_key: Vec<u8>,
}

/// Reads a certificate. Its signature is for others to check, before.
///
/// # Errors
/// When it is none of Holdfast's.
pub fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, PkiError> {
    let unreadable = || PkiError::Certificate("it cannot be read".to_owned());
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| unreadable())?;
    let names = parsed.subject_alternative_name().map_err(|_| unreadable())?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let subject = uris.next().unwrap_or_default().parse()?;
    if uris.next().is_some() {
        return Err(PkiError::Certificate("it names several holders".to_owned()));
    }
    Ok(Facts {
        subject,
        not_before_unix_seconds: parsed.validity().not_before.timestamp(),
        not_after_unix_seconds: parsed.validity().not_after.timestamp(),
        serial: parsed.raw_serial().to_vec(),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}

/// From when until when a certificate counts.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// From.
    pub from: SystemTime,
    /// Until.
    pub until: SystemTime,
}

impl Validity {
    /// `lifetime` from now on, and a day back for clocks that differ.
    pub fn from_now(lifetime: Duration) -> Self {
        let now = SystemTime::now();
        Self { from: now - BACKDATED, until: now + lifetime }
    }
}

/// The CA, with its key.
pub struct ClusterCa {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn params(subject: Subject, validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    // Positive and of full length, so that it is read as it was written.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::OrganizationName, "Holdfast");
    let common_name = match subject.role {
        Role::Node(node) => format!("node {node}"),
        Role::Enrol => "enrolment".to_owned(),
        Role::Ca => format!("CA of cluster {}", subject.cluster),
    };
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(subject.to_string().try_into()?)];
    Ok(params)
}

impl ClusterCa {
    /// Makes the CA of a new cluster.
    ///
    /// # Errors
    /// [`PkiError::Certificate`].
    pub fn generate(cluster: ClusterId) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(Subject { cluster, role: Role::Ca }, Validity::from_now(CA_LIFETIME))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { cluster, certificate: certificate.der().clone(), certificate_pem: certificate.pem(), key })
    }

    /// Takes the CA from its files' contents.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when they are not what [`Self::generate`] made.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| PkiError::Certificate(format!("the CA's certificate: {error}")))?;
        let facts = facts(&certificate)?;
        let key = KeyPair::from_pem(key_pem)?;
        if facts.subject.role != Role::Ca {
            return Err(PkiError::Certificate(format!("{} is no CA", facts.subject)));
        }
        if facts.public_key != key.public_key_raw() {
            return Err(PkiError::Certificate("the CA's key does not belong to its certificate".to_owned()));
        }
        Ok(Self { cluster: facts.subject.cluster, certificate, certificate_pem: certificate_pem.to_owned(), key })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key as PEM: a secret.
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(self.key.serialize_pem())
    }

    /// Signs a certificate for whoever holds `public_key`'s private half.
    ///
    /// # Errors
    /// [`PkiError::Certificate`].
    pub fn issue(
        &self,
        role: Role,
        public_key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<Certificate, PkiError> {
        let mut params = params(Subject { cluster: self.cluster, role }, validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(role, Role::Node(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        Ok(params.signed_by(public_key, &issuer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not made anew each time, so that the damage is the same each time.
    const NODE_5: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIByjCCAXCgAwIBAgIUHlv0hPbitICTe54tCRPUbUkMeKgwCgYIKoZIzj0EAwIw\n\
        DzENMAsGA1UEAwwEbm9kZTAeFw0yNjExMzAwMjUzMjhaFw0zNjExMjcwMjUzMjha\n\
        MA8xDTALBgNVBAMMBG5vZGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARBCOjp\n\
        Bixgt/c0EXMst4qTf3LUGJ3TFSh55CZAITexndJgmeQjnBQNCyP678mPsow7AD59\n\
        /z6nTv3A/rE1L4PHo4GpMIGmMB0GA1UdDgQWBBSd75wulE3c+Yn9EOxn6WGpWS6D\n\
        3zAfBgNVHSMEGDAWgBSd75wulE3c+Yn9EOxn6WGpWS6D3zAPBgNVHRMBAf8EBTAD\n\
        AQH/MFMGA1UdEQRMMEqGSHNwaWZmZTovL2hvbGRmYXN0LzAzMDMwMzAzMDMwMzAz\n\
        MDMwMzAzMDMwMzAzMDMwMzAzL25vZGUvMDAwMDAwMDAwMDAwMDAwNTAKBggqhkjO\n\
        PQQDAgNIADBFAiBPJT0mvppRlOTNaAVQMWITQfbJwq+k0GCgc2bcxNBpnwIhAL8n\n\
        D1IPy/ex4NSRP6StGw224tUFDpGGAFXpldmXM/6P\n\
        -----END CERTIFICATE-----";

    #[test]
    fn subject_is_read_back_from_a_certificate() {
        let ca = ClusterCa::generate(ClusterId([3; 16])).unwrap();
        for role in [Role::Node(NodeId::from(5)), Role::Enrol] {
            let key = KeyPair::generate().unwrap();
            let made = ca.issue(role, &key, Validity::from_now(Duration::from_secs(60))).unwrap();
            let facts = facts(made.der()).unwrap();
            assert_eq!(facts.subject, Subject { cluster: ca.cluster(), role });
            assert_eq!(facts.public_key, key.public_key_raw());
            assert_eq!(facts.serial.len(), 16);
            assert!(facts.not_before_unix_seconds < facts.not_after_unix_seconds);
        }
    }

    #[test]
    fn ca_is_read_back_and_another_key_is_refused() {
        let ca = ClusterCa::generate(ClusterId([3; 16])).unwrap();
        let again = ClusterCa::from_pem(ca.certificate_pem(), &ca.key_pem()).unwrap();
        assert_eq!((again.cluster(), again.certificate()), (ca.cluster(), ca.certificate()));
        let other = ClusterCa::generate(ClusterId([3; 16])).unwrap();
        assert!(ClusterCa::from_pem(ca.certificate_pem(), &other.key_pem()).is_err());
        assert!(ClusterCa::from_pem("nonsense", &ca.key_pem()).is_err());
    }

    #[test]
    fn damaged_certificates_are_refused_and_no_harm() {
        fn body(bytes: &[u8]) {
            let _ = facts(&CertificateDer::from(bytes));
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let _ = text.parse::<Subject>().map(|subject| {
                assert_eq!(subject.to_string().parse::<Subject>().unwrap(), subject);
            });
        }
        fn seeds() -> Vec<Vec<u8>> {
            let made = CertificateDer::from_pem_slice(NODE_5.as_bytes()).unwrap();
            let subject = facts(&made).unwrap().subject;
            assert_eq!(subject, Subject { cluster: ClusterId([3; 16]), role: Role::Node(NodeId::from(5)) });
            vec![made.to_vec(), subject.to_string().into_bytes()]
        }
        holdfast_protocol::fuzz::damage::run(
            &[holdfast_protocol::fuzz::Target { name: "certificate", body, seeds }],
            3_000,
        );
    }

    #[test]
    fn only_the_names_of_holdfast_are_subjects() {
        let cluster = ClusterId([1; 16]);
        for role in [Role::Node(NodeId::from(7)), Role::Enrol, Role::Ca] {
            let subject = Subject { cluster, role };
            assert_eq!(subject.to_string().parse::<Subject>().unwrap(), subject);
        }
        for text in ["", "spiffe://holdfast/", "https://example.org", "spiffe://holdfast/00/enrol"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
