//! The `TierLedger` port: which cold tiers there are, the queue of moves, and the list of pieces to be deleted.
//!
//! It lies in the same database as the metadata, as verbs of [`super::MetadataStore`] write to it in their
//! transactions. What it has is only for movers, sweepers and operators; readers of objects never ask it.
//!
//! # Rules that every adapter keeps
//! * **A move** belongs to one version of one key; a version has at most one. It is *due* at a time. A mover claims due
//!   moves for a while: that gives the move a new attempt number and makes it due again at the end of the claim, so a
//!   mover that died is followed by another one. Everything that a mover does later names the attempt and fails with
//!   `Superseded` when there is another one. Clocks decide when a move is tried, never what becomes of it.
//! * **A piece is to be deleted from the moment it is reserved** until a commit ([`super::MetadataStore::commit_move`])
//!   takes it off the list, in the same transaction that makes it part of a content. So whatever a crash leaves is
//!   deleted in the end, and nobody has to find out what happened.
//! * Pieces that an attempt reserved are due when its claim has been over for a grace, as nobody knows what becomes of
//!   it; but at once when it is known to have ended without effect: postponed, dropped, or overtaken at its commit.
//!   They are deleted twice in any case, the second time after a pause, since a request that was sent may take effect
//!   late.
//! * A piece that [`TierLedger::due_pieces`] has given out cannot be taken off the list by a commit any more.
//! * A content that is reclaimed puts its pieces on the list, in the transaction that claims it.
//! * Attempt numbers are unique and rise.

use async_trait::async_trait;
use holdfast_protocol::{ContentId, NodeId, TierName, VersionId};

use std::sync::Arc;

use super::metadata::{BucketId, CommitMove, Content, MetadataResult, MoveReason, Moved};
use super::tiers::PieceName;
use crate::domain::events::EventDraft;

#[cfg(feature = "conformance")]
pub mod conformance;

/// A tier as operators have set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierRecord {
    /// Its name, which is the storage class.
    pub name: TierName,
    /// What is needed to reach it, as JSON that the node understands. Secrets in it are sealed.
    pub settings: String,
    /// When it was added.
    pub created_ms: u64,
    /// Rises with each change.
    pub revision: u64,
}

/// Bytes on their way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its number.
    pub id: u64,
    /// Bucket.
    pub bucket: BucketId,
    /// Its name, which labels and events tell.
    pub bucket_name: String,
    /// Key.
    pub key: String,
    /// Version.
    pub version: VersionId,
    /// The content that is to be moved. If the version has another one, the move is pointless.
    pub content: ContentId,
    /// The tier that it works with: where it goes to, or where it comes from if it goes to the cluster's disks.
    pub lane: TierName,
    /// Where to; `None`: the cluster's disks.
    pub to: Option<TierName>,
    /// Why.
    pub reason: MoveReason,
    /// When it was asked for.
    pub queued_ms: u64,
    /// When it is to be tried (again). Of one that is claimed: when the claim ends.
    pub due_ms: u64,
    /// Of the last claim; 0: none yet.
    pub attempt: u64,
    /// Who has claimed it; `None`: nobody.
    pub owner: Option<NodeId>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Why it failed the last time.
    pub error: Option<String>,
}

impl Move {
    /// What ends it under its present attempt, for [`super::MetadataStore::commit_move`].
    pub fn commit(&self, moved: Moved, event: Option<EventDraft>, now_ms: u64) -> CommitMove {
        CommitMove {
            id: self.id,
            attempt: self.attempt,
            bucket: self.bucket,
            key: self.key.clone(),
            version: self.version,
            from: self.content,
            moved,
            event,
            now_ms,
        }
    }
}

/// Who claims moves, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Who.
    pub owner: NodeId,
    /// Now.
    pub now_ms: u64,
    /// When the claim ends, if it is not renewed.
    pub until_ms: u64,
    /// Whether what is back from a tier for a while stays for now, also if its time is over.
    pub spares_restored: bool,
    /// Whether only what comes back to the cluster's disks is wanted, as the tier takes nothing more.
    pub to_cluster_only: bool,
}

/// Moves of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneBacklog {
    /// The tier.
    pub lane: TierName,
    /// Moves that are due or claimed.
    pub due: u64,
    /// Moves that failed at least once.
    pub failing: u64,
    /// All moves, restores that are not over included.
    pub waiting: u64,
    /// Since when the oldest due one is due.
    pub oldest_due_ms: Option<u64>,
}

/// What lies in a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierUsage {
    /// The tier.
    pub tier: TierName,
    /// Contents. Copies of an object share one.
    pub contents: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Pieces on the list of what is to be deleted, reserved ones included.
    pub pieces_to_delete: u64,
}

