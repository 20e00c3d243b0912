//! GetObject, HeadObject and GetObjectAttributes.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use holdfast_actors::domain::objects::conditions::{ReadConditions, ReadDecision};
use holdfast_actors::domain::objects::ranges::{ByteRange, NoSuchPart, part_range};
use holdfast_actors::flow::get::{ObjectReader, ReadError};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Bucket, Content, ObjectPart, ObjectVersion, Versioning};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use s3s::dto::{
    self, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts, GetObjectInput,
    GetObjectOutput, HeadObjectInput, HeadObjectOutput, StreamingBlob, Timestamp, TimestampFormat,
};
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::auth::Caller;
use super::checksums::{self, set_checksum};
use super::classes;
use super::convert::{
    DEFAULT_CONTENT_TYPE, etag, http_date, read_conditions, refuse_customer_key, timestamp, version_id,
};
use super::errors::{ResultExt as _, ToS3 as _, invalid_argument, precondition_failed, with_headers};
use super::expires;
use super::if_range;
use super::judged::Judged;

/// How many tags an object has.
const TAGGING_COUNT: HeaderName = HeaderName::from_static("x-amz-tagging-count");

/// The body of an answer. s3s asks for `Sync`; exclusive access through `get_mut` takes no lock.
struct ObjectBody {
    reader: Mutex<ObjectReader>,
    /// Whose bytes they are, for the log.
    bucket: Arc<Bucket>,
    object: Arc<ObjectVersion>,
}

impl Stream for ObjectBody {
    type Item = Result<Bytes, s3s::StdError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { reader, bucket, object } = self.get_mut();
        Pin::new(reader.get_mut()).poll_next(cx).map_err(|error| {
            // The head is gone: all that is left is to cut the connection, which this error makes hyper do.
            tracing::error!(
                %error, bucket = bucket.name, key = object.key, version = %object.version,
                "a read failed after its answer had begun"
            );
            metrics::counter!("holdfast_get_aborted_total").increment(1);
            error.into()
        })
    }
}

impl ByteStream for ObjectBody {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(self.reader.lock().remaining_bytes() as usize)
    }
}

/// The answer to a read that failed before its answer had begun; what is logged of that names the object.
fn unreadable(error: ReadError, bucket: &Bucket, object: &ObjectVersion) -> S3Error {
    let span = tracing::error_span!("object", bucket = bucket.name, key = object.key, version = %object.version);
    span.in_scope(|| error.to_s3())
}

/// What a read is to answer with.
struct Selection<'a> {
    range: Range<u64>,
    /// 206 and `Content-Range`.
    partial: bool,
    /// The part, when one was asked for of a multipart object.
    part: Option<&'a ObjectPart>,
    /// Number of parts, when a part was asked for of a multipart object.
    parts_count: Option<i32>,
}

/// Which bytes a request means.
fn select(content: &Content, range: Option<dto::Range>, part_number: Option<i32>) -> S3Result<Selection<'_>> {
    let size_bytes = content.size_bytes();
    match (range, part_number) {
        (Some(_), Some(_)) => {
            Err(s3_error!(InvalidRequest, "Cannot specify both Range header and partNumber query parameter"))
        }
        (None, None) => Ok(Selection { range: 0..size_bytes, partial: false, part: None, parts_count: None }),
        (Some(range), None) => {
            let range = match range {
                dto::Range::Int { first, last } => ByteRange::From { first, last },
                dto::Range::Suffix { length } => ByteRange::Suffix { length },
            };
            Ok(Selection { range: range.resolve(size_bytes).s3()?, partial: true, part: None, parts_count: None })
        }
        (None, Some(number)) => {
            let number = u32::try_from(number)
                .ok()
                .filter(|n| (1..=10_000).contains(n))
                .ok_or_else(|| invalid_argument("Part number must be an integer between 1 and 10000, inclusive"))?;
            let (range, part) = part_range(content, number).map_err(|NoSuchPart(n)| NoSuchPart(n).to_s3())?;
            let parts_count = part.is_some().then_some(content.parts.len() as i32);
            // An empty object has no range that `Content-Range` could name.
            Ok(Selection { partial: !range.is_empty(), range, part, parts_count })
        }
    }
}

