//! The verbs of requests that no cache has to do with: lists, uploads that are not finished, and whose a content is.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_protocol::{ContentId, UploadId};

use super::{
    AccessKey, Bucket, BucketEntry, BucketId, ContentHolder, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery,
    ListVersionsPage, ListVersionsQuery, MetadataResult, NewUpload, Part, ReplicaEvidence, Upload, User,
};

/// What [`MetadataStore`](super::MetadataStore) has for requests that always go to the database: nothing of it is ever
/// cached, nor changes what is. A store that stands before another one passes it on by being a
/// [`Decorator`](super::Decorator).
#[async_trait]
pub trait MetadataDirect: Send + Sync + 'static {
    // --- lists
    // -----------------------------------------------------------------------------------------------------------

    /// Buckets in name order, those after `after`, at most `limit`; of one owner or of all. Each with its documents, of
    /// which a bucket may have more than half a megabyte: not for a page of thousands.
    async fn list_buckets(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Bucket>>>;

    /// As [`Self::list_buckets`], without the documents.
    async fn list_bucket_entries(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<BucketEntry>>;

    /// Latest versions that are not delete markers, in key order. With a delimiter, whole prefixes are skipped: the
    /// cost follows what is returned, not what is stored.
    async fn list_objects(&self, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage>;

    /// All versions and delete markers, in key order and newest first within a key.
    async fn list_versions(&self, bucket: BucketId, query: ListVersionsQuery) -> MetadataResult<ListVersionsPage>;

    /// Users in name order, those after `after`, at most `limit`.
    async fn list_users(&self, after: Option<&str>, limit: u32) -> MetadataResult<Vec<Arc<User>>>;

    /// Keys in order, of one user or of all.
    async fn list_keys(
        &self,
        user: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<AccessKey>>>;

    // --- unfinished uploads
    // ----------------------------------------------------------------------------------------------

    /// Starts an upload. Fails with `NoSuchBucket`.
    async fn create_upload(&self, upload: NewUpload) -> MetadataResult<()>;

    /// An unfinished upload, or `NoSuchUpload` (also when bucket or key differ).
    async fn upload(&self, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Arc<Upload>>;

    /// Records a part whose chunks are durable; the part that had its number is queued for reclaiming. Fails with
    /// `NoSuchUpload`. `evidence` is treated as by
    /// [`MetadataStore::commit_object`](super::MetadataStore::commit_object); fails also with `Condemned`,
    /// `StaleEpoch`.
    async fn put_part(
        &self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        part: Part,
        evidence: ReplicaEvidence,
    ) -> MetadataResult<()>;

    /// Parts in number order, those after `after`, at most `limit`. Fails with `NoSuchUpload`.
    async fn list_parts(&self, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>>;

    /// Unfinished uploads of a bucket in order of key, then of upload id.
    async fn list_uploads(&self, bucket: BucketId, query: ListUploadsQuery) -> MetadataResult<ListUploadsPage>;

    /// Ends an upload and queues its parts for reclaiming. Fails with `NoSuchUpload`.
    async fn abort_upload(&self, bucket: BucketId, key: &str, upload: UploadId, now_ms: u64) -> MetadataResult<()>;

    // --- whose a content is
    // ----------------------------------------------------------------------------------------------

    /// What knows the chunks of `extent`, as of one moment; `None`: nothing does. Which versions refer to a content is
    /// not known by it, only how many: there is no index of that.
    async fn content_holder(&self, extent: ContentId) -> MetadataResult<Option<ContentHolder>>;
}
