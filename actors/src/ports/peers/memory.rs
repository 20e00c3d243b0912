//! A [`ReplicaService`] on a chunk store in memory, for the tests of what carries calls to it: it keeps epochs,
//! remembers who called, and refuses when told to.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::{ChunkId, Epoch, NodeId, ShardId, chunk_order};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{DIGEST_PARTS, Fence, PeerError, PeerHealth, ReplicaService, ReplicaWrite, ShardDigest, ShardReport};
use crate::ports::chunks::memory::MemoryChunkStore;
use crate::ports::chunks::{ChunkBody, ChunkError, ChunkInfo, ChunkReceipt, ChunkSink, ChunkStore as _};

/// What the service answers to everything, when it is told to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    /// [`PeerError::Busy`].
    Busy,
    /// [`PeerError::Fenced`].
    Fenced,
}

/// The service.
pub struct MemoryReplica {
    node: NodeId,
    /// Its chunks.
    pub store: Arc<MemoryChunkStore>,
    shard_count: u32,
    epochs: Mutex<HashMap<ShardId, Epoch>>,
    refuse: Mutex<Option<Refuse>>,
    callers: Mutex<Vec<NodeId>>,
    reports: Mutex<Vec<ShardReport>>,
    /// Of the writes that are under way.
    writes: Mutex<CancellationToken>,
}

impl MemoryReplica {
    /// A service of `node` on `store`.
    pub fn new(node: NodeId, store: Arc<MemoryChunkStore>, shard_count: u32) -> Self {
        Self {
            node,
            store,
            shard_count,
            epochs: Mutex::default(),
            refuse: Mutex::default(),
            callers: Mutex::default(),
            reports: Mutex::default(),
            writes: Mutex::default(),
        }
    }

    /// Refuses everything but health, or nothing any more.
    pub fn set_refuse(&self, refuse: Option<Refuse>) {
        *self.refuse.lock() = refuse;
    }

    /// Takes the writes back that are under way.
    pub fn take_back_writes(&self) {
        std::mem::take(&mut *self.writes.lock()).cancel();
    }

    /// The highest epoch heard of.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.epochs.lock().get(&shard).copied()
    }

    /// Who called, in order.
    pub fn callers(&self) -> Vec<NodeId> {
        self.callers.lock().clone()
    }

    /// What was reported.
    pub fn reports(&self) -> Vec<ShardReport> {
        self.reports.lock().clone()
    }

    fn begin(&self, from: NodeId) -> Result<(), PeerError> {
        self.callers.lock().push(from);
        match *self.refuse.lock() {
            None => Ok(()),
            Some(Refuse::Busy) => Err(PeerError::Busy),
            Some(Refuse::Fenced) => Err(PeerError::Fenced),
        }
    }

    fn admit(&self, fence: Fence) -> Result<(), PeerError> {
        let mut epochs = self.epochs.lock();
        let current = epochs.entry(fence.shard).or_insert(fence.epoch);
        if fence.epoch < *current {
            return Err(PeerError::Stale { shard: fence.shard, current: *current });
        }
        *current = fence.epoch;
        Ok(())
    }

    fn shard(&self, shard: ShardId) -> Vec<ChunkInfo> {
        let mut all = self.store.list(None, usize::MAX);
        all.retain(|info| ShardId::of_chunk(&info.id, self.shard_count) == shard);
        all
    }
}

/// A write that can be taken back.
struct Sink {
    inner: Box<dyn ChunkSink>,
    taken_back: CancellationToken,
}

#[async_trait]
impl ChunkSink for Sink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.inner.write(data).await
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.inner.finish_input()
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        self.inner.finish().await
    }

    fn taken_back(&self) -> CancellationToken {
        self.taken_back.clone()
    }
}

#[async_trait]
impl ReplicaService for MemoryReplica {
    async fn create(&self, from: NodeId, write: ReplicaWrite) -> Result<Box<dyn ChunkSink>, PeerError> {
        self.begin(from)?;
        self.admit(write.fence)?;
        let inner = self.store.create(write.spec).await?;
        Ok(Box::new(Sink { inner, taken_back: self.writes.lock().clone() }))
    }

    fn read(&self, from: NodeId, chunk: ChunkId, range: Range<u32>) -> Result<ChunkBody, PeerError> {
        self.begin(from)?;
        Ok(self.store.read(chunk, range)?)
    }

    async fn probe(&self, from: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        self.begin(from)?;
        Ok(chunks.iter().map(|chunk| self.store.stat(*chunk)).collect())
    }

    async fn label(&self, from: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        self.begin(from)?;
        Ok(MemoryChunkStore::label(&self.store, chunk).ok_or(ChunkError::NotFound(chunk))?)
    }

    async fn list(
        &self,
        from: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        self.begin(from)?;
        self.admit(fence)?;
        let key = |id: ChunkId| (chunk_order::place(&id), id);
        let chunks = self.shard(fence.shard).into_iter();
        let rest = chunks.filter(|info| after.is_none_or(|after| key(info.id) > key(after)));
        Ok(rest.take(limit).collect())
    }

    async fn digest(&self, from: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        self.begin(from)?;
        self.admit(fence)?;
        let chunks = self.shard(fence.shard);
        let mut parts = vec![0; DIGEST_PARTS];
        for info in &chunks {
            parts[usize::from(info.id.0[15])] += u64::MAX / 7 + u64::from(info.size_bytes);
        }
        let bytes = chunks.iter().map(|info| u64::from(info.size_bytes)).sum();
        Ok(ShardDigest { chunks: chunks.len() as u64, bytes, parts })
    }

    async fn delete(&self, from: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        self.begin(from)?;
        Ok(self.store.delete(chunks).await?)
    }

    async fn report(&self, from: NodeId, report: ShardReport) -> Result<(), PeerError> {
        self.begin(from)?;
        self.reports.lock().push(report);
        Ok(())
    }

    async fn health(&self, from: NodeId) -> Result<PeerHealth, PeerError> {
        self.callers.lock().push(from);
        let owner = *self.refuse.lock() != Some(Refuse::Fenced);
        let (oldest_write_seconds, proven) = (Some(1_700_000_000), vec![(ShardId(3), Epoch(7))]);
        Ok(PeerHealth { node: self.node, owner, writable: true, oldest_write_seconds, proven, lives: Some(u64::MAX) })
    }
}
