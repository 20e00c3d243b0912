//! Repairs, copies and comparisons of one node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/repair`: what the node that answers does to heal data. The backlog is that of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepairInfo {
    /// The node.
    pub node: String,
    /// Whether it makes no repairs now.
    pub paused: bool,
    /// Since when the repairs of all nodes are paused, and by whom; absent while they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseInfo>,
    /// Repairs that wait, by node; absent while metadata does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<Vec<(String, u64)>>,
    /// Repairs ended since the start of the process.
    pub done: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Bytes fetched for repairs.
    pub bytes: u64,
    /// Bytes a second over the last look.
    pub rate_bytes: u64,
    /// Bytes a second that repairs and copies may take together.
    pub bandwidth_bytes: u64,
    /// The last errors, newest first.
    pub last_errors: Vec<String>,
    /// Shards that the node copies.
    pub copies: Vec<CopyInfo>,
    /// Comparisons of the shards of which the node is the first live member.
    pub comparison: ComparisonInfo,
}

/// Since when something is paused in the whole cluster, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseInfo {
    /// When it was asked for.
    pub since_ms: u64,
    /// Who asked for it, as in the audit log.
    pub by: String,
    /// The node that was asked.
    pub node: String,
}

/// The copy of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyInfo {
    /// The shard.
    pub shard: u32,
    /// `waiting`, `copying`, `reporting` or `failed`.
    pub phase: String,
    /// Chunks that it is to have.
    pub chunks_expected: u64,
    /// Chunks that it has.
    pub chunks_done: u64,
    /// Bytes that it is to have.
    pub bytes_expected: u64,
    /// Bytes that it has.
    pub bytes_done: u64,
    /// What failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Comparisons between replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComparisonInfo {
    /// Whether one that was asked for still runs.
    pub running: bool,
    /// Shards of which this node is the comparer.
    pub shards: u32,
    /// Of them proven to be the same on all members, at their present epoch.
    pub verified: u32,
    /// The others, with why not; the first few.
    pub unverified: Vec<(u32, String)>,
    /// Repairs that comparisons queued since the start of the process.
    pub repairs_queued: u64,
    /// What failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
