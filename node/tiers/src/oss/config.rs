//! What an OSS tier is told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_actors::ports::tiers::{TierError, TierResult};
use url::{Host, Url};
use zeroize::Zeroizing;

/// The most parts that an upload may have, at S3 and at OSS.
pub(super) const PARTS_MAX: u64 = 10_000;
/// The smallest part that S3 takes (OSS takes 100 KiB), the last one excepted.
const PART_BYTES_MIN: u64 = 5 << 20;
/// More than this would only cost memory.
pub(super) const PART_BYTES_MAX: u64 = 512 << 20;
/// The largest object of S3; OSS takes 48.8 TiB.
const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// A name has 512 bytes at most, of which a piece's own part takes fewer than 100.
const PREFIX_BYTES_MAX: usize = 256;

/// Where the buckets stand in an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://bucket.endpoint/key`; the only way at Alibaba Cloud OSS.
    VirtualHosted,
    /// `https://endpoint/bucket/key`; what most stores in one's own house want.
    Path,
}

/// How the store encrypts what lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket says.
    BucketDefault,
    /// With keys of the store (`AES256`).
    Aes256,
    /// With a key of its key service (`aws:kms`), of this id or the default one.
    Kms {
        /// The key's id.
        key_id: Option<String>,
    },
}

/// Where the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsSource {
    /// A file that nobody else may read: JSON or lines of `key=value`, with `access_key_id`, `secret_access_key` and,
    /// if need be, `session_token`. It is read again every few minutes, so that keys can be replaced.
    File(PathBuf),
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if need be, `AWS_SESSION_TOKEN`.
    Environment,
    /// The role of the EC2 instance that the node runs on. Alibaba's instances tell theirs in another way, which is not
    /// known here.
    InstanceRole,
    /// These.
    Keys(AccessKeys),
}

/// An access key with its secret, which is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKeys {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: Zeroizing<String>,
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKeys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// An OSS tier. [`OssConfig::new`] gives the defaults, [`OssConfig::validated`] says what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OssConfig {
    /// `https://oss-cn-hangzhou.aliyuncs.com`, without the bucket.
    pub endpoint: String,
    /// `oss-cn-hangzhou`, `us-east-1`: what requests are signed for.
    pub region: String,
    /// The bucket, which exists already.
    pub bucket: String,
    /// What keys begin with, without slashes around it; may be empty.
    pub prefix: String,
    /// Where the bucket stands in an address.
    pub addressing: Addressing,
    /// Whose requests these are.
    pub credentials: CredentialsSource,
    /// A file of certificates (PEM) that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// How the store encrypts.
    pub encryption: Encryption,
    /// The storage class at the store, such as `STANDARD_IA` or `IA`; its default where none is given.
    pub remote_storage_class: Option<String>,
    /// The largest piece, in bytes.
    pub piece_bytes_max: u64,
    /// Pieces up to this size go in one request, larger ones in parts of it, in bytes.
    pub part_bytes: u64,
    /// Parts of one piece on their way at a time. Memory for a put: this and one more, times `part_bytes`.
    pub parts_in_flight: usize,
    /// Whether an ETag of 32 hexadecimal digits is the MD5 of what was sent, as at S3 and OSS; it is compared then,
    /// unless the store encrypts with KMS.
    pub etag_is_md5: bool,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the store may be silent, and how long one request may take. A part must fit through the line in this
    /// time.
    pub request_timeout: Duration,
    /// How often a request is tried, the first time included.
    pub attempts_max: u32,
    /// The wait before the first repetition; it doubles each time.
    pub backoff: Duration,
}

