//! Stores that stand before another one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ReclaimItem, ShardId, UploadId};

use super::{
    AccessKey, AgePosition, AgedKind, AgedVersion, Bucket, BucketEntry, BucketId, Condemned, ContentHolder, ListPage,
    ListQuery, ListUploadsPage, ListUploadsQuery, ListVersionsPage, ListVersionsQuery, MetadataDirect, MetadataError,
    MetadataResult, MetadataUpkeep, NewUpload, Part, Recheck, Reclaim, Repair, ReplicaEvidence, Upload, User,
};
use crate::ports::coordination::Fence;

/// How long a write of a request is waited for: the database's disk may hang without a word, and who waits holds a
/// place for requests.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A store that adds something to what requests ask of another one, a cache for example, and passes on to it what it
/// has nothing to do with: the verbs of [`MetadataDirect`], and those of work in the background, [`MetadataUpkeep`].
pub trait Decorator: Send + Sync + 'static {
    /// The other store.
    type Inner: MetadataDirect + MetadataUpkeep + ?Sized;

    /// The other store.
    fn inner(&self) -> &Self::Inner;
}

/// Waits for a write no longer than [`ANSWER_MAX`]. It goes on by itself, as that of any caller who went away.
async fn in_time<T>(write: impl Future<Output = MetadataResult<T>>) -> MetadataResult<T> {
    let late = || MetadataError::Unknown("the metadata database did not answer in time".to_owned());
    tokio::time::timeout(ANSWER_MAX, write).await.unwrap_or_else(|_| Err(late()))
}

