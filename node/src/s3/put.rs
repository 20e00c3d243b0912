//! PutObject.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use holdfast_actors::domain::events::EventDraft;
use holdfast_actors::domain::objects::labels::LabelAttributes;
use holdfast_actors::domain::objects::tags::parse_tagging_header;
use holdfast_actors::domain::objects::{SINGLE_PUT_SIZE_MAX, attributes};
use holdfast_actors::flow::put::{BodyError, StoreRequest, StoredContent, store};
use holdfast_actors::ports::metadata::{
    Bucket, CannedAcl, Committed, Content, ContentPlace, ContentSource, ETag, NewObject, ObjectAttributes,
    ReplicaEvidence, Tag, Versioning, WritePrecondition,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChunkLabel, ContentId, EventName, TierName, VersionId};
use s3s::dto::{PutObjectInput, PutObjectOutput, StreamingBlob};
use s3s::stream::ByteStream as _;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::auth::FormCaller;
use super::checksums::{self, BodyChecks, given_checksums, set_checksum};
use super::convert::{attribute_headers, canned_acl, etag, owner_of_writes, refuse_unsupported, write_precondition};
use super::errors::{ResultExt as _, not_implemented};

/// Everything of an object but its bytes.
#[derive(Debug, Clone)]
pub(crate) struct ObjectHead {
    pub(crate) key: String,
    pub(crate) version: VersionId,
    pub(crate) owner: String,
    pub(crate) attributes: ObjectAttributes,
    pub(crate) tags: Vec<Tag>,
    pub(crate) acl: CannedAcl,
    /// Storage class; `None`: `STANDARD`.
    pub(crate) class: Option<TierName>,
    pub(crate) precondition: WritePrecondition,
    pub(crate) event: Option<EventDraft>,
}

impl ObjectHead {
    /// The label of chunks that hold the object's bytes. The version is the one it will have in the bucket as it is
    /// now.
    pub(crate) fn label(&self, bucket: &Bucket, size_bytes: u64, now_ms: u64) -> S3Result<ChunkLabel> {
        let attributes = LabelAttributes {
            owner: &self.owner,
            attributes: &self.attributes,
            tags: &self.tags,
            acl: self.acl,
            class: self.class.as_ref(),
            left_out: None,
        };
        Ok(ChunkLabel {
            bucket: bucket.name.clone(),
            key: self.key.clone(),
            version: if bucket.versioning == Versioning::Enabled { self.version } else { VersionId::NULL },
            part: None,
            content_size_bytes: size_bytes,
            created_ms: now_ms,
            attributes: Some(serde_json::to_string(&attributes).map_err(s3s::S3Error::internal_error)?),
            is_stub: false,
        })
    }

    /// The commit that makes the object visible.
    pub(crate) fn into_new_object(
        self,
        bucket: &Bucket,
        content: ContentSource,
        evidence: ReplicaEvidence,
        now_ms: u64,
    ) -> NewObject {
        NewObject {
            bucket: bucket.id,
            key: self.key,
            version: self.version,
            now_ms,
            owner: self.owner,
            content,
            attributes: self.attributes,
            tags: self.tags,
            acl: self.acl,
            precondition: self.precondition,
            event: self.event,
            evidence,
            class: self.class,
        }
    }
}

