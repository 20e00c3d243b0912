//! Disks that take what they do not give back.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::flow::cold::mover::MoverParts;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::chunks::{ChunkInfo, ChunkReceipt};
use holdfast_actors::ports::metadata::{MoveQueued, MoveReason, Versioning};
use holdfast_actors::ports::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore};
use holdfast_protocol::ChunkId;

use super::world::{HOUR, World, pattern, tier};
use super::{LEN, moved};

/// Acknowledges what it writes, and has lost it then.
struct Lying(Arc<MemoryChunkStore>);

struct LyingSink {
    sink: Box<dyn ChunkSink>,
    id: ChunkId,
    memory: Arc<MemoryChunkStore>,
}

#[async_trait]
impl ChunkSink for LyingSink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.sink.write(data).await
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.sink.finish_input()
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        let Self { sink, id, memory } = *self;
        let receipt = sink.finish().await?;
        memory.corrupt(id);
        Ok(receipt)
    }
}

#[async_trait]
impl ChunkStore for Lying {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        let id = spec.id;
        Ok(Box::new(LyingSink { sink: self.0.create(spec).await?, id, memory: self.0.clone() }))
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.0.read(id, range)
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.0.stat(id)
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.0.delete(ids).await
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.0.list(after, limit)
    }
}

/// Promise D5: the tier's copy is let go of when the cluster's was read back.
#[tokio::test]
async fn object_whose_chunks_do_not_come_back_from_the_disks_stays_in_its_tier() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 9);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    assert_eq!(world.request("key", None, MoveReason::Command).await, MoveQueued::Queued);
    let lying = MoverParts { chunks: Arc::new(Lying(world.memory.clone())), ..world.mover.clone() };
    let stats = lying.pass(&tier("ONE")).await.unwrap();
    assert_eq!((stats.claimed, stats.failed), (1, 1));
    assert_eq!(world.place("key").await, "ONE");
    assert!(world.read("key").await == data);
    // It is tried again.
    world.go_on(HOUR);
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    assert_eq!(world.place("key").await, "cluster");
    assert!(world.read("key").await == data);
    world.assert_clean().await;
}
