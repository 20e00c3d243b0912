//! What requests ask that no cache has to do with: lists, uploads that are not finished, and whose a content is.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketEntry, BucketId, ContentHolder, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery,
    ListVersionsPage, ListVersionsQuery, MetadataDirect, MetadataResult, NewUpload, Part, ReplicaEvidence, Upload,
    User,
};
use holdfast_protocol::{ContentId, UploadId};

use super::{Backend, SqlMetadataStore, boxed};
use crate::metadata::sql::locks::Epochs;
use crate::metadata::sql::{Locks, buckets, holders, listing, uploads, users};

#[async_trait]
impl<B: Backend> MetadataDirect for SqlMetadataStore<B> {
    async fn list_buckets(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Bucket>>> {
        buckets::list(self.backend.reads(), owner, after, limit).await
    }

    async fn list_bucket_entries(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<BucketEntry>> {
        buckets::list_entries(self.backend.reads(), owner, after, limit).await
    }

    async fn list_objects(&self, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage> {
        listing::objects(self.backend.reads(), bucket, query).await
    }

    async fn list_versions(&self, bucket: BucketId, query: ListVersionsQuery) -> MetadataResult<ListVersionsPage> {
        listing::versions(self.backend.reads(), bucket, query).await
    }

    async fn list_users(&self, after: Option<&str>, limit: u32) -> MetadataResult<Vec<Arc<User>>> {
        users::list_users(self.backend.reads(), after, limit).await
    }

    async fn list_keys(
        &self,
        user: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<AccessKey>>> {
        users::list_keys(self.backend.reads(), user, after, limit).await
    }

    async fn create_upload(&self, upload: NewUpload) -> MetadataResult<()> {
        let locks = Locks::none().upload(upload.id).in_bucket(upload.bucket);
        self.run(locks, upload, |tx, upload| boxed(async move { uploads::create(tx, &upload).await })).await
    }

    async fn upload(&self, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Arc<Upload>> {
        uploads::upload(self.backend.reads(), bucket, key, upload).await
    }

    async fn put_part(
        &self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        part: Part,
        evidence: ReplicaEvidence,
    ) -> MetadataResult<()> {
        let mut locks = Locks::none().upload(upload).content(part.content);
        if !evidence.epochs.is_empty() {
            locks = locks.epochs(Epochs::Held);
        }
        self.run(locks, (key.to_owned(), part, evidence), move |tx, given| {
            boxed(async move {
                let (key, part, evidence) = &*given;
                uploads::put_part(tx, bucket, key, upload, part, evidence).await
            })
        })
        .await
    }

    async fn list_parts(&self, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>> {
        uploads::parts(self.backend.reads(), upload, after, limit).await
    }

    async fn list_uploads(&self, bucket: BucketId, query: ListUploadsQuery) -> MetadataResult<ListUploadsPage> {
        listing::uploads(self.backend.reads(), bucket, query).await
    }

    async fn abort_upload(&self, bucket: BucketId, key: &str, upload: UploadId, now_ms: u64) -> MetadataResult<()> {
        self.run(Locks::none().upload(upload), key.to_owned(), move |tx, key| {
            boxed(async move { uploads::abort(tx, bucket, &key, upload, now_ms).await })
        })
        .await
    }

    async fn content_holder(&self, extent: ContentId) -> MetadataResult<Option<ContentHolder>> {
        holders::of(self.backend.reads(), extent).await
    }
}