/// The checksum of what is answered: the object's when all of it is, the part's when one is, none for other ranges.
fn answered_checksum(content: &Content, selection: &Selection<'_>) -> Option<(checksums::Field, dto::ChecksumType)> {
    let checksum = content.checksum.as_ref()?;
    let checksum_type = checksums::dto_type(checksum.checksum_type);
    match selection.part {
        Some(part) => {
            let value = part.checksum.as_deref()?;
            Some(((checksum.algorithm, checksums::encode(value)), checksum_type))
        }
        None if !selection.partial || selection.range == (0..content.size_bytes()) => {
            Some(((checksum.algorithm, checksum.to_s3_string()), checksum_type))
        }
        None => None,
    }
}

/// `x-amz-version-id` of an answer.
fn shown_version(bucket: &Bucket, object: &ObjectVersion) -> Option<String> {
    (bucket.versioning != Versioning::Unversioned).then(|| object.version.to_string())
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// 304, with the headers that RFC 9110 asks for.
fn not_modified(object: &ObjectVersion, content: &Content) -> S3Error {
    let mut headers = vec![("etag", header_value(&format!("\"{}\"", content.etag)))];
    if let Ok(date) = http_date(&timestamp(object.last_modified_ms)) {
        headers.push(("last-modified", header_value(&date)));
    }
    if let Some(cache_control) = &object.attributes.cache_control {
        headers.push(("cache-control", header_value(cache_control)));
    }
    with_headers(s3_error!(NotModified, "Not Modified"), headers)
}

/// What S3 answers when the version that was asked for is a delete marker.
fn delete_marker_error(bucket: &Bucket, object: &ObjectVersion, named: bool) -> S3Error {
    let mut headers = vec![("x-amz-delete-marker", HeaderValue::from_static("true"))];
    if let Some(version) = shown_version(bucket, object) {
        headers.push(("x-amz-version-id", header_value(&version)));
    }
    if !named {
        return with_headers(MetadataError::NoSuchKey.to_s3(), headers);
    }
    headers.push(("allow", HeaderValue::from_static("DELETE")));
    if let Ok(date) = http_date(&timestamp(object.last_modified_ms)) {
        headers.push(("last-modified", header_value(&date)));
    }
    with_headers(s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource."), headers)
}

fn evaluate(conditions: &ReadConditions, object: &ObjectVersion, content: &Content) -> S3Result<()> {
    match conditions.evaluate(&content.etag, object.last_modified_ms) {
        ReadDecision::Proceed => Ok(()),
        ReadDecision::NotModified => Err(not_modified(object, content)),
        ReadDecision::PreconditionFailed => Err(precondition_failed()),
    }
}

impl S3Front {
    /// The object that a read names, with its content.
    pub(crate) async fn readable(
        &self,
        bucket: &Bucket,
        key: &str,
        version: Option<&str>,
    ) -> S3Result<(Arc<ObjectVersion>, Arc<Content>)> {
        let version = version_id(version)?;
        let object = self.metadata.object(bucket.id, key, version).await.map_err(|error| match error {
            // A key without any version: whoever named a version gets told that this version does not exist.
            MetadataError::NoSuchKey if version.is_some() => MetadataError::NoSuchVersion.to_s3(),
            error => error.to_s3(),
        })?;
        match &object.content {
            Some(content) => {
                let content = Arc::clone(content);
                Ok((object, content))
            }
            None => Err(delete_marker_error(bucket, &object, version.is_some())),
        }
    }

    /// Reads an object or a range of it. The head is answered once the first bytes are verified.
    pub(crate) async fn get_object(&self, mut req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &mut req.input;
        refuse_customer_key!(input);
        let overrides = input.response_cache_control.is_some()
            || input.response_content_disposition.is_some()
            || input.response_content_encoding.is_some()
            || input.response_content_language.is_some()
            || input.response_content_type.is_some()
            || input.response_expires.is_some();
        if overrides {
            refuse_anonymous_overrides(Caller::of(&req.extensions))?;
        }
        let conditions = read_conditions(
            input.if_match.take(),
            input.if_none_match.take(),
            input.if_modified_since.take(),
            input.if_unmodified_since.take(),
        );
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let (object, content) = self.readable(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        if !conditions.is_empty() {
            evaluate(&conditions, &object, &content)?;
        }
        let range = input.range.filter(|_| if_range::holds(&req.headers, &object, &content));
        let selection = select(&content, range, input.part_number)?;

        let length = selection.range.end - selection.range.start;
        let body = if length == 0 {
            None
        } else {
            let range = selection.range.clone();
            let mut reader = ObjectReader::new(&self.chunks, &self.cold, Arc::clone(&content), range).s3()?;
            reader.prefetch().await.map_err(|error| unreadable(error, &bucket, &object))?;
            let (bucket, object) = (Arc::clone(&bucket), Arc::clone(&object));
            Some(StreamingBlob::new(ObjectBody { reader: Mutex::new(reader), bucket, object }))
        };
        let now_ms = self.clock.now_ms();
        self.lifecycle.note_read(&bucket, &object, now_ms);
        let attributes = &object.attributes;
        let mut output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body,
            cache_control: attributes.cache_control.clone(),
            content_disposition: attributes.content_disposition.clone(),
            content_encoding: attributes.content_encoding.clone(),
            content_language: attributes.content_language.clone(),
            content_length: Some(length as i64),
            content_range: content_range(&selection, &content),
            content_type: Some(content_type(&object)),
            e_tag: Some(etag(&content.etag)),
            expiration: self.expiration(&bucket, &object),
            expires: expires_date(&object),
            last_modified: Some(timestamp(object.last_modified_ms)),
            metadata: user_metadata(&object),
            parts_count: selection.parts_count,
            restore: classes::restore_header(object.restore, now_ms),
            storage_class: classes::header(object.class.as_ref()),
            tag_count: (!object.tags.is_empty()).then_some(object.tags.len() as i32),
            version_id: shown_version(&bucket, &object),
            website_redirect_location: attributes.website_redirect_location.clone(),
            ..Default::default()
        };
        if input.checksum_mode.as_ref().is_some_and(|mode| mode.as_str() == "ENABLED")
            && let Some(((algorithm, value), checksum_type)) = answered_checksum(&content, &selection)
        {
            set_checksum!(output, algorithm, value);
            output.checksum_type = Some(checksum_type);
        }
        let headers = if input.response_expires.is_some() { HeaderMap::new() } else { expires::headers_of(&object) };
        Ok(S3Response::with_headers(output, headers))
    }

    /// The head of what GetObject would answer.
    pub(crate) async fn head_object(
        &self,
        mut req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &mut req.input;
        refuse_customer_key!(input);
        let conditions = read_conditions(
            input.if_match.take(),
            input.if_none_match.take(),
            input.if_modified_since.take(),
            input.if_unmodified_since.take(),
        );
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let (object, content) = self.readable(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        evaluate(&conditions, &object, &content)?;
        let range = input.range.filter(|_| if_range::holds(&req.headers, &object, &content));
        let selection = select(&content, range, input.part_number)?;

        let attributes = &object.attributes;
        let mut output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            cache_control: attributes.cache_control.clone(),
            content_disposition: attributes.content_disposition.clone(),
            content_encoding: attributes.content_encoding.clone(),
            content_language: attributes.content_language.clone(),
            content_length: Some((selection.range.end - selection.range.start) as i64),
            content_range: content_range(&selection, &content),
            content_type: Some(content_type(&object)),
            e_tag: Some(etag(&content.etag)),
            expiration: self.expiration(&bucket, &object),
            expires: expires_date(&object),
            last_modified: Some(timestamp(object.last_modified_ms)),
            metadata: user_metadata(&object),
            parts_count: selection.parts_count,
            restore: classes::restore_header(object.restore, self.clock.now_ms()),
            storage_class: classes::header(object.class.as_ref()),
            version_id: shown_version(&bucket, &object),
            website_redirect_location: attributes.website_redirect_location.clone(),
            ..Default::default()
        };
        if input.checksum_mode.as_ref().is_some_and(|mode| mode.as_str() == "ENABLED")
            && let Some(((algorithm, value), checksum_type)) = answered_checksum(&content, &selection)
        {
            set_checksum!(output, algorithm, value);
            output.checksum_type = Some(checksum_type);
        }
        let overrides = [
            (&mut output.cache_control, input.response_cache_control.take()),
            (&mut output.content_disposition, input.response_content_disposition.take()),
            (&mut output.content_encoding, input.response_content_encoding.take()),
            (&mut output.content_language, input.response_content_language.take()),
            (&mut output.content_type, input.response_content_type.take()),
        ];
        let mut headers = expires::headers_of(&object);
        let mut overridden = false;
        for (field, value) in overrides {
            let Some(value) = value else { continue };
            // s3s refuses it for GetObject, and takes it for an error of its own here.
            if HeaderValue::from_bytes(value.as_bytes()).is_err() {
                return Err(s3_error!(InvalidRequest, "A header that the request asks for cannot be one."));
            }
            *field = Some(value);
            overridden = true;
        }
        if let Some(value) = input.response_expires.take() {
            output.expires = Some(value);
            headers.clear();
            overridden = true;
        }
        if overridden {
            refuse_anonymous_overrides(Caller::of(&req.extensions))?;
        }
        // S3 tells it of both reads, s3s of GetObject only.
        if !object.tags.is_empty() {
            headers.insert(TAGGING_COUNT, object.tags.len().into());
        }
        // s3s answers every HeadObject with 200; the HTTP service makes it 206 by its Content-Range.
        Ok(S3Response::with_headers(output, headers))
    }

    /// What is known about an object, by name.
    pub(crate) async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let input = &req.input;
        refuse_customer_key!(input);
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let (object, content) = self.readable(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        let mut output = GetObjectAttributesOutput {
            last_modified: Some(timestamp(object.last_modified_ms)),
            version_id: shown_version(&bucket, &object),
            ..Default::default()
        };
        // One header may list several.
        for name in input.object_attributes.iter().flat_map(|a| a.as_str().split(',')).map(str::trim) {
            match name {
                "ETag" => output.e_tag = Some(etag(&content.etag)),
                "ObjectSize" => output.object_size = Some(content.size_bytes() as i64),
                "StorageClass" => output.storage_class = Some(classes::shown(object.class.as_ref())),
                "Checksum" => {
                    output.checksum = content.checksum.as_ref().map(|checksum| {
                        let mut shown = dto::Checksum {
                            checksum_type: Some(checksums::dto_type(checksum.checksum_type)),
                            ..Default::default()
                        };
                        set_checksum!(shown, checksum.algorithm, checksum.to_s3_string());
                        shown
                    });
                }
                "ObjectParts" => {
                    // Once: a header has room for thousands of them, and a page for a thousand parts.
                    if !content.parts.is_empty() && output.object_parts.is_none() {
                        output.object_parts = Some(object_parts(&content, input.max_parts, input.part_number_marker)?);
                    }
                }
                _ => return Err(invalid_argument("Invalid attribute name specified.")),
            }
        }
        Ok(S3Response::new(output))
    }
}

fn object_parts(content: &Content, max: Option<i32>, marker: Option<i32>) -> S3Result<GetObjectAttributesParts> {
    let max = super::listing::page_limit(max, "max-parts")?;
    let after = super::listing::part_marker(marker)?;
    let start = content.parts.partition_point(|part| part.number <= after);
    let page: Vec<&ObjectPart> = content.parts[start..].iter().take(max as usize).collect();
    let is_truncated = start + page.len() < content.parts.len();
    let algorithm = content.checksum.as_ref().map(|checksum| checksum.algorithm);
    Ok(GetObjectAttributesParts {
        is_truncated: Some(is_truncated),
        max_parts: Some(max as i32),
        next_part_number_marker: page.last().map(|part| i32::from(part.number)),
        part_number_marker: Some(i32::from(after)),
        // Those without checksums, too, as S3 does in directory buckets only: who wants to know their sizes would have
        // to send a HEAD for each.
        parts: Some(
            page.iter()
                .map(|part| {
                    let mut shown = dto::ObjectPart {
                        part_number: Some(i32::from(part.number)),
                        size: Some(part.size_bytes as i64),
                        ..Default::default()
                    };
                    if let (Some(algorithm), Some(value)) = (algorithm, &part.checksum) {
                        set_checksum!(shown, algorithm, checksums::encode(value));
                    }
                    shown
                })
                .collect(),
        ),
        total_parts_count: Some(content.parts.len() as i32),
    })
}

fn refuse_anonymous_overrides(caller: &Caller) -> S3Result<()> {
    if matches!(caller, Caller::Anonymous) {
        return Err(s3_error!(
            InvalidRequest,
            "Request specific response headers cannot be used for anonymous GET requests."
        ));
    }
    Ok(())
}

fn content_range(selection: &Selection<'_>, content: &Content) -> Option<String> {
    let Range { start, end } = selection.range;
    selection.partial.then(|| format!("bytes {start}-{}/{}", end - 1, content.size_bytes()))
}

fn content_type(object: &ObjectVersion) -> String {
    object.attributes.content_type.clone().unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned())
}

/// `Expires`, if it is a date; what is none is a header that s3s does not write ([`expires`]).
fn expires_date(object: &ObjectVersion) -> Option<Timestamp> {
    let text = object.attributes.expires.as_deref()?;
    Timestamp::parse(TimestampFormat::HttpDate, text).ok()
}

fn user_metadata(object: &ObjectVersion) -> Option<dto::Metadata> {
    let metadata = &object.attributes.user_metadata;
    (!metadata.is_empty()).then(|| metadata.iter().cloned().collect())
}
