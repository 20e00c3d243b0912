//! Translations between what s3s speaks and what the ports speak.

use std::sync::Arc;

use holdfast_actors::domain::access::names::validate_bucket_name;
use holdfast_actors::domain::objects::attributes;
use holdfast_actors::domain::objects::conditions::{ETagMatch, ReadConditions, parse_etag};
use holdfast_actors::ports::metadata::{Bucket, CannedAcl, ETag, ObjectAttributes, Tag, WritePrecondition};
use holdfast_protocol::{UploadId, VersionId};
use http::Extensions;
use s3s::dto::{self, ETagCondition, Timestamp, TimestampFormat};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use time::OffsetDateTime;

use super::S3Front;
use super::access;
use super::auth::Caller;
use super::errors::{ResultExt as _, invalid_argument, not_implemented};
use super::expires;

/// What S3 answers for an object that was put without a content type.
pub(crate) const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Milliseconds since 1970 as s3s wants them.
pub(crate) fn timestamp(ms: u64) -> Timestamp {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    Timestamp::from(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// Whole seconds since 1970, for conditions.
pub(crate) fn seconds(timestamp: Timestamp) -> i64 {
    OffsetDateTime::from(timestamp).unix_timestamp()
}

/// An ETag for a header or XML.
pub(crate) fn etag(etag: &ETag) -> dto::ETag {
    dto::ETag::Strong(etag.to_string())
}

/// An owner as listings show it: users are known by name.
pub(crate) fn owner(name: &str) -> dto::Owner {
    dto::Owner { display_name: Some(name.to_owned()), id: Some(name.to_owned()) }
}

/// Reads a version id of a request.
pub(crate) fn version_id(text: Option<&str>) -> S3Result<Option<VersionId>> {
    let Some(text) = text else { return Ok(None) };
    text.parse().map(Some).map_err(|_| invalid_argument("Invalid version id specified"))
}

/// Reads an upload id; one that this server never made names no upload.
pub(crate) fn upload_id(text: &str) -> S3Result<UploadId> {
    text.parse().map_err(|_| holdfast_actors::ports::MetadataError::NoSuchUpload).s3()
}

fn etag_match(condition: ETagCondition) -> ETagMatch {
    match condition {
        ETagCondition::Any => ETagMatch::Any,
        ETagCondition::ETag(tag) => ETagMatch::Tag(tag.into_value()),
    }
}

/// Conditions of a read.
pub(crate) fn read_conditions(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
) -> ReadConditions {
    ReadConditions {
        if_match: if_match.map(etag_match),
        if_none_match: if_none_match.map(etag_match),
        if_modified_since: if_modified_since.map(seconds),
        if_unmodified_since: if_unmodified_since.map(seconds),
    }
}

/// An ETag that no object has, for conditions that name something else than an ETag of this server.
const NO_ETAG: ETag = ETag { md5: [0; 16], parts: Some(0) };

/// Conditions of a write. S3 knows `If-None-Match: *` only.
pub(crate) fn write_precondition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> S3Result<WritePrecondition> {
    let must_not_exist = match if_none_match {
        None => false,
        Some(ETagCondition::Any) => true,
        Some(ETagCondition::ETag(_)) => return Err(not_implemented("If-None-Match with an ETag on a write")),
    };
    if must_not_exist && if_match.is_some() {
        return Err(not_implemented("If-Match together with If-None-Match"));
    }
    let must_match = if_match.map(|condition| match condition {
        ETagCondition::Any => None,
        ETagCondition::ETag(tag) => Some(parse_etag(tag.value()).unwrap_or(NO_ETAG)),
    });
    Ok(WritePrecondition { must_not_exist, must_match })
}

/// The conditions of a write whose input has no fields for them (CopyObject).
pub(crate) fn write_precondition_of_headers(headers: &http::HeaderMap) -> S3Result<WritePrecondition> {
    let condition = |name: &http::HeaderName| match headers.get(name) {
        None => Ok(None),
        Some(value) => ETagCondition::parse_http_header(value.as_bytes())
            .map(Some)
            .map_err(|_| invalid_argument(format!("invalid header: {name}"))),
    };
    write_precondition(condition(&http::header::IF_MATCH)?, condition(&http::header::IF_NONE_MATCH)?)
}

/// The canned ACL of a request. ACLs that would need grants are not implemented.
pub(crate) fn canned_acl(acl: Option<&str>) -> S3Result<CannedAcl> {
    match acl {
        None | Some("private" | "bucket-owner-full-control" | "bucket-owner-read") => Ok(CannedAcl::Private),
        Some("public-read") => Ok(CannedAcl::PublicRead),
        Some(other @ ("public-read-write" | "authenticated-read" | "aws-exec-read" | "log-delivery-write")) => {
            Err(not_implemented(&format!("the canned ACL {other}")))
        }
        Some(_) => Err(invalid_argument("unknown canned ACL")),
    }
}

/// The headers that an object keeps.
#[derive(Debug, Default)]
pub(crate) struct AttributeHeaders {
    pub(crate) content_type: Option<String>,
    pub(crate) cache_control: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) website_redirect_location: Option<String>,
    pub(crate) metadata: Option<dto::Metadata>,
}

impl AttributeHeaders {
    /// Checks and translates them; `extensions` are those of the request.
    pub(crate) fn into_attributes(self, extensions: &Extensions) -> S3Result<ObjectAttributes> {
        let mut user_metadata: Vec<(String, String)> =
            self.metadata.unwrap_or_default().into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
        user_metadata.sort();
        attributes::check_user_metadata(&user_metadata).s3()?;
        let expires = match self.expires {
            Some(time) => Some(http_date(&time)?),
            None => expires::text_of(extensions),
        };
        Ok(ObjectAttributes {
            content_type: self.content_type,
            cache_control: self.cache_control,
            content_disposition: self.content_disposition,
            content_encoding: self.content_encoding.as_deref().and_then(without_aws_chunked),
            content_language: self.content_language,
            expires,
            website_redirect_location: self.website_redirect_location,
            user_metadata,
            completion: None,
        })
    }
}

/// Takes the headers that an object keeps out of an input that has the fields of PutObject.
macro_rules! attribute_headers {
    ($input:expr) => {
        $crate::s3::convert::AttributeHeaders {
            content_type: $input.content_type.take(),
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $input.content_encoding.take(),
            content_language: $input.content_language.take(),
            expires: $input.expires.take(),
            website_redirect_location: $input.website_redirect_location.take(),
            metadata: $input.metadata.take(),
        }
    };
}
pub(crate) use attribute_headers;

/// Refuses what an input with the fields of PutObject may ask for and Holdfast does not have. Silence would let a
/// client believe that its object is encrypted or locked.
macro_rules! refuse_unsupported {
    ($input:expr) => {{
        use $crate::s3::errors::not_implemented;
        let input = &$input;
        if input.server_side_encryption.is_some()
            || input.ssekms_key_id.is_some()
            || input.ssekms_encryption_context.is_some()
            || input.bucket_key_enabled.is_some()
        {
            return Err(not_implemented("server-side encryption"));
        }
        $crate::s3::convert::refuse_customer_key!(input);
        if input.object_lock_mode.is_some()
            || input.object_lock_legal_hold_status.is_some()
            || input.object_lock_retain_until_date.is_some()
        {
            return Err(not_implemented("object lock"));
        }
        if input.grant_full_control.is_some()
            || input.grant_read.is_some()
            || input.grant_read_acp.is_some()
            || input.grant_write_acp.is_some()
        {
            return Err(not_implemented("granting by header"));
        }
    }};
}
pub(crate) use refuse_unsupported;

/// Refuses encryption under a key of the customer.
macro_rules! refuse_customer_key {
    ($input:expr) => {
        if $input.sse_customer_algorithm.is_some()
            || $input.sse_customer_key.is_some()
            || $input.sse_customer_key_md5.is_some()
        {
            return Err($crate::s3::errors::not_implemented("server-side encryption with customer keys"));
        }
    };
}
pub(crate) use refuse_customer_key;

/// An HTTP date.
pub(crate) fn http_date(time: &Timestamp) -> S3Result<String> {
    let mut text = Vec::with_capacity(29);
    time.format(TimestampFormat::HttpDate, &mut text).map_err(S3Error::internal_error)?;
    String::from_utf8(text).map_err(S3Error::internal_error)
}

/// `aws-chunked` says how the request is framed, not how the object is encoded. What does not name it is kept as it is.
fn without_aws_chunked(encoding: &str) -> Option<String> {
    let is_framing = |coding: &str| coding.trim().eq_ignore_ascii_case("aws-chunked");
    if !encoding.split(',').any(is_framing) {
        return (!encoding.is_empty()).then(|| encoding.to_owned());
    }
    let kept: Vec<&str> =
        encoding.split(',').filter(|coding| !is_framing(coding)).map(str::trim).filter(|c| !c.is_empty()).collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// Tags for XML.
pub(crate) fn tag_set(tags: &[Tag]) -> dto::TagSet {
    tags.iter().map(|tag| dto::Tag { key: Some(tag.key.clone()), value: Some(tag.value.clone()) }).collect()
}

/// Tags from XML.
pub(crate) fn tags(set: dto::TagSet) -> Vec<Tag> {
    set.into_iter().map(|tag| Tag { key: tag.key.unwrap_or_default(), value: tag.value.unwrap_or_default() }).collect()
}

/// Refuses a request that expects the bucket to be somebody else's.
pub(crate) fn check_expected_owner(bucket: &Bucket, expected: Option<&str>) -> S3Result<()> {
    if expected.is_some_and(|expected| expected != bucket.owner) {
        return Err(s3_error!(AccessDenied, "The bucket is not owned by the expected owner"));
    }
    Ok(())
}

impl S3Front {
    /// The bucket that a request is about, which must be owned by whom the request expects. Access control has usually
    /// read it already.
    pub(crate) async fn bucket_of(
        &self,
        extensions: &Extensions,
        name: &str,
        expected_owner: Option<&str>,
    ) -> S3Result<Arc<Bucket>> {
        if let Some(bucket) = access::bucket_of(extensions)
            && bucket.name == name
        {
            check_expected_owner(bucket, expected_owner)?;
            return Ok(Arc::clone(bucket));
        }
        // A name that no bucket can have need not be looked for.
        if validate_bucket_name(name).is_err() {
            return Err(s3_error!(InvalidBucketName, "The specified bucket is not valid."));
        }
        let bucket = self.metadata.bucket(name).await.s3()?;
        check_expected_owner(&bucket, expected_owner)?;
        Ok(bucket)
    }

    /// A fresh version id.
    pub(crate) fn new_version(&self) -> VersionId {
        VersionId::generate(self.clock.now_seconds())
    }
}

/// Who will own what the request writes.
pub(crate) fn owner_of_writes<T>(req: &S3Request<T>, bucket: &Bucket) -> String {
    Caller::of(&req.extensions).owner_of_writes(&bucket.owner).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_chunked_is_not_an_encoding_of_the_object() {
        for (sent, kept) in [
            ("aws-chunked", None),
            ("gzip", Some("gzip")),
            ("aws-chunked,gzip", Some("gzip")),
            ("gzip, AWS-chunked", Some("gzip")),
            ("gzip,br", Some("gzip,br")),
            ("deflate, gzip", Some("deflate, gzip")),
            ("aws-chunked, aws-chunked", None),
            ("", None),
        ] {
            assert_eq!(without_aws_chunked(sent).as_deref(), kept, "{sent}");
        }
    }

    #[test]
    fn writes_know_two_conditions() {
        let tag = ETagCondition::ETag(dto::ETag::Strong("ab".repeat(16)));
        assert!(write_precondition(None, Some(ETagCondition::Any)).unwrap().must_not_exist);
        assert_eq!(write_precondition(None, Some(tag.clone())).unwrap_err().code().as_str(), "NotImplemented");
        let must = write_precondition(Some(tag), None).unwrap().must_match.unwrap();
        assert_eq!(must, Some(ETag { md5: [0xab; 16], parts: None }));
        let junk = ETagCondition::ETag(dto::ETag::Strong("junk".into()));
        assert_eq!(write_precondition(Some(junk), None).unwrap().must_match, Some(Some(NO_ETAG)));
        assert_eq!(write_precondition(Some(ETagCondition::Any), None).unwrap().must_match, Some(None));
    }

    #[test]
    fn acls_that_need_grants_are_refused() {
        assert_eq!(canned_acl(None).unwrap(), CannedAcl::Private);
        assert_eq!(canned_acl(Some("public-read")).unwrap(), CannedAcl::PublicRead);
        assert_eq!(canned_acl(Some("public-read-write")).unwrap_err().code().as_str(), "NotImplemented");
        assert_eq!(canned_acl(Some("nonsense")).unwrap_err().code().as_str(), "InvalidArgument");
    }
}
