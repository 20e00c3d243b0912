//! What the verbs that move bytes between the cluster's disks and cold tiers take and give.

use holdfast_protocol::{ContentId, TierName, VersionId};

use super::{BucketId, Content, OnlyIf, ReplicaEvidence};
use crate::domain::events::EventDraft;

/// Why bytes are to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveReason {
    /// The version was stored with this class.
    Stored,
    /// A lifecycle rule.
    Lifecycle,
    /// An operator.
    Command,
    /// RestoreObject: to the cluster's disks for so many milliseconds; the class stays.
    Restore {
        /// For how long, from the moment it is there.
        keep_ms: u64,
    },
    /// The time of a restore is over.
    Return,
}

/// A version whose bytes are to be moved.
#[derive(Debug, Clone)]
pub struct MoveRequest {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Version; `None`: the latest.
    pub version: Option<VersionId>,
    /// To which tier; `None`: to the cluster's disks. Ignored for a [`MoveReason::Restore`].
    pub to: Option<TierName>,
    /// Why: [`MoveReason::Lifecycle`], [`MoveReason::Command`] or [`MoveReason::Restore`].
    pub reason: MoveReason,
    /// What was judged before; `None`: whatever is there.
    pub only_if: Option<OnlyIf>,
    /// What is told if the request is new (`s3:ObjectRestore:Post`); `None`: nothing.
    pub event: Option<EventDraft>,
    /// Now.
    pub now_ms: u64,
}

/// What a [`MoveRequest`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveQueued {
    /// A move waits for a mover from now on. One to another place that was queued before is given up.
    Queued,
    /// One to the same place was asked for before, and goes on. If it failed, it is tried again at once.
    Waiting,
    /// The bytes lie there already (and the class is the wanted one now, if it was another).
    InPlace,
    /// A restore that is there ends at another time now.
    Extended,
    /// A restore is under way already, or a move to the cluster's disks for good. To a [`MoveReason::Lifecycle`]: also
    /// one that is there and not over. Nothing changed; the end of the restore notes the key as one to be looked at
    /// again.
    Ongoing,
}

/// Where a move has brought the bytes.
#[derive(Debug, Clone)]
pub enum Moved {
    /// To a new content, with a fresh id, in a tier or on the cluster's disks.
    To {
        /// The content.
        content: Content,
        /// Of its chunks; empty for one in a tier.
        evidence: ReplicaEvidence,
    },
    /// Nowhere: there are none, or they lie where they are wanted. Only the class changes.
    Nowhere,
}

/// The end of a move: the version's content is exchanged, if it is still the one that was moved.
#[derive(Debug, Clone)]
pub struct CommitMove {
    /// Which move ([`crate::ports::tiering::Move`]).
    pub id: u64,
    /// The attempt that did it.
    pub attempt: u64,
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Version.
    pub version: VersionId,
    /// What was moved.
    pub from: ContentId,
    /// Where to.
    pub moved: Moved,
    /// What is told of it; `None`: nothing.
    pub event: Option<EventDraft>,
    /// Now.
    pub now_ms: u64,
}

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveEnd {
    /// The version has its new content, the old one lost a reference.
    Done,
    /// The version is gone or has another content by now: it won. The move is forgotten, and what it stored stays with
    /// what is to be deleted.
    Overtaken,
}
