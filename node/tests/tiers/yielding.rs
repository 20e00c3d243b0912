//! Chunks in memory whose store waits at each step, as a disk would: a caller can be dropped there.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::chunks::{ChunkInfo, ChunkReceipt};
use holdfast_actors::ports::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore};
use holdfast_protocol::ChunkId;
use tokio::task::yield_now;

pub struct Yielding(pub Arc<MemoryChunkStore>);

struct YieldingSink(Box<dyn ChunkSink>);

#[async_trait]
impl ChunkSink for YieldingSink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        let written = self.0.write(data).await;
        yield_now().await;
        written
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.0.finish_input()
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        yield_now().await;
        let finished = self.0.finish().await;
        yield_now().await;
        finished
    }
}

#[async_trait]
impl ChunkStore for Yielding {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        yield_now().await;
        let sink = self.0.create(spec).await?;
        yield_now().await;
        Ok(Box::new(YieldingSink(sink)))
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
