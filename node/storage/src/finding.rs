//! Damage that was found on a disk.

use std::sync::Arc;

use holdfast_protocol::ChunkId;

/// Who came across it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingSource {
    /// A client's read.
    Read,
    /// The scrub.
    Scrub,
    /// The start after a crash.
    Recovery,
    /// Compaction.
    Compaction,
    /// Somebody who asked whether the chunk is whole ([`crate::Engine::verify`]), and was told by the error: such a
    /// finding is counted and logged, and does not reach the [`FindingSink`].
    Verify,
}

/// One damaged record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The chunk; `None` when the record is not a chunk or cannot be told.
    pub chunk: Option<ChunkId>,
    /// Segment number.
    pub segment: u32,
    /// Offset of the record in the segment, in bytes.
    pub offset: u64,
    /// What does not match.
    pub detail: String,
    /// Who found it.
    pub source: FindingSource,
}

/// Takes findings. Called from whatever thread found one: it must not block.
pub type FindingSink = Arc<dyn Fn(Finding) + Send + Sync>;
