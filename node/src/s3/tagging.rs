//! Tags of objects.

use holdfast_actors::domain::objects::tags::check_object_tags;
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Bucket, ChangeRequest, Tag, Versioning};
use holdfast_protocol::{EventName, VersionId};
use http::Extensions;
use s3s::dto::{
    DeleteObjectTaggingInput, DeleteObjectTaggingOutput, GetObjectTaggingInput, GetObjectTaggingOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput,
};
use s3s::{S3Request, S3Response, S3Result};

use super::S3Front;
use super::convert::{tag_set, tags, version_id};
use super::errors::ResultExt as _;
use super::judged::{self, Judged};

impl S3Front {
    /// The tags of a version.
    pub(crate) async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let input = &req.input;
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        let (object, _) = self.readable(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        Ok(S3Response::new(GetObjectTaggingOutput {
            tag_set: tag_set(&object.tags),
            version_id: shown(&bucket, object.version),
        }))
    }

    /// Replaces the tags of a version.
    pub(crate) async fn put_object_tagging(
        &self,
        req: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        let S3Request { input, extensions, .. } = req;
        let tags = tags(input.tagging.tag_set);
        check_object_tags(&tags).s3()?;
        let version_id = self
            .replace_tags(
                &extensions,
                &input.bucket,
                input.expected_bucket_owner,
                &input.key,
                input.version_id.as_deref(),
                tags,
                EventName::TaggingPut,
            )
            .await?;
        Ok(S3Response::new(PutObjectTaggingOutput { version_id }))
    }

    /// Removes the tags of a version.
    pub(crate) async fn delete_object_tagging(
        &self,
        req: S3Request<DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
        let S3Request { input, extensions, .. } = req;
        let version_id = self
            .replace_tags(
                &extensions,
                &input.bucket,
                input.expected_bucket_owner,
                &input.key,
                input.version_id.as_deref(),
                vec![],
                EventName::TaggingDelete,
            )
            .await?;
        Ok(S3Response::new(DeleteObjectTaggingOutput { version_id }))
    }

    #[allow(clippy::too_many_arguments, reason = "what two operations share")]
    async fn replace_tags(
        &self,
        extensions: &Extensions,
        bucket: &str,
        expected_owner: Option<String>,
        key: &str,
        version: Option<&str>,
        tags: Vec<Tag>,
        event: EventName,
    ) -> S3Result<Option<String>> {
        let named = version;
        let version = version_id(named)?;
        let bucket = self.bucket_of(extensions, bucket, expected_owner.as_deref()).await?;
        // Delete markers have no tags.
        let text = version.map(|version| version.to_string());
        let (object, _) = self.readable(&bucket, key, text.as_deref()).await?;
        Judged::check(extensions, &bucket, key, named, &object)?;
        let request = ChangeRequest {
            bucket: bucket.id,
            key: key.to_owned(),
            version,
            only_if: Judged::only_this(extensions, &bucket, key, named, &object),
            event: self.event(extensions, &bucket, event),
            now_ms: self.clock.now_ms(),
        };
        let set = self.metadata.set_object_tags(request, tags).await.map_err(|error| match error {
            MetadataError::NoSuchKey if version.is_some() => MetadataError::NoSuchVersion,
            error => error,
        });
        Ok(shown(&bucket, set.map_err(judged::refused)?))
    }
}

fn shown(bucket: &Bucket, version: VersionId) -> Option<String> {
    (bucket.versioning != Versioning::Unversioned).then(|| version.to_string())
}
