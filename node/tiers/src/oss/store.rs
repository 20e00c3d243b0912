//! The client of the store, and its operations on whole objects.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::BucketVersioningStatus;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use holdfast_actors::ports::tiers::{PieceName, TierError, TierResult};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::config::{Addressing, OssConfig};
use super::{credentials, errors};

/// Pages of a list that is expected to have one.
const PAGES_MAX: usize = 100;
/// The store puts the parts of an object together while it answers; that may take longer than other requests.
const COMPLETION_FACTOR: u32 = 5;

/// The store as the adapter sees it.
pub(super) struct Store {
    pub(super) client: Client,
    pub(super) config: OssConfig,
}

impl Store {
    pub(super) fn new(config: OssConfig) -> TierResult<Self> {
        let http = http_client(&config)?;
        let retries = RetryConfig::standard()
            .with_max_attempts(config.attempts_max)
            .with_initial_backoff(config.backoff)
            .with_max_backoff(config.backoff * 16);
        let settings = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .endpoint_url(config.endpoint.trim_end_matches('/'))
            .region(Region::new(config.region.clone()))
            .force_path_style(config.addressing == Addressing::Path)
            .credentials_provider(credentials::provider(&config.credentials, &http)?)
            .http_client(http)
            // OSS refuses the trailers that the SDK would send its own checksums in.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(retries)
            // Stores that are down must not use up the retries of those that are not.
            .retry_partition(RetryPartition::new(format!("{}/{}", config.endpoint, config.bucket)))
            .timeout_config(timeouts(&config, 1))
            // It takes a reader that pauses for a store that does; the limits here are on single waits.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Ok(Self { client: Client::from_conf(settings), config })
    }

    /// Longer than any operation takes.
    pub(super) fn patience(&self) -> Duration {
        self.config.operation_timeout() * COMPLETION_FACTOR
    }

    /// The limits for the request that ends an upload.
    pub(super) fn completion_timeouts(&self) -> aws_sdk_s3::config::Builder {
        aws_sdk_s3::Config::builder().timeout_config(timeouts(&self.config, COMPLETION_FACTOR))
    }

    /// Bytes of an object, exactly these.
    pub(super) async fn get(&self, name: &PieceName, range: &Range<u64>) -> TierResult<ByteStream> {
        let request = self.client.get_object().bucket(&self.config.bucket).key(name.as_str());
        let wanted = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = request.range(wanted).send().await.map_err(|error| errors::of_piece(error, "get", name))?;
        let (first, past, total) = match answer.content_range().map(parse_content_range) {
            Some(parsed) => parsed.ok_or_else(|| corrupt(name, "the answer has a Content-Range of no sense".into()))?,
            // All of it, by a store that does not know ranges; which is right if that is what was asked for.
            None => {
                let total = answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or_default();
                (0, total, total)
            }
        };
        if total < range.end {
            return Err(corrupt(name, format!("it has {total} bytes, which does not reach to {}", range.end)));
        }
        if (first, past) != (range.start, range.end) {
            return Err(corrupt(name, format!("the answer has the bytes {first} to {past}, not those asked for")));
        }
        Ok(answer.body)
    }

    /// The size of an object.
    pub(super) async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        match self.client.head_object().bucket(&self.config.bucket).key(name.as_str()).send().await {
            Ok(answer) => answer
                .content_length()
                .and_then(|length| u64::try_from(length).ok())
                .ok_or_else(|| TierError::Unavailable(format!("the store does not tell the size of {name}"))),
            // An answer to HEAD has no words: a missing object, a missing bucket and a missing right look alike.
            Err(error) if matches!(errors::status_of(&error), Some(400..=499)) => {
                self.get(name, &(0..1)).await?;
                Err(errors::of_bucket(error, &format!("look at {name}")))
            }
            Err(error) => Err(errors::of_piece(error, "look at", name)),
        }
    }

    pub(super) async fn delete(&self, name: &PieceName) -> TierResult<()> {
        match self.client.delete_object().bucket(&self.config.bucket).key(name.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) => match errors::of_piece(error, "delete", name) {
                TierError::NotFound(_) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Aborts all uploads of a piece that have no end.
    pub(super) async fn abort_uploads(&self, name: &PieceName) -> TierResult<()> {
        let (mut after_key, mut after_upload) = (None, None);
        for _ in 0..PAGES_MAX {
            let request = self.client.list_multipart_uploads().bucket(&self.config.bucket).prefix(name.as_str());
            let request = request.set_key_marker(after_key).set_upload_id_marker(after_upload);
            let page =
                request.send().await.map_err(|error| errors::of_bucket(error, "list the uploads of the bucket"))?;
            for upload in page.uploads().iter().filter(|upload| upload.key() == Some(name.as_str())) {
                if let Some(id) = upload.upload_id() {
                    self.abort(name, id).await?;
                }
            }
            if page.is_truncated() != Some(true) || page.next_key_marker().is_none() {
                return Ok(());
            }
            (after_key, after_upload) = (page.next_key_marker, page.next_upload_id_marker);
        }
        Err(TierError::Unavailable(format!("the list of uploads of {name} has no end")))
    }

    /// Aborts an upload. One that is not there counts as aborted.
    pub(super) async fn abort(&self, name: &PieceName, upload_id: &str) -> TierResult<()> {
        let request = self.client.abort_multipart_upload().bucket(&self.config.bucket).key(name.as_str());
        match request.upload_id(upload_id).send().await {
            Ok(_) => Ok(()),
            Err(error) if errors::code_of(&error) == Some("NoSuchUpload") => Ok(()),
            Err(error) => Err(errors::of_bucket(error, &format!("abort an upload of {name}"))),
        }
    }

    /// Asks for something that needs the bucket, the credentials and the rarest of the rights.
    pub(super) async fn reach(&self) -> TierResult<()> {
        let request = self.client.list_multipart_uploads().bucket(&self.config.bucket).max_uploads(1);
        let answer = request.prefix(&self.config.prefix).send().await;
        answer.map(drop).map_err(|error| errors::of_bucket(error, "list the uploads of the bucket"))
    }

    /// Whether the bucket keeps versions, if the store tells.
    pub(super) async fn versioning(&self) -> Option<BucketVersioningStatus> {
        self.client.get_bucket_versioning().bucket(&self.config.bucket).send().await.ok()?.status
    }
}

pub(super) fn corrupt(name: &PieceName, detail: String) -> TierError {
    TierError::Corrupt { piece: name.clone(), detail }
}

fn timeouts(config: &OssConfig, factor: u32) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.request_timeout * factor)
        .operation_attempt_timeout(config.request_timeout * factor)
        .operation_timeout(config.operation_timeout() * factor)
        .build()
}

