//! A chunk store in memory, for tests: it behaves like a disk engine that never loses anything, and fails, stalls or
//! damages a chunk when told to.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, ShardId, chunk_order};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{ChunkBody, ChunkError, ChunkInfo, ChunkSink, ChunkSpec, ChunkStore, DiskCount, ReplicaStore};
use crate::ports::peers::ShardDigest;
use crate::wait::eventually;

mod sink;

use sink::MemorySink;

/// Size of the pieces that a read yields.
const PIECE_SIZE_BYTES: usize = 4 << 20;

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// [`ChunkStore::create`], with `NoSpace`.
    Create,
    /// [`ChunkSink::write`], with an I/O error.
    Write,
    /// [`ChunkSink::finish`], with an I/O error.
    Finish,
    /// What the disk keeps of a chunk: [`ChunkSink::finish`] finds nothing wrong.
    Keep,
    /// [`ChunkStore::delete`], with [`ChunkError::Unavailable`].
    Delete,
}

#[derive(Debug, Clone)]
struct Stored {
    label: Bytes,
    payload: Bytes,
    corrupt: bool,
    /// Damaged on the disk while reads are served from memory.
    rotten: bool,
    /// On a disk that failed, and only there.
    stranded: bool,
    /// Whole on a disk that failed, beside the one that works.
    spare: bool,
}

impl Stored {
    fn new(label: Bytes, payload: Bytes) -> Self {
        Self { label, payload, corrupt: false, rotten: false, stranded: false, spare: false }
    }

    /// Whether no disk gives it, a disk that failed among them.
    fn is_unreadable(&self) -> bool {
        self.corrupt && !self.spare
    }
}

/// A chunk's key in the list order of all stores.
fn key(id: ChunkId) -> (u64, ChunkId) {
    (chunk_order::place(&id), id)
}

#[derive(Debug, Default)]
struct Shared {
    chunks: Mutex<BTreeMap<(u64, ChunkId), Stored>>,
    /// How many operations of a kind still succeed before one fails.
    faults: Mutex<HashMap<Fault, usize>>,
    sinks_open: AtomicUsize,
    /// Asynchronous operations begun, of which the one numbered `stall_at` never ends.
    operations: AtomicUsize,
    stall_at: Mutex<Option<usize>>,
    stalled: Notify,
    disks: Mutex<Option<DiskCount>>,
    poisoned: Mutex<Option<ChunkId>>,
    hangs: AtomicBool,
    refuses: AtomicBool,
    slow_for: Mutex<Duration>,
}

impl Shared {
    fn disks(&self) -> DiskCount {
        self.disks.lock().unwrap_or(DiskCount { working: 1, fenced: 0 })
    }

