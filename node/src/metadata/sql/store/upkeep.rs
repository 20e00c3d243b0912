//! What loops in the background ask of metadata.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::coordination::Fence;
use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, AgedVersion, BucketId, Condemned, MetadataResult, MetadataUpkeep, Recheck, Reclaim, Repair,
    Upload,
};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ReclaimItem, ShardId, UploadId};

use super::{Backend, SqlMetadataStore, boxed};
use crate::metadata::sql::locks::Epochs;
use crate::metadata::sql::{Locks, fences, lifecycle, reclaims, replicas, uploads};

#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> SqlMetadataStore<B> {
    /// Forgets the epochs of all shards, for a coordination service that begins anew with the first ones, while no node
    /// runs. If they are those of another number of shards than `shard_count`, they stay, and that number is given
    /// back.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forget_epochs(&self, shard_count: u32) -> MetadataResult<Option<u64>> {
        let locks = Locks::none().epochs(Epochs::Raised);
        self.backend.write(locks, move |tx| boxed(replicas::forget_epochs(tx, shard_count))).await
    }
}

#[async_trait]
impl<B: Backend> MetadataUpkeep for SqlMetadataStore<B> {
    async fn stale_uploads(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        uploads::stale(self.backend.reads(), before_ms, limit).await
    }

    async fn expire_upload(&self, upload: UploadId, before_ms: u64, now_ms: u64) -> MetadataResult<bool> {
        let locks = Locks::none().upload(upload);
        self.backend.write(locks, move |tx| boxed(uploads::expire(tx, upload, before_ms, now_ms))).await
    }

    async fn aged_versions(
        &self,
        bucket: BucketId,
        kind: AgedKind,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        lifecycle::versions(self.backend.reads(), bucket, kind, after, until_ms, limit).await
    }

    async fn surplus_versions(
        &self,
        bucket: BucketId,
        key: &str,
        keep: u32,
        after: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        lifecycle::surplus(self.backend.reads(), bucket, key, keep, after, limit).await
    }

