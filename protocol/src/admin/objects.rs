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
    /// Storage class: `STANDARD`, or the tier where the bytes are to lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// State of a restore; absent when none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<ObjectRestore>,
    /// Where in a cold tier the bytes are; absent when they are on the cluster's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<ObjectCold>,
    /// Chunks in all.
    pub chunks_total: u64,
    /// The first chunks, at most 1,000.
    pub chunks: Vec<ObjectChunk>,
}

/// A cold object that lies, or is to lie, on the cluster's disks for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectRestore {
    /// Until when, in milliseconds since 1970; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

/// The bytes of an object in a cold tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectCold {
    /// Which tier.
    pub tier: String,
    /// How many pieces they are cut into there.
    pub pieces: u64,
    /// Size of each but the last.
    pub piece_bytes: u64,
    /// The chunk on the cluster's disks that says where they are.
    pub stub: ObjectChunk,
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
    /// `member`, `joining`, `leaving`, or `alone`; `other`: it has the chunk and need not.
    pub role: String,
    /// `present`, `missing`, `wrong_size` or `unreachable`.
    pub state: String,
}
