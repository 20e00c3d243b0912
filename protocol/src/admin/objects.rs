//! Where one object's bytes are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/objects/{bucket}/{key}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectStat {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Version; `null` in a bucket without versioning.
    pub version: String,
    /// Whether it is the key's latest version.
    pub is_latest: bool,
    /// Whether it is a delete marker, which has no bytes.
    pub is_delete_marker: bool,
    /// Size.
    pub size_bytes: u64,
    /// ETag.
    pub etag: String,
    /// When it was committed.
    pub last_modified_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// Chunks in all.
    pub chunks_total: u64,
    /// The first chunks, at most 1,000.
    pub chunks: Vec<ObjectChunk>,
}

/// One chunk of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectChunk {
    /// Its id.
    pub chunk: String,
    /// Size.
    pub size_bytes: u32,
    /// Its shard; absent on a node that runs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// Who should have it, and has.
    pub replicas: Vec<ChunkReplica>,
}

/// One replica of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChunkReplica {
    /// The node.
    pub node: String,
    /// `member`, `joining`, `leaving`, or `alone`.
    pub role: String,
    /// `present`, `missing`, `wrong_size` or `unreachable`.
    pub state: String,
}
