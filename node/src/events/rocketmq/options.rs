//! Where RocketMQ is, who this node is there, and how patient to be.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

/// Text that no log shows.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes it.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A user of RocketMQ's ACL.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The user's name.
    pub access_key: String,
    /// The user's password.
    pub secret_key: Secret,
}

/// How connections are encrypted.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    pub(super) server_name: Option<String>,
}

impl Tls {
    /// Trusts the CAs of a PEM file. `server_name`: what the certificates of all servers are made out to, if not to the
    /// addresses at which the name servers and they are found.
    ///
    /// # Errors
    /// When the file cannot be read or has no certificate in it.
    pub fn new(ca: &Path, server_name: Option<String>) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let found = CertificateDer::pem_file_iter(ca).with_context(|| format!("read {}", ca.display()))?;
        for certificate in found {
            roots.add(certificate.with_context(|| format!("read {}", ca.display()))?)?;
        }
        if roots.is_empty() {
            bail!("{} has no certificate in it", ca.display());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), server_name })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Settings of a [`RocketMqEventBus`](super::RocketMqEventBus).
#[derive(Debug, Clone)]
pub struct RocketMqOptions {
    /// `host:port` of each name server.
    pub name_servers: Vec<String>,
    /// What the names of topics and groups begin with.
    pub topic_prefix: String,
    /// Who this node is, where the brokers ask.
    pub credentials: Option<Credentials>,
    /// Encryption, if it is on.
    pub tls: Option<Tls>,
    /// Whether a topic or group that is missing is made.
    pub create_topics: bool,
    /// Queues that a topic gets on each broker when it is made.
    pub topic_queues: u32,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take where the caller gives no deadline.
    pub request_timeout: Duration,
}

impl RocketMqOptions {
    /// The defaults, for name servers.
    pub fn new(name_servers: Vec<String>) -> Self {
        Self {
            name_servers,
            topic_prefix: "holdfast".into(),
            credentials: None,
            tls: None,
            create_topics: true,
            topic_queues: 8,
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
        }
    }
}
