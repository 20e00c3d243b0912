//! What a peer answers.

use serde::{Deserialize, Serialize};

use super::{
    DIGEST_PARTS, FrameError, IDS_MAX, LIST_MAX, Message, PROVEN_MAX, VERSION, check_text, hex_form, malformed,
};
use crate::cluster::{Epoch, NodeId, ShardId};
use crate::ids::ChunkId;
use crate::label::LABEL_SIZE_MAX;
use crate::manifest::CHUNK_SIZE_MAX;

/// An answer, or the head of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Send the payload.
    Ready,
    /// It is done, and durable where that matters.
    Done,
    /// `size_bytes` of payload follow in blocks.
    Data {
        /// Length of the range.
        size_bytes: u32,
    },
    /// `size_bytes` of label follow.
    Label {
        /// Length of the label.
        size_bytes: u32,
    },
    /// The sizes of the chunks that were asked about; nothing for those that are not there.
    Probed {
        /// In the order asked.
        sizes_bytes: Vec<Option<u32>>,
    },
    /// A page of chunks.
    Listed {
        /// The chunks.
        chunks: Vec<WireInfo>,
    },
    /// The digest of a shard.
    Digest(WireDigest),
    /// How the peer is.
    Health(WireHealth),
    /// It was not done.
    Error(WireError),
}

/// A chunk and its size, `["id", size]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireInfo(#[serde(with = "hex_form::one")] pub ChunkId, pub u32);

/// The digest of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireDigest {
    /// Chunks in all.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// [`DIGEST_PARTS`] sums.
    pub parts: Vec<u64>,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireHealth {
    /// Who it is.
    pub node: NodeId,
    /// Whether it can prove its membership.
    pub owner: bool,
    /// Whether its disks take writes.
    pub writable: bool,
    /// When the oldest content was begun that it is writing for a client, in seconds since 1970; absent when there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_write_seconds: Option<u64>,
    /// Shards whose members it found equal in its last comparison, `[shard, epoch]`; at most [`super::PROVEN_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proven: Vec<(ShardId, Epoch)>,
    /// A number for the lives of the nodes by which that stands; absent where the peer is of a version that tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lives: Option<u64>,
}

/// Why something was not done. Texts are at most [`super::TEXT_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum WireError {
    /// The shard is at a later epoch.
    Stale {
        /// Which shard.
        shard: ShardId,
        /// The highest epoch that the peer has seen.
        current: Epoch,
    },
    /// The peer cannot prove its membership, or is not who should be asked.
    Fenced,
    /// The peer has too much in work.
    Busy,
    /// The peer took too long, or the caller did.
    Timeout,
    /// No such chunk there.
    NotFound {
        /// Which.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
    },
    /// The chunk does not match its checksums.
    Corrupt {
        /// Which.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
        /// What did not match.
        detail: String,
    },
    /// The chunk is there already.
    Exists {
        /// Which.
        #[serde(with = "hex_form::one")]
        chunk: ChunkId,
    },
    /// The disks are full.
    NoSpace,
    /// The disks take nothing.
    Unavailable {
        /// Why.
        detail: String,
    },
    /// The caller broke the rules of the chunk store.
    Invalid {
        /// How.
        detail: String,
    },
    /// A disk failed.
    Io {
        /// What was being done, and what the system said.
        detail: String,
    },
    /// The caller broke the rules of this protocol.
    Protocol {
        /// How.
        detail: String,
    },
    /// The caller speaks another version.
    Version {
        /// The version of its frame.
        found: u8,
        /// The version that the peer speaks.
        known: u8,
    },
}

impl WireError {
    /// The refusal of a version.
    pub fn version(found: u8) -> Self {
        Self::Version { found, known: VERSION }
    }
}

impl Message for Answer {
    const KIND: u8 = 2;
    /// A full page of a list takes 200,000 bytes.
    const BODY_BYTES_MAX: usize = 512 << 10;

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Data { size_bytes } if u64::from(*size_bytes) > CHUNK_SIZE_MAX => {
                Err(malformed(format!("a range of {size_bytes} bytes")))
            }
            Self::Label { size_bytes } if *size_bytes as usize > LABEL_SIZE_MAX => {
                Err(malformed(format!("a label of {size_bytes} bytes")))
            }
            Self::Probed { sizes_bytes } if sizes_bytes.len() > IDS_MAX => {
                Err(malformed(format!("{} sizes", sizes_bytes.len())))
            }
            Self::Listed { chunks } if chunks.len() > LIST_MAX => {
                Err(malformed(format!("a page of {} chunks", chunks.len())))
            }
            Self::Health(health) if health.proven.len() > PROVEN_MAX => {
                Err(malformed(format!("{} proven shards", health.proven.len())))
            }
            Self::Digest(digest) if digest.parts.len() != DIGEST_PARTS => {
                Err(malformed(format!("a digest of {} parts", digest.parts.len())))
            }
            Self::Error(
                WireError::Corrupt { detail, .. }
                | WireError::Unavailable { detail }
                | WireError::Invalid { detail }
                | WireError::Io { detail }
                | WireError::Protocol { detail },
            ) => check_text(detail),
            _ => Ok(()),
        }
    }
}