#[async_trait]
impl<D: Decorator> MetadataDirect for D {
    async fn list_buckets(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Bucket>>> {
        self.inner().list_buckets(owner, after, limit).await
    }

    async fn list_bucket_entries(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<BucketEntry>> {
        self.inner().list_bucket_entries(owner, after, limit).await
    }

    async fn list_objects(&self, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage> {
        self.inner().list_objects(bucket, query).await
    }

    async fn list_versions(&self, bucket: BucketId, query: ListVersionsQuery) -> MetadataResult<ListVersionsPage> {
        self.inner().list_versions(bucket, query).await
    }

    async fn list_users(&self, after: Option<&str>, limit: u32) -> MetadataResult<Vec<Arc<User>>> {
        self.inner().list_users(after, limit).await
    }

    async fn list_keys(
        &self,
        user: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<AccessKey>>> {
        self.inner().list_keys(user, after, limit).await
    }

    async fn create_upload(&self, upload: NewUpload) -> MetadataResult<()> {
        in_time(self.inner().create_upload(upload)).await
    }

    async fn upload(&self, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Arc<Upload>> {
        self.inner().upload(bucket, key, upload).await
    }

    async fn put_part(
        &self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        part: Part,
        evidence: ReplicaEvidence,
    ) -> MetadataResult<()> {
        in_time(self.inner().put_part(bucket, key, upload, part, evidence)).await
    }

    async fn list_parts(&self, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>> {
        self.inner().list_parts(upload, after, limit).await
    }

    async fn list_uploads(&self, bucket: BucketId, query: ListUploadsQuery) -> MetadataResult<ListUploadsPage> {
        self.inner().list_uploads(bucket, query).await
    }

    async fn abort_upload(&self, bucket: BucketId, key: &str, upload: UploadId, now_ms: u64) -> MetadataResult<()> {
        in_time(self.inner().abort_upload(bucket, key, upload, now_ms)).await
    }

    async fn content_holder(&self, extent: ContentId) -> MetadataResult<Option<ContentHolder>> {
        self.inner().content_holder(extent).await
    }
}

#[async_trait]
impl<D: Decorator> MetadataUpkeep for D {
    async fn stale_uploads(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        self.inner().stale_uploads(before_ms, limit).await
    }

    async fn expire_upload(&self, upload: UploadId, before_ms: u64, now_ms: u64) -> MetadataResult<bool> {
        self.inner().expire_upload(upload, before_ms, now_ms).await
    }

    async fn aged_versions(
        &self,
        bucket: BucketId,
        kind: AgedKind,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        self.inner().aged_versions(bucket, kind, after, until_ms, limit).await
    }

    async fn surplus_versions(
        &self,
        bucket: BucketId,
        key: &str,
        keep: u32,
        after: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        self.inner().surplus_versions(bucket, key, keep, after, limit).await
    }

    async fn aged_uploads(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Upload>>> {
        self.inner().aged_uploads(bucket, after, until_ms, limit).await
    }

    async fn lifecycle_cursors(&self, bucket: BucketId, generation: u64) -> MetadataResult<Vec<(String, AgePosition)>> {
        self.inner().lifecycle_cursors(bucket, generation).await
    }

    async fn save_lifecycle_cursor(
        &self,
        bucket: BucketId,
        generation: u64,
        stream: &str,
        at: &AgePosition,
        fence: Option<&Fence>,
    ) -> MetadataResult<()> {
        self.inner().save_lifecycle_cursor(bucket, generation, stream, at, fence).await
    }

    async fn rechecks(&self, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>> {
        self.inner().rechecks(bucket, limit).await
    }

    async fn finish_rechecks(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        self.inner().finish_rechecks(ids, fence).await
    }

    async fn due_reclaims(&self, before_ms: u64, limit: u32, fence: Option<&Fence>) -> MetadataResult<Vec<Reclaim>> {
        self.inner().due_reclaims(before_ms, limit, fence).await
    }

    async fn waiting_reclaims(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>> {
        self.inner().waiting_reclaims(before_ms, limit).await
    }

    async fn claim_reclaims(&self, items: &[ReclaimItem], before_ms: u64) -> MetadataResult<Vec<Reclaim>> {
        self.inner().claim_reclaims(items, before_ms).await
    }

    async fn finish_reclaims(&self, items: &[ReclaimItem], fence: Option<&Fence>) -> MetadataResult<()> {
        self.inner().finish_reclaims(items, fence).await
    }

    async fn known_contents(&self, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
        self.inner().known_contents(contents).await
    }

    async fn condemn(&self, contents: &[ContentId], now_ms: u64) -> MetadataResult<Vec<ContentId>> {
        self.inner().condemn(contents, now_ms).await
    }

    async fn condemned(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Condemned>> {
        self.inner().condemned(before_ms, limit).await
    }

    async fn forget_condemned(&self, condemned: &[Condemned]) -> MetadataResult<()> {
        self.inner().forget_condemned(condemned).await
    }

    async fn claim(&self, cluster: Option<ClusterId>) -> MetadataResult<Option<ClusterId>> {
        self.inner().claim(cluster).await
    }

    async fn disclaim(&self) -> MetadataResult<()> {
        self.inner().disclaim().await
    }

    async fn raise_epochs(&self, epochs: &[(ShardId, Epoch)]) -> MetadataResult<Vec<(ShardId, Epoch)>> {
        self.inner().raise_epochs(epochs).await
    }

    async fn queue_repairs(&self, repairs: &[(ChunkId, NodeId)], now_ms: u64) -> MetadataResult<()> {
        self.inner().queue_repairs(repairs, now_ms).await
    }

    async fn repairs(&self, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>> {
        self.inner().repairs(node, after, limit).await
    }

    async fn finish_repairs(&self, repairs: &[Repair]) -> MetadataResult<()> {
        self.inner().finish_repairs(repairs).await
    }

    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>> {
        self.inner().repair_backlog().await
    }

    async fn repairs_waiting(&self, node: NodeId) -> MetadataResult<u64> {
        self.inner().repairs_waiting(node).await
    }

    async fn lost_commits(&self) -> MetadataResult<bool> {
        self.inner().lost_commits().await
    }

    async fn forget_lost_commits(&self) -> MetadataResult<()> {
        self.inner().forget_lost_commits().await
    }

    async fn note_walked(&self, walked: NodeId, waits: bool, nodes: &[NodeId]) -> MetadataResult<Vec<NodeId>> {
        self.inner().note_walked(walked, waits, nodes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_without_an_answer_is_unknown_and_keeps_no_place() {
        let hung = tokio::time::timeout(ANSWER_MAX * 10, in_time(std::future::pending::<MetadataResult<()>>())).await;
        assert!(matches!(hung, Ok(Err(MetadataError::Unknown(_)))), "{hung:?}");
        assert!(matches!(in_time(async { Err::<(), _>(MetadataError::Busy) }).await, Err(MetadataError::Busy)));
    }
}
