//! CopyObject and UploadPartCopy.
//!
//! A copy shares the content of its source: no byte moves, whatever the size, and the copy keeps ETag and checksum.
//! Only when the request wants another checksum than the source has are the bytes read and written anew. A part copy
//! always writes anew, since a part's chunks belong to its upload.
//!
//! That holds for cold objects too: a copy of one is as cold. The class of a copy is the one that the request names, or
//! the bucket's default, never its source's; where the bytes lie elsewhere, they are moved after the commit.

use std::sync::Arc;

use futures::TryStreamExt as _;
use holdfast_actors::domain::objects::conditions::{ReadConditions, ReadDecision};
use holdfast_actors::domain::objects::ranges::ByteRange;
use holdfast_actors::domain::objects::tags::parse_tagging_header;
use holdfast_actors::domain::objects::{SINGLE_PUT_SIZE_MAX, attributes};
use holdfast_actors::flow::get::ObjectReader;
use holdfast_actors::flow::put::BodyError;
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Committed, Content, ContentSource, ObjectVersion, ReplicaEvidence, Versioning};
use holdfast_protocol::EventName;
use http::{Extensions, HeaderMap};
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource, UploadPartCopyInput,
    UploadPartCopyOutput,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::access::{CopiedTags, SourceBucket};
use super::checksums::{self, BodyChecks, set_checksum};
use super::convert::{
    attribute_headers, canned_acl, check_expected_owner, etag, owner_of_writes, read_conditions, refuse_customer_key,
    refuse_unsupported, timestamp, upload_id, write_precondition_of_headers,
};
use super::errors::{ResultExt as _, ToS3 as _, invalid_argument, not_implemented, precondition_failed};
use super::judged::Judged;
use super::put::{ObjectHead, answered_version};

/// How often a copy looks at its source again when the content was reclaimed under it. Each time means that the source
/// was overwritten and a grace has passed since it was read, so even the second is rare.
const SOURCE_READS_MAX: usize = 3;

/// A source as a request names it.
struct SourceName<'a> {
    bucket: &'a str,
    key: &'a str,
    version: Option<&'a str>,
}

/// A source that was found.
struct Source {
    object: Arc<ObjectVersion>,
    content: Arc<Content>,
    /// `x-amz-copy-source-version-id`
    shown_version: Option<String>,
}

fn source_name(source: &CopySource) -> S3Result<SourceName<'_>> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => {
            Ok(SourceName { bucket, key, version: version_id.as_deref() })
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(not_implemented("copying from an access point"))
        }
    }
}

impl S3Front {
    async fn copy_source(
        &self,
        extensions: &Extensions,
        name: &SourceName<'_>,
        expected_owner: Option<&str>,
        conditions: &ReadConditions,
    ) -> S3Result<Source> {
        let bucket = match SourceBucket::of(extensions) {
            Some(bucket) if bucket.name == name.bucket => {
                check_expected_owner(bucket, expected_owner)?;
                Arc::clone(bucket)
            }
            _ => self.bucket_of(extensions, name.bucket, expected_owner).await?,
        };
        let (object, content) = self.readable(&bucket, name.key, name.version).await.map_err(|error| {
            if error.code().as_str() == "MethodNotAllowed" {
                return s3_error!(
                    InvalidRequest,
                    "The source of a copy request may not specifically refer to a delete marker by version id."
                );
            }
            error
        })?;
        Judged::check(extensions, &bucket, name.key, name.version, &object)?;
        if conditions.evaluate(&content.etag, object.last_modified_ms) != ReadDecision::Proceed {
            return Err(precondition_failed());
        }
        let shown_version = (bucket.versioning != Versioning::Unversioned).then(|| object.version.to_string());
        Ok(Source { object, content, shown_version })
    }