impl OssConfig {
    /// The defaults: virtual-hosted addresses, credentials of the environment, pieces of 5 GiB, parts of 8 MiB, three
    /// at a time, a minute for a request and four tries.
    pub fn new(endpoint: impl Into<String>, region: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: region.into(),
            bucket: bucket.into(),
            prefix: String::new(),
            addressing: Addressing::VirtualHosted,
            credentials: CredentialsSource::Environment,
            ca_file: None,
            encryption: Encryption::BucketDefault,
            remote_storage_class: None,
            piece_bytes_max: 5 << 30,
            part_bytes: 8 << 20,
            parts_in_flight: 3,
            etag_is_md5: true,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            attempts_max: 4,
            backoff: Duration::from_millis(200),
        }
    }

    /// The configuration, which can be worked with.
    ///
    /// # Errors
    /// [`TierError::Invalid`] naming the field and what it should be.
    pub fn validated(self) -> TierResult<Self> {
        self.complaint().map_or(Ok(self), |complaint| Err(TierError::Invalid(format!("OSS tier: {complaint}"))))
    }

    /// The most time that one operation takes, with all its repetitions.
    pub(super) fn operation_timeout(&self) -> Duration {
        // The waits between attempts are short beside the attempts that time out.
        (self.request_timeout + self.connect_timeout) * self.attempts_max + Duration::from_secs(10)
    }

    fn complaint(&self) -> Option<String> {
        self.complaint_of_address().or_else(|| self.complaint_of_numbers()).or_else(|| self.complaint_of_texts())
    }

    fn complaint_of_address(&self) -> Option<String> {
        let endpoint = &self.endpoint;
        let url = match Url::parse(endpoint) {
            Ok(url) if matches!(url.scheme(), "https" | "http") => url,
            Ok(_) | Err(_) => return Some(format!("endpoint {endpoint:?} must begin with https:// or http://")),
        };
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Some(format!(
                "endpoint {endpoint:?} must be a scheme and a host, without the bucket or anything else"
            ));
        }
        let Some(host) = url.host() else { return Some(format!("endpoint {endpoint:?} has no host")) };
        if self.addressing == Addressing::VirtualHosted && !matches!(host, Host::Domain(_)) {
            return Some(format!(
                "endpoint {endpoint:?} is an IP address: buckets cannot stand before it, use path style"
            ));
        }
        let host = host.to_string();
        if host.ends_with(".aliyuncs.com") && self.addressing == Addressing::Path {
            return Some("Alibaba Cloud OSS takes virtual-hosted addresses only".into());
        }
        // In path style a host may be called as the bucket is.
        if self.addressing == Addressing::VirtualHosted && host.starts_with(&format!("{}.", self.bucket)) {
            return Some(format!("endpoint {endpoint:?} has the bucket in it already: leave it out there"));
        }
        let name_is_valid = (3..=63).contains(&self.bucket.len())
            && self.bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        if !name_is_valid {
            return Some(format!("bucket {:?} must have 3 to 63 of a-z, 0-9, '-' and '.'", self.bucket));
        }
        if self.region.is_empty() || !self.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Some(format!("region {:?} must be like oss-cn-hangzhou or us-east-1", self.region));
        }
        None
    }

    fn complaint_of_numbers(&self) -> Option<String> {
        if !(1..=OBJECT_BYTES_MAX).contains(&self.piece_bytes_max) {
            return Some(format!("piece_bytes_max must be 1 to {OBJECT_BYTES_MAX}"));
        }
        if !(PART_BYTES_MIN..=PART_BYTES_MAX).contains(&self.part_bytes) {
            return Some(format!("part_bytes must be {PART_BYTES_MIN} to {PART_BYTES_MAX}"));
        }
        if self.piece_bytes_max.div_ceil(self.part_bytes) > PARTS_MAX {
            let least = self.piece_bytes_max.div_ceil(PARTS_MAX);
            return Some(format!("an upload has {PARTS_MAX} parts at most: part_bytes must be {least} or more"));
        }
        if !(1..=64).contains(&self.parts_in_flight) {
            return Some("parts_in_flight must be 1 to 64".into());
        }
        if !(1..=20).contains(&self.attempts_max) {
            return Some("attempts_max must be 1 to 20".into());
        }
        if self.connect_timeout.is_zero() || self.request_timeout.is_zero() {
            return Some("connect_timeout and request_timeout must not be zero".into());
        }
        None
    }

    fn complaint_of_texts(&self) -> Option<String> {
        let prefix = &self.prefix;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'=');
        let segments_are_names = prefix.is_empty() || prefix.split('/').all(|name| !matches!(name, "" | "." | ".."));
        if prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(plain) || !segments_are_names {
            return Some(format!(
                "prefix {prefix:?} must be names of letters, digits, '-', '_', '.' and '=' with '/' between them, \
                 {PREFIX_BYTES_MAX} bytes at most"
            ));
        }
        let header_is_valid = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if let Encryption::Kms { key_id: Some(key_id) } = &self.encryption
            && !header_is_valid(key_id)
        {
            return Some(format!("key id {key_id:?} must be without spaces, and not empty"));
        }
        if let CredentialsSource::Keys(keys) = &self.credentials
            && !(header_is_valid(&keys.access_key_id) && header_is_valid(&keys.secret_access_key))
        {
            return Some("both halves of an access key are printable characters without spaces, and not empty".into());
        }
        match &self.remote_storage_class {
            Some(class) if !header_is_valid(class) => Some(format!("storage class {class:?} is none of a store")),
            // Nothing can be read from these before it was asked for, hours ahead.
            Some(class) if matches!(class.as_str(), "GLACIER" | "DEEP_ARCHIVE" | "Archive" | "ColdArchive") => {
                Some(format!("storage class {class} cannot be read at once: take one that can"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> OssConfig {
        OssConfig::new("https://oss-cn-hangzhou.aliyuncs.com", "oss-cn-hangzhou", "cold-data")
    }

    #[test]
    fn sound_configurations_are_taken() {
        config().validated().unwrap();
        let own = OssConfig {
            endpoint: "http://127.0.0.1:9000/".into(),
            addressing: Addressing::Path,
            prefix: "clusters/one".into(),
            remote_storage_class: Some("STANDARD_IA".into()),
            encryption: Encryption::Kms { key_id: Some("0a1b".into()) },
            ..config()
        };
        own.clone().validated().unwrap();
        // The host of one's own store may be called as the bucket is.
        OssConfig { endpoint: "https://cold-data.example.com".into(), ..own }.validated().unwrap();
    }

    #[test]
    fn each_mistake_is_named() {
        type Spoil = fn(&mut OssConfig);
        let cases: [(&str, Spoil); 22] = [
            ("https://", |c| c.endpoint = "oss-cn-hangzhou.aliyuncs.com".into()),
            ("https://", |c| c.endpoint = "ftp://host".into()),
            ("without the bucket", |c| c.endpoint = "https://host/bucket".into()),
            ("already", |c| c.endpoint = "https://cold-data.oss-cn-hangzhou.aliyuncs.com".into()),
            ("path style", |c| c.endpoint = "http://10.0.0.1:9000".into()),
            ("virtual-hosted", |c| c.addressing = Addressing::Path),
            ("bucket", |c| c.bucket = "Cold".into()),
            ("bucket", |c| c.bucket = "c".into()),
            ("region", |c| c.region = String::new()),
            ("piece_bytes_max", |c| c.piece_bytes_max = 0),
            ("part_bytes", |c| c.part_bytes = 1 << 20),
            ("part_bytes", |c| c.part_bytes = 1 << 30),
            ("parts at most", |c| c.piece_bytes_max = 1 << 40),
            ("parts_in_flight", |c| c.parts_in_flight = 0),
            ("attempts_max", |c| c.attempts_max = 0),
            ("zero", |c| c.request_timeout = Duration::ZERO),
            ("prefix", |c| c.prefix = "/cold".into()),
            ("prefix", |c| c.prefix = "a/../b".into()),
            ("prefix", |c| c.prefix = "a b".into()),
            ("key id", |c| c.encryption = Encryption::Kms { key_id: Some(String::new()) }),
            ("both halves", |c| {
                c.credentials = CredentialsSource::Keys(AccessKeys {
                    access_key_id: "id".into(),
                    secret_access_key: String::new().into(),
                });
            }),
            ("cannot be read at once", |c| c.remote_storage_class = Some("GLACIER".into())),
        ];
        for (word, spoil) in cases {
            let mut spoiled = config();
            spoil(&mut spoiled);
            let error = spoiled.clone().validated().unwrap_err();
            assert!(
                matches!(&error, TierError::Invalid(text) if text.contains(word)),
                "{word}: {error} of {spoiled:?}"
            );
        }
    }

    #[test]
    fn secret_of_a_key_is_not_shown() {
        let keys = AccessKeys { access_key_id: "id".into(), secret_access_key: "very-secret".to_owned().into() };
        let config = OssConfig { credentials: CredentialsSource::Keys(keys), ..config() };
        let shown = format!("{config:?}");
        assert!(shown.contains("access_key_id") && !shown.contains("very-secret"), "{shown}");
    }
}
