//! HTTPS by rustls, from PEM files that are read again when they change.
//!
//! A renewed certificate takes effect within [`CHECK_EVERY`] without a restart; files that cannot be used leave the old
//! one in place and are reported in the log, as is a certificate whose end comes near, or whose time has not begun:
//! nobody but the clients would notice. Bodies are encrypted in user space: kTLS, which splice would need, is looked
//! for and logged, but not used.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    /// How the files were just before they were read first. A start may take long, and they may change meanwhile.
    first: Stamps,
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
        let first = stamps(&files);
        let key = load(&files)?;
        let current = Arc::new(Current { files, key: ArcSwap::from_pointee(key), first });
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
        let (mut seen, mut told) = (Seen { stamps: self.current.first, refused: false }, Validity::Good);
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for look in 1_u64.. {
            ticks.tick().await;
            let again = look.is_multiple_of(LOOKS_A_DAY);
            let (tls, before) = (self.clone(), seen);
            let checked = tokio::task::spawn_blocking(move || tls.check(before, again)).await;
            seen = checked.unwrap_or(seen);
            told = self.look_at_dates(if again { Validity::Good } else { told });
        }
    }

    /// Says that the certificate ends soon, that it has ended, or that its time has not begun, where that was not told.
    /// Gives back what it found.
    fn look_at_dates(&self, told: Validity) -> Validity {
        let Some(dates) = dates(&self.current.key.load()) else { return told };
        telemetry::show_certificate("s3", dates.until_unix_seconds);
        let now = validity(dates, process::unix_seconds() as i64);
        let certificate = self.current.files.certificate.display();
        match now {
            _ if now == told => {}
            Validity::Good => {}
            Validity::NotYet => {
                tracing::error!(
                    %certificate,
                    from_unix_seconds = dates.from_unix_seconds,
                    "the certificate is not valid yet, clients refuse it: look at the clock of this machine"
                );
            }
            Validity::EndsSoon => {
                tracing::warn!(
                    %certificate,
                    until_unix_seconds = dates.until_unix_seconds,
                    "the certificate ends within two weeks: renew it"
                );
            }
            Validity::Over => {
                tracing::error!(
                    %certificate,
                    until_unix_seconds = dates.until_unix_seconds,
                    "the certificate has expired, clients refuse it: put a new one in its place, no restart is needed"
                );
            }
        }
        now
    }

    /// Reads the files again if they have changed, or could not be used before: what was in the way may be gone
    /// without a trace in them. `again`: what is wrong still is told once more.
    fn check(&self, before: Seen, again: bool) -> Seen {
        let stamps = stamps(&self.current.files);
        let changed = stamps != before.stamps;
        if !changed && !before.refused {
            return before;
        }
        let certificate = self.current.files.certificate.display();
        let reloaded = self.reload();
        match &reloaded {
            Ok(()) => tracing::info!(%certificate, "certificate reloaded"),
            Err(error) if changed || again => {
                tracing::error!(%error, "the new certificate cannot be used, the old one stays");
            }
            Err(_) => {}
        }
        Seen { stamps, refused: reloaded.is_err() }
    }
}

/// What the last look at the files found.
#[derive(Debug, Clone, Copy)]
struct Seen {
    stamps: Stamps,
    /// They could not be used.
    refused: bool,
}

/// How a certificate's dates are from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    Good,
    NotYet,
    EndsSoon,
    Over,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy)]
struct Dates {
    from_unix_seconds: i64,
    until_unix_seconds: i64,
}

fn validity(dates: Dates, now_unix_seconds: i64) -> Validity {
    if now_unix_seconds < dates.from_unix_seconds {
        return Validity::NotYet;
    }
    match dates.until_unix_seconds.saturating_sub(now_unix_seconds) {
        ..=0 => Validity::Over,
        1..WARN_BEFORE_SECONDS => Validity::EndsSoon,
        _ => Validity::Good,
    }
}

/// When the certificate that clients are shown is valid; `None` where it does not tell.
fn dates(key: &CertifiedKey) -> Option<Dates> {
    let (_, parsed) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
    let validity = parsed.validity();
    Some(Dates {
        from_unix_seconds: validity.not_before.timestamp(),
        until_unix_seconds: validity.not_after.timestamp(),
    })
}

type Stamps = [Option<Stamp>; 2];

/// By what a change of a file is seen, its permissions included: those are what a refusal asks to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds, of what is in the file and of what is known about it.
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamps(files: &TlsFiles) -> Stamps {
    let stamp = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: about.ino(),
            size_bytes: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    };
    [stamp(&files.certificate), stamp(&files.key)]
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
        let seen = Seen { stamps: tls.current.first, refused: false };
        assert!(!tls.check(seen, false).refused);
        assert_eq!(tls.current.key.load().cert, std::slice::from_ref(&first));

        fs::write(dir.path().join("cert.pem"), "no certificate").unwrap();
        let seen = tls.check(seen, false);
        assert!(seen.refused);
        assert_eq!(tls.current.key.load().cert, [first]);

        let second = write_certificate(dir.path(), "second.example");
        assert!(!tls.check(seen, false).refused);
        assert_eq!(tls.current.key.load().cert, [second]);
    }

    #[test]
    fn key_is_taken_once_others_cannot_read_it_any_more() {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        let second = write_certificate(dir.path(), "a.much.longer.name.than.the.first.example");
        let key = dir.path().join("key.pem");
        fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        let seen = tls.check(Seen { stamps: tls.current.first, refused: false }, false);
        assert!(seen.refused);
        // As the refusal asks for: it changes nothing in the file.
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        assert!(!tls.check(seen, false).refused);
        assert_eq!(tls.current.key.load().cert, [second]);
    }

    #[test]
    fn files_that_change_while_the_node_starts_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        let second = write_certificate(dir.path(), "a.much.longer.name.than.the.first.example");
        tls.check(Seen { stamps: tls.current.first, refused: false }, false);
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
    fn certificate_is_told_of_before_its_time_when_it_ends_soon_and_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "first.example");
        let tls = Tls::load(files(dir.path())).unwrap();
        let dates = dates(&tls.current.key.load()).unwrap();
        let (from, until, day) = (dates.from_unix_seconds, dates.until_unix_seconds, 24 * 3600);
        for (now, expected) in [
            (from - 1, Validity::NotYet),
            (from, Validity::Good),
            (until - 15 * day, Validity::Good),
            (until - 13 * day, Validity::EndsSoon),
            (until - 1, Validity::EndsSoon),
            (until, Validity::Over),
            (until + day, Validity::Over),
        ] {
            assert_eq!(validity(dates, now), expected, "{now} of {dates:?}");
        }
        assert_eq!(tls.look_at_dates(Validity::Over), Validity::Good, "a new one is in its place");
    }

    #[test]
    fn missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tls::load(files(dir.path())).map(drop).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
    }
}
