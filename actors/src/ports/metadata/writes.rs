//! What commits and deletions of objects take and give.

use std::sync::Arc;

use holdfast_protocol::{ChunkId, ContentId, Epoch, NodeId, ShardId, TierName, VersionId};

use super::{BucketId, CannedAcl, Content, ETag, ObjectAttributes, ObjectVersion, Tag, Versioning};
use crate::domain::events::EventDraft;
use crate::ports::chunks::ChunkReceipt;

/// What must hold at the commit of a write, else `PreconditionFailed`. Compared to the latest version; a delete marker
/// counts as absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WritePrecondition {
    /// `If-None-Match: *`: there must be no object.
    pub must_not_exist: bool,
    /// `If-Match`: the object must exist with this ETag (`None` inside = any ETag, `*`). On a missing object:
    /// `NoSuchKey`.
    pub must_match: Option<Option<ETag>>,
}

/// What a commit has to know about the replicas that took its chunks. Empty where chunks lie on one node only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaEvidence {
    /// The epoch of each shard that took a chunk, sorted by shard, each once. Where chunks of one shard were taken
    /// under different epochs, the lowest stands: the commit is refused if any of them is too old.
    pub epochs: Vec<(ShardId, Epoch)>,
    /// Replicas that did not acknowledge a chunk: each becomes a repair, in the transaction of the commit.
    pub missed: Vec<(ChunkId, NodeId)>,
}

impl ReplicaEvidence {
    /// Adds what is known about one chunk.
    pub fn add(&mut self, chunk: ChunkId, receipt: ChunkReceipt) {
        if let Some((shard, epoch)) = receipt.fence {
            match self.epochs.binary_search_by_key(&shard, |(shard, _)| *shard) {
                Ok(at) => self.epochs[at].1 = self.epochs[at].1.min(epoch),
                Err(at) => self.epochs.insert(at, (shard, epoch)),
            }
        }
        self.missed.extend(receipt.missed.into_iter().map(|node| (chunk, node)));
    }
}

/// The bytes of an object to be committed.
#[derive(Debug, Clone)]
pub enum ContentSource {
    /// Chunks just made durable.
    New(Content),
    /// Another object's content, shared (copy). `NoSuchContent` if it was dereferenced in between.
    Shared(ContentId),
}

/// An object to be made visible.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Bucket.
    pub bucket: BucketId,
    /// Key, 1 to 1,024 bytes.
    pub key: String,
    /// The version id to use if the bucket has versioning on.
    pub version: VersionId,
    /// Time of the commit.
    pub now_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// Bytes.
    pub content: ContentSource,
    /// Headers.
    pub attributes: ObjectAttributes,
    /// Tags.
    pub tags: Vec<Tag>,
    /// ACL.
    pub acl: CannedAcl,
    /// Storage class. Where the content does not lie there, a move is queued in the same transaction.
    pub class: Option<TierName>,
    /// Conditions.
    pub precondition: WritePrecondition,
    /// Of the chunks of a [`ContentSource::New`]; empty for a shared one.
    pub evidence: ReplicaEvidence,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}

/// What a commit made.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The new latest version, as a later read would see it.
    pub object: Arc<ObjectVersion>,
    /// Whether the bucket keeps versions (the version id is then told to the client).
    pub versioning: Versioning,
}

/// One deletion.
#[derive(Debug, Clone)]
pub struct DeleteRequest {
    /// Key.
    pub key: String,
    /// A version to remove for good, or `None` for the S3 default.
    pub version: Option<VersionId>,
    /// The id that a delete marker gets, should one be made.
    pub marker_version: VersionId,
    /// Owner of that marker.
    pub owner: String,
    /// `If-Match` of a conditional delete.
    pub precondition: WritePrecondition,
    /// What was judged before; `None`: whatever is there.
    pub only_if: Option<OnlyIf>,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}

/// A change of a version that is there: of its tags, or of its ACL.
#[derive(Debug, Clone)]
pub struct ChangeRequest {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Which version; `None`: the latest.
    pub version: Option<VersionId>,
    /// What was judged before; `None`: whatever is there.
    pub only_if: Option<OnlyIf>,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
    /// Time of the change, in milliseconds since 1970.
    pub now_ms: u64,
}

/// A version as it was when somebody decided that it is to go or to change, else `PreconditionFailed`: the latest
/// version if the request names none, else the one named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyIf {
    /// Its sequence number, which changes with everything that is changed of a latest version.
    pub sequence: u64,
    /// Whether it must be the only version of its key.
    pub is_alone: bool,
    /// The [`super::Bucket::revision`] under which it was judged: under another one other rules may hold. `None`: any.
    pub revision: Option<u64>,
    /// What must hold beside, where it is a noncurrent version by then, as one that was the latest when it was judged.
    pub noncurrent: Option<OnlyNoncurrent>,
}

/// What may change of a noncurrent version's case while its sequence number stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyNoncurrent {
    /// Its tags.
    pub tags: Vec<Tag>,
    /// How many noncurrent versions of its key must be newer, at least.
    pub newer: u32,
}

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The version removed or the marker made, when versioning is or was on.
    pub version: Option<VersionId>,
    /// Whether a delete marker was made, or removed.
    pub delete_marker: bool,
}
