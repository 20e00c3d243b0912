//! What a node asks of a peer.

use serde::{Deserialize, Serialize};

use super::{FrameError, IDS_MAX, LIST_MAX, Message, check_text, hex_form, malformed};
use crate::cluster::{Epoch, ShardId};
use crate::ids::ChunkId;
use crate::label::LABEL_SIZE_MAX;
use crate::manifest::CHUNK_SIZE_MAX;

/// The head of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Take a chunk. `label_bytes` bytes of label follow at once, `size_bytes` of payload after the peer's `ready`.
    Write {
        /// Its shard.
        shard: ShardId,
        /// The epoch in which the caller believes.
        epoch: Epoch,
        /// The chunk.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
        /// Size of its payload.
        size_bytes: u32,
        /// Size of its label.
        label_bytes: u32,
    },
    /// Send a range of a chunk's payload.
    Read {
        /// The chunk.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
        /// Its first byte.
        start: u32,
        /// The byte after its last.
        end: u32,
    },
    /// Say which of these chunks are there.
    Probe {
        /// The chunks.
        #[serde(with = "hex_form::many")]
        chunks: Vec<ChunkId>,
    },
    /// Send a chunk's label.
    Label {
        /// The chunk.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
    },
    /// Send a page of a shard's chunks.
    List {
        /// The shard.
        shard: ShardId,
        /// The epoch in which the caller believes.
        epoch: Epoch,
        /// The last chunk of the page before.
        #[serde(with = "hex_form::optional", default)]
        after: Option<ChunkId>,
        /// The most chunks in the page.
        limit: u32,
    },
    /// Send the digest of a shard.
    Digest {
        /// The shard.
        shard: ShardId,
        /// The epoch in which the caller believes.
        epoch: Epoch,
    },
    /// Delete these chunks.
    Delete {
        /// The chunks.
        #[serde(with = "hex_form::many")]
        chunks: Vec<ChunkId>,
    },
    /// Hear something about a shard.
    Report {
        /// What.
        #[serde(flatten)]
        report: WireReport,
    },
    /// Say how you are.
    Health,
}

/// What a node reports to the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum WireReport {
    /// A join is complete and compared.
    Verified {
        /// Which shard.
        shard: ShardId,
        /// The join's epoch.
        since: Epoch,
    },
    /// A join cannot go on.
    JoinFailed {
        /// Which shard.
        shard: ShardId,
        /// The join's epoch.
        since: Epoch,
        /// For the operator.
        reason: String,
    },
    /// The node's replica is gone.
    DataLost {
        /// Which shard.
        shard: ShardId,
    },
}

impl Request {
    /// A short name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::Read { .. } => "read",
            Self::Probe { .. } => "probe",
            Self::Label { .. } => "label",
            Self::List { .. } => "list",
            Self::Digest { .. } => "digest",
            Self::Delete { .. } => "delete",
            Self::Report { .. } => "report",
            Self::Health => "health",
        }
    }
}

impl Message for Request {
    const KIND: u8 = 1;
    /// A thousand ids take 35,000 bytes.
    const BODY_BYTES_MAX: usize = 48 << 10;

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Write { size_bytes, label_bytes, .. } => {
                if *size_bytes == 0 || u64::from(*size_bytes) > CHUNK_SIZE_MAX {
                    return Err(malformed(format!("a chunk of {size_bytes} bytes")));
                }
                if *label_bytes as usize > LABEL_SIZE_MAX {
                    return Err(malformed(format!("a label of {label_bytes} bytes")));
                }
            }
            Self::Read { start, end, .. } => {
                if start > end || u64::from(*end) > CHUNK_SIZE_MAX {
                    return Err(malformed(format!("the range {start}..{end}")));
                }
            }
            Self::Probe { chunks } | Self::Delete { chunks } => {
                if chunks.len() > IDS_MAX {
                    return Err(malformed(format!("{} chunk ids", chunks.len())));
                }
            }
            Self::List { limit, .. } => {
                if *limit as usize > LIST_MAX {
                    return Err(malformed(format!("a page of {limit} chunks")));
                }
            }
            Self::Report { report: WireReport::JoinFailed { reason, .. } } => check_text(reason)?,
            Self::Label { .. } | Self::Digest { .. } | Self::Report { .. } | Self::Health => {}
        }
        Ok(())
    }
}
