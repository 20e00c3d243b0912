//! The `Peers` port: chunks on the disks of other nodes, and [`ReplicaService`], what a node does for its peers.
//!
//! The two have the same operations: an adapter of `Peers` carries a call to the `ReplicaService` of the node named,
//! over QUIC between processes and directly within one. Whoever answers checks the fence of the request itself; the
//! caller's view of the cluster proves nothing (promise D9).
//!
//! # Fences
//! A request that changes data or that relies on what a replica has or has not carries `(shard, epoch)`. The replica
//! keeps, for each shard, the highest epoch that it has seen, in the shard map or in a request. A lower one is refused
//! with [`PeerError::Stale`]; a higher one is taken over. A write is checked twice: when it begins, and *after* its
//! chunk is durable and in the index, before it is acknowledged. A joiner that lists a shard raises the epoch *before*
//! the list is made, so every chunk that was ever acknowledged under an older epoch is in the list.
//!
//! # Bounds
//! Every call has a deadline in its adapter; sinks and bodies have one for progress instead. An adapter bounds the
//! bytes in flight to each peer; a caller waits, and may drop the call at any time: nothing visible is left then.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::{ChunkId, Epoch, NodeId, ShardId, chunk_order};
use serde::{Deserialize, Serialize};

use super::chunks::{ChunkBody, ChunkError, ChunkInfo, ChunkSink, ChunkSpec};

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod in_process;
#[cfg(any(test, feature = "conformance"))]
pub mod memory;

/// The most chunk ids in one request.
pub const IDS_MAX: usize = 1_000;
/// The most chunks in one page of a list.
pub const LIST_MAX: usize = 4_096;
/// Parts of a shard's digest.
pub const DIGEST_PARTS: usize = 256;

/// The shard that a request is about, and the epoch in which the caller believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// Which shard.
    pub shard: ShardId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// Why a request to a peer failed; each variant asks another thing of the caller.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The peer cannot be reached, or the connection broke: it counts as missing, ask another one.
    #[error("node {node} cannot be reached: {detail}")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// What happened.
        detail: String,
    },
    /// The peer did not answer, or made no progress, in time. What was asked for may have happened.
    #[error("node {node} did not answer in time")]
    Timeout {
        /// Which node.
        node: NodeId,
    },
    /// The shard has moved on: read the shard map again and repeat the whole write under the present epoch.
    #[error("shard {shard} is at epoch {current} already")]
    Stale {
        /// Which shard.
        shard: ShardId,
        /// The highest epoch that the peer has seen.
        current: Epoch,
    },
    /// The peer lost its coordination session and must not act as an owner: it counts as missing.
    #[error("the node is fenced: it cannot prove its membership")]
    Fenced,
    /// The peer has too much in work: it counts as missing for this request.
    #[error("the node is busy")]
    Busy,
    /// The peer's disks said this.
    #[error(transparent)]
    Chunk(ChunkError),
    /// One of the two broke the rules, or speaks another version.
    #[error("peer protocol: {0}")]
    Protocol(String),
}

impl From<ChunkError> for PeerError {
    /// Fences keep their meaning, whichever of the two says it.
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Stale { shard, current } => Self::Stale { shard, current },
            ChunkError::Fenced => Self::Fenced,
            error => Self::Chunk(error),
        }
    }
}

impl PeerError {
    /// Whether the same request may succeed on this peer a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Fenced | Self::Busy)
    }
}

/// A chunk to be written to a replica.
#[derive(Debug, Clone)]
pub struct ReplicaWrite {
    /// Shard and epoch.
    pub fence: Fence,
    /// The chunk.
    pub spec: ChunkSpec,
}

/// What a node says about itself when a peer asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHealth {
    /// Its id, so that the caller knows whom it reached.
    pub node: NodeId,
    /// Whether it can prove its membership.
    pub owner: bool,
    /// Whether its disks take writes.
    pub writable: bool,
    /// When the oldest content was begun that it is writing for a client and has not committed, in seconds since 1970
    /// ([`holdfast_protocol::ContentId::unix_seconds`]); `None` when there is none.
    pub oldest_write_seconds: Option<u64>,
    /// Shards whose members it found equal in its last comparison, with their epoch then. Of those it compares: it is
    /// their first live member.
    pub proven: Vec<(ShardId, Epoch)>,
    /// The lives of nodes by which that stands ([`Membership::lives`](super::coordination::Membership::lives)); `None`
    /// of a node of a version that tells none.
    pub lives: Option<u64>,
}

/// A digest of what a node holds of a shard. Two replicas that hold the same chunks with the same sizes have the same
/// digest, whatever disks these lie on; where a part differs, the replicas' lists do.
///
/// Nodes of different versions compare digests, so this is a format: a chunk belongs to the part that the highest eight
/// bits of [`chunk_order::place`] number (parts are runs of the list order), and adds [`chunk_order::fingerprint`] of
/// its id and size to that part's sum, wrapping. A chunk that lies on two disks of a node counts once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDigest {
    /// Chunks in all.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// The sums.
    pub parts: Vec<u64>,
}

impl Default for ShardDigest {
    /// The digest of an empty shard.
    fn default() -> Self {
        Self { chunks: 0, bytes: 0, parts: vec![0; DIGEST_PARTS] }
    }
}

impl ShardDigest {
    /// The part that a chunk belongs to.
    pub fn part_of(id: &ChunkId) -> usize {
        (chunk_order::place(id) >> 56) as usize
    }

