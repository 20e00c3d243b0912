//! What outlives the loops: commands that were given, and what each loop published last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_protocol::cluster::Epoch;
use holdfast_protocol::{NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::ClusterParts;
use crate::domain::placement::controller::Overview;
use crate::flow::key_locks::KeyLocks;
use crate::ports::chunks::DiskCount;
use crate::ports::coordination::{FencingToken, NodeState};

/// Whether this node is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipStatus {
    /// Whether it is, as far as is known.
    pub registered: bool,
    /// Under which incarnation.
    pub incarnation: u64,
    /// Why not, or what failed last; `None` once it works again.
    pub last_error: Option<String>,
}

/// What the controller does; published by whoever is it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerStatus {
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// The lease's token.
    pub token: FencingToken,
    /// Version of the layout that it works towards; `None` before it has seen one.
    pub layout_version: Option<u64>,
    /// Nodes that hold data or should, and are not here.
    pub absent: BTreeSet<NodeId>,
    /// Of them those that are gone for so long that they are replaced.
    pub lost: BTreeSet<NodeId>,
    /// How the shards are.
    pub overview: Overview,
    /// Shards of which metadata knows a later epoch than the coordination service: that was set back, and their writes
    /// are refused. Somebody has to look.
    pub set_back: BTreeSet<ShardId>,
    /// Why there is no placement, if the layout allows none.
    pub placement_error: Option<String>,
    /// What failed last; `None` once it works again.
    pub last_error: Option<String>,
}

/// Where a join stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyPhase {
    /// Its turn has not come, or not again after a failure.
    Waiting,
    /// Copies what it lacks.
    Copying,
    /// Everything is here and compared; tells the controller.
    Reporting,
    /// It could not go on; tells the controller.
    Failed,
}

impl CopyPhase {
    /// For logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Reporting => "reporting",
            Self::Failed => "failed",
        }
    }
}

/// How far the copy of a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyProgress {
    /// The join.
    pub since: Epoch,
    /// Where it stands.
    pub phase: CopyPhase,
    /// Chunks of the shard, as the largest member counts them.
    pub chunks_expected: u64,
    /// Their bytes.
    pub bytes_expected: u64,
    /// Chunks of the shard here: copied, or here before.
    pub chunks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
    /// Of them fetched by this process.
    pub bytes_fetched: u64,
    /// Rounds over the members' lists that ended.
    pub rounds: u32,
    /// What failed last.
    pub last_error: Option<String>,
}

impl CopyProgress {
    /// Nothing yet.
    pub fn new(since: Epoch) -> Self {
        Self {
            since,
            phase: CopyPhase::Waiting,
            chunks_expected: 0,
            bytes_expected: 0,
            chunks_done: 0,
            bytes_done: 0,
            bytes_fetched: 0,
            rounds: 0,
            last_error: None,
        }
    }
}

/// What this node copies, and what it deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildStatus {
    /// Joins of this node.
    pub copies: BTreeMap<ShardId, CopyProgress>,
    /// Bytes fetched for joins since the start of the process.
    pub bytes_fetched: u64,
    /// Shards joined since the start of the process.
    pub shards_joined: u64,
    /// Chunks deleted since then because other nodes hold them now.
    pub leftovers_deleted: u64,
    /// Chunks that this node need not hold and keeps, since too few members have them. As of the last walk.
    pub leftovers_kept: u64,
    /// What failed last.
    pub last_error: Option<String>,
}

/// This node's repairs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairStatus {
    /// Whether an operator paused them.
    pub paused: bool,
    /// Repairs that wait, by node, as of the last look: those of this node, and of all on the controller.
    pub backlog: BTreeMap<NodeId, u64>,
    /// Repairs ended since the start of the process.
    pub done: u64,
    /// Of them those for which nothing had to be fetched: the chunk was whole, or nothing knows it any more.
    pub needless: u64,
    /// Bytes fetched.
    pub bytes: u64,
    /// Bytes a second over the last look.
    pub rate_bytes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// The last errors, newest first.
    pub last_errors: Vec<String>,
}

/// The last comparison of one shard's replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparisonReport {
    /// The shard's epoch then. A comparison before the last change of members says nothing about the present ones.
    pub epoch: Epoch,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether every member was compared.
    pub complete: bool,
    /// Chunks that metadata knows and a member lacks, counted once for each such member.
    pub differences: u64,
    /// Why it is not complete.
    pub error: Option<String>,
}

impl ComparisonReport {
    /// Whether it proves that the members of `epoch` hold the same.
    pub fn proves(&self, epoch: Epoch) -> bool {
        self.complete && self.differences == 0 && self.epoch == epoch
    }
}

/// Comparisons of those shards of which this node is the first live member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComparisonStatus {
    /// The last one of each shard.
    pub shards: BTreeMap<ShardId, ComparisonReport>,
    /// Shards that are due.
    pub waiting: u64,
    /// Whether one that an operator asked for is not through yet.
    pub running: bool,
    /// Repairs queued since the start of the process.
    pub repairs_queued: u64,
    /// What failed last.
    pub last_error: Option<String>,
}

/// What outlives the loops.
#[derive(Debug)]
pub struct ClusterShared {
    /// What this node says it is doing. Set by the assembly, announced by the membership loop.
    pub state: watch::Sender<NodeState>,
    /// Registration.
    pub membership: watch::Sender<MembershipStatus>,
    /// The controller's view, while this node is it.
    pub controller: watch::Sender<Option<ControllerStatus>>,
    /// Copies.
    pub rebuild: Mutex<RebuildStatus>,
    /// Repairs.
    pub repair: Mutex<RepairStatus>,
    /// Comparisons.
    pub comparison: Mutex<ComparisonStatus>,
    /// Whether this node alone is to make no repairs. What the operator paused is in the coordination service.
    pub repairs_held: watch::Sender<bool>,
    /// Rises with each comparison that an operator asks for.
    pub comparison_wanted: watch::Sender<u64>,
    /// Rung when a repair for this node was queued here.
    pub repairs_queued: Notify,
    /// Shards whose chunks are being copied or deleted: the two must not meet, see [`super::leftovers`].
    pub shard_locks: Arc<KeyLocks<ShardId>>,
    /// The disks of this node for which nothing was found stranded; see [`super::stranded`].
    pub rescued: watch::Sender<DiskCount>,
    /// Whether this node counts as gone since its disks are silent; see [`super::silence`].
    pub silent: watch::Sender<bool>,
    /// Why this node cannot take part, once that is certain: it must stop.
    pub failed: watch::Sender<Option<String>>,
}

impl ClusterShared {
    pub(super) fn new(parts: &ClusterParts) -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::new(parts.announcement.state),
            membership: watch::Sender::default(),
            controller: watch::Sender::new(None),
            rebuild: Mutex::default(),
            repair: Mutex::default(),
            comparison: Mutex::default(),
            repairs_held: watch::Sender::new(false),
            comparison_wanted: watch::Sender::new(0),
            repairs_queued: Notify::new(),
            shard_locks: KeyLocks::new(),
            rescued: watch::Sender::default(),
            silent: watch::Sender::default(),
            failed: watch::Sender::new(None),
        })
    }

    /// Publishes why this node must stop; the first reason stands.
    pub fn fail(&self, reason: impl Into<String>) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| reason.into());
            first
        });
    }
}
