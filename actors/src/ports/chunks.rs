//! The `ChunkStore` port: durable, verified chunks. Those on this node's disks; in a cluster, what requests are given
//! stands for all replicas ([`crate::flow::replicate`]).
//!
//! A chunk is written once, never changed, and read by ranges. Bytes flow through [`ChunkSink`] and [`ChunkBody`],
//! never through a mailbox.

use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use holdfast_protocol::{ChunkId, ContentId, Epoch, NodeId, ShardId};
use tokio_util::sync::CancellationToken;

use super::peers::ShardDigest;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(any(test, feature = "conformance"))]
pub mod memory;

/// Why a chunk operation failed; each variant asks another thing of the caller.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// No such chunk here: read another replica.
    #[error("chunk {0} is not on this node")]
    NotFound(ChunkId),
    /// The bytes on disk do not match their checksum: read another replica and repair this one.
    #[error("chunk {chunk} is corrupt: {detail}")]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
        /// What did not match.
        detail: String,
    },
    /// A chunk with this id exists already.
    #[error("chunk {0} exists already")]
    Exists(ChunkId),
    /// No disk of this node takes new bytes because all are full: answer 507 or 503.
    #[error("no space left on any disk")]
    NoSpace,
    /// No disk of this node takes new bytes for another reason (fenced after I/O errors, or without an answer), or too
    /// few replicas can be reached: answer 503, a later attempt may succeed.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The chunk's shard has moved on since the write was planned (promise D9): nothing of it counts, repeat it whole.
    #[error("shard {shard} is at epoch {current} already")]
    Stale {
        /// Which shard.
        shard: ShardId,
        /// The highest epoch heard of.
        current: Epoch,
    },
    /// This node lost its coordination session and must not take writes as an owner.
    #[error("the node is fenced: it cannot prove its membership")]
    Fenced,
    /// The caller broke the rules of the port (more bytes than announced, a range beyond the end).
    #[error("invalid chunk request: {0}")]
    Invalid(String),
    /// The disk failed.
    #[error("disk I/O failed: {context}")]
    Io {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct ChunkSpec {
    /// The chunk's name.
    pub id: ChunkId,
    /// Exactly how many bytes will come: 1 to [`holdfast_protocol::CHUNK_SIZE_MAX`].
    pub size_bytes: u32,
    /// The encoded [`holdfast_protocol::ChunkLabel`].
    pub label: Bytes,
}

/// A chunk being written.
///
/// Dropping the sink before [`ChunkSink::finish`] returns leaves nothing visible and gives the space back (promise D4).
#[async_trait]
pub trait ChunkSink: Send {
    /// Copies `data` into the chunk's buffers, once. What is copied is returned to the caller as the buffers fill, in
    /// order and without a second copy, so that it can be hashed or sent to peers while the disk writes it: the pieces
    /// of all calls and of [`ChunkSink::finish_input`] concatenated are the chunk's payload.
    ///
    /// Waits for a free buffer, which is the back pressure of the write path.
    ///
    /// # Errors
    /// [`ChunkError::Invalid`] when more bytes come than were announced; I/O errors of earlier writes.
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError>;

    /// Says that all bytes have come, and hands out the last piece.
    ///
    /// # Errors
    /// [`ChunkError::Invalid`] when fewer bytes came than were announced.
    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError>;

    /// Makes the chunk durable: on return it is on stable storage and readable, on a quorum of its replicas where it
    /// has several.
    ///
    /// # Errors
    /// On an error the chunk does not exist, or (with replicas) exists on too few of them to count; what is there is
    /// removed by the caller's [`ChunkStore::delete`] or as an orphan.
    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError>;

    /// Cancelled when the store needs what the sink holds for others, which it does only while it is given nothing.
    /// Whoever waits for bytes to write then drops the sink: it takes no more. Most sinks are never taken back.
    fn taken_back(&self) -> CancellationToken {
        CancellationToken::new()
    }
}

/// What is known about a chunk that was made durable. A store on this node's disks alone has nothing to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkReceipt {
    /// The shard it was written to, and the epoch under which its replicas took it.
    pub fence: Option<(ShardId, Epoch)>,
    /// Replicas that should have the chunk and did not acknowledge it in time; they may have it all the same.
    pub missed: Vec<NodeId>,
}