    /// Copies an object by sharing its content.
    pub(crate) async fn copy_object(
        &self,
        mut req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = &mut req.input;
        refuse_unsupported!(input);
        refuse_source_key(
            input.copy_source_sse_customer_algorithm.is_some() || input.copy_source_sse_customer_key.is_some(),
        )?;
        attributes::check_key(&input.key).s3()?;
        let conditions = read_conditions(
            input.copy_source_if_match.take(),
            input.copy_source_if_none_match.take(),
            input.copy_source_if_modified_since.take(),
            input.copy_source_if_unmodified_since.take(),
        );
        let replace_metadata = replaces("metadata", input.metadata_directive.as_ref().map(|d| d.as_str()))?;
        let replace_tags = replaces("tagging", input.tagging_directive.as_ref().map(|d| d.as_str()))?;
        let redirects = input.website_redirect_location.is_some();
        let given_attributes = attribute_headers!(input).into_attributes(&req.extensions)?;
        let given_tags = parse_tagging_header(input.tagging.as_deref().unwrap_or_default()).s3()?;
        let acl = canned_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
        let algorithm =
            input.checksum_algorithm.as_ref().map(|a| checksums::parse_algorithm(a.as_str())).transpose()?;
        let precondition = write_precondition_of_headers(&req.headers)?;

        let input = &req.input;
        let name = source_name(&input.copy_source)?;
        if *name.bucket == input.bucket
            && *name.key == input.key
            && name.version.is_none()
            && !replace_metadata
            && !redirects
            // How clients change the class of an object. S3 does not look whether it was another one.
            && input.storage_class.is_none()
        {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the \
                 object's metadata, storage class, website redirect location or encryption attributes."
            ));
        }
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let owner = owner_of_writes(&req, &bucket);
        let class = self.class_of_write(&bucket, input.storage_class.as_ref()).await?;

        for _ in 0..SOURCE_READS_MAX {
            let source = self
                .copy_source(&req.extensions, &name, input.expected_source_bucket_owner.as_deref(), &conditions)
                .await?;
            if source.content.size_bytes() > SINGLE_PUT_SIZE_MAX {
                return Err(s3_error!(
                    InvalidRequest,
                    "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120"
                ));
            }
            let tags = if replace_tags { &given_tags } else { &source.object.tags };
            if !replace_tags && !CopiedTags::allow(&req.extensions, tags) {
                return Err(s3_error!(OperationAborted, "The tags of the copy source were changed. Please try again."));
            }
            let mut attributes =
                if replace_metadata { given_attributes.clone() } else { source.object.attributes.clone() };
            // Not part of what is copied: it is given or absent.
            attributes.website_redirect_location.clone_from(&given_attributes.website_redirect_location);
            let head = ObjectHead {
                key: input.key.clone(),
                version: self.new_version(),
                owner: owner.clone(),
                attributes,
                tags: tags.clone(),
                acl,
                class: class.clone(),
                precondition: precondition.clone(),
                event: self.event(&req.extensions, &bucket, EventName::CreatedCopy),
            };
            let rewrite = algorithm
                .filter(|algorithm| source.content.checksum.as_ref().is_none_or(|c| c.algorithm != *algorithm));
            let committed = if let Some(algorithm) = rewrite {
                let size_bytes = source.content.size_bytes();
                let checks = BodyChecks::of(&HeaderMap::new(), None, std::iter::empty(), None, Some(algorithm))?;
                let body = self.source_body(&source.content, 0..size_bytes).await?.map_err(BodyError::from);
                self.write_object(&bucket, head, size_bytes, body, checks).await?
            } else {
                let content = ContentSource::Shared(source.content.id);
                let object = head.into_new_object(&bucket, content, ReplicaEvidence::default(), self.clock.now_ms());
                match self.metadata.commit_object(object).await {
                    Err(MetadataError::NoSuchContent) => continue,
                    result => result.s3()?,
                }
            };
            let expiration = self.expiration(&bucket, &committed.object);
            return Ok(S3Response::new(CopyObjectOutput { expiration, ..copied(&committed, source) }));
        }
        Err(MetadataError::NoSuchContent.to_s3())
    }

    /// Bytes of a content, for the body of a write. The first are there, so that nothing is begun when they cannot be
    /// read.
    async fn source_body(&self, content: &Arc<Content>, range: std::ops::Range<u64>) -> S3Result<ObjectReader> {
        let mut reader = ObjectReader::new(&self.chunks, &self.cold, Arc::clone(content), range).s3()?.copied();
        reader.prefetch().await.s3()?;
        Ok(reader)
    }

    /// Writes a range of an object as a part of an upload.
    pub(crate) async fn upload_part_copy(
        &self,
        mut req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = &mut req.input;
        refuse_customer_key!(input);
        refuse_source_key(
            input.copy_source_sse_customer_algorithm.is_some() || input.copy_source_sse_customer_key.is_some(),
        )?;
        let conditions = read_conditions(
            input.copy_source_if_match.take(),
            input.copy_source_if_none_match.take(),
            input.copy_source_if_modified_since.take(),
            input.copy_source_if_unmodified_since.take(),
        );
        let number = super::multipart::part_number(input.part_number)?;
        let input = &req.input;
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let upload = self.metadata.upload(bucket.id, &input.key, upload_id(&input.upload_id)?).await.s3()?;
        let name = source_name(&input.copy_source)?;
        let source = self
            .copy_source(&req.extensions, &name, input.expected_source_bucket_owner.as_deref(), &conditions)
            .await?;
        let size_bytes = source.content.size_bytes();
        let range = match input.copy_source_range.as_deref() {
            None => 0..size_bytes,
            Some(text) => {
                let range = ByteRange::parse_copy_source_range(text).ok_or_else(|| {
                    invalid_argument(
                        "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last \
                         are the zero-based offsets of the first and last bytes to copy",
                    )
                })?;
                let resolved = range.resolve(size_bytes).ok();
                // Unlike a read, a part copy does not cut its range at the end of the source.
                match (range, resolved) {
                    (ByteRange::From { last: Some(last), .. }, Some(resolved))
                        if Some(resolved.end) == last.checked_add(1) =>
                    {
                        resolved
                    }
                    _ => {
                        return Err(invalid_argument(format!(
                            "Range specified is not valid for source object of size: {size_bytes}"
                        )));
                    }
                }
            }
        };
        let length = range.end - range.start;
        if length > SINGLE_PUT_SIZE_MAX {
            return Err(s3_error!(
                InvalidRequest,
                "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120"
            ));
        }
        let kept = super::multipart::part_algorithm(&upload.new);
        let checks = BodyChecks::of(&HeaderMap::new(), None, std::iter::empty(), None, Some(kept))?;
        let body = self.source_body(&source.content, range).await?.map_err(BodyError::from);
        let part = self.write_part(&upload, number, length, body, checks).await?;

        let mut result = CopyPartResult {
            e_tag: Some(super::multipart::part_etag(&part)),
            last_modified: Some(timestamp(part.last_modified_ms)),
            ..Default::default()
        };
        if let (Some(_), Some((algorithm, value))) = (upload.new.checksum, &part.checksum) {
            set_checksum!(result, *algorithm, checksums::encode(value));
        }
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(result),
            copy_source_version_id: source.shown_version,
            ..Default::default()
        }))
    }
}

fn copied(committed: &Committed, source: Source) -> CopyObjectOutput {
    let object = &committed.object;
    let mut result = CopyObjectResult { last_modified: Some(timestamp(object.last_modified_ms)), ..Default::default() };
    if let Some(content) = &object.content {
        result.e_tag = Some(etag(&content.etag));
        if let Some(checksum) = &content.checksum {
            set_checksum!(result, checksum.algorithm, checksum.to_s3_string());
            result.checksum_type = Some(checksums::dto_type(checksum.checksum_type));
        }
    }
    CopyObjectOutput {
        copy_object_result: Some(result),
        copy_source_version_id: source.shown_version,
        version_id: answered_version(committed),
        ..Default::default()
    }
}

/// Reads a directive about the metadata or the tags of a copy: whether it says `REPLACE`.
fn replaces(what: &str, directive: Option<&str>) -> S3Result<bool> {
    match directive {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(invalid_argument(format!("Unknown {what} directive."))),
    }
}

fn refuse_source_key(given: bool) -> S3Result<()> {
    if given { Err(not_implemented("server-side encryption with customer keys")) } else { Ok(()) }
}
