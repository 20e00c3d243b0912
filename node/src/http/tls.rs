//! HTTPS by rustls, from PEM files that are read again when they change.
//!
//! A renewed certificate takes effect within [`CHECK_EVERY`] without a restart; files that cannot be used leave the old
//! one in place and are reported in the log, as is a certificate whose end comes near: nobody but the clients would
//! notice. Bodies are encrypted in user space: kTLS, which splice would need, is looked for and logged, but not used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::secret_file::{self, Exposed};
use crate::telemetry::{self, process};

/// How often the files are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Looks in a day. After so many what is wrong still is told again.
const LOOKS_A_DAY: u64 = 24 * 3600 / CHECK_EVERY.as_secs();

/// How long before its end a certificate is warned of.
const WARN_BEFORE_SECONDS: i64 = 14 * 24 * 3600;

/// Where the certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate first, then those that lead to its root.
    pub certificate: PathBuf,
    /// PEM: the private key (PKCS#8, PKCS#1 or SEC1). Only the node's user may have access to the file.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// Others may read the private key.
    #[error("private key {0}")]
    Exposed(Exposed),
    /// The certificate file holds no certificate.
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// Key and certificate do not belong together, or are of a kind that is not supported.
    #[error("use the certificate {}: {source}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
}

/// The server side of TLS with a certificate that can change.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current {
    files: TlsFiles,
    key: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl Tls {
    /// Loads the certificate. Blocks on reading the files.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn load(files: TlsFiles) -> Result<Tls, TlsError> {
        let key = load(&files)?;
        let current = Arc::new(Current { files, key: ArcSwap::from_pointee(key) });
        let versions = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions");
        let mut config = versions.with_no_client_auth().with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if holdfast_storage::mapping::splice::ktls_is_available() {
            tracing::info!("this kernel has kTLS, which is not used yet: HTTPS is encrypted in user space");
        } else {
            tracing::info!("this kernel has no kTLS: HTTPS is encrypted in user space");
        }
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), current })
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Reads the files again and uses them if they are good. Blocks.
    ///
    /// # Errors
    /// When they are not; the old certificate stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.key.store(Arc::new(load(&self.current.files)?));
        Ok(())
    }

    /// Watches the files until the future is dropped.
    pub(super) async fn watch(self) {
        let (mut seen, mut told) = (stamps(&self.current.files), Validity::Good);
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for look in 1_u64.. {
            ticks.tick().await;
            let (tls, before) = (self.clone(), seen);
            let checked = tokio::task::spawn_blocking(move || tls.check(before)).await;
            seen = checked.unwrap_or(seen);
            told = self.look_at_end(if look.is_multiple_of(LOOKS_A_DAY) { Validity::Good } else { told });
        }
    }

    /// Says that the certificate ends soon, or that it has ended, where that was not told. Gives back what it found.
    fn look_at_end(&self, told: Validity) -> Validity {
        let Some(until) = valid_until(&self.current.key.load()) else { return told };
        telemetry::show_certificate("s3", until);
        let now = validity(until, process::unix_seconds() as i64);
        let certificate = self.current.files.certificate.display();
        match now {
            _ if now == told => {}
            Validity::Good => {}
            Validity::EndsSoon => {
                tracing::warn!(
                    %certificate,
                    until_unix_seconds = until,
                    "the certificate ends within two weeks: renew it"
                );
            }
            Validity::Over => {
                tracing::error!(
                    %certificate,
                    until_unix_seconds = until,
                    "the certificate has expired, clients refuse it: put a new one in its place, no restart is needed"
                );
            }
        }
        now
    }

    fn check(&self, before: Stamps) -> Stamps {
        let now = stamps(&self.current.files);
        if now != before {
            let certificate = self.current.files.certificate.display();
            match self.reload() {
                Ok(()) => tracing::info!(%certificate, "certificate reloaded"),
                Err(error) => tracing::error!(%error, "the new certificate cannot be used, the old one stays"),
            }
        }
        now
    }
}

