//! What an error names beside its message: the key, the version, the upload, the range or the bucket that it is about.
//!
//! s3s writes the code and the message, and SDKs give programs the other elements as fields of their errors. What is
//! named is what the request named, so nobody is told anything by it. A copy names two objects: a key or a version that
//! is missing is that of its source, unless its target has to exist, too; which of its two buckets is missing is not
//! told.

use s3s::dto::CopySource;

use super::copy_source;
use super::facts::query_value;

/// A request, as far as its errors name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// The bucket that it addresses.
    pub(super) bucket: &'a str,
    /// The key that it addresses; empty for a bucket.
    pub(super) key: &'a str,
    /// Its query.
    pub(super) query: &'a str,
    /// `x-amz-copy-source`.
    pub(super) copy_source: Option<&'a str>,
    /// Whether it wants an object to be there that it replaces (`If-Match`).
    pub(super) is_conditional: bool,
    /// `Range`.
    pub(super) range: Option<&'a str>,
}

/// An element of an error.
pub(super) type Detail = (&'static str, String);

/// What an error of this code names of its request.
pub(super) fn details(code: &str, subject: &Subject<'_>) -> Vec<Detail> {
    match code {
        "NoSuchKey" => subject.object().map(|(key, _)| ("Key", key)).into_iter().collect(),
        "NoSuchVersion" => {
            let object = subject.object();
            object.into_iter().flat_map(|(key, version)| [("Key", key), ("VersionId", version)]).collect()
        }
        "NoSuchUpload" => {
            query_value(subject.query, "uploadId").map(|id| ("UploadId", id.into())).into_iter().collect()
        }
        "InvalidRange" => subject.range.map(|range| ("RangeRequested", range.to_owned())).into_iter().collect(),
        code if is_about_the_bucket(code) && subject.copy_source.is_none() && !subject.bucket.is_empty() => {
            vec![("BucketName", subject.bucket.to_owned())]
        }
        _ => Vec::new(),
    }
}

impl Subject<'_> {
    /// Key and version of the object that may be missing.
    fn object(&self) -> Option<(String, String)> {
        let Some(source) = self.copy_source else {
            let version = query_value(self.query, "versionId").unwrap_or_default();
            return (!self.key.is_empty()).then(|| (self.key.to_owned(), version.into()));
        };
        match copy_source::parse(source) {
            Ok(CopySource::Bucket { key, version_id, .. }) if !self.is_conditional => {
                Some((key.into(), version_id.map_or_else(String::new, Into::into)))
            }
            _ => None,
        }
    }
}

fn is_about_the_bucket(code: &str) -> bool {
    matches!(
        code,
        "BucketAlreadyExists"
            | "BucketAlreadyOwnedByYou"
            | "BucketNotEmpty"
            | "InvalidBucketName"
            | "NoSuchBucket"
            | "NoSuchBucketPolicy"
            | "NoSuchCORSConfiguration"
            | "NoSuchLifecycleConfiguration"
            | "NoSuchPublicAccessBlockConfiguration"
            | "NoSuchTagSet"
            | "NoSuchWebsiteConfiguration"
            | "ObjectLockConfigurationNotFoundError"
            | "OwnershipControlsNotFoundError"
            | "ReplicationConfigurationNotFoundError"
            | "ServerSideEncryptionConfigurationNotFoundError"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Subject<'static> =
        Subject { bucket: "b", key: "a/k", query: "", copy_source: None, is_conditional: false, range: None };

    fn named(code: &str, subject: Subject<'_>) -> String {
        let details: Vec<_> = details(code, &subject).iter().map(|(name, value)| format!("{name}={value}")).collect();
        details.join(" ")
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(named("NoSuchKey", PLAIN), "Key=a/k");
        let version = Subject { query: "x=y&versionId=v%2B1", ..PLAIN };
        assert_eq!(named("NoSuchVersion", version), "Key=a/k VersionId=v+1");
        assert_eq!(named("NoSuchUpload", Subject { query: "partNumber=1&uploadId=u", ..PLAIN }), "UploadId=u");
        let range = Subject { range: Some("bytes=7-"), ..PLAIN };
        assert_eq!(named("InvalidRange", range), "RangeRequested=bytes=7-");
        assert_eq!(named("NoSuchKey", range), "Key=a/k");
        for code in ["NoSuchBucket", "BucketAlreadyExists", "BucketNotEmpty", "NoSuchTagSet"] {
            assert_eq!(named(code, Subject { key: "", ..PLAIN }), "BucketName=b", "{code}");
        }
        for code in ["AccessDenied", "InternalError", "SlowDown", "NotImplemented"] {
            assert_eq!(named(code, PLAIN), "", "{code}");
        }
        assert_eq!(named("NoSuchBucket", Subject { bucket: "", key: "", ..PLAIN }), "");
    }

    #[test]
    fn copy_names_its_source_where_nothing_else_can_be_meant() {
        let copy = Subject { copy_source: Some("/other/s%20k?versionId=v"), ..PLAIN };
        assert_eq!(named("NoSuchKey", copy), "Key=s k");
        assert_eq!(named("NoSuchVersion", copy), "Key=s k VersionId=v");
        assert_eq!(named("NoSuchBucket", copy), "");
        assert_eq!(named("NoSuchKey", Subject { is_conditional: true, ..copy }), "");
        assert_eq!(named("NoSuchKey", Subject { copy_source: Some("nonsense"), ..copy }), "");
    }
}
