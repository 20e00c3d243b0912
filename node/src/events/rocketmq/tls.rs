//! Encrypted connections, and what is wrong with them in the words of the settings that put it right.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How connections are encrypted.
#[derive(Clone)]
pub struct Tls {
    config: Arc<rustls::ClientConfig>,
    server_name: Option<String>,
}

impl Tls {
    /// Trusts the CAs of a PEM file, or those of the system. `server_name`: what the certificates of all servers are
    /// made out to, if not to the addresses at which the name servers and they are found.
    ///
    /// # Errors
    /// When the file cannot be read, or there is no CA.
    pub fn new(ca: Option<&Path>, server_name: Option<String>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(ca) => {
                let found = CertificateDer::pem_file_iter(ca).with_context(|| format!("read {}", ca.display()))?;
                for certificate in found {
                    roots.add(certificate.with_context(|| format!("read {}", ca.display()))?)?;
                }
                if roots.is_empty() {
                    bail!("{} has no certificate in it", ca.display());
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    bail!("the system has no CAs: name a file with the one that signed RocketMQ's certificates");
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// Shakes hands with the server at `addr`, `host:port`.
    ///
    /// # Errors
    /// Why that is not possible, for an operator.
    pub(super) async fn connect(&self, addr: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let host = match &self.server_name {
            Some(name) => name.as_str(),
            None => addr.rsplit_once(':').map_or(addr, |(host, _)| host).trim_matches(['[', ']']),
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host:?} is no name of a server; see events.tls_server_name"))?;
        let connected = TlsConnector::from(self.config.clone()).connect(name, stream).await;
        connected.map_err(|error| fault(&error, host))
    }
}

/// What a handshake failed by.
fn fault(error: &std::io::Error, host: &str) -> String {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match of_tls {
        Some(rustls::Error::InvalidCertificate(
            why @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
        )) => format!(
            "its certificate is not made out to {host:?}: {why}; events.tls_server_name says to what else it is"
        ),
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!("its certificate is not accepted: {why}; events.tls_ca must name the CA that signed it")
        }
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS, as events.tls wants it".to_owned(),
        _ => format!("no TLS with it: {error}; is events.tls right?"),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
        }

        /// A server with a certificate for one name, which takes connections as long as the test runs.
        async fn serve(&self, name: SanType) -> SocketAddr {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![name];
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.0).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
            let config =
                rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .expect("versions")
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.der().clone()], key)
                    .expect("a certificate");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let addr = listener.local_addr().expect("an address");
            tokio::spawn(async move {
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((stream, _)) = listener.accept().await {
                    acceptor.accept(stream).await.ok();
                }
            });
            addr
        }

        fn client(&self, server_name: Option<&str>) -> Tls {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), self.0.pem()).expect("written");
            Tls::new(Some(file.path()), server_name.map(str::to_owned)).expect("a CA")
        }
    }

    async fn connect(tls: &Tls, addr: SocketAddr) -> Result<(), String> {
        let stream = TcpStream::connect(addr).await.expect("a connection");
        tls.connect(&addr.to_string(), stream).await.map(drop)
    }

    #[tokio::test]
    async fn faults_of_certificates_name_the_setting_that_puts_them_right() {
        let (ours, other) = (Ca::new(), Ca::new());
        let here = SanType::IpAddress([127, 0, 0, 1].into());
        let addr = ours.serve(here).await;
        connect(&ours.client(None), addr).await.expect("all is well");
        let fault = connect(&other.client(None), addr).await.expect_err("another CA");
        assert!(fault.contains("events.tls_ca"), "{fault}");

        let addr = ours.serve(SanType::DnsName("mq.test".try_into().expect("a name"))).await;
        let fault = connect(&ours.client(None), addr).await.expect_err("another name");
        assert!(fault.contains("events.tls_server_name") && fault.contains("127.0.0.1"), "{fault}");
        connect(&ours.client(Some("mq.test")), addr).await.expect("it is called so");
    }

    #[tokio::test]
    async fn server_without_tls_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"\0\0\0\x10{not a handshake}").await.ok();
            }
        });
        let fault = connect(&Ca::new().client(None), addr).await.expect_err("no TLS");
        assert!(fault.contains("events.tls"), "{fault}");
    }

    #[test]
    fn file_without_a_certificate_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let refused = Tls::new(Some(file.path()), None).expect_err("nothing in it");
        assert!(refused.to_string().contains("no certificate"), "{refused}");
    }
}
