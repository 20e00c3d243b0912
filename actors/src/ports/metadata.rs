//! The `MetadataStore` port: buckets, objects, uploads, users and the list of contents to reclaim.
//!
//! Its verbs are transactions, not CRUD: each leaves the metadata consistent, and when it returns `Ok` its effect is
//! durable and seen by every later call on every node. An error other than [`MetadataError::Unknown`] means that
//! nothing happened.
//!
//! # Invariants that every adapter keeps
//! * Keys are byte-exact and ordered by their UTF-8 bytes.
//! * Of the versions of a key exactly one is the latest: the one committed last. Sequence numbers of a key only rise.
//! * A content's reference count is the number of object versions that name it. When it falls to zero, the content is
//!   queued for reclaiming in the same transaction; its chunks are deleted by cleanup after a grace, never here.
//! * A part that is replaced, left out of a completion or aborted is queued likewise.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_protocol::{Epoch, ShardId, VersionId};

use super::coordination::FencingToken;

mod aging;
mod buckets;
#[cfg(feature = "conformance")]
pub mod conformance;
mod decorator;
mod direct;
mod holders;
mod listing;
mod moves;
mod objects;
#[cfg(any(test, feature = "conformance"))]
pub mod samples;
mod upkeep;
mod uploads;
mod users;
mod writes;

pub use aging::*;
pub use buckets::*;
pub use decorator::Decorator;
pub use direct::*;
pub use holders::*;
pub use listing::*;
pub use moves::*;
pub use objects::*;
pub use upkeep::*;
pub use uploads::*;
pub use users::*;
pub use writes::*;

/// Why a metadata operation failed; each variant asks another thing of the caller.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The bucket does not exist.
    #[error("no such bucket")]
    NoSuchBucket,
    /// A bucket of this name exists; `owned_by_caller` tells S3's two errors apart.
    #[error("the bucket name is taken")]
    BucketExists {
        /// Whether the one who asks owns it.
        owned_by_caller: bool,
    },
    /// The bucket holds versions, delete markers or unfinished uploads.
    #[error("the bucket is not empty: it has objects, versions, delete markers or unfinished uploads")]
    BucketNotEmpty,
    /// The object, or its latest version, does not exist.
    #[error("no such key")]
    NoSuchKey,
    /// The named version does not exist.
    #[error("no such version")]
    NoSuchVersion,
    /// The upload does not exist, was completed or aborted.
    #[error("no such upload")]
    NoSuchUpload,
    /// A part named in a completion is missing or its ETag or checksum differs.
    #[error("part {0} is missing or differs from what was uploaded")]
    InvalidPart(u16),
    /// If-Match or If-None-Match did not hold at the time of the commit.
    #[error("a precondition of the write does not hold")]
    PreconditionFailed,
    /// The content that a copy names was reclaimed in between: read the source again.
    #[error("the content is gone")]
    NoSuchContent,
    /// The content was condemned as an orphan before it was committed: the write took far too long, and must be
    /// repeated.
    #[error("the content was given up as an orphan before it was committed")]
    Condemned,
    /// The chunks were written under an epoch of their shard that is over (promise D9): nothing happened, the write
    /// must be repeated under the present epoch.
    #[error(
        "shard {shard} is at epoch {current}: what was written under an older one does not count; if this does not pass, ask \
         `holdfast cluster status` whether the coordination service was set back"
    )]
    StaleEpoch {
        /// Which shard.
        shard: ShardId,
        /// Its epoch.
        current: Epoch,
    },
    /// The lock under which the write was begun was granted again since, with a higher token: nothing happened, and the
    /// caller is not the holder any more. If it is, the lock service has lost its memory: see
    /// [`Locks::raise`](super::Locks::raise).
    #[error("the lock {name} was granted again since, under token {current}")]
    Fenced {
        /// Which lock.
        name: String,
        /// The highest token seen.
        current: FencingToken,
    },
    /// A user, key or other named thing does not exist.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// Objects lie in the tier, are on their way there, or remains of some wait to be deleted.
    #[error("the tier is in use")]
    TierInUse,
    /// A user, key or other named thing exists already.
    #[error("the {0} exists already")]
    Exists(&'static str),
    /// The store takes no more work now: answer 503 SlowDown.
    #[error("the metadata store is busy")]
    Busy,
    /// The store has no room for what the write needs; nothing happened, and reads go on. It takes writes again by
    /// itself once there is room: see [`MetadataStore::no_space`].
    #[error("the metadata store has no room: {0}")]
    NoSpace(String),
    /// The store cannot be reached or refuses to work; nothing happened.
    #[error("metadata store: {0}")]
    Unavailable(String),
    /// The outcome of a commit is not known: it may have happened. Chunks must not be deleted on it; cleanup
    /// decides.
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(String),
    /// The move was taken over by another attempt, changed, or is over: nothing happened.
    #[error("the move was taken over or is over")]
    Superseded,
    /// RestoreObject of a version that is no cold one.
    #[error("the object's storage class is not one that can be restored")]
    NotCold,
    /// Stored metadata cannot be understood.
    #[error("metadata is corrupt: {0}")]
    Corrupt(String),
}

