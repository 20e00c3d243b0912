//! Multipart uploads: create, upload part, abort, and the list of parts. Completing one is in [`complete`].

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use holdfast_actors::domain::objects::attributes;
use holdfast_actors::domain::objects::checksums::DEFAULT_ALGORITHM;
use holdfast_actors::domain::objects::labels::LabelAttributes;
use holdfast_actors::domain::objects::multipart::PART_NUMBER_MAX;
use holdfast_actors::domain::objects::tags::parse_tagging_header;
use holdfast_actors::flow::put::{BodyError, StoreRequest, store};
use holdfast_actors::ports::metadata::{ETag, NewUpload, Part, Upload};
use holdfast_protocol::label::PartLabel;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ChunkLabel, ContentId, UploadId, VersionId};
use s3s::dto::{
    self, AbortMultipartUploadInput, AbortMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, ListPartsInput, ListPartsOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::checksums::{self, BodyChecks, given_checksums, set_checksum};
use super::convert::{
    attribute_headers, canned_acl, etag, owner, owner_of_writes, refuse_customer_key, refuse_unsupported, timestamp,
    upload_id,
};
use super::errors::{ResultExt as _, invalid_argument, not_implemented};
use super::put::{announced_length, body_stream};
use super::{S3Front, classes};

mod complete;

/// Reads a part number.
pub(crate) fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|n| (1..=PART_NUMBER_MAX).contains(n))
        .ok_or_else(|| invalid_argument("Part number must be an integer between 1 and 10000, inclusive"))
}

/// The algorithm that an upload's parts are kept with.
pub(crate) fn part_algorithm(upload: &NewUpload) -> ChecksumAlgorithm {
    upload.checksum.map_or(DEFAULT_ALGORITHM, |(algorithm, _)| algorithm)
}

/// A part's ETag.
pub(crate) fn part_etag(part: &Part) -> dto::ETag {
    etag(&ETag { md5: part.md5, parts: None })
}

/// The checksum that an upload is created with.
fn chosen_checksum(
    algorithm: Option<&str>,
    checksum_type: Option<&str>,
) -> S3Result<Option<(ChecksumAlgorithm, ChecksumType)>> {
    let algorithm = algorithm.map(checksums::parse_algorithm).transpose()?;
    let checksum_type = checksum_type.map(checksums::parse_type).transpose()?;
    match (algorithm, checksum_type) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(s3_error!(
            InvalidRequest,
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
        )),
        (Some(algorithm), checksum_type) => {
            let checksum_type = checksum_type.unwrap_or(algorithm.default_type());
            if !algorithm.supports(checksum_type) {
                return Err(s3_error!(
                    InvalidRequest,
                    "The {} checksum type cannot be used with the {} checksum algorithm.",
                    checksums::dto_type(checksum_type).as_str(),
                    algorithm.as_str().to_lowercase()
                ));
            }
            Ok(Some((algorithm, checksum_type)))
        }
    }
}

