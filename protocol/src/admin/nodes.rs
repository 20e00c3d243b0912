//! The nodes of a cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/nodes`: one node that is alive or in the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Its identity, 16 hexadecimal digits.
    pub id: String,
    /// `starting`, `ready`, `stopping` or `absent`.
    pub state: String,
    /// Whether the layout in force names it. One that it does not name takes requests and holds no data.
    pub in_layout: bool,
    /// Whether everything is to move off it.
    pub draining: bool,
    /// Its zone in the layout; of a node that is not in it, what its configuration says.
    pub zone: String,
    /// Its share of the data relative to the others.
    pub weight: u32,
    /// Where peers reach it; empty while it is absent, as are the next two.
    pub peer_addr: String,
    /// Where S3 is served.
    pub s3_addr: String,
    /// Where its admin API is served.
    pub admin_addr: String,
    /// What its disks can hold.
    pub capacity_bytes: u64,
    /// What is free of that.
    pub free_bytes: u64,
    /// Version of the program.
    pub version: String,
    /// What the shard map says about it.
    pub shards: NodeShards,
    /// Repairs that wait for it; absent while metadata does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<u64>,
}

/// In how many shards a node has which role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeShards {
    /// Holds the shard, verified.
    pub member: u32,
    /// Copies it.
    pub joining: u32,
    /// Left it, and deletes after the grace.
    pub leaving: u32,
    /// Is wanted by the layout in force.
    pub wanted: u32,
}

/// `GET /v1/nodes/{id}/drain`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainStatus {
    /// The node.
    pub node: String,
    /// Whether the layout in force wants it to be empty.
    pub draining: bool,
    /// Shards that still name it as member, joining or leaving.
    pub shards_left: u32,
    /// Of them those that wait for other nodes to have copied everything.
    pub shards_to_copy: u32,
    /// Chunks that it still holds, by its own count; absent while it cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks_left: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_left: Option<u64>,
    /// Verified: no shard names the node, and it holds no chunk.
    pub done: bool,
    /// What it waits for.
    pub waiting_for: String,
}