    fn check(&self, fault: Fault) -> bool {
        let mut faults = self.faults.lock();
        match faults.get_mut(&fault) {
            Some(0) => {
                faults.remove(&fault);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn answers(&self) -> Result<(), ChunkError> {
        let refuses = self.refuses.load(Ordering::Relaxed);
        if refuses { Err(ChunkError::Unavailable("the disk does not answer".into())) } else { Ok(()) }
    }

    async fn begin(&self) {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        if *self.stall_at.lock() == Some(number) {
            self.stalled.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// The store. Cheap to share by [`Arc`].
#[derive(Debug, Default)]
pub struct MemoryChunkStore {
    shared: Arc<Shared>,
}

impl MemoryChunkStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store whose asynchronous operation number `number` (from 0, in the order they begin) never ends, so
    /// that a test can stop a caller there: [`Self::stalled`] returns when that point is reached.
    pub fn stalling_at(number: usize) -> Self {
        let store = Self::default();
        *store.shared.stall_at.lock() = Some(number);
        store
    }

    /// Waits until an operation stalls.
    pub async fn stalled(&self) {
        self.shared.stalled.notified().await;
    }

    /// Puts a chunk there.
    pub fn insert(&self, id: ChunkId, payload: Bytes) {
        self.shared.chunks.lock().insert(key(id), Stored::new(Bytes::new(), payload));
    }

    /// Fails the one of two disks on which these chunks lie.
    pub fn fail_disk_of(&self, ids: &[ChunkId]) {
        let mut chunks = self.shared.chunks.lock();
        for id in ids {
            if let Some(stored) = chunks.get_mut(&key(*id)) {
                stored.stranded = true;
            }
        }
        *self.shared.disks.lock() = Some(DiskCount { working: 1, fenced: 1 });
    }

    /// Fails one of two disks that have a chunk, and damages what the other one has.
    pub fn corrupt_beside_failed_disk(&self, id: ChunkId) {
        if let Some(stored) = self.shared.chunks.lock().get_mut(&key(id)) {
            (stored.corrupt, stored.spare) = (true, true);
        }
        *self.shared.disks.lock() = Some(DiskCount { working: 1, fenced: 1 });
    }

    /// Fails the only disk.
    pub fn fail_all_disks(&self) {
        self.shared.chunks.lock().values_mut().for_each(|stored| stored.stranded = true);
        *self.shared.disks.lock() = Some(DiskCount { working: 0, fenced: 1 });
    }

    /// The next operation of this kind fails after `successes` that do not.
    pub fn fail(&self, fault: Fault, successes: usize) {
        self.shared.faults.lock().insert(fault, successes);
    }

    /// Damages a chunk: reads of it find that its checksum does not match.
    pub fn corrupt(&self, id: ChunkId) {
        if let Some(stored) = self.shared.chunks.lock().get_mut(&key(id)) {
            stored.corrupt = true;
        }
    }

    /// Damages a chunk beneath the page cache: reads go on to give what is in memory, and only [`ReplicaStore::verify`]
    /// finds it.
    pub fn rot_beneath_memory(&self, id: ChunkId) {
        if let Some(stored) = self.shared.chunks.lock().get_mut(&key(id)) {
            stored.rotten = true;
        }
    }

    /// Reads that are begun from now on never get anything.
    pub fn hang_reads(&self) {
        self.shared.hangs.store(true, Ordering::Relaxed);
    }

    /// Whether reads that are begun from now on fail, as those of a disk that does not answer.
    pub fn refuse_reads(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Reads that are begun from now on give nothing for so long.
    pub fn slow_reads(&self, pause: Duration) {
        *self.shared.slow_for.lock() = pause;
    }

    /// Panics whenever this chunk's label is asked for; [`None`]: it does no longer.
    pub fn poison(&self, id: Option<ChunkId>) {
        *self.shared.poisoned.lock() = id;
    }

    /// A chunk's bytes.
    pub fn payload(&self, id: ChunkId) -> Option<Bytes> {
        self.shared.chunks.lock().get(&key(id)).map(|stored| stored.payload.clone())
    }

    /// A chunk's label, encoded.
    pub fn label(&self, id: ChunkId) -> Option<Bytes> {
        self.shared.chunks.lock().get(&key(id)).map(|stored| stored.label.clone())
    }

    fn page(&self, after: Option<ChunkId>, limit: usize, wanted: impl Fn(&ChunkId, &Stored) -> bool) -> Vec<ChunkInfo> {
        let start = after.map_or(Bound::Unbounded, |id| Bound::Excluded(key(id)));
        let chunks = self.shared.chunks.lock();
        let found = chunks.range((start, Bound::Unbounded)).filter(|((_, id), stored)| wanted(id, stored));
        let infos = found.map(|((_, id), stored)| ChunkInfo { id: *id, size_bytes: stored.payload.len() as u32 });
        infos.take(limit).collect()
    }

    /// Whether no chunk is stored.
    pub fn is_empty(&self) -> bool {
        self.shared.chunks.lock().is_empty()
    }

    /// Sinks that were created and neither finished nor dropped.
    pub fn sinks_open(&self) -> usize {
        self.shared.sinks_open.load(Ordering::Relaxed)
    }

    /// Waits until deletions in the background have left nothing.
    ///
    /// # Panics
    /// When a chunk or an open sink stays.
    pub async fn until_empty(&self) {
        eventually("no chunk and no open sink is left", || self.is_empty() && self.sinks_open() == 0).await;
    }
}

#[async_trait]
impl ChunkStore for MemoryChunkStore {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        self.shared.begin().await;
        if self.shared.check(Fault::Create) {
            return Err(ChunkError::NoSpace);
        }
        if spec.size_bytes == 0 || u64::from(spec.size_bytes) > CHUNK_SIZE_MAX {
            return Err(ChunkError::Invalid(format!("a chunk of {} bytes", spec.size_bytes)));
        }
        if self.shared.disks().working == 0 {
            return Err(ChunkError::Unavailable("every disk failed".into()));
        }
        if self.shared.chunks.lock().get(&key(spec.id)).is_some_and(|stored| !stored.stranded) {
            return Err(ChunkError::Exists(spec.id));
        }
        self.shared.sinks_open.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(MemorySink {
            shared: Arc::clone(&self.shared),
            spec,
            buffer: BytesMut::new(),
            pieces: Vec::new(),
            received: 0,
        }))
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        let stored = self.shared.chunks.lock().get(&key(id)).cloned().ok_or(ChunkError::NotFound(id))?;
        let range = range.start as usize..range.end as usize;
        if range.start > range.end || range.end > stored.payload.len() {
            return Err(ChunkError::Invalid(format!("range {range:?} of {} bytes", stored.payload.len())));
        }
        if self.shared.hangs.load(Ordering::Relaxed) {
            return Ok(Box::pin(stream::pending()));
        }
        if let Err(error) = self.shared.answers() {
            return Ok(Box::pin(stream::iter([Err(error)])));
        }
        if stored.is_unreadable() {
            let error = ChunkError::Corrupt { chunk: id, detail: "damaged by a test".into() };
            return Ok(Box::pin(stream::iter([Err(error)])));
        }
        let bytes = stored.payload.slice(range);
        let pieces = bytes.chunks(PIECE_SIZE_BYTES).map(|piece| Ok(bytes.slice_ref(piece)));
        let mut pieces: Vec<Result<Bytes, ChunkError>> = pieces.collect();
        let pause = *self.shared.slow_for.lock();
        if pause > Duration::ZERO {
            let late = stream::once(tokio::time::sleep(pause));
            return Ok(Box::pin(late.flat_map(move |()| stream::iter(std::mem::take(&mut pieces)))));
        }
        Ok(Box::pin(stream::iter(pieces)))
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        let chunks = self.shared.chunks.lock();
        chunks.get(&key(id)).map(|stored| ChunkInfo { id, size_bytes: stored.payload.len() as u32 })
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.shared.begin().await;
        if self.shared.disks().working == 0 {
            return Err(ChunkError::Unavailable("every disk failed".into()));
        }
        if self.shared.check(Fault::Delete) {
            return Err(ChunkError::Unavailable("injected".into()));
        }
        let mut chunks = self.shared.chunks.lock();
        for id in ids {
            let Some(stored) = chunks.get_mut(&key(*id)) else { continue };
            if stored.spare {
                // The disk that failed keeps its own.
                let (label, payload) = (stored.label.clone(), stored.payload.clone());
                *stored = Stored { stranded: true, ..Stored::new(label, payload) };
            } else if !stored.stranded {
                chunks.remove(&key(*id));
            }
        }
        Ok(())
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.page(after, limit, |_, stored| !stored.stranded)
    }
}

#[async_trait]
impl ReplicaStore for MemoryChunkStore {
    async fn label(&self, id: ChunkId) -> Result<Bytes, ChunkError> {
        self.shared.begin().await;
        let poisoned = *self.shared.poisoned.lock();
        assert!(poisoned != Some(id), "poisoned by a test");
        self.shared.answers()?;
        let stored = self.shared.chunks.lock().get(&key(id)).cloned().ok_or(ChunkError::NotFound(id))?;
        if stored.is_unreadable() {
            return Err(ChunkError::Corrupt { chunk: id, detail: "damaged by a test".into() });
        }
        Ok(stored.label)
    }

    async fn verify(&self, id: ChunkId) -> Result<ChunkInfo, ChunkError> {
        self.shared.begin().await;
        self.shared.answers()?;
        let stored = self.shared.chunks.lock().get(&key(id)).cloned().ok_or(ChunkError::NotFound(id))?;
        if stored.stranded {
            return Err(ChunkError::NotFound(id));
        }
        if stored.corrupt || stored.rotten {
            return Err(ChunkError::Corrupt { chunk: id, detail: "damaged by a test".into() });
        }
        Ok(ChunkInfo { id, size_bytes: stored.payload.len() as u32 })
    }

    fn list_shard(&self, shard: ShardId, shard_count: u32, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.page(after, limit, |id, _| ShardId::of_chunk(id, shard_count) == shard)
    }

    fn digest(&self, shard: ShardId, shard_count: u32) -> ShardDigest {
        let mut digest = ShardDigest::default();
        for info in self.list_shard(shard, shard_count, None, usize::MAX) {
            digest.add(&info.id, info.size_bytes);
        }
        digest
    }

    fn disk_count(&self) -> DiskCount {
        self.shared.disks()
    }

    fn is_stranded(&self, id: ChunkId) -> bool {
        self.shared.chunks.lock().get(&key(id)).is_some_and(|stored| stored.stranded)
    }

    fn list_stranded(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.page(after, limit, |_, stored| stored.stranded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_store_keeps_the_contract() {
        super::super::conformance::all(|| async { Arc::new(MemoryChunkStore::new()) as Arc<dyn ChunkStore> }).await;
    }
}
