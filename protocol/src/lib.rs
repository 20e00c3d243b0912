//! What crosses a boundary in Holdfast: identifiers, checksums, the label that every chunk carries on disk, and the
//! types of the admin API. There is no I/O here, and nothing here depends on another crate of the workspace.

pub mod admin;
pub mod checksum;
pub mod chunk_order;
pub mod cluster;
pub mod events;
#[doc(hidden)]
pub mod fuzz;
pub mod ids;
pub mod journal;
pub mod label;
pub mod manifest;
pub mod peer;
pub mod stub;
pub mod tiers;

pub use checksum::{ChecksumAlgorithm, ChecksumType};
pub use cluster::{ClusterId, Epoch, NodeId, ShardId};
pub use events::{EventId, EventName};
pub use ids::{ChunkId, ContentId, UploadId, VersionId};
pub use label::ChunkLabel;
pub use manifest::{CHUNK_SIZE_MAX, Extent, Manifest};
pub use stub::{ColdStub, STUB_INDEX};
pub use tiers::{ColdPlace, TierName};