/// A piece that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuePiece {
    /// For [`TierLedger::finish_pieces`].
    pub id: u64,
    /// What the tier calls it.
    pub name: PieceName,
    /// Whether some mover may still be writing it, for all that is known: it is deleted twice, with a pause.
    pub is_unsure: bool,
}

/// What movers and operators of tiers work on. Errors are those of [`super::MetadataStore`].
#[async_trait]
pub trait TierLedger: Send + Sync + 'static {
    // --- tiers -----------------------------------------------------------------------------------------------------

    /// All tiers, by name.
    async fn tiers(&self) -> MetadataResult<Vec<TierRecord>>;

    /// Adds a tier. Fails with `Exists("tier")`. `judged` are all tiers, as [`Self::tiers`] gave them to whoever found
    /// that this one gets on with them: when they are others by now it fails with `PreconditionFailed`, checked in the
    /// same transaction.
    async fn add_tier(
        &self,
        name: TierName,
        settings: String,
        now_ms: u64,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord>;

    /// Replaces the settings of a tier, and takes away the claims of its moves: what they were about to store went by
    /// the settings before. Fails with `NotFound("tier")`. `judged` as in [`Self::add_tier`].
    async fn change_tier(
        &self,
        name: &TierName,
        settings: String,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord>;

    /// [`Self::change_tier`], if nothing lies in the tier: the settings may lead to another store. Fails also with
    /// `TierInUse`.
    async fn change_empty_tier(
        &self,
        name: &TierName,
        settings: String,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord>;

    /// Removes a tier that nothing lies in, is to be deleted from or waits for. Fails with `NotFound("tier")`,
    /// `TierInUse`.
    async fn remove_tier(&self, name: &TierName) -> MetadataResult<()>;

    /// What lies in each tier. The cost follows the number of cold contents.
    async fn tier_usage(&self) -> MetadataResult<Vec<TierUsage>>;

    /// Contents in a tier, by id, those after `after`, at most `limit`.
    async fn cold_contents(
        &self,
        tier: &TierName,
        after: Option<ContentId>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Content>>>;

    // --- moves -----------------------------------------------------------------------------------------------------

    /// Claims moves of a lane that are due, the longest due first, at most `limit`. The cost follows what is returned.
    async fn claim_moves(&self, lane: &TierName, claim: Claim, limit: u32) -> MetadataResult<Vec<Move>>;

    /// Keeps a claim until `until_ms`, and the pieces it reserved until `pieces_until_ms`. Fails with `Superseded`.
    async fn renew_move(&self, id: u64, attempt: u64, until_ms: u64, pieces_until_ms: u64) -> MetadataResult<()>;

    /// Gives a claim back: the move is due again at `due_ms`. With an error it counts as failed; the text is cut off at
    /// 1,024 bytes. What the attempt reserved is to be deleted at once. Fails with `Superseded`.
    async fn postpone_move(&self, id: u64, attempt: u64, due_ms: u64, error: Option<&str>) -> MetadataResult<()>;

    /// Forgets a claimed move that has become pointless. What the attempt reserved is to be deleted at once. Fails with
    /// `Superseded`.
    async fn drop_move(&self, id: u64, attempt: u64) -> MetadataResult<()>;

    /// Moves by number, those after `after`, at most `limit`; of one lane or of all. For operators.
    async fn moves(&self, lane: Option<&TierName>, after: u64, limit: u32) -> MetadataResult<Vec<Move>>;

    /// What waits, by lane; lanes without any are left out.
    async fn move_backlog(&self, now_ms: u64) -> MetadataResult<Vec<LaneBacklog>>;

    /// Makes all moves of a lane that failed due now, and what a clock that was ahead has put off: moves, claims and
    /// deletions that are weeks away, but no ends of restores. Returns how many moves. For operators who have mended a
    /// tier or a clock.
    async fn retry_moves(&self, lane: &TierName, now_ms: u64) -> MetadataResult<u64>;

    // --- pieces ----------------------------------------------------------------------------------------------------

    /// Puts the names that an attempt reserved on the list of what is to be deleted, from `due_ms` on. Fails with
    /// `Superseded` when the move has another attempt.
    async fn reserve_pieces(
        &self,
        id: u64,
        attempt: u64,
        tier: &TierName,
        names: &[PieceName],
        due_ms: u64,
    ) -> MetadataResult<()>;

    /// Gives out pieces of a tier that are to be deleted by now, at most `limit`; those that are not finished come
    /// again after `again_ms`.
    async fn due_pieces(
        &self,
        tier: &TierName,
        now_ms: u64,
        again_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<DuePiece>>;

    /// Forgets pieces that are deleted, those of just this number and name; of an unsure one its first deletion is
    /// noted, and it comes once more at `again_ms`.
    async fn finish_pieces(&self, pieces: &[DuePiece], again_ms: u64) -> MetadataResult<()>;
}
