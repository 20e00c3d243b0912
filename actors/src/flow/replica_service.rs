//! [`LocalReplicas`]: what this node does for its peers, on its own disks.
//!
//! # The fence of a write
//! It is checked when the write begins, and again after the chunk is durable and in the index. A chunk that fails the
//! second check was never acknowledged: it is deleted, and the caller hears [`ChunkError::Stale`] or
//! [`ChunkError::Fenced`].
//!
//! # Repeated writes
//! A caller whose acknowledgement got lost writes the chunk again. What comes then is compared with what is stored,
//! piece by piece and read through the checksums, and acknowledged if it is the same and whole on the disk: the second
//! attempt costs two reads. Such an attempt never deletes the chunk, whatever the second check says, since the first
//! may have been acknowledged. Attempts of one chunk exclude each other until the first has ended, its deletion
//! included, so that none is acknowledged on bytes that another one is about to take away: a later one waits a little
//! ([`PREDECESSOR_MAX`]), then is refused as [`PeerError::Busy`]. Repairs and copies of the chunk are kept away in the
//! same way ([`ChunkLocks`]).
//!
//! # Bounds
//! Writes are admitted by number and announced bytes, walks over the index by number; beyond, writes are refused as
//! [`PeerError::Busy`] at once (their caller has other replicas) and walks wait (their caller has a deadline). Before a
//! write is refused, others on which nothing comes for long are given up in its favour (`places`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, NodeId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::cluster_view::ClusterView;
use super::key_locks::{ChunkLock, ChunkLocks};
use super::self_report::SelfReport;
use super::shards::ReportInbox;
use crate::ports::chunks::{ChunkInfo, ChunkReceipt, ReplicaStore};
use crate::ports::peers::{
    Fence, IDS_MAX, LIST_MAX, PeerError, PeerHealth, ReplicaService, ReplicaWrite, ShardDigest, ShardReport,
};
use crate::ports::{ChunkBody, ChunkError, ChunkSink};

mod places;

use places::{Place, Places};

/// Digests in work at once. The store makes many in one walk, so more than walks: no comparison waits for those of
/// others.
const DIGESTS_MAX: usize = 64;

/// How long an attempt waits for the one before, whose cancellation may be on its way here.
const PREDECESSOR_MAX: Duration = Duration::from_millis(200);

/// What a node takes from its peers at once.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaLimits {
    /// Writes.
    pub writes_max: usize,
    /// Bytes that they announce together.
    pub bytes_max: u64,
    /// Walks over the index for lists.
    pub walks_max: usize,
}

impl Default for ReplicaLimits {
    /// Announced bytes are disk work, not memory (that is bounded by the disks' buffers): 256 whole chunks are a few
    /// seconds of a disk's work. A walk occupies a core for some milliseconds.
    fn default() -> Self {
        Self { writes_max: 512, bytes_max: 256 * CHUNK_SIZE_MAX, walks_max: 2 }
    }
}

/// Whether the disks take writes.
type Writable = Arc<dyn Fn() -> bool + Send + Sync>;

/// See the module's page.
pub struct LocalReplicas {
    store: Arc<dyn ReplicaStore>,
    view: Arc<ClusterView>,
    places: Arc<Places>,
    walks: Arc<Semaphore>,
    digests: Arc<Semaphore>,
    /// Keeps other attempts at a chunk away, and repairs and copies of it.
    locks: Arc<ChunkLocks>,
    /// Open while the controller lives here.
    reports: Arc<ReportInbox>,
    writable: Writable,
    self_report: Arc<SelfReport>,
}

impl LocalReplicas {
    /// On this node's own store.
    pub fn new(store: Arc<dyn ReplicaStore>, view: Arc<ClusterView>, limits: ReplicaLimits) -> Self {
        Self {
            store,
            view,
            places: Places::new(&limits),
            walks: Arc::new(Semaphore::new(limits.walks_max)),
            digests: Arc::new(Semaphore::new(DIGESTS_MAX)),
            locks: ChunkLocks::new(),
            reports: Arc::default(),
            writable: Arc::new(|| true),
            self_report: SelfReport::new(),
        }
    }

    /// With `reports` as the place for what is reported to the controller. Without it nobody is one here.
    pub fn with_reports(mut self, reports: Arc<ReportInbox>) -> Self {
        self.reports = reports;
        self
    }

