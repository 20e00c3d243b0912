//! Multipart uploads: create, upload part, complete, abort, and their listings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use holdfast_actors::domain::objects::checksums::{DEFAULT_ALGORITHM, multipart_etag};
use holdfast_actors::domain::objects::conditions::parse_etag;
use holdfast_actors::domain::objects::labels::LabelAttributes;
use holdfast_actors::domain::objects::multipart::{
    self, Assembled, ExpectedObject, NamedPart, PART_NUMBER_MAX, check_order,
};
use holdfast_actors::domain::objects::tags::parse_tagging_header;
use holdfast_actors::domain::objects::{PAGE_SIZE_MAX, attributes};
use holdfast_actors::flow::put::{BodyError, StoreRequest, store};
use holdfast_actors::ports::locks::{Lease, LockName};
use holdfast_actors::ports::metadata::{
    Bucket, BucketId, CompleteUpload, ETag, NewUpload, ObjectVersion, Part, Upload, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::label::PartLabel;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ChunkLabel, ContentId, EventName, UploadId, VersionId};
use s3s::dto::{
    self, AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, ListPartsInput,
    ListPartsOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::checksums::{self, BodyChecks, given_checksums, set_checksum};
use super::classes;
use super::convert::{
    attribute_headers, canned_acl, etag, owner, owner_of_writes, refuse_customer_key, refuse_unsupported, timestamp,
    upload_id, write_precondition,
};
use super::errors::{ResultExt as _, invalid_argument, not_implemented};
use super::facts::ClientConnection;
use super::put::{announced_length, answered_version, body_stream};

/// Completions that name fewer parts are done before a lock is had.
const LOCKED_PARTS_MIN: usize = 1_000;

/// How long a completion waits for another one of the same upload: a little longer than one takes.
const COMPLETION_PATIENCE: Duration = Duration::from_secs(10);

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

/// Splits `base64-N`, the form of a composite checksum.
fn object_checksum(algorithm: ChecksumAlgorithm, text: &str) -> S3Result<(ChecksumAlgorithm, Vec<u8>, Option<u32>)> {
    let (value, parts) = match text.rsplit_once('-') {
        Some((value, parts)) => {
            let parts = parts
                .parse()
                .map_err(|_| s3_error!(InvalidRequest, "Value for {} header is invalid.", algorithm.header()))?;
            (value, Some(parts))
        }
        None => (text, None),
    };
    Ok((algorithm, checksums::decode(algorithm, value)?, parts))
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
        let attributes = attribute_headers!(input).into_attributes()?;
        let tags = parse_tagging_header(input.tagging.as_deref().unwrap_or_default()).s3()?;
        let acl = canned_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
        let bucket =
            self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        let upload = NewUpload {
            id: UploadId::generate(),
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
        let id = upload.id;
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

    /// All parts of an upload; at most 10,000.
    async fn all_parts(&self, upload: UploadId) -> S3Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        loop {
            let after = parts.last().map_or(0, |part| part.number);
            let page = self.metadata.list_parts(upload, after, PAGE_SIZE_MAX).await.s3()?;
            let full = page.len() == PAGE_SIZE_MAX as usize;
            parts.extend(page);
            if !full {
                return Ok(parts);
            }
        }
    }

    /// Waits for whoever completes the same upload, where that is much work: a client that lost patience asks again, often
    /// another node. Metadata lets only one of them through in any case, so without the lock it goes on too.
    async fn completion_lock(&self, upload: UploadId, parts: usize) -> Option<Lease> {
        if parts < LOCKED_PARTS_MIN {
            return None;
        }
        let name = LockName::new(format!("upload-{upload}")).ok()?;
        match self.locks.acquire(&name, COMPLETION_PATIENCE).await {
            Ok(lease) => Some(lease),
            Err(error) => {
                tracing::debug!(%upload, %error, "an upload is completed without its lock");
                None
            }
        }
    }

    /// Makes an object of an upload's parts. No byte moves: the object's manifest names the parts' contents.
    pub(crate) async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = &mut req.input;
        refuse_customer_key!(input);
        let conditional = input.if_match.is_some() || input.if_none_match.is_some();
        let precondition = write_precondition(input.if_match.take(), input.if_none_match.take())?;
        let named = named_parts(input.multipart_upload.take())?;
        check_order(&named).s3()?;
        let expected = ExpectedObject {
            size_bytes: input
                .mpu_object_size
                .map(|size| u64::try_from(size).map_err(|_| invalid_argument("invalid x-amz-mp-object-size")))
                .transpose()?,
            checksum: given_checksums!(input).next().map(|(a, text)| object_checksum(a, text)).transpose()?,
            checksum_type: input.checksum_type.as_ref().map(|t| checksums::parse_type(t.as_str())).transpose()?,
        };
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let id = upload_id(&input.upload_id)?;
        let _alone = self.completion_lock(id, named.len()).await;
        let version = self.new_version();
        let event = self.event(&req.extensions, &bucket, EventName::CreatedCompleteMultipartUpload);
        let completed = async {
            let upload = self.metadata.upload(bucket.id, &req.input.key, id).await.s3()?;
            let stored = self.all_parts(id).await?;
            let now_ms = self.clock.now_ms();
            let Assembled { parts, content } = multipart::assemble(
                content_of((bucket.id, &req.input.key, id), now_ms / 1000),
                &named,
                &stored,
                upload.new.checksum,
                &expected,
            )
            .s3()?;
            let completion = CompleteUpload {
                bucket: bucket.id,
                key: req.input.key.clone(),
                upload: id,
                parts,
                content,
                version,
                now_ms,
                precondition,
                event,
            };
            let committed = self.metadata.complete_upload(completion).await.s3()?;
            let version = answered_version(&committed);
            Ok::<_, S3Error>((committed.object, version))
        };
        let (object, version_id) = match completed.await {
            Err(error) if *error.code() == S3ErrorCode::NoSuchUpload && !conditional => {
                self.completed_before(&bucket, (&req.input.key, id), &named).await.ok_or(error)?
            }
            result => result?,
        };

        let mut output = CompleteMultipartUploadOutput {
            location: Some(location(&req, &req.input.bucket, &req.input.key)),
            expiration: self.expiration(&bucket, &object),
            version_id,
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            ..Default::default()
        };
        if let Some(content) = &object.content {
            output.e_tag = Some(etag(&content.etag));
            if let Some(checksum) = &content.checksum {
                let text = Checksum::to_s3_string(checksum);
                set_checksum!(output, checksum.algorithm, text);
                output.checksum_type = Some(checksums::dto_type(checksum.checksum_type));
            }
        }
        Ok(S3Response::new(output))
    }

    /// The object that this very upload became, if it is there already: a client that did not hear the answer asks again, and
    /// by then the upload is gone. One that was aborted became none, though another may have brought the same bytes. Once the
    /// bytes were moved to or from a tier that cannot be told any more.
    async fn completed_before(
        &self,
        bucket: &Bucket,
        (key, upload): (&str, UploadId),
        named: &[NamedPart],
    ) -> Option<(Arc<ObjectVersion>, Option<String>)> {
        let object = self.metadata.object(bucket.id, key, None).await.ok()?;
        let content = object.content.as_ref()?;
        if content.id != content_of((bucket.id, key, upload), content.id.unix_seconds()) {
            return None;
        }
        let md5s: Vec<[u8; 16]> = named.iter().map(|part| part.etag.map(|etag| etag.md5)).collect::<Option<_>>()?;
        let same = content.etag == multipart_etag(&md5s)
            && content.parts.iter().map(|part| part.number).eq(named.iter().map(|part| part.number));
        let version = (bucket.versioning != Versioning::Unversioned).then(|| object.version.to_string());
        same.then(|| (Arc::clone(&object), version))
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

/// Names the content that an upload to a key becomes, so that it can be told later which upload that was.
fn content_of((bucket, key, upload): (BucketId, &str, UploadId), unix_seconds: u64) -> ContentId {
    let named = [&upload.as_bytes()[..], &bucket.0.to_be_bytes(), key.as_bytes()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &named);
    let mut id = ContentId::generate(unix_seconds);
    id.0[4..].copy_from_slice(&digest.as_ref()[..8]);
    id
}

/// The parts that a completion names.
fn named_parts(list: Option<dto::CompletedMultipartUpload>) -> S3Result<Vec<NamedPart>> {
    let malformed = || {
        s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        )
    };
    list.and_then(|list| list.parts)
        .unwrap_or_default()
        .into_iter()
        .map(|part| {
            let etag = part.e_tag.as_ref().ok_or_else(malformed)?;
            Ok(NamedPart {
                number: part_number(part.part_number.ok_or_else(malformed)?)?,
                etag: parse_etag(etag.value()),
                checksums: given_checksums!(part)
                    .map(|(algorithm, text)| Ok((algorithm, checksums::decode(algorithm, text)?)))
                    .collect::<S3Result<_>>()?,
            })
        })
        .collect()
}

/// Where the object can be found, by the host that the client spoke to.
fn location<T>(req: &S3Request<T>, bucket: &str, key: &str) -> String {
    let key = super::listing::url_encode(key);
    let tls = req.extensions.get::<ClientConnection>().is_some_and(|connection| connection.tls);
    let scheme = if tls { "https" } else { "http" };
    match req.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()) {
        Some(host) if host.split('.').next() == Some(bucket) => format!("{scheme}://{host}/{key}"),
        Some(host) => format!("{scheme}://{host}/{bucket}/{key}"),
        None => format!("/{bucket}/{key}"),
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
    fn composite_values_carry_their_part_count() {
        let (_, value, parts) = object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==-3").unwrap();
        assert_eq!((value, parts), (vec![0, 0, 0, 1], Some(3)));
        assert!(object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==-x").is_err());
        assert_eq!(object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==").unwrap().2, None);
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