/// How a certificate's end is from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    Good,
    EndsSoon,
    Over,
}

fn validity(until_unix_seconds: i64, now_unix_seconds: i64) -> Validity {
    match until_unix_seconds.saturating_sub(now_unix_seconds) {
        ..=0 => Validity::Over,
        1..WARN_BEFORE_SECONDS => Validity::EndsSoon,
        _ => Validity::Good,
    }
}

/// Until when the certificate that clients are shown is valid, in seconds since 1970; `None` where it does not tell.
fn valid_until(key: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

type Stamps = [Option<(SystemTime, u64)>; 2];

/// When the files changed, and their lengths.
fn stamps(files: &TlsFiles) -> Stamps {
    let stamp = |path: &Path| -> io::Result<_> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.modified()?, metadata.len()))
    };
    [stamp(&files.certificate).ok(), stamp(&files.key).ok()]
}

fn load(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let read = |path: &Path, source| TlsError::Read { path: path.to_path_buf(), source };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|source| read(&files.certificate, source))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(files.certificate.clone()));
    }
    let unreadable = |error| read(&files.key, pem::Error::Io(error));
    let opened = fs::File::open(&files.key).map_err(unreadable)?;
    secret_file::check_tls_key(&files.key, &opened.metadata().map_err(unreadable)?).map_err(TlsError::Exposed)?;
    let key = PrivateKeyDer::from_pem_reader(opened).map_err(|source| read(&files.key, source))?;
    CertifiedKey::from_der(chain, key, &provider::default_provider())
        .map_err(|source| TlsError::Unusable { path: files.certificate.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write_certificate(dir: &Path, name: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("key.pem"), Permissions::from_mode(0o600)).unwrap();
        made.cert.der().clone()
    }

    fn files(dir: &Path) -> TlsFiles {
        TlsFiles { certificate: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    #[test]
    fn changed_files_are_used_and_bad_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        let stamps_before = stamps(&tls.current.files);
        assert_eq!(tls.current.key.load().cert, std::slice::from_ref(&first));

        fs::write(dir.path().join("cert.pem"), "no certificate").unwrap();
        let seen = tls.check(stamps_before);
        assert_eq!(tls.current.key.load().cert, [first]);

        let second = write_certificate(dir.path(), "second.example");
        tls.check(seen);
        assert_eq!(tls.current.key.load().cert, [second]);
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "first.example");
        let key = fs::read(dir.path().join("key.pem")).unwrap();
        write_certificate(dir.path(), "second.example");
        fs::write(dir.path().join("key.pem"), key).unwrap();
        assert!(matches!(Tls::load(files(dir.path())), Err(TlsError::Unusable { .. })));
    }

    #[test]
    fn key_that_others_can_read_is_refused_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        write_certificate(dir.path(), "second.example");
        fs::set_permissions(dir.path().join("key.pem"), Permissions::from_mode(0o644)).unwrap();
        let error = tls.reload().unwrap_err();
        assert!(error.to_string().contains("chmod 640"), "{error}");
        assert_eq!(tls.current.key.load().cert, [first]);
        assert!(matches!(Tls::load(files(dir.path())), Err(TlsError::Exposed(_))));
    }

    #[test]
    fn certificate_is_told_of_when_it_ends_soon_and_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        let until = valid_until(&tls.current.key.load()).unwrap();
        let day = 24 * 3600;
        for (now, expected) in [
            (until - 15 * day, Validity::Good),
            (until - 13 * day, Validity::EndsSoon),
            (until - 1, Validity::EndsSoon),
            (until, Validity::Over),
            (until + day, Validity::Over),
        ] {
            assert_eq!(validity(until, now), expected, "{now} of {until}");
        }
        assert_eq!(tls.look_at_end(Validity::Over), Validity::Good, "a new one is in its place");
    }

    #[test]
    fn missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tls::load(files(dir.path())).map(drop).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
    }
}