impl S3Front {
    /// Starts an upload.
    pub(crate) async fn create_multipart_upload(
        &self,
        mut req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = &mut req.input;
        refuse_unsupported!(input);
        attributes::check_key(&input.key).s3()?;
        let checksum = chosen_checksum(
            input.checksum_algorithm.as_ref().map(|a| a.as_str()),
            input.checksum_type.as_ref().map(|t| t.as_str()),
        )?;
        let mut attributes = attribute_headers!(input).into_attributes(&req.extensions)?;
        let tags = parse_tagging_header(input.tagging.as_deref().unwrap_or_default()).s3()?;
        let acl = canned_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
        let bucket =
            self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        let id = UploadId::generate();
        attributes.completion = Some(complete::completion_mark((bucket.id, &req.input.key, id)));
        let upload = NewUpload {
            id,
            bucket: bucket.id,
            owner: owner_of_writes(&req, &bucket),
            key: req.input.key.clone(),
            now_ms: self.clock.now_ms(),
            attributes,
            tags,
            acl,
            checksum,
            class: self.class_of_write(&bucket, req.input.storage_class.as_ref()).await?,
        };
        self.metadata.create_upload(upload).await.s3()?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(id.to_string()),
            checksum_algorithm: checksum.map(|(algorithm, _)| checksums::dto_algorithm(algorithm)),
            checksum_type: checksum.map(|(_, checksum_type)| checksums::dto_type(checksum_type)),
            ..Default::default()
        }))
    }

    /// Stores a part. Answers after its bytes are on stable storage and the upload knows it.
    pub(crate) async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = &mut req.input;
        refuse_customer_key!(input);
        let number = part_number(input.part_number)?;
        let size_bytes = announced_length(input.content_length, &req.headers, input.body.as_ref())?;
        let body = body_stream(input.body.take());
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let upload = self.metadata.upload(bucket.id, &input.key, upload_id(&input.upload_id)?).await.s3()?;
        let checks = BodyChecks::of(
            &req.headers,
            input.content_md5.as_deref(),
            given_checksums!(input),
            req.trailing_headers.take(),
            Some(part_algorithm(&upload.new)),
        )?;
        if let (Some((expected, _)), Some(actual)) = (upload.new.checksum, checks.chosen)
            && expected != actual
        {
            return Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                expected.as_str().to_lowercase(),
                actual.as_str().to_lowercase()
            ));
        }
        let chosen = checks.chosen;
        let shown_algorithm = chosen.or(upload.new.checksum.map(|(algorithm, _)| algorithm));
        let given = given_checksums!(input).next().map(|(_, value)| value.to_owned());
        let part = self.write_part(&upload, number, size_bytes, body, checks).await?;

        let mut output = UploadPartOutput { e_tag: Some(part_etag(&part)), ..Default::default() };
        match (shown_algorithm, &part.checksum) {
            (Some(shown), Some((kept, value))) if shown == *kept => {
                set_checksum!(output, shown, checksums::encode(value));
            }
            // Another checksum than the upload keeps: it was compared, so it is the one that was sent.
            (Some(shown), _) => {
                if let Some(value) = given {
                    set_checksum!(output, shown, value);
                }
            }
            (None, _) => {}
        }
        Ok(S3Response::new(output))
    }

    /// Stores the bytes of a part and records it.
    pub(crate) async fn write_part(
        &self,
        upload: &Arc<Upload>,
        number: u16,
        size_bytes: u64,
        body: impl Stream<Item = Result<Bytes, BodyError>>,
        checks: BodyChecks,
    ) -> S3Result<Part> {
        let new = &upload.new;
        let begun_ms = self.clock.now_ms();
        let attributes = LabelAttributes {
            owner: &new.owner,
            attributes: &new.attributes,
            tags: &new.tags,
            acl: new.acl,
            class: new.class.as_ref(),
            left_out: None,
        };
        let request = StoreRequest {
            content: ContentId::generate(begun_ms / 1000),
            label: ChunkLabel {
                bucket: upload.bucket_name.clone(),
                key: new.key.clone(),
                version: VersionId::NULL,
                part: Some(PartLabel { upload: new.id, number }),
                content_size_bytes: size_bytes,
                created_ms: begun_ms,
                attributes: Some(serde_json::to_string(&attributes).map_err(S3Error::internal_error)?),
                is_stub: false,
            },
            algorithms: checks.algorithms.clone(),
        };
        let stored = store(&self.chunks, request, body, |digests| checks.verify(digests)).await.s3()?;
        let algorithm = part_algorithm(new);
        let part = Part {
            number,
            content: stored.id(),
            size_bytes,
            md5: stored.digests.md5,
            checksum: stored.digests.checksum(algorithm).map(|value| (algorithm, value.to_vec())),
            last_modified_ms: self.clock.now_ms(),
        };
        let evidence = stored.evidence.clone();
        stored.settle(self.metadata.put_part(new.bucket, &new.key, new.id, part.clone(), evidence)).await.s3()?;
        Ok(part)
    }

    /// Ends an upload and gives its parts up.
    pub(crate) async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = &req.input;
        if input.if_match_initiated_time.is_some() {
            return Err(not_implemented("aborting by initiation time"));
        }
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let id = upload_id(&input.upload_id)?;
        self.metadata.abort_upload(bucket.id, &input.key, id, self.clock.now_ms()).await.s3()?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    /// A page of an upload's parts.
    pub(crate) async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = &req.input;
        refuse_customer_key!(input);
        let limit = super::listing::page_limit(input.max_parts, "max-parts")?;
        let after = super::listing::part_marker(input.part_number_marker)?;
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let id = upload_id(&input.upload_id)?;
        let upload = self.metadata.upload(bucket.id, &input.key, id).await.s3()?;
        // One more than is shown tells whether the list goes on.
        let mut parts = self.metadata.list_parts(id, after, limit + 1).await.s3()?;
        let is_truncated = limit > 0 && parts.len() > limit as usize;
        parts.truncate(limit as usize);
        let chosen = upload.new.checksum;
        let shown = parts
            .iter()
            .map(|part| {
                let mut shown = dto::Part {
                    e_tag: Some(part_etag(part)),
                    last_modified: Some(timestamp(part.last_modified_ms)),
                    part_number: Some(i32::from(part.number)),
                    size: Some(part.size_bytes as i64),
                    ..Default::default()
                };
                if let (Some(_), Some((algorithm, value))) = (chosen, &part.checksum) {
                    set_checksum!(shown, *algorithm, checksums::encode(value));
                }
                shown
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            upload_id: Some(input.upload_id.clone()),
            checksum_algorithm: chosen.map(|(algorithm, _)| checksums::dto_algorithm(algorithm)),
            checksum_type: chosen.map(|(_, checksum_type)| checksums::dto_type(checksum_type)),
            initiator: Some(super::listing::initiator(&upload.new.owner)),
            owner: Some(owner(&upload.new.owner)),
            is_truncated: Some(is_truncated),
            max_parts: Some(limit as i32),
            part_number_marker: Some(i32::from(after)),
            next_part_number_marker: parts.last().map(|part| i32::from(part.number)),
            parts: Some(shown),
            storage_class: Some(classes::shown(upload.new.class.as_ref())),
            ..Default::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_an_upload() {
        let code = |result: S3Result<_>| result.map_err(|error| error.code().as_str().to_owned());
        assert_eq!(code(chosen_checksum(None, None)), Ok(None));
        let default = Ok(Some((ChecksumAlgorithm::Crc32, ChecksumType::Composite)));
        assert_eq!(code(chosen_checksum(Some("CRC32"), None)), default);
        let full = Ok(Some((ChecksumAlgorithm::Crc64Nvme, ChecksumType::FullObject)));
        assert_eq!(code(chosen_checksum(Some("CRC64NVME"), None)), full);
        for (algorithm, checksum_type) in [
            (None, Some("FULL_OBJECT")),
            (Some("SHA1"), Some("FULL_OBJECT")),
            (Some("CRC64NVME"), Some("COMPOSITE")),
            (Some("MD5"), None),
        ] {
            assert_eq!(code(chosen_checksum(algorithm, checksum_type)), Err("InvalidRequest".to_owned()));
        }
    }

    #[test]
    fn part_numbers() {
        assert_eq!(part_number(1).unwrap(), 1);
        assert_eq!(part_number(10_000).unwrap(), 10_000);
        for bad in [0, -1, 10_001, 65_537] {
            assert!(part_number(bad).is_err(), "{bad}");
        }
    }
}
