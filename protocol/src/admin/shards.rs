//! Shards: who holds what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/shards` and `GET /v1/shards/{shard}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardInfo {
    /// Its number.
    pub shard: u32,
    /// `unplaced`, `healthy`, `moving`, `degraded`, `no_quorum` or `unavailable`.
    pub health: String,
    /// Its generation; 0 before it is placed.
    pub epoch: u64,
    /// Acknowledgements that make a write durable.
    pub write_quorum: u32,
    /// Whom the layout in force wants.
    pub target: Vec<String>,
    /// Everyone who has to do with it.
    pub replicas: Vec<ShardReplica>,
}

/// One node's part in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardReplica {
    /// The node.
    pub node: String,
    /// `member`, `joining` or `leaving`.
    pub role: String,
    /// Whether the node is here.
    pub alive: bool,
    /// Chunks that it has of the shard, by its own count. Only where one shard is asked for, and the node can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}