    /// Adds a chunk.
    pub fn add(&mut self, id: &ChunkId, size_bytes: u32) {
        self.chunks += 1;
        self.bytes += u64::from(size_bytes);
        let part = &mut self.parts[Self::part_of(id)];
        *part = part.wrapping_add(chunk_order::fingerprint(id, size_bytes));
    }
}

impl fmt::Debug for ShardDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardDigest").field("chunks", &self.chunks).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What a joiner, or a node with damaged or missing data, tells the controller. Repeated until the shard map shows that
/// it was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum ShardReport {
    /// Everything was copied, read back and compared.
    Verified {
        /// Which shard.
        shard: ShardId,
        /// The join that this is about.
        since: Epoch,
    },
    /// The join cannot go on here (its disks are full or fenced).
    JoinFailed {
        /// Which shard.
        shard: ShardId,
        /// The join that this is about.
        since: Epoch,
        /// For the operator.
        reason: String,
    },
    /// What this node held of the shard is gone (a disk was replaced).
    DataLost {
        /// Which shard.
        shard: ShardId,
    },
}

/// A chunk on its way to a peer. Dropping it before [`PeerSink::finish`] returns cancels the write there.
#[async_trait]
pub trait PeerSink: Send {
    /// Passes the next piece of the payload on; it is not copied. Waits while more is in flight than may be.
    ///
    /// # Errors
    /// [`PeerError`]; the sink is of no use afterwards.
    async fn send(&mut self, piece: Bytes) -> Result<(), PeerError>;

    /// Returns when the chunk is durable on the peer and was acknowledged under its fence.
    ///
    /// # Errors
    /// [`PeerError`]; the chunk may be there all the same, except after [`PeerError::Chunk`].
    async fn finish(self: Box<Self>) -> Result<(), PeerError>;
}

/// Chunks on the disks of other nodes. See the module's rules.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Begins to write a chunk on `node`.
    async fn create(&self, node: NodeId, write: ReplicaWrite) -> Result<Box<dyn PeerSink>, PeerError>;

    /// Reads a range of a chunk. What comes is checked against the checksum that the peer computed over bytes that it
    /// verified, so that neither its disk nor the way here can change it unseen (promise D3). Opening does not wait:
    /// failures show in the body, as [`ChunkError::Unavailable`] where the peer cannot be reached.
    fn read(&self, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody;

    /// What the peer has of at most [`IDS_MAX`] chunks, in the order asked.
    async fn probe(&self, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError>;

    /// The encoded label of a chunk, for a copy of it.
    async fn label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError>;

    /// A page of the peer's chunks of a shard, those after `after`, at most `limit` (at most [`LIST_MAX`]), in the order
    /// of [`chunk_order`]: one that does not rise is refused. Raises the peer's epoch first. A page shorter than `limit`
    /// is the last.
    async fn list(
        &self,
        node: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError>;

    /// The digest of the peer's chunks of a shard. Raises the peer's epoch first.
    async fn digest(&self, node: NodeId, fence: Fence) -> Result<ShardDigest, PeerError>;

    /// Deletes at most [`IDS_MAX`] chunks, all of which nothing refers to any more (so no epoch can protect them).
    /// Durable on return; those that do not exist are skipped.
    async fn delete(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError>;

    /// Tells the controller something about a shard.
    async fn report(&self, controller: NodeId, report: ShardReport) -> Result<(), PeerError>;

    /// Asks how a peer is.
    async fn health(&self, node: NodeId) -> Result<PeerHealth, PeerError>;

    /// The peers that do not accept this node's identity, or whose identity this node does not accept, as far as was
    /// noticed lately; each with the reason, in words. From memory.
    fn refusals(&self) -> Vec<(NodeId, String)> {
        Vec::new()
    }
}

/// What a node does for its peers. `from` is the identity that the peer proved.
#[async_trait]
pub trait ReplicaService: Send + Sync + 'static {
    /// See [`Peers::create`]. The sink's `finish` checks the fence again before it acknowledges, and says so by
    /// [`ChunkError::Stale`] and [`ChunkError::Fenced`], which become the peer errors of the same names.
    async fn create(&self, from: NodeId, write: ReplicaWrite) -> Result<Box<dyn ChunkSink>, PeerError>;

    /// See [`Peers::read`].
    ///
    /// # Errors
    /// As [`super::ChunkStore::read`].
    fn read(&self, from: NodeId, chunk: ChunkId, range: Range<u32>) -> Result<ChunkBody, PeerError>;

    /// See [`Peers::probe`].
    async fn probe(&self, from: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError>;

    /// See [`Peers::label`].
    async fn label(&self, from: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError>;

    /// See [`Peers::list`].
    async fn list(
        &self,
        from: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError>;

    /// See [`Peers::digest`].
    async fn digest(&self, from: NodeId, fence: Fence) -> Result<ShardDigest, PeerError>;

    /// See [`Peers::delete`].
    async fn delete(&self, from: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError>;

    /// See [`Peers::report`]. Answered with [`PeerError::Fenced`] by a node that is not the controller.
    async fn report(&self, from: NodeId, report: ShardReport) -> Result<(), PeerError>;

    /// See [`Peers::health`].
    async fn health(&self, from: NodeId) -> Result<PeerHealth, PeerError>;
}
