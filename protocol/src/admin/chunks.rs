//! Whose a chunk is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ChunkReplica;

/// `GET /v1/chunks/{chunk}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChunkOwner {
    /// Its id.
    pub chunk: String,
    /// What it belongs to. `object`: versions of objects refer to its content. `not_in_object`: they do, but that
    /// content has no such chunk. `upload`: it is of a part of an upload that is not finished. `reclaim`: nothing any
    /// more, it was overwritten or deleted, and waits for cleanup. `condemned`: nothing, it was given up as an orphan,
    /// and waits for cleanup. `orphan`: nothing that metadata knows, but nodes have it; it is being written, or left
    /// over. `unknown`: nothing, and no node that answers has it.
    pub state: String,
    /// Since when it waits for cleanup, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Size that it is to have; absent when nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u32>,
    /// Its shard; absent on a node that runs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// The cold tier where the bytes of its content are: the chunk is the one that says where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Who should have it, and whoever else has it.
    pub replicas: Vec<ChunkReplica>,
    /// What it was written for; absent when no header of its content could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<ChunkHeader>,
    /// Why a node that has the chunk cannot read its header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_error: Option<String>,
    /// The upload that it is of a part of; absent when it is of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ChunkUpload>,
    /// How many versions of objects refer to its content.
    pub references_total: u64,
    /// Those of them that are of the key in `header`, at most 100. Copies are of other keys: `GET
    /// /v1/chunks/{chunk}/references` looks for all.
    pub references: Vec<ChunkReference>,
}

/// What the header of a chunk says: what its content was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChunkHeader {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Version, `null` in a bucket without versioning; absent of a part, whose object has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The upload whose part it was; absent when it was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// Number of the part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u16>,
    /// Size of the whole content, or of the part.
    pub content_size_bytes: u64,
    /// When it was begun, in milliseconds since 1970.
    pub created_ms: u64,
    /// Whose header it is: another chunk's of the same content where the chunk's own cannot be read.
    pub chunk: String,
    /// The node that read it.
    pub node: String,
}

/// The upload that a chunk is of a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChunkUpload {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// The upload's id.
    pub upload: String,
    /// Number of the part.
    pub part: u16,
}

/// A version of an object whose content a chunk is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChunkReference {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Version; `null` in a bucket without versioning.
    pub version: String,
    /// Whether it is the key's latest version.
    pub is_latest: bool,
    /// Number of the part that the chunk is of; absent when the object was uploaded in one piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u16>,
    /// Where in the object the chunk's bytes begin; absent when they are none of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_bytes: Option<u64>,
}