fn http_client(config: &OssConfig) -> TierResult<SharedHttpClient> {
    let builder = aws_smithy_http_client::Builder::new();
    if config.endpoint.starts_with("http://") {
        return Ok(builder.build_http());
    }
    // The client asserts that there are some if it is told to use them.
    let system_has_some = !rustls_native_certs::load_native_certs().certs.is_empty();
    let mut trusted = TrustStore::empty().with_native_roots(system_has_some);
    match &config.ca_file {
        Some(file) => trusted = trusted.with_pem_certificate(certificates(file)?),
        None if system_has_some => {}
        None => {
            let text = "OSS tier: the system has no certificates: install ca-certificates, or give a ca_file";
            return Err(TierError::Invalid(text.into()));
        }
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| TierError::Invalid(format!("OSS tier: TLS: {}", errors::chain(&error))))?;
    Ok(builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

/// The text of a file of certificates, which is one: the client panics if it is not.
fn certificates(file: &Path) -> TierResult<Vec<u8>> {
    let invalid = |what: String| TierError::Invalid(format!("OSS tier: ca_file {} {what}", file.display()));
    let pem = fs::read(file).map_err(|error| invalid(format!("cannot be read: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| invalid(format!("is no PEM: {error}")))?;
        roots.add(certificate).map_err(|error| invalid(format!("has a certificate of no sense: {error}")))?;
    }
    if roots.is_empty() {
        return Err(invalid("has no certificate in it".into()));
    }
    Ok(pem)
}

/// `bytes 5-9/100` as the first byte, the one past the last, and the size of the whole.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some((first.trim().parse().ok()?, last.checked_add(1)?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use aws_sdk_s3::presigning::PresigningConfig;

    use super::super::config::CredentialsSource;
    use super::*;

    #[tokio::test]
    async fn bucket_stands_before_the_host_or_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        fs::write(&keys, "access_key_id=id\nsecret_access_key=secret").unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        for (addressing, endpoint, expected) in [
            (Addressing::VirtualHosted, "http://s3.example.org", "http://cold.s3.example.org/ab/x?"),
            (Addressing::VirtualHosted, "http://s3.example.org:9000/", "http://cold.s3.example.org:9000/ab/x?"),
            (Addressing::Path, "http://s3.example.org:9000", "http://s3.example.org:9000/cold/ab/x?"),
        ] {
            let config = OssConfig {
                addressing,
                credentials: CredentialsSource::File(keys.clone()),
                ..OssConfig::new(endpoint, "us-east-1", "cold")
            };
            let store = Store::new(config.validated().unwrap()).unwrap();
            let signed = PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
            let request = store.client.get_object().bucket("cold").key("ab/x").presigned(signed).await.unwrap();
            assert!(request.uri().starts_with(expected), "{}", request.uri());
        }
    }

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 10, 100)));
        for bad in ["", "bytes */100", "bytes 5-9/*", "5-9/100", "bytes 5-18446744073709551615/3"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_of_certificates_are_looked_at_before_the_client_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        for (text, word) in [
            ("", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no sense"),
            ("-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n", "no PEM"),
        ] {
            fs::write(&file, text).unwrap();
            let error = certificates(&file).unwrap_err();
            assert!(matches!(&error, TierError::Invalid(text) if text.contains(word)), "{error}");
        }
        assert!(matches!(certificates(&dir.path().join("absent")), Err(TierError::Invalid(_))));
    }
}
