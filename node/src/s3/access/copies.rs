//! Copies: what a caller needs at the source, and which of its tags may come along.

use std::sync::Arc;

use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, Tag};
use http::Extensions;
use s3s::dto::{CopyObjectInput, CopySource};
use s3s::{S3Request, S3Result, s3_error};

use super::super::auth::Caller;
use super::super::judged::Judged;
use super::{AccessControl, Wish, access_denied, bucket_of, check_expected_owner, is_privileged};

/// The tags that a copy may take over from its source, as access control found them there.
#[derive(Debug, Clone)]
pub(crate) enum CopiedTags {
    /// Whatever they are: source and target are the caller's.
    Any,
    /// These and no others: tags may have changed since.
    These(Vec<Tag>),
}

impl CopiedTags {
    /// Whether a copy may take these tags over.
    pub(crate) fn allow(extensions: &Extensions, tags: &[Tag]) -> bool {
        match extensions.get::<Self>() {
            Some(Self::Any) => true,
            Some(Self::These(checked)) => checked == tags,
            None => tags.is_empty(),
        }
    }
}

/// The bucket of a copy's source that was decided about. It is not looked for once more: whoever owned it may have
/// deleted it meanwhile, and somebody else made one of the same name.
#[derive(Debug, Clone)]
pub(crate) struct SourceBucket(Arc<Bucket>);

impl SourceBucket {
    /// That of a request.
    pub(crate) fn of(extensions: &Extensions) -> Option<&Arc<Bucket>> {
        extensions.get::<Self>().map(|source| &source.0)
    }
}

impl AccessControl {
    /// Checks the source of a copy. Gives its bucket, and what was looked at.
    pub(super) async fn check_copy_source<T>(
        &self,
        req: &S3Request<T>,
        source: &CopySource,
    ) -> S3Result<(SourceBucket, Judged)> {
        let (bucket, _, _) = named_source(source)?;
        let bucket = self.bucket(bucket).await?;
        check_expected_owner(&req.headers, "x-amz-source-expected-bucket-owner", &bucket)?;
        let judged = self.authorize_source(req, source, &bucket, ["s3:GetObject", "s3:GetObjectVersion"]).await?;
        Ok((SourceBucket(bucket), judged))
    }

    /// Decides about one action on the source of a copy, or the other if a version is named.
    async fn authorize_source<T>(
        &self,
        req: &S3Request<T>,
        source: &CopySource,
        bucket: &Arc<Bucket>,
        [action, version_action]: [&'static str; 2],
    ) -> S3Result<Judged> {
        let (_, key, version) = named_source(source)?;
        let action = if version.is_some() { version_action } else { action };
        let wish = Wish { bucket, action, key: Some(key), version };
        let mut facts = self.facts_of(req, version, None);
        self.authorize(&wish, &mut facts).await?;
        Ok(facts.judged)
    }

    /// Checks that the tags which a copy takes over may be read where they are and set where they come to.
    pub(super) async fn check_copied_tags(&self, req: &S3Request<CopyObjectInput>) -> S3Result<CopiedTags> {
        let input = &req.input;
        let (_, key, version) = named_source(&input.copy_source)?;
        let source = SourceBucket::of(&req.extensions).ok_or_else(access_denied)?;
        let target = bucket_of(&req.extensions).ok_or_else(access_denied)?;
        let caller = Caller::of(&req.extensions);
        if [source, target].iter().all(|b| is_privileged(caller, b) && b.config(BucketConfigKind::Policy).is_none()) {
            return Ok(CopiedTags::Any);
        }
        let tags = self.object(source, key, version).await?.map_or_else(Vec::new, |object| object.tags.clone());
        if !tags.is_empty() {
            let reads = ["s3:GetObjectTagging", "s3:GetObjectVersionTagging"];
            self.authorize_source(req, &input.copy_source, source, reads).await?;
            let wish = Wish { bucket: target, action: "s3:PutObjectTagging", key: Some(&input.key), version: None };
            self.authorize(&wish, &mut self.facts_of(req, None, Some(&tags))).await?;
        }
        Ok(CopiedTags::These(tags))
    }
}

/// Bucket, key and version of a copy's source.
fn named_source(source: &CopySource) -> S3Result<(&str, &str, Option<&str>)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => Ok((bucket, key, version_id.as_deref())),
        _ => Err(s3_error!(NotImplemented, "Access points are not supported as copy sources.")),
    }
}