/// The length of a body: S3 takes no body of unknown length.
pub(crate) fn announced_length(
    content_length: Option<i64>,
    headers: &http::HeaderMap,
    body: Option<&StreamingBlob>,
) -> S3Result<u64> {
    let announced = match content_length {
        Some(length) => u64::try_from(length).ok(),
        None => match headers.get("x-amz-decoded-content-length") {
            Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()),
            None => body.map_or(Some(0), |body| body.remaining_length().exact().map(|length| length as u64)),
        },
    };
    let Some(length) = announced else {
        return Err(s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."));
    };
    if length > SINGLE_PUT_SIZE_MAX {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    Ok(length)
}

/// A body to read from; requests without one have an empty one.
pub(crate) fn body_stream(body: Option<StreamingBlob>) -> impl Stream<Item = Result<Bytes, BodyError>> {
    body.unwrap_or_else(|| StreamingBlob::from(Body::empty()))
}

/// The content of bytes that were put in one piece.
pub(crate) fn single_content(stored: &StoredContent, checksum: Option<Checksum>) -> Content {
    Content {
        id: stored.id(),
        manifest: stored.manifest(),
        etag: ETag { md5: stored.digests.md5, parts: None },
        checksum,
        parts: vec![],
        place: ContentPlace::Cluster,
    }
}

/// The version id that an answer carries: none while the bucket never had versioning on.
pub(crate) fn answered_version(committed: &Committed) -> Option<String> {
    (committed.versioning != Versioning::Unversioned).then(|| committed.object.version.to_string())
}

impl S3Front {
    /// Writes an object. Answers after its bytes are on stable storage and its metadata is committed.
    pub(crate) async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &mut req.input;
        refuse_unsupported!(input);
        if input.write_offset_bytes.is_some() {
            return Err(not_implemented("appending"));
        }
        attributes::check_key(&input.key).s3()?;
        let size_bytes = announced_length(input.content_length, &req.headers, input.body.as_ref())?;
        let checks = BodyChecks::of(
            &req.headers,
            input.content_md5.as_deref(),
            given_checksums!(input),
            req.trailing_headers.take(),
            None,
        )?;
        let precondition = write_precondition(input.if_match.take(), input.if_none_match.take())?;
        let attributes = attribute_headers!(input).into_attributes(&req.extensions)?;
        let tags = parse_tagging_header(input.tagging.as_deref().unwrap_or_default()).s3()?;
        let acl = canned_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
        let body = body_stream(input.body.take());
        let bucket =
            self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        let class = self.class_of_write(&bucket, req.input.storage_class.as_ref()).await?;
        let name = match req.extensions.get::<FormCaller>() {
            Some(_) => EventName::CreatedPost,
            None => EventName::CreatedPut,
        };
        let head = ObjectHead {
            event: self.event(&req.extensions, &bucket, name),
            owner: owner_of_writes(&req, &bucket),
            key: req.input.key,
            version: self.new_version(),
            attributes,
            tags,
            acl,
            class,
            precondition,
        };
        let committed = self.write_object(&bucket, head, size_bytes, body, checks).await?;

        let mut output = PutObjectOutput {
            expiration: self.expiration(&bucket, &committed.object),
            version_id: answered_version(&committed),
            ..Default::default()
        };
        if let Some(content) = &committed.object.content {
            output.e_tag = Some(etag(&content.etag));
            if let Some(checksum) = &content.checksum {
                set_checksum!(output, checksum.algorithm, checksum.to_s3_string());
                output.checksum_type = Some(checksums::dto_type(checksum.checksum_type));
            }
        }
        Ok(S3Response::new(output))
    }

    /// Stores bytes as a new object and commits it.
    pub(crate) async fn write_object(
        &self,
        bucket: &Arc<Bucket>,
        head: ObjectHead,
        size_bytes: u64,
        body: impl Stream<Item = Result<Bytes, BodyError>>,
        checks: BodyChecks,
    ) -> S3Result<Committed> {
        let begun_ms = self.clock.now_ms();
        let request = StoreRequest {
            content: ContentId::generate(begun_ms / 1000),
            label: head.label(bucket, size_bytes, begun_ms)?,
            algorithms: checks.algorithms.clone(),
        };
        let stored = store(&self.chunks, request, body, |digests| checks.verify(digests)).await.s3()?;
        let content = single_content(&stored, checksums::kept_checksum(&stored.digests));
        let object =
            head.into_new_object(bucket, ContentSource::New(content), stored.evidence.clone(), self.clock.now_ms());
        stored.settle(self.metadata.commit_object(object)).await.s3()
    }
}
