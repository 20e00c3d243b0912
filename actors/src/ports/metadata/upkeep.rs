//! The verbs of work in the background: what is due by its age, what is to be deleted, and what replicas lack.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, Manifest, NodeId, ReclaimItem, ShardId, UploadId};

use super::{AgePosition, AgedKind, AgedVersion, BucketId, MetadataResult, Recheck, Upload};
use crate::ports::coordination::Fence;

/// What [`MetadataStore`](super::MetadataStore) has for loops, as transactional as its other verbs. Nothing of it is
/// ever cached: a store that stands before another one passes it on by being a [`Decorator`](super::Decorator).
#[async_trait]
pub trait MetadataUpkeep: Send + Sync + 'static {
    // --- age
    // -------------------------------------------------------------------------------------------------------------

    /// Uploads begun before `before_ms`, oldest first, at most `limit`.
    async fn stale_uploads(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>>;

    /// Ends an upload that was begun before `before_ms`, as
    /// [`MetadataDirect::abort_upload`](super::MetadataDirect::abort_upload) does. Returns whether there was one.
    async fn expire_upload(&self, upload: UploadId, before_ms: u64, now_ms: u64) -> MetadataResult<bool>;

    /// Versions of a bucket in order of age, those after `after` and up to `until_ms`, at most `limit`. The cost
    /// follows what is returned.
    async fn aged_versions(
        &self,
        bucket: BucketId,
        kind: AgedKind,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>>;

    /// Noncurrent versions of a key but for the `keep` newest of them, oldest first, those with a sequence above
    /// `after`, at most `limit`.
    async fn surplus_versions(
        &self,
        bucket: BucketId,
        key: &str,
        keep: u32,
        after: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>>;

    /// Unfinished uploads of a bucket in order of their begin, as [`Self::aged_versions`].
    async fn aged_uploads(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Upload>>>;

    /// How far the walks of a bucket have come under the rules of `generation`, by name.
    async fn lifecycle_cursors(&self, bucket: BucketId, generation: u64) -> MetadataResult<Vec<(String, AgePosition)>>;

    /// Remembers how far one walk has come, and forgets what was remembered of other generations. `fence` as in
    /// [`Self::due_reclaims`]. All is forgotten when the bucket's lifecycle rules are set or removed.
    async fn save_lifecycle_cursor(
        &self,
        bucket: BucketId,
        generation: u64,
        stream: &str,
        at: &AgePosition,
        fence: Option<&Fence>,
    ) -> MetadataResult<()>;

    /// Keys of a bucket to be looked at once more, oldest change first, at most `limit`. While a bucket has lifecycle
    /// rules, such a note is written in the transaction of each change that moves no version in the order of age, but
    /// may make one due: of tags, of which version is the latest, and of whether a delete marker hides anything.
    async fn rechecks(&self, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>>;

    /// Forgets rechecks that are done. `fence` as in [`Self::due_reclaims`].
    async fn finish_rechecks(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()>;

    // --- reclaiming --------------------------------------------------------------------------------------------------

    /// Contents dereferenced before `before_ms`, at most `limit`, that are still not referenced (checked in the same
    /// transaction). From then on no copy can take them. With a `fence` it is done only by the last holder of that
    /// lock. Fails with `Fenced`.
    async fn due_reclaims(&self, before_ms: u64, limit: u32, fence: Option<&Fence>) -> MetadataResult<Vec<Reclaim>>;

    /// What [`Self::due_reclaims`] would claim, oldest first, without claiming it.
    async fn waiting_reclaims(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>>;

    /// Claims those of `items`, at most [`TASK_ITEMS_MAX`](holdfast_protocol::tasks::TASK_ITEMS_MAX), that were
    /// dereferenced before `before_ms` and still are not referenced (checked in the same transaction); the others are
    /// left out. From then on no copy can take them, for good: any number of callers may delete their chunks, at any
    /// time.
    async fn claim_reclaims(&self, items: &[ReclaimItem], before_ms: u64) -> MetadataResult<Vec<Reclaim>>;

    /// Forgets reclaims whose chunks are deleted, those of just this number and content. `fence` as in
    /// [`Self::due_reclaims`].
    async fn finish_reclaims(&self, items: &[ReclaimItem], fence: Option<&Fence>) -> MetadataResult<()>;

    /// Which of `contents` some object, upload or pending reclaim knows. Cleanup deletes the chunks of the others once
    /// they are older than any write can be, so an answer takes account of every commit that was begun before the
    /// question.
    ///
    /// # Errors
    /// Also while a commit has an unknown outcome: its contents may turn out to be known.
    async fn known_contents(&self, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>>;

    /// Gives up those of `contents` that nothing knows: from now on no commit can make them known (it fails with
    /// `Condemned`), however long it was under way. Returns those given up, now or before: their chunks may be deleted.
    /// This, not the age of a chunk, is what keeps the reaper of orphans and a slow commit apart. At most 1,000 at a
    /// time.
    ///
    /// # Errors
    /// Also while a commit has an unknown outcome.
    async fn condemn(&self, contents: &[ContentId], now_ms: u64) -> MetadataResult<Vec<ContentId>>;

    /// Contents condemned before `before_ms`, the oldest first, at most `limit`.
    async fn condemned(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Condemned>>;

    /// Forgets that these contents were condemned, each if it was at just that time. Only what was condemned longer ago
    /// than any write takes may be forgotten. At most 1,000 at a time.
    async fn forget_condemned(&self, condemned: &[Condemned]) -> MetadataResult<()>;

    // --- replicas ----------------------------------------------------------------------------------------------------

    /// Which cluster this metadata belongs to: the one that claimed it first. With `cluster` it is claimed if it is
    /// nobody's yet. Whoever works with metadata that is not its own would take all its chunks for orphans.
    async fn claim(&self, cluster: Option<ClusterId>) -> MetadataResult<Option<ClusterId>>;

    /// Makes this metadata nobody's until it is claimed again, for whoever fills it while no node runs: none starts
    /// with half of it.
    async fn disclaim(&self) -> MetadataResult<()>;

    /// Raises the epochs under which chunks of a shard must have been written to be committed; never lowers one. Gives
    /// back those that are higher already: whoever works by the lower ones works by an old shard map.
    async fn raise_epochs(&self, epochs: &[(ShardId, Epoch)]) -> MetadataResult<Vec<(ShardId, Epoch)>>;

    /// Queues repairs. Those queued already are noticed anew: [`Repair::queued_ms`] rises, so that whoever carries one
    /// out at this moment does not finish what it did not look at. At most 1,000 at a time.
    async fn queue_repairs(&self, repairs: &[(ChunkId, NodeId)], now_ms: u64) -> MetadataResult<()>;

    /// Repairs that `node` is to carry out, by id, those with an id above `after`, at most `limit`.
    async fn repairs(&self, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>>;

    /// Forgets repairs that are done, or whose chunk nothing refers to any more. One that was noticed again since it
    /// was read ([`Repair::queued_ms`] is another one) stays.
    async fn finish_repairs(&self, repairs: &[Repair]) -> MetadataResult<()>;

    /// How many repairs wait, by node; nodes without any are left out. It counts all there are.
    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>>;

    /// How many repairs wait of one node.
    async fn repairs_waiting(&self, node: NodeId) -> MetadataResult<u64>;

    /// Whether the database is known to have lost commits that it had acknowledged. Until somebody has looked at that
    /// nothing is condemned.
    async fn lost_commits(&self) -> MetadataResult<bool>;

    /// Lets contents be condemned again after that: what the lost commits brought is back, or given up.
    async fn forget_lost_commits(&self) -> MetadataResult<()>;

    /// The same once the disks of all `nodes` were walked for what the lost commits brought: notes that those of
    /// `walked` were. Where something on them `waits` for what only other disks tell, they are to be walked once more,
    /// unless all others were before. Gives back the nodes whose disks are still to be walked; none if no commits are
    /// known to be lost. Where `nodes` are not known, and none are given, nothing is let through.
    async fn note_walked(&self, walked: NodeId, waits: bool, nodes: &[NodeId]) -> MetadataResult<Vec<NodeId>>;
}

/// A replica that lacks a chunk, or has it damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// For [`MetadataUpkeep::repairs`]; rises with the time at which the repair was noticed first.
    pub id: u64,
    /// Which chunk.
    pub chunk: ChunkId,
    /// Which node is to get it.
    pub node: NodeId,
    /// When it was noticed last; rises each time.
    pub queued_ms: u64,
}

/// A content that was condemned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Condemned {
    /// Which.
    pub content: ContentId,
    /// When, by the clock of the node that did, in milliseconds since 1970.
    pub condemned_ms: u64,
}

/// Chunks that nothing refers to any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// For [`MetadataUpkeep::finish_reclaims`].
    pub item: ReclaimItem,
    /// The chunks to delete. Empty for a content that lay in a tier: its pieces are on that tier's list when this is
    /// told.
    pub manifest: Manifest,
    /// A content that lay in a tier: its stub, the chunk [`u32::MAX`] of it, is to be deleted.
    pub stub: Option<ContentId>,
}
