//! A clock set by hand, chunks of which some cannot be deleted, and a bus that loses and refuses.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkInfo, ChunkSink, ChunkSpec};
use holdfast_actors::ports::events::{
    EventBus, EventError, EventResult, InProcessEventBus, InProcessLimits, Message, Page, Position, SubscribeOptions,
    Subscription, Topic,
};
use holdfast_actors::ports::{ChunkError, ChunkStore, Clock};
use holdfast_protocol::{ChunkId, ContentId};
use parking_lot::Mutex;
use tokio::time::Instant;

pub struct HandClock(pub AtomicU64);

impl Clock for HandClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Deletes chunks, but for those of some contents.
#[derive(Default)]
pub struct PickyChunks {
    pub inner: MemoryChunkStore,
    sick: Mutex<HashSet<ContentId>>,
    bug: AtomicBool,
}

impl PickyChunks {
    pub fn refuse(&self, content: ContentId) {
        self.sick.lock().insert(content);
    }

    /// The next deletion panics.
    pub fn panic_once(&self) {
        self.bug.store(true, Ordering::Relaxed);
    }

    pub fn accept(&self) {
        self.sick.lock().clear();
    }
}

#[async_trait]
impl ChunkStore for PickyChunks {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        self.inner.create(spec).await
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.inner.read(id, range)
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.inner.stat(id)
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        assert!(!self.bug.swap(false, Ordering::Relaxed), "a bug");
        for id in ids {
            // As a disk does: it takes a while, and what went before the failure is gone.
            tokio::task::yield_now().await;
            if self.sick.lock().contains(&id.content()) {
                return Err(ChunkError::Unavailable("a sick disk".into()));
            }
            self.inner.delete(&[*id]).await?;
        }
        Ok(())
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.inner.list(after, limit)
    }
}

/// The bus within the process, which takes down what is published, and loses or refuses it when told to.
pub struct TestBus {
    inner: InProcessEventBus,
    published: Mutex<Vec<Message>>,
    tries: AtomicU64,
    lose: AtomicU64,
    refused: Mutex<Option<EventError>>,
}

impl Default for TestBus {
    fn default() -> Self {
        Self {
            inner: InProcessEventBus::new(InProcessLimits::default()),
            published: Mutex::default(),
            tries: AtomicU64::new(0),
            lose: AtomicU64::new(0),
            refused: Mutex::default(),
        }
    }
}

impl TestBus {
    /// The next ones are taken, and nobody gets them.
    pub fn lose(&self, messages: u64) {
        self.lose.store(messages, Ordering::Relaxed);
    }

    pub fn refuse(&self, error: EventError) {
        *self.refused.lock() = Some(error);
    }

    pub fn accept(&self) {
        *self.refused.lock() = None;
    }

    /// What was taken.
    pub fn published(&self) -> Vec<Message> {
        self.published.lock().clone()
    }

    /// How often something was to be published.
    pub fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl EventBus for TestBus {
    async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> EventResult<()> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        let refused = self.refused.lock().clone();
        if let Some(error) = refused {
            return Err(error);
        }
        let lost = self.lose.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if lost {
            self.published.lock().push(message.clone());
            return Ok(());
        }
        let published = self.inner.publish(topic, message, deadline).await;
        if !matches!(published, Err(EventError::Unavailable(_))) {
            self.published.lock().push(message.clone());
        }
        published
    }

    async fn subscribe(&self, topic: Topic, options: SubscribeOptions) -> EventResult<Box<dyn Subscription>> {
        self.inner.subscribe(topic, options).await
    }

    async fn read(&self, topic: Topic, from: Position, limit: usize, wait: Duration) -> EventResult<Page> {
        self.inner.read(topic, from, limit, wait).await
    }

    async fn check(&self, topic: Topic) -> EventResult<()> {
        self.inner.check(topic).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