    /// With the locks of those who repair and copy chunks of this node.
    pub fn with_chunk_locks(mut self, locks: Arc<ChunkLocks>) -> Self {
        self.locks = locks;
        self
    }

    /// With `writable` as the answer to whether the disks take writes.
    pub fn with_writable(mut self, writable: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.writable = Arc::new(writable);
        self
    }

    /// With what this node tells of itself.
    pub fn with_self_report(mut self, report: Arc<SelfReport>) -> Self {
        self.self_report = report;
        self
    }

    /// Runs a walk over the index off the caller's thread, with a place of `places`.
    async fn walk<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        walk: impl FnOnce(&dyn ReplicaStore) -> T + Send + 'static,
    ) -> Result<T, PeerError> {
        let permit = Arc::clone(places).acquire_owned().await.map_err(|_| PeerError::Busy)?;
        let store = Arc::clone(&self.store);
        let walk = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            walk(&*store)
        });
        walk.await.map_err(|_| PeerError::Busy)
    }
}

fn counted(what: &str, count: usize, max: usize) -> Result<(), PeerError> {
    if count <= max { Ok(()) } else { Err(PeerError::Protocol(format!("{count} {what} in a request, {max} at most"))) }
}

/// What a write holds until it has ended.
struct Held {
    place: Place,
    _lock: ChunkLock,
}

/// A chunk being written for a peer.
struct FencedSink {
    inner: Box<dyn ChunkSink>,
    store: Arc<dyn ReplicaStore>,
    view: Arc<ClusterView>,
    fence: Fence,
    id: ChunkId,
    held: Held,
}

#[async_trait]
impl ChunkSink for FencedSink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.held.place.works()?;
        let pieces = self.inner.write(data).await;
        self.held.place.waits();
        pieces
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.inner.finish_input()
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        self.held.place.works()?;
        let Self { inner, store, view, fence, id, held } = *self;
        let receipt = inner.finish().await?;
        let Err(refusal) = admitted(&view, fence) else {
            return Ok(receipt);
        };
        tracing::info!(chunk = %id, shard = %fence.shard, epoch = %fence.epoch, %refusal, "a write ended behind its fence");
        // A task of its own: a caller that goes away must not leave the chunk there.
        let deletion = tokio::spawn(async move {
            if let Err(error) = store.delete(&[id]).await {
                tracing::warn!(chunk = %id, %error, "cannot delete a chunk that its fence refused, left as an orphan");
            }
            drop(held);
        });
        // What went wrong there was logged there.
        drop(deletion.await);
        Err(refusal)
    }

    fn taken_back(&self) -> CancellationToken {
        self.held.place.taken_back()
    }
}

/// [`ClusterView::admit`] as a sink says it.
fn admitted(view: &ClusterView, fence: Fence) -> Result<(), ChunkError> {
    view.admit(fence).map_err(|error| {
        let reason = if matches!(error, PeerError::Stale { .. }) { "stale" } else { "fenced" };
        metrics::counter!("holdfast_replica_refused_total", "reason" => reason).increment(1);
        match error {
            PeerError::Stale { shard, current } => ChunkError::Stale { shard, current },
            PeerError::Fenced => ChunkError::Fenced,
            other => ChunkError::Invalid(other.to_string()),
        }
    })
}

/// A chunk that is stored already, compared with what comes.
struct ComparingSink {
    id: ChunkId,
    store: Arc<dyn ReplicaStore>,
    stored: ChunkBody,
    /// The rest of the piece of `stored` that is being compared.
    piece: Bytes,
    left: u32,
    view: Arc<ClusterView>,
    fence: Fence,
    held: Held,
}

impl ComparingSink {
    async fn compare(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        if data.len() > self.left as usize {
            return Err(ChunkError::Invalid("more bytes than announced".into()));
        }
        let mut rest = data;
        while !rest.is_empty() {
            if self.piece.is_empty() {
                let next = self.stored.next().await;
                self.piece = next.ok_or_else(|| ChunkError::Invalid("the stored chunk is too short".into()))??;
                continue;
            }
            let count = rest.len().min(self.piece.len());
            if self.piece.split_to(count) != rest[..count] {
                return Err(ChunkError::Exists(self.id));
            }
            rest = &rest[count..];
        }
        self.left -= data.len() as u32;
        Ok(vec![Bytes::copy_from_slice(data)])
    }
}

