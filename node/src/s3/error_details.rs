//! What an error names beside its message: the key, the version, the upload, the range, the bucket or the argument that
//! it is about, and the two clocks when they differ.
//!
//! s3s writes the code and the message, and SDKs give programs the other elements as fields of their errors. What is
//! named is what the request named, so nobody is told anything by it; every answer tells the node's time in any case. A
//! copy names two objects: a key or a version that is missing is that of its source, unless its target has to exist,
//! too; which of its two buckets is missing is not told.

use std::ops::RangeInclusive;

use holdfast_actors::domain::objects::multipart::PART_NUMBER_MAX;
use s3s::dto::CopySource;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use url::form_urlencoded;

use super::copy_source;
use super::facts::query_value;

/// How S3 writes its own time.
const SERVER_TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// By how much the clock of who signs may differ, in milliseconds. s3s compares them.
const SKEW_MS_MAX: u32 = 15 * 60 * 1000;

/// Parameters that are numbers, and between which ones.
static NUMBERS: [(&str, RangeInclusive<i32>); 6] = [
    ("max-buckets", 1..=10_000),
    ("max-keys", 0..=i32::MAX),
    ("max-parts", 0..=i32::MAX),
    ("max-uploads", 0..=i32::MAX),
    ("part-number-marker", 0..=u16::MAX as i32),
    ("partNumber", 1..=PART_NUMBER_MAX as i32),
];

/// A request, as far as its errors name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// The bucket that it addresses; empty for none.
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
    /// When it says that it was signed, as it writes it.
    pub(super) signed_at: Option<&'a str>,
    /// What time it is, in milliseconds since 1970.
    pub(super) now_ms: u64,
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
        "InvalidArgument" => subject.wrong_number(),
        "RequestTimeTooSkewed" => subject.times(),
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

    /// The parameter that is no number between its bounds.
    fn wrong_number(&self) -> Vec<Detail> {
        let is_wrong = |name: &str, value: &str| {
            let bounds = NUMBERS.iter().find(|(number, _)| *number == name).map(|(_, bounds)| bounds);
            bounds.is_some_and(|bounds| !value.parse::<i32>().is_ok_and(|number| bounds.contains(&number)))
        };
        let wrong = form_urlencoded::parse(self.query.as_bytes()).find(|(name, value)| is_wrong(name, value));
        wrong.map_or_else(Vec::new, |(name, value)| {
            vec![("ArgumentName", name.into_owned()), ("ArgumentValue", value.into_owned())]
        })
    }

    /// The time of the request, as far as it stands in its head (that of a form does not), and that of the node: who
    /// reads both need not guess which clock is wrong.
    fn times(&self) -> Vec<Detail> {
        let signed_at = self.signed_at.map(|time| ("RequestTime", time.to_owned()));
        let now = i64::try_from(self.now_ms / 1000).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
        let now = now.and_then(|now| now.format(SERVER_TIME).ok()).map(|time| ("ServerTime", time));
        signed_at.into_iter().chain(now).chain([("MaxAllowedSkewMilliseconds", SKEW_MS_MAX.to_string())]).collect()
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

    const PLAIN: Subject<'static> = Subject {
        bucket: "b",
        key: "a/k",
        query: "",
        copy_source: None,
        is_conditional: false,
        range: None,
        signed_at: None,
        now_ms: 0,
    };

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
    fn a_parameter_that_is_no_number_is_named_and_others_are_not() {
        for (query, expected) in [
            ("max-keys=blah", "ArgumentName=max-keys ArgumentValue=blah"),
            ("prefix=a&max-keys=-1", "ArgumentName=max-keys ArgumentValue=-1"),
            ("max%2Dkeys=", "ArgumentName=max-keys ArgumentValue="),
            ("max-uploads=99999999999", "ArgumentName=max-uploads ArgumentValue=99999999999"),
            ("max-keys=7&max-parts=a%20b", "ArgumentName=max-parts ArgumentValue=a b"),
            ("partNumber=0&uploadId=u", "ArgumentName=partNumber ArgumentValue=0"),
            ("partNumber=10000&uploadId=u", ""),
            ("max-keys=0&prefix=blah", ""),
            ("", ""),
        ] {
            assert_eq!(named("InvalidArgument", Subject { query, ..PLAIN }), expected, "{query}");
        }
        assert_eq!(named("AccessDenied", Subject { query: "max-keys=blah", ..PLAIN }), "");
    }

    #[test]
    fn both_clocks_are_told_when_they_differ() {
        let skewed = Subject { signed_at: Some("20231114T215320Z"), now_ms: 1_700_000_000_999, ..PLAIN };
        let rest = "ServerTime=2023-11-14T22:13:20Z MaxAllowedSkewMilliseconds=900000";
        assert_eq!(named("RequestTimeTooSkewed", skewed), format!("RequestTime=20231114T215320Z {rest}"));
        assert_eq!(named("RequestTimeTooSkewed", Subject { signed_at: None, ..skewed }), rest);
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
