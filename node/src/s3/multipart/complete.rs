//! Completing an upload: its parts become an object.

use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::domain::objects::PAGE_SIZE_MAX;
use holdfast_actors::domain::objects::checksums::multipart_etag;
use holdfast_actors::domain::objects::conditions::parse_etag;
use holdfast_actors::domain::objects::multipart::{self, Assembled, ExpectedObject, NamedPart, check_order};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::locks::{Lease, LockName};
use holdfast_actors::ports::metadata::{Bucket, BucketId, CompleteUpload, ObjectVersion, Part, Versioning};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ContentId, EventName, UploadId};
use s3s::dto::{self, CompleteMultipartUploadInput, CompleteMultipartUploadOutput};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::part_number;
use crate::s3::checksums::{self, given_checksums, set_checksum};
use crate::s3::convert::{etag, refuse_customer_key, upload_id, write_precondition};
use crate::s3::errors::{ResultExt as _, invalid_argument};
use crate::s3::facts::ClientConnection;
use crate::s3::put::answered_version;
use crate::s3::{S3Front, listing};

/// Completions that name fewer parts are done before a lock is had.
const LOCKED_PARTS_MIN: usize = 1_000;

/// How long a completion waits for another one of the same upload: a little longer than one takes.
const COMPLETION_PATIENCE: Duration = Duration::from_secs(10);

/// How often a completion looks at its parts when one of them was stored anew meanwhile. The client may know nothing of
/// that: an attempt at sending a part that it gave up, and whose commit comes late, brings the same bytes once more.
const PARTS_READS_MAX: usize = 3;

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
            let mut reads_left = PARTS_READS_MAX;
            let committed = loop {
                let stored = self.all_parts(id).await?;
                reads_left -= 1;
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
                    precondition: precondition.clone(),
                    event: event.clone(),
                };
                match self.metadata.complete_upload(completion).await {
                    Err(MetadataError::InvalidPart(_)) if reads_left > 0 => {}
                    result => break result.s3()?,
                }
            };
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

    /// Waits for whoever completes the same upload, where that is much work: a client that lost patience asks again,
    /// often another node. Metadata lets only one of them through in any case, so without the lock it goes on too.
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

    /// The object that this very upload became, if it is there already: a client that did not hear the answer asks
    /// again, and by then the upload is gone. One that was aborted became none, though another may have brought the
    /// same bytes. Where the bytes were moved to or from a tier the content is another one, and the mark that the
    /// upload was begun with tells.
    async fn completed_before(
        &self,
        bucket: &Bucket,
        (key, upload): (&str, UploadId),
        named: &[NamedPart],
    ) -> Option<(Arc<ObjectVersion>, Option<String>)> {
        let object = self.metadata.object(bucket.id, key, None).await.ok()?;
        let content = object.content.as_ref()?;
        let place = (bucket.id, key, upload);
        let is_marked = object.attributes.completion == Some(completion_mark(place));
        if !is_marked && content.id != content_of(place, content.id.unix_seconds()) {
            return None;
        }
        let md5s: Vec<[u8; 16]> = named.iter().map(|part| part.etag.map(|etag| etag.md5)).collect::<Option<_>>()?;
        let same = content.etag == multipart_etag(&md5s)
            && content.parts.iter().map(|part| part.number).eq(named.iter().map(|part| part.number));
        let version = (bucket.versioning != Versioning::Unversioned).then(|| object.version.to_string());
        same.then(|| (Arc::clone(&object), version))
    }
}

fn digest_of((bucket, key, upload): (BucketId, &str, UploadId)) -> ring::digest::Digest {
    let named = [&upload.as_bytes()[..], &bucket.0.to_be_bytes(), key.as_bytes()].concat();
    ring::digest::digest(&ring::digest::SHA256, &named)
}

/// Names the content that an upload to a key becomes, so that it can be told later which upload that was.
fn content_of(place: (BucketId, &str, UploadId), unix_seconds: u64) -> ContentId {
    let mut id = ContentId::generate(unix_seconds);
    id.0[4..].copy_from_slice(&digest_of(place).as_ref()[..8]);
    id
}

/// What an upload to a key is begun with, and its object keeps. A copy under another key, which keeps it too, is not
/// that upload's object.
pub(super) fn completion_mark(place: (BucketId, &str, UploadId)) -> String {
    hex::encode(&digest_of(place).as_ref()[..16])
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
    let key = listing::url_encode(key);
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
    fn composite_values_carry_their_part_count() {
        let (_, value, parts) = object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==-3").unwrap();
        assert_eq!((value, parts), (vec![0, 0, 0, 1], Some(3)));
        assert!(object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==-x").is_err());
        assert_eq!(object_checksum(ChecksumAlgorithm::Crc32, "AAAAAQ==").unwrap().2, None);
    }
}