    async fn aged_uploads(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Upload>>> {
        uploads::aged(self.backend.reads(), bucket, after, until_ms, limit).await
    }

    async fn lifecycle_cursors(&self, bucket: BucketId, generation: u64) -> MetadataResult<Vec<(String, AgePosition)>> {
        lifecycle::cursors(self.backend.reads(), bucket, generation).await
    }

    async fn save_lifecycle_cursor(
        &self,
        bucket: BucketId,
        generation: u64,
        stream: &str,
        at: &AgePosition,
        fence: Option<&Fence>,
    ) -> MetadataResult<()> {
        let given = (stream.to_owned(), at.clone(), fence.cloned());
        self.run(Locks::none().fence(fence), given, move |tx, given| {
            boxed(async move {
                let (stream, at, fence) = &*given;
                fences::check(tx, fence.as_ref()).await?;
                lifecycle::save_cursor(tx, bucket, generation, stream, at).await
            })
        })
        .await
    }

    async fn rechecks(&self, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>> {
        lifecycle::rechecks(self.backend.reads(), bucket, limit).await
    }

    async fn finish_rechecks(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        self.run(Locks::none().fence(fence), (ids.to_vec(), fence.cloned()), |tx, given| {
            boxed(async move {
                let (ids, fence) = &*given;
                fences::check(tx, fence.as_ref()).await?;
                lifecycle::finish_rechecks(tx, ids).await
            })
        })
        .await
    }

    async fn due_reclaims(&self, before_ms: u64, limit: u32, fence: Option<&Fence>) -> MetadataResult<Vec<Reclaim>> {
        self.run(Locks::none().reclaims().fence(fence), fence.cloned(), move |tx, fence| {
            boxed(async move {
                fences::check(tx, (*fence).as_ref()).await?;
                reclaims::due(tx, before_ms, limit).await
            })
        })
        .await
    }

    async fn waiting_reclaims(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>> {
        reclaims::waiting(self.backend.reads(), before_ms, limit).await
    }

    async fn claim_reclaims(&self, items: &[ReclaimItem], before_ms: u64) -> MetadataResult<Vec<Reclaim>> {
        self.run(Locks::none().reclaims(), items.to_vec(), move |tx, items| {
            boxed(async move { reclaims::claim(tx, &items, before_ms).await })
        })
        .await
    }

    async fn finish_reclaims(&self, items: &[ReclaimItem], fence: Option<&Fence>) -> MetadataResult<()> {
        self.run(Locks::none().reclaims().fence(fence), (items.to_vec(), fence.cloned()), |tx, given| {
            boxed(async move {
                let (items, fence) = &*given;
                fences::check(tx, fence.as_ref()).await?;
                reclaims::finish(tx, items).await
            })
        })
        .await
    }

    async fn known_contents(&self, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
        let mut known = reclaims::known(self.backend.reads(), contents).await?;
        let unknown: Vec<ContentId> = contents.iter().copied().filter(|content| !known.contains(content)).collect();
        // Whoever asks deletes what is not known. The second question waits for every commit that is under way:
        // SQLite's writer answers it behind them, and not at all after one of unknown outcome; a server has them
        // locked.
        if !unknown.is_empty() {
            let late = self.run(Locks::none().contents(&unknown), unknown, |tx, unknown| {
                boxed(async move { reclaims::known_to_writer(tx, &unknown).await })
            });
            known.extend(late.await?);
        }
        Ok(known)
    }

    async fn condemn(&self, contents: &[ContentId], now_ms: u64) -> MetadataResult<Vec<ContentId>> {
        self.run(Locks::none().contents(contents), contents.to_vec(), move |tx, contents| {
            boxed(async move { replicas::condemn(tx, &contents, now_ms).await })
        })
        .await
    }

    async fn condemned(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Condemned>> {
        replicas::condemned(self.backend.reads(), before_ms, limit).await
    }

    async fn forget_condemned(&self, condemned: &[Condemned]) -> MetadataResult<()> {
        self.run(Locks::none(), condemned.to_vec(), |tx, condemned| {
            boxed(async move { replicas::forget_condemned(tx, &condemned).await })
        })
        .await
    }

    async fn claim(&self, cluster: Option<ClusterId>) -> MetadataResult<Option<ClusterId>> {
        if let Some(cluster) = cluster {
            self.backend.write(Locks::none(), move |tx| boxed(replicas::claim(tx, cluster))).await?;
        }
        replicas::claimant(self.backend.reads()).await
    }

    async fn disclaim(&self) -> MetadataResult<()> {
        self.backend.write(Locks::none(), |tx| boxed(replicas::disclaim(tx))).await
    }

    async fn raise_epochs(&self, epochs: &[(ShardId, Epoch)]) -> MetadataResult<Vec<(ShardId, Epoch)>> {
        self.run(Locks::none().epochs(Epochs::Raised), epochs.to_vec(), |tx, epochs| {
            boxed(async move { replicas::raise_epochs(tx, &epochs).await })
        })
        .await
    }

    async fn queue_repairs(&self, repairs: &[(ChunkId, NodeId)], now_ms: u64) -> MetadataResult<()> {
        let repairs: Vec<_> = repairs.iter().map(|(chunk, node)| (*chunk, *node, now_ms)).collect();
        self.run(Locks::none(), repairs, |tx, repairs| {
            boxed(async move { replicas::queue_repairs(tx, &repairs).await })
        })
        .await
    }

    async fn repairs(&self, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>> {
        replicas::repairs(self.backend.reads(), node, after, limit).await
    }

    async fn finish_repairs(&self, repairs: &[Repair]) -> MetadataResult<()> {
        self.run(Locks::none(), repairs.to_vec(), |tx, repairs| {
            boxed(async move { replicas::finish_repairs(tx, &repairs).await })
        })
        .await
    }

    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>> {
        replicas::repair_backlog(self.backend.reads()).await
    }

    async fn repairs_waiting(&self, node: NodeId) -> MetadataResult<u64> {
        replicas::repairs_waiting(self.backend.reads(), node).await
    }

    async fn lost_commits(&self) -> MetadataResult<bool> {
        replicas::lost_commits(self.backend.reads()).await
    }

    async fn forget_lost_commits(&self) -> MetadataResult<()> {
        self.backend.write(Locks::none(), |tx| boxed(replicas::forget_lost_commits(tx))).await
    }

    async fn note_walked(&self, walked: NodeId, waits: bool, nodes: &[NodeId]) -> MetadataResult<Vec<NodeId>> {
        self.run(Locks::none(), nodes.to_vec(), move |tx, nodes| {
            boxed(async move { replicas::note_walked(tx, walked, waits, &nodes).await })
        })
        .await
    }
}
