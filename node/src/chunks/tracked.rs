//! A chunk store that knows which contents are being written.
//!
//! The walk for orphans deletes chunks that metadata does not know. A write in flight has such chunks too, so each
//! content is reported to [`InFlightWrites`] before its first chunk exists, and again with each further chunk. What
//! keeps a content young is therefore its last new chunk, and the time that one chunk may take is limited here: the
//! window of `InFlightWrites` is longer, by configuration, than that limit and a commit together. On a node that runs
//! alone whoever writes also says when it is over, which may be long after the last chunk: what comes back from a tier
//! is read before its commit.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::flow::reclaim::InFlightWrites;
use holdfast_actors::ports::chunks::{ChunkInfo, ChunkReceipt, ContentHold, DiskCount, ReplicaStore};
use holdfast_actors::ports::peers::ShardDigest;
use holdfast_actors::ports::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore};
use holdfast_protocol::{ChunkId, ContentId, ShardId};
use tokio::time::Instant;

/// See the module's page.
pub struct TrackedChunks<S> {
    inner: S,
    in_flight: Arc<InFlightWrites>,
    chunk_timeout: Duration,
}

impl<S> TrackedChunks<S> {
    /// Around `inner`; a chunk may take `chunk_timeout` from its creation until it is durable.
    pub fn new(inner: S, in_flight: Arc<InFlightWrites>, chunk_timeout: Duration) -> Self {
        Self { inner, in_flight, chunk_timeout }
    }
}

#[async_trait]
impl<S: ChunkStore> ChunkStore for TrackedChunks<S> {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        self.in_flight.on_create(spec.id.content());
        let deadline = Instant::now() + self.chunk_timeout;
        let sink = within(deadline, self.inner.create(spec)).await?;
        Ok(Box::new(TimedSink { inner: sink, deadline }))
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.inner.read(id, range)
    }

    fn read_copied(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.inner.read_copied(id, range)
    }

    fn begin_content(&self, content: ContentId) -> Option<ContentHold> {
        Some(Box::new(self.in_flight.hold(content)))
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.inner.stat(id)
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.inner.delete(ids).await
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.inner.list(after, limit)
    }
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for TrackedChunks<S> {
    async fn label(&self, id: ChunkId) -> Result<Bytes, ChunkError> {
        self.inner.label(id).await
    }

    async fn verify(&self, id: ChunkId) -> Result<ChunkInfo, ChunkError> {
        self.inner.verify(id).await
    }

    fn list_shard(&self, shard: ShardId, shard_count: u32, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.inner.list_shard(shard, shard_count, after, limit)
    }

    fn digest(&self, shard: ShardId, shard_count: u32) -> ShardDigest {
        self.inner.digest(shard, shard_count)
    }

    fn disk_count(&self) -> DiskCount {
        self.inner.disk_count()
    }

    fn is_stranded(&self, id: ChunkId) -> bool {
        self.inner.is_stranded(id)
    }

    fn list_stranded(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.inner.list_stranded(after, limit)
    }
}

/// A sink with a deadline.
struct TimedSink {
    inner: Box<dyn ChunkSink>,
    deadline: Instant,
}

#[async_trait]
impl ChunkSink for TimedSink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        within(self.deadline, self.inner.write(data)).await
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.inner.finish_input()
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        within(self.deadline, self.inner.finish()).await
    }
}

async fn within<T>(deadline: Instant, step: impl Future<Output = Result<T, ChunkError>>) -> Result<T, ChunkError> {
    // A step that does not wait would pass the timeout, however late it is.
    let step = async {
        if Instant::now() >= deadline {
            return std::future::pending().await;
        }
        step.await
    };
    match tokio::time::timeout_at(deadline, step).await {
        Ok(result) => result,
        Err(_) => {
            metrics::counter!("holdfast_chunk_timeouts_total").increment(1);
            // A slow client, or a node with too much to do: either way a later attempt may succeed.
            Err(ChunkError::Unavailable("the chunk took longer than limits.chunk_timeout".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::chunks::memory::MemoryChunkStore;

    use super::*;

    #[tokio::test]
    async fn a_content_is_in_flight_until_its_writer_says_that_it_is_over() {
        // A window in which nothing stays.
        let in_flight = InFlightWrites::new(Duration::ZERO);
        let chunks = TrackedChunks::new(MemoryChunkStore::new(), in_flight.clone(), Duration::from_secs(60));
        let (content, other) = (ContentId([7; 12]), ContentId([8; 12]));
        let first = chunks.begin_content(content);
        let second = chunks.begin_content(content);
        assert!(in_flight.may_be_in_flight(content) && !in_flight.may_be_in_flight(other));
        drop(first);
        assert!(in_flight.may_be_in_flight(content));
        drop(second);
        assert!(!in_flight.may_be_in_flight(content));
    }

    /// The client is told to try again, not that its request or this program is broken.
    #[tokio::test]
    async fn a_step_past_its_deadline_is_unavailable() {
        let late = within(Instant::now(), async { Ok::<_, ChunkError>(()) }).await;
        assert!(matches!(late, Err(ChunkError::Unavailable(_))), "{late:?}");
        let soon = within(Instant::now() + Duration::from_secs(60), async { Ok::<_, ChunkError>(()) }).await;
        assert!(soon.is_ok());
    }
}
