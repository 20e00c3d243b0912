//! Buckets: create, head, list, delete, location, versioning.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::domain::access::names::validate_bucket_name;
use holdfast_actors::domain::objects::PAGE_SIZE_MAX;
use holdfast_actors::ports::metadata::{
    BucketConfigKind, BucketId, ListAfter, ListUploadsQuery, ListVersionsQuery, MetadataError, NewBucket, Upload,
    Versioning,
};
use s3s::dto::{
    self, BucketLocationConstraint, BucketVersioningStatus, CreateBucketInput, CreateBucketOutput, DeleteBucketInput,
    DeleteBucketOutput, GetBucketLocationInput, GetBucketLocationOutput, GetBucketVersioningInput,
    GetBucketVersioningOutput, HeadBucketInput, HeadBucketOutput, ListBucketsInput, ListBucketsOutput,
    PutBucketVersioningInput, PutBucketVersioningOutput,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::auth::{Caller, unknown_access_key};
use super::bucket_config::{check_tags, to_json};
use super::convert::{canned_acl, owner, timestamp};
use super::errors::{ResultExt as _, ToS3 as _, invalid_argument, not_implemented};
use super::request_id::RequestContext;

/// Most buckets of one ListBuckets page.
const BUCKETS_PAGE_MAX: i32 = 10_000;

/// How many uploads of a bucket that is deleted are ended at once. One after the other, a client would lose patience
/// over some ten thousand.
const ABORTS_AT_ONCE: usize = 8;

/// The region that S3 spells as an empty LocationConstraint.
const CLASSIC_REGION: &str = "us-east-1";

impl S3Front {
    /// Creates a bucket that the caller owns.
    pub(crate) async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let Some(caller) = Caller::of(&req.extensions).user_name() else {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        };
        let input = &req.input;
        validate_bucket_name(&input.bucket)
            .map_err(|error| s3_error!(InvalidBucketName, "The specified bucket is not valid: {error}"))?;
        if input.object_lock_enabled_for_bucket == Some(true) {
            return Err(not_implemented("object lock"));
        }
        if input.grant_full_control.is_some()
            || input.grant_read.is_some()
            || input.grant_read_acp.is_some()
            || input.grant_write.is_some()
            || input.grant_write_acp.is_some()
        {
            return Err(not_implemented("granting by header"));
        }
        if input.object_ownership.as_ref().is_some_and(|o| o.as_str() != dto::ObjectOwnership::BUCKET_OWNER_PREFERRED) {
            return Err(not_implemented("an object ownership other than BucketOwnerPreferred"));
        }
        let acl = canned_acl(input.acl.as_ref().map(|acl| acl.as_str()))?;
        let constraint = input
            .create_bucket_configuration
            .as_ref()
            .and_then(|configuration| configuration.location_constraint.as_ref())
            .map(|constraint| constraint.as_str());
        if let Some(constraint) = constraint
            && !constraint.is_empty()
            && constraint != &*self.region
        {
            return Err(s3_error!(
                InvalidLocationConstraint,
                "The specified location-constraint is not valid: this node is in the region {}",
                self.region
            ));
        }
        let tags = match req.extensions.get::<Arc<RequestContext>>() {
            Some(context) => check_tags(&context.take_bucket_tags())?,
            None => Vec::new(),
        };
        let bucket =
            NewBucket { name: input.bucket.clone(), owner: caller.to_owned(), acl, now_ms: self.clock.now_ms() };
        let created = self.metadata.create_bucket(bucket).await.map_err(|error| match error {
            // The caller was removed since the signature was checked.
            MetadataError::NotFound(_) => unknown_access_key(),
            error => error.to_s3(),
        })?;
        if !tags.is_empty()
            && let Err(error) = self.set_config(&created, BucketConfigKind::Tagging, Some(to_json(&tags))).await
        {
            // Who is told of an error tries again, and is not to find a bucket that lacks its tags.
            match self.metadata.delete_bucket(&created.name, created.id).await {
                Ok(()) | Err(MetadataError::NoSuchBucket) => {}
                Err(left) => {
                    tracing::warn!(error = ?left, bucket = created.name, "a bucket without its tags is left");
                }
            }
            return Err(error);
        }
        Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{}", input.bucket)) }))
    }

    /// Whether a bucket exists.
    pub(crate) async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(self.region.to_string()), ..Default::default() }))
    }

    /// Lists the caller's buckets; an administrator sees all.
    pub(crate) async fn list_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let caller = Caller::of(&req.extensions);
        let Some(user) = caller.user_name() else {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        };
        let input = &req.input;
        let limit = match input.max_buckets {
            None => None,
            Some(limit) if (1..=BUCKETS_PAGE_MAX).contains(&limit) => Some(limit as usize),
            Some(_) => return Err(invalid_argument("Argument max-buckets must be an integer between 1 and 10000")),
        };
        let after = match input.continuation_token.as_deref() {
            None => None,
            Some(token) => Some(
                URL_SAFE_NO_PAD
                    .decode(token)
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .filter(|name| validate_bucket_name(name).is_ok())
                    .ok_or_else(|| invalid_argument("The continuation token provided is incorrect"))?,
            ),
        };
        let in_region = input.bucket_region.as_deref().is_none_or(|region| region == &*self.region);
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let owned_by = (!caller.is_admin()).then_some(user);
        let (buckets, next) =
            if in_region { self.buckets_page(owned_by, after, prefix, limit).await? } else { (vec![], None) };
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets),
            continuation_token: next,
            owner: Some(owner(user)),
            prefix: input.prefix.clone(),
        }))
    }

    /// Buckets of one owner or of all whose names start with `prefix`, those after `after`, at most `limit`; and the
    /// token of the next page.
    async fn buckets_page(
        &self,
        owned_by: Option<&str>,
        mut after: Option<String>,
        prefix: &str,
        limit: Option<usize>,
    ) -> S3Result<(Vec<dto::Bucket>, Option<String>)> {
        let mut found: Vec<dto::Bucket> = Vec::new();
        loop {
            let page = self.metadata.list_bucket_entries(owned_by, after.as_deref(), PAGE_SIZE_MAX).await.s3()?;
            let full = page.len() == PAGE_SIZE_MAX as usize;
            after = page.last().map(|bucket| bucket.name.clone());
            for bucket in page {
                if !bucket.name.starts_with(prefix) {
                    // Names come in order: behind the prefix there is none left.
                    if bucket.name.as_str() > prefix {
                        return Ok((found, None));
                    }
                    continue;
                }
                if limit == Some(found.len()) {
                    let last = found.last().and_then(|bucket| bucket.name.as_deref());
                    let token = last.map(|name| URL_SAFE_NO_PAD.encode(name));
                    return Ok((found, token));
                }
                found.push(dto::Bucket {
                    bucket_region: Some(self.region.to_string()),
                    creation_date: Some(timestamp(bucket.created_ms)),
                    name: Some(bucket.name),
                });
            }
            if !full {
                return Ok((found, None));
            }
        }
    }

    /// Removes a bucket without objects. Uploads that nobody finished do not keep it, as in S3: they are ended first.
    /// Should an object come just then, they are ended all the same, and the bucket stays.
    pub(crate) async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket =
            self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        match self.metadata.delete_bucket(&bucket.name, bucket.id).await {
            Err(MetadataError::BucketNotEmpty) if self.has_no_versions(bucket.id).await? => {
                self.abort_uploads(bucket.id).await?;
                self.metadata.delete_bucket(&bucket.name, bucket.id).await.s3()?;
            }
            result => result.s3()?,
        }
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    /// Whether a bucket holds no object, no older version and no delete marker.
    async fn has_no_versions(&self, bucket: BucketId) -> S3Result<bool> {
        let query = ListVersionsQuery { limit: 1, ..Default::default() };
        Ok(self.metadata.list_versions(bucket, query).await.s3()?.entries.is_empty())
    }

    /// Ends all unfinished uploads of a bucket; those that are begun meanwhile may stay.
    async fn abort_uploads(&self, bucket: BucketId) -> S3Result<()> {
        let (mut after, mut after_upload) = (ListAfter::Start, None);
        loop {
            let query = ListUploadsQuery { after, after_upload, limit: PAGE_SIZE_MAX, ..Default::default() };
            let page = self.metadata.list_uploads(bucket, query).await.s3()?;
            let aborts = stream::iter(page.entries).map(|upload| self.abort_one(bucket, upload));
            aborts.buffer_unordered(ABORTS_AT_ONCE).try_collect::<()>().await?;
            match page.next {
                Some(next) => (after, after_upload) = next,
                None => return Ok(()),
            }
        }
    }

    /// Ends an upload, unless somebody else has.
    async fn abort_one(&self, bucket: BucketId, upload: Arc<Upload>) -> S3Result<()> {
        match self.metadata.abort_upload(bucket, &upload.new.key, upload.new.id, self.clock.now_ms()).await {
            Ok(()) | Err(MetadataError::NoSuchUpload) => Ok(()),
            Err(error) => Err(error.to_s3()),
        }
    }

    /// The region of a bucket.
    pub(crate) async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        let constraint =
            (&*self.region != CLASSIC_REGION).then(|| BucketLocationConstraint::from(self.region.to_string()));
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint: constraint }))
    }

    /// Whether a bucket keeps versions.
    pub(crate) async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        let bucket =
            self.bucket_of(&req.extensions, &req.input.bucket, req.input.expected_bucket_owner.as_deref()).await?;
        let status = match bucket.versioning {
            Versioning::Unversioned => None,
            Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
            Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
        };
        Ok(S3Response::new(GetBucketVersioningOutput {
            status: status.map(BucketVersioningStatus::from_static),
            ..Default::default()
        }))
    }

    /// Switches versioning on, or suspends it.
    pub(crate) async fn put_bucket_versioning(
        &self,
        req: S3Request<PutBucketVersioningInput>,
    ) -> S3Result<S3Response<PutBucketVersioningOutput>> {
        let input = &req.input;
        let configuration = &input.versioning_configuration;
        if configuration.mfa_delete.as_ref().is_some_and(|mfa| mfa.as_str() == dto::MFADelete::ENABLED) {
            return Err(not_implemented("MFA delete"));
        }
        let versioning = match configuration.status.as_ref().map(|status| status.as_str()) {
            Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
            Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
            _ => {
                return Err(s3_error!(
                    IllegalVersioningConfigurationException,
                    "The Versioning element must be specified"
                ));
            }
        };
        let bucket = self.bucket_of(&req.extensions, &input.bucket, input.expected_bucket_owner.as_deref()).await?;
        self.metadata.set_versioning(&bucket.name, bucket.id, versioning).await.s3()?;
        Ok(S3Response::new(PutBucketVersioningOutput::default()))
    }
}
