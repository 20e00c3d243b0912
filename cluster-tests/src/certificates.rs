//! Authorities and certificates that the tests make themselves: for servers that nodes connect to, and forged ones.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::services::tls::Tls;

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate with its key, both as PEM.
#[derive(Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

fn params(name: &str, names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names;
    params
}

impl Authority {
    /// A new one; `uri` is what it calls itself beside `name`, if it does.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str, uri: Option<&str>) -> Self {
        let mut params = params(name, uri.map(|uri| SanType::URI(uri.try_into().unwrap())).into_iter().collect());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pair = KeyPair::generate().unwrap();
        let key = pair.serialize_pem();
        Self { issuer: CertifiedIssuer::self_signed(params, pair).unwrap(), key }
    }

    /// Its own certificate and key.
    pub fn pair(&self) -> Pair {
        Pair { certificate: self.issuer.pem(), key: self.key.clone() }
    }

    /// What a service named `name` shows, with a certificate of this authority.
    pub fn service(&self, name: &str) -> Tls {
        let Pair { certificate, key } = self.issue(name, None);
        Tls { certificate, key, ca: self.pair().certificate }
    }

    /// A certificate of a server at 127.0.0.1, or for `uri`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn issue(&self, name: &str, uri: Option<&str>) -> Pair {
        let names = match uri {
            Some(uri) => vec![SanType::URI(uri.try_into().unwrap())],
            None => vec![SanType::IpAddress([127, 0, 0, 1].into())],
        };
        let mut params = params(name, names);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
