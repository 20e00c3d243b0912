//! DeleteObject and DeleteObjects.

use holdfast_actors::domain::objects::{PAGE_SIZE_MAX, attributes};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Bucket, DeleteRequest, Deleted, OnlyIf, WritePrecondition};
use holdfast_protocol::{EventName, VersionId};
use s3s::dto::{
    self, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETagCondition,
};
use s3s::{S3Error, S3Request, S3Response, S3Result};

use super::S3Front;
use super::access::DeniedDeletes;
use super::convert::{owner_of_writes, version_id, write_precondition};
use super::errors::{ResultExt as _, ToS3 as _, not_implemented, too_much};
use super::judged::{self, Judged};

impl S3Front {
    /// Deletes a version, or the latest as versioning has it. What does not exist counts as deleted.
    pub(crate) async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = &req.input;
        if input.if_match_last_modified_time.is_some() || input.if_match_size.is_some() {
            return Err(not_implemented("deleting by modification time or size"));
        }
        attributes::check_key(&input.key).s3()?;
        let precondition = write_precondition(input.if_match.clone(), None)?;
        let version = version_id(input.version_id.as_deref())?;
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let request = DeleteRequest {
            key: input.key.clone(),
            version,
            marker_version: self.new_version(),
            owner: owner_of_writes(&req, &bucket),
            precondition,
            only_if: Judged::only_if(&req.extensions, &bucket, &input.key, input.version_id.as_deref()),
            event: self.event(&req.extensions, &bucket, EventName::RemovedDelete),
        };
        let terms = Terms::of(&request);
        let mut results = self.metadata.delete_objects(bucket.id, vec![request], self.clock.now_ms()).await.s3()?;
        let result = results.pop().unwrap_or_else(|| Err(MetadataError::Corrupt("a deletion without a result".into())));
        let deleted = self.what_became(&bucket, &input.key, version, &terms, result).await?;
        Ok(S3Response::new(DeleteObjectOutput {
            delete_marker: deleted.delete_marker.then_some(true),
            version_id: deleted.version.map(|version| version.to_string()),
            ..Default::default()
        }))
    }

    /// Deletes up to 1,000 keys; each stands alone.
    pub(crate) async fn delete_objects(
        &self,
        mut req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        // Access control takes out what the caller may not delete.
        let mut errors = DeniedDeletes::take(&mut req.extensions);
        let input = &req.input;
        let count = input.delete.objects.len() + errors.len();
        if count == 0 || count > PAGE_SIZE_MAX as usize {
            return Err(too_much());
        }
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let owner = owner_of_writes(&req, &bucket);
        let event = self.event(&req.extensions, &bucket, EventName::RemovedDelete);
        let mut requests = Vec::with_capacity(count);
        for object in &input.delete.objects {
            let parsed = attributes::check_key(&object.key).s3().and_then(|()| {
                if object.last_modified_time.is_some() || object.size.is_some() {
                    return Err(not_implemented("deleting by modification time or size"));
                }
                version_id(object.version_id.as_deref())
            });
            match parsed {
                Ok(version) => requests.push(DeleteRequest {
                    key: object.key.clone(),
                    version,
                    marker_version: self.new_version(),
                    owner: owner.clone(),
                    precondition: precondition_of(object.e_tag.as_ref())?,
                    only_if: Judged::only_if(&req.extensions, &bucket, &object.key, object.version_id.as_deref()),
                    event: event.clone(),
                }),
                Err(error) => errors.push(error_entry(&object.key, object.version_id.clone(), &error)),
            }
        }
        let named: Vec<_> = requests.iter().map(|r| (r.key.clone(), r.version, Terms::of(r))).collect();
        let results = self.metadata.delete_objects(bucket.id, requests, self.clock.now_ms()).await.s3()?;
        let quiet = input.delete.quiet.unwrap_or(false);
        let mut deleted = Vec::new();
        for ((key, version, terms), result) in named.into_iter().zip(results) {
            match self.what_became(&bucket, &key, version, &terms, result).await {
                Ok(_) if quiet => {}
                Ok(done) => deleted.push(DeletedObject {
                    delete_marker: done.delete_marker.then_some(true),
                    delete_marker_version_id: done.version.filter(|_| done.delete_marker).map(|v| v.to_string()),
                    version_id: version.map(|v| v.to_string()),
                    key: Some(key),
                }),
                Err(error) => errors.push(error_entry(&key, version.map(|v| v.to_string()), &error)),
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..Default::default()
        }))
    }

    /// What a deletion came to. One that was allowed by an object's tags fails alike for another object and for another
    /// ETag than the client means, so then the object is looked at once more.
    async fn what_became(
        &self,
        bucket: &Bucket,
        key: &str,
        version: Option<VersionId>,
        terms: &Terms,
        result: Result<Deleted, MetadataError>,
    ) -> S3Result<Deleted> {
        let (error, only_if) = match (absent_is_deleted(result), &terms.only_if) {
            (Ok(deleted), _) => return Ok(deleted),
            (Err(error @ MetadataError::PreconditionFailed), Some(only_if)) => (error, only_if),
            (Err(error), _) => return Err(error.to_s3()),
        };
        let is_gone = match self.metadata.object(bucket.id, key, version).await {
            Ok(object) if terms.is_conditional && Judged::is_meant(only_if, &object) => return Err(error.to_s3()),
            Ok(object) => object.is_delete_marker(),
            Err(error) => matches!(error, MetadataError::NoSuchKey | MetadataError::NoSuchVersion),
        };
        match (is_gone, terms.is_conditional) {
            // Somebody was faster, perhaps the same list of keys.
            (true, false) => Ok(NOTHING_DELETED),
            // Nor was there anything before that could have the ETag.
            (true, true) if Judged::is_of_nothing(only_if) => Err(MetadataError::NoSuchKey.to_s3()),
            _ => Err(judged::changed()),
        }
    }
}

/// On what terms something is deleted.
struct Terms {
    /// Whether the client named an ETag.
    is_conditional: bool,
    /// What was judged.
    only_if: Option<OnlyIf>,
}

impl Terms {
    fn of(request: &DeleteRequest) -> Self {
        Self { is_conditional: request.precondition.must_match.is_some(), only_if: request.only_if.clone() }
    }
}

/// Of a deletion that found nothing.
const NOTHING_DELETED: Deleted = Deleted { version: None, delete_marker: false };

/// The condition that an entry's ETag makes.
fn precondition_of(etag: Option<&dto::ETag>) -> S3Result<WritePrecondition> {
    let Some(etag) = etag else { return Ok(WritePrecondition::default()) };
    // In XML, unlike in a header, the wildcard looks like an ETag.
    let condition = if etag.value() == "*" { ETagCondition::Any } else { ETagCondition::ETag(etag.clone()) };
    write_precondition(Some(condition), None)
}

/// Deleting a version that does not exist succeeds, as the port says; an adapter that tells it apart is forgiven.
fn absent_is_deleted(result: Result<Deleted, MetadataError>) -> Result<Deleted, MetadataError> {
    match result {
        Err(MetadataError::NoSuchVersion) => Ok(NOTHING_DELETED),
        other => other,
    }
}

fn error_entry(key: &str, version_id: Option<String>, error: &S3Error) -> dto::Error {
    dto::Error {
        code: Some(error.code().as_str().to_owned()),
        key: Some(key.to_owned()),
        message: error.message().map(str::to_owned),
        version_id,
    }
}