/// Shorthand of this port.
pub type MetadataResult<T> = Result<T, MetadataError>;

/// Transactional metadata: what requests and operators ask for. See the module's invariants. Here are the verbs that a
/// cache before the store has to know; the others are those of [`MetadataDirect`] and [`MetadataUpkeep`].
#[async_trait]
pub trait MetadataStore: MetadataDirect + MetadataUpkeep {
    // --- buckets ---------------------------------------------------------------------------------------------------

    /// Creates a bucket. Fails with `BucketExists`, and with `NotFound("user")` when there is no user of the owner's
    /// name.
    async fn create_bucket(&self, bucket: NewBucket) -> MetadataResult<Arc<Bucket>>;

    /// A bucket with all its configuration, or `NoSuchBucket`.
    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>>;

    // What changes a bucket names it by both its name and its number. The store compares them in the transaction: to
    // who decided about a bucket, one that somebody has made since under its name is `NoSuchBucket`.

    /// Removes an empty bucket. Fails with `NoSuchBucket` (also where the bucket of this name is another one),
    /// `BucketNotEmpty`.
    async fn delete_bucket(&self, name: &str, id: BucketId) -> MetadataResult<()>;

    /// Sets (`Some`) or removes (`None`) one configuration document of a bucket. Fails with `NoSuchBucket` (also where
    /// the bucket of this name is another one).
    async fn set_bucket_config(
        &self,
        name: &str,
        id: BucketId,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> MetadataResult<()>;

    /// Sets the versioning state. It never returns to [`Versioning::Unversioned`]. Fails with `NoSuchBucket` (also
    /// where the bucket of this name is another one).
    async fn set_versioning(&self, name: &str, id: BucketId, versioning: Versioning) -> MetadataResult<()>;

    // --- objects ---------------------------------------------------------------------------------------------------

    /// Makes an object visible: the one commit of PUT and COPY. The bucket's versioning state, read in the transaction,
    /// decides whether the null version is replaced or `object.version` is added. Replicas that `object.evidence` says
    /// missed a chunk become repairs in the same transaction. Fails with `NoSuchBucket`, `PreconditionFailed`,
    /// `NoSuchContent`, `Condemned`, `StaleEpoch`.
    async fn commit_object(&self, object: NewObject) -> MetadataResult<Committed>;

    /// One version of an object, or the latest (`version` = `None`); a delete marker is returned as such. Fails with
    /// `NoSuchKey` (no version at all), `NoSuchVersion`. Does not look at whether the bucket still exists.
    async fn object(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
    ) -> MetadataResult<Arc<ObjectVersion>>;

    /// Deletes as S3 does: without a version it removes the null version or adds a delete marker, as versioning says;
    /// with one it removes that version. Deleting what does not exist succeeds. Each request stands alone: one's
    /// failure does not undo another. At most 1,000 at a time.
    async fn delete_objects(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>>;

    /// Replaces the tags of a version, and tells which one that is. Fails with `NoSuchKey`, `NoSuchVersion` (both also
    /// for delete markers), `PreconditionFailed`.
    async fn set_object_tags(&self, request: ChangeRequest, tags: Vec<Tag>) -> MetadataResult<VersionId>;

    /// Replaces the canned ACL of a version, and tells which one that is. Fails with `NoSuchKey`, `NoSuchVersion` (both
    /// also for delete markers), `PreconditionFailed`.
    async fn set_object_acl(&self, request: ChangeRequest, acl: CannedAcl) -> MetadataResult<VersionId>;

    /// Turns parts into an object in one transaction: exactly one of several callers succeeds. The parts named must be
    /// stored with the same content, else `InvalidPart`; others are queued for reclaiming. A caller that repeats a
    /// completion that succeeded before gets `NoSuchUpload`. Fails also with `PreconditionFailed`, `NoSuchBucket`.
    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed>;

    // --- moves between tiers -----------------------------------------------------------------------------------------

    /// Asks for the bytes of a version to be moved. For a move to a tier or to the cluster's disks the class becomes
    /// what was asked for when the move is done; a restore is [`Restore::Ongoing`] from now on. The queue that movers
    /// take from is [`super::TierLedger`]'s. Fails with `NoSuchKey`, `NoSuchVersion` (also for delete markers),
    /// `PreconditionFailed`; a restore of a version of class `STANDARD` with `NotCold`.
    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued>;

    /// Ends a move in one transaction: compares the attempt and the content, makes the new content the version's, takes
    /// the pieces that the attempt reserved off the list of what is to be deleted, and lets go of the old content,
    /// whose chunks or pieces are reclaimed after the grace. Where it was a restore, the way back is queued for its
    /// end. Fails with `Superseded` (also when a reserved piece is being deleted), `Condemned`, `StaleEpoch`.
    async fn commit_move(&self, commit: CommitMove) -> MetadataResult<MoveEnd>;

    // --- users and keys
    // ------------------------------------------------------------------------------------------------

    /// Adds a user. Fails with `Exists("user")`.
    async fn create_user(&self, user: User) -> MetadataResult<()>;

    /// A user by name, or `NotFound("user")`.
    async fn user(&self, name: &str) -> MetadataResult<Arc<User>>;

    /// Enables or disables a user.
    async fn set_user_enabled(&self, name: &str, enabled: bool) -> MetadataResult<()>;

    /// Removes a user and the keys of the user. Fails with `NotFound("user")`, and with `BucketNotEmpty` while the user
    /// owns buckets.
    async fn delete_user(&self, name: &str) -> MetadataResult<()>;

    /// Adds a key. Fails with `Exists("access key")`, `NotFound("user")`.
    async fn create_key(&self, key: AccessKey) -> MetadataResult<()>;

    /// A key by its public half, with its user, or `NotFound("access key")`.
    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>>;

    /// Enables or disables a key.
    async fn set_key_enabled(&self, access_key: &str, enabled: bool) -> MetadataResult<()>;

    /// Removes a key. Fails with `NotFound("access key")`.
    async fn delete_key(&self, access_key: &str) -> MetadataResult<()>;

    // --- operating -------------------------------------------------------------------------------------------------

    /// Whether the store answers; for health checks. While it has no room for writes, this also tries whether there is
    /// some again; that there is none is no failure of it.
    async fn ping(&self) -> MetadataResult<()>;

    /// Why the store takes no writes any more until it is opened anew, if so, though it may answer reads.
    fn writes_stopped(&self) -> Option<String> {
        None
    }

    /// Why writes fail for want of room, and what helps, if a write did and none that was tried since found any.
    fn no_space(&self) -> Option<String> {
        None
    }

    /// Waits until all accepted work is durable and stops taking more.
    async fn close(&self);
}