/// Verified bytes of a chunk, in order. A piece that lies in the page cache is a slice of the segment's mapping, which
/// the connection writer sends without copying, unless the body is of [`ChunkStore::read_copied`]. While the body (or
/// any piece of it) lives, the chunk's space is not given away.
///
/// The future behind a piece verifies it; an error ends the stream.
pub type ChunkBody = Pin<Box<dyn Stream<Item = Result<Bytes, ChunkError>> + Send>>;

/// What is known about a stored chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// The chunk.
    pub id: ChunkId,
    /// Payload size.
    pub size_bytes: u32,
}

/// Says, while it lives, that a content is being written.
pub type ContentHold = Box<dyn Send + Sync>;

/// Durable storage of chunks on this node.
#[async_trait]
pub trait ChunkStore: Send + Sync + 'static {
    /// Reserves space and starts writing.
    ///
    /// # Errors
    /// [`ChunkError::Exists`], [`ChunkError::NoSpace`], [`ChunkError::Unavailable`], [`ChunkError::Invalid`].
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError>;

    /// Reads `range` of the payload. Opening is cheap and touches no disk; checks happen as pieces are asked for.
    ///
    /// # Errors
    /// [`ChunkError::NotFound`]; [`ChunkError::Invalid`] for a range beyond the end.
    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError>;

    /// As [`ChunkStore::read`], for everybody but the connection writer: who copies, hashes, compares or passes the
    /// bytes on. Pieces are memory of this process. A slice of a mapping would be brought back from the disk,
    /// unverified, by the first touch after its pages were evicted; if the disk cannot read them, that touch ends the
    /// process.
    ///
    /// # Errors
    /// Those of [`ChunkStore::read`].
    fn read_copied(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.read(id, range)
    }

    /// A content is being written, until what is returned is dropped: after its commit, or when it is given up. To be
    /// called before its first chunk is created. Between two chunks of a slow body nothing else shows that it is not
    /// over.
    fn begin_content(&self, _content: ContentId) -> Option<ContentHold> {
        None
    }

    /// What is stored under `id`.
    fn stat(&self, id: ChunkId) -> Option<ChunkInfo>;

    /// Deletes chunks; those that do not exist are skipped. Durable on return. Space comes back once no reader holds
    /// it.
    ///
    /// # Errors
    /// I/O errors; some of the chunks may then be deleted.
    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError>;

    /// A page of stored chunks in an order that is stable while nothing changes: those after `after`, at most `limit`.
    /// The walk for orphans goes by it.
    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo>;
}

/// How many disks of a node do what they are to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCount {
    /// Those that work, full ones among them.
    pub working: u32,
    /// Those that failed while the node runs: they may still be read, and take no writes.
    pub fenced: u32,
}

/// What a node's own store does beside, where its chunks are replicas of shards.
///
/// A chunk that lies on disks that failed only is *stranded*. It is found by [`ChunkStore::stat`], [`ChunkStore::read`]
/// and [`ReplicaStore::list_shard`], so that the last replica of something can be copied; it is no replica to count on.
#[async_trait]
pub trait ReplicaStore: ChunkStore {
    /// The encoded label of a chunk, read from the disk and checked, the payload not.
    ///
    /// # Errors
    /// [`ChunkError::NotFound`], [`ChunkError::Corrupt`], I/O errors.
    async fn label(&self, id: ChunkId) -> Result<Bytes, ChunkError>;

    /// Whether a chunk is whole on the disk itself: label and payload are read past whatever memory caches of them, and
    /// compared with their checksums. A read proves no more than that the bytes it gave were right. One that is
    /// stranded is not found.
    ///
    /// # Errors
    /// [`ChunkError::NotFound`], [`ChunkError::Corrupt`], I/O errors.
    async fn verify(&self, id: ChunkId) -> Result<ChunkInfo, ChunkError>;

    /// As [`ChunkStore::list`], of one shard only, in the order of [`holdfast_protocol::chunk_order`]. Costs a walk
    /// over the index in memory, at most once around for all pages together.
    fn list_shard(&self, shard: ShardId, shard_count: u32, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo>;

    /// The digest of one shard; see [`ShardDigest`]. Costs a walk over the index in memory, one for all that ask at
    /// about the same time.
    fn digest(&self, shard: ShardId, shard_count: u32) -> ShardDigest;

    /// How the disks are. From memory.
    fn disk_count(&self) -> DiskCount;

    /// Whether a chunk is stranded.
    fn is_stranded(&self, id: ChunkId) -> bool;

    /// As [`ChunkStore::list`], of what is stranded, which that leaves out.
    fn list_stranded(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo>;
}