#[async_trait]
impl ChunkSink for ComparingSink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.held.place.works()?;
        let pieces = self.compare(data).await;
        self.held.place.waits();
        pieces
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        if self.left > 0 {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        Ok(None)
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        if self.left > 0 {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        self.held.place.works()?;
        // What is in the index is durable; that the disk still has it is seen only past the page cache.
        self.store.verify(self.id).await?;
        admitted(&self.view, self.fence).map(|()| ChunkReceipt::default())
    }

    fn taken_back(&self) -> CancellationToken {
        self.held.place.taken_back()
    }
}

#[async_trait]
impl ReplicaService for LocalReplicas {
    async fn create(&self, from: NodeId, write: ReplicaWrite) -> Result<Box<dyn ChunkSink>, PeerError> {
        let ReplicaWrite { fence, spec } = write;
        if self.view.shard_of(&spec.id) != fence.shard {
            return Err(PeerError::Protocol(format!("chunk {} is not of shard {}", spec.id, fence.shard)));
        }
        admitted(&self.view, fence)?;
        let place = self.places.take(spec.size_bytes).await.ok_or_else(|| {
            metrics::counter!("holdfast_replica_refused_total", "reason" => "busy").increment(1);
            PeerError::Busy
        })?;
        let lock = self.locks.lock_within(spec.id, PREDECESSOR_MAX).await.ok_or(PeerError::Busy)?;
        let held = Held { place, _lock: lock };
        let (id, size_bytes) = (spec.id, spec.size_bytes);
        match self.store.create(spec).await {
            Ok(inner) => {
                let (store, view) = (Arc::clone(&self.store), Arc::clone(&self.view));
                held.place.waits();
                Ok(Box::new(FencedSink { inner, store, view, fence, id, held }))
            }
            Err(ChunkError::Exists(_)) => {
                // Without a size it is being written from this node itself (a copy, a repair): that will end.
                let info = self.store.stat(id).ok_or(PeerError::Busy)?;
                if info.size_bytes != size_bytes {
                    return Err(ChunkError::Exists(id).into());
                }
                tracing::debug!(chunk = %id, %from, "a chunk that is here already is written again");
                let stored = self.store.read_copied(id, 0..size_bytes)?;
                let (store, view) = (Arc::clone(&self.store), Arc::clone(&self.view));
                let piece = Bytes::new();
                held.place.waits();
                Ok(Box::new(ComparingSink { id, store, stored, piece, left: size_bytes, view, fence, held }))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, _from: NodeId, chunk: ChunkId, range: Range<u32>) -> Result<ChunkBody, PeerError> {
        Ok(self.store.read_copied(chunk, range)?)
    }

    async fn probe(&self, _from: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        counted("chunks", chunks.len(), IDS_MAX)?;
        Ok(chunks.iter().map(|chunk| self.store.stat(*chunk)).collect())
    }

    async fn label(&self, _from: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        Ok(self.store.label(chunk).await?)
    }

    async fn list(
        &self,
        _from: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        counted("chunks", limit, LIST_MAX)?;
        // First: whatever is acknowledged under an older epoch is in the index by now.
        admitted(&self.view, fence)?;
        let count = self.view.shard_count();
        self.walk(&self.walks, move |store| store.list_shard(fence.shard, count, after, limit)).await
    }

    async fn digest(&self, _from: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        admitted(&self.view, fence)?;
        let count = self.view.shard_count();
        self.walk(&self.digests, move |store| store.digest(fence.shard, count)).await
    }

    async fn delete(&self, from: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        counted("chunks", chunks.len(), IDS_MAX)?;
        tracing::debug!(%from, count = chunks.len(), "chunks deleted for a peer");
        Ok(self.store.delete(chunks).await?)
    }

    async fn report(&self, from: NodeId, report: ShardReport) -> Result<(), PeerError> {
        self.reports.push(from, report)
    }

    async fn health(&self, _from: NodeId) -> Result<PeerHealth, PeerError> {
        let proven = self.self_report.proven();
        Ok(PeerHealth {
            node: self.view.me(),
            owner: self.view.is_owner(),
            writable: (self.writable)(),
            oldest_write_seconds: self.self_report.oldest_write_seconds(),
            proven: proven.shards.into_iter().collect(),
            lives: proven.lives,
        })
    }
}

#[cfg(test)]
mod tests;
