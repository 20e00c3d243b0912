//! The engine of one disk: a data directory full of segments, an index of it in memory, and the rules between them.
//!
//! | module | what |
//! |---|---|
//! | `config` | settings |
//! | `space` | reservations and sequence numbers |
//! | `make` | making segments |
//! | `meters` | what is counted for each read and write |
//! | `record_io` | writing a whole record, reading and verifying one |
//! | `delete` | tombstones |
//! | `faults` | what an error of the disk does, or that there is no answer; who is told of damage |
//! | `compact` | moving chunks out of sparse segments |
//! | `maintain` | holes, index files, removal of dead segments |
//! | `retention` | which tombstones are still needed |
//! | `recover` | opening a directory |
//! | `scan` | finding the records of a segment that has no index file |
//! | `small_files` | index files, marks and single blocks, read and written whole |
//! | `stats` | the disk in numbers |
//!
//! **Who owns what.** The index says what exists; a segment says what of it is alive; `Space` says where the next
//! record goes. Each has its own short locks, and none is held across an await. Lock order: index shard → retention →
//! segment map → pins.
//!
//! **Faults.** An error of a write or a sync fences the disk: writes and deletes are refused from then on, reads go on.
//! A disk that could not be read whole when it was opened is fenced from its start ([`recover`]). A full disk refuses
//! new chunks only, and is asked again at each attempt. One that gives no answer is left alone until it does, and
//! fenced in the end ([`crate::watch`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use holdfast_protocol::{ChunkId, ShardId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::buf::{BufferPool, Share};
use crate::error::{OpenError, ReadError, WriteError};
use crate::format::superblock::Superblock;
use crate::index::{Index, Location};
use crate::io::BlockIo;
use crate::jobs::JobQueue;
use crate::read::{ChunkReader, Pieces};
use crate::segment::{Pin, Segment};
use crate::watch::Watch;
use crate::write::ChunkWriter;

mod compact;
mod config;
mod delete;
mod faults;
mod maintain;
mod make;
mod meters;
mod record_io;
mod recover;
mod retention;
mod scan;
mod small_files;
mod space;
mod stats;

pub use compact::CompactionReport;
pub use config::EngineConfig;
pub(crate) use meters::{ReadMeters, WriteMeters};
pub(crate) use record_io::{Verdict, verify_record};
pub use recover::RecoveryReport;
pub(crate) use space::{Purpose, Reservation, start};
pub use stats::{EngineStats, SegmentStats};

use retention::Retention;
use space::{Sequences, Space};

/// What is known about a stored chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkStat {
    /// The chunk.
    pub id: ChunkId,
    /// Payload bytes.
    pub size_bytes: u32,
}

/// Where a chunk's record lies on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLocation {
    /// The segment file.
    pub path: PathBuf,
    /// The record, head and padding included, in bytes of the file.
    pub record: std::ops::Range<u64>,
    /// The payload.
    pub payload: std::ops::Range<u64>,
}

/// The engine of one disk. Cheap to clone; the directory is let go of when the last clone and the last reader and
/// writer are gone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) io: Arc<dyn BlockIo>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) superblock: Superblock,
    pub(crate) index: Index,
    pub(crate) segments: RwLock<HashMap<u32, Arc<Segment>>>,
    space: Space,
    sequences: Mutex<Sequences>,
    retention: Mutex<Retention>,
    /// Segments that were unlinked and may come back by a crash: there was no descriptor to sync the directory by.
    unsynced_removals: Mutex<Vec<u32>>,
    /// Ids that are being created.
    creating: Mutex<HashSet<ChunkId>>,
    /// Ids that are being deleted, and by how many: compaction must not move them. Taken under the index shard's lock.
    deleting: Mutex<HashMap<ChunkId, u32>>,
    pub(crate) jobs: Arc<JobQueue>,
    /// Held while queued jobs run: who ends the engine must not overtake a job that the background thread has taken.
    running_jobs: tokio::sync::Mutex<()>,
    /// Held while an index file is written.
    settling: tokio::sync::Mutex<()>,
    /// Held while compaction runs.
    compacting: tokio::sync::Mutex<()>,
    /// The file system cannot punch holes.
    no_holes: AtomicBool,
    /// Whether the disk answers.
    pub(crate) watch: Arc<Watch>,
    /// What reads may have of the buffers, if not all.
    pub(crate) read_share: Option<Share>,
    /// The node's other disks.
    pub(crate) neighbours: Mutex<Vec<Weak<Inner>>>,
    /// When, on the watch's clock, it was last said that the disk is not fenced for its silence.
    spared_told: Mutex<Option<Duration>>,
    fence: Mutex<Option<Arc<str>>>,
    fenced: AtomicBool,
    full: AtomicBool,
    closing: AtomicBool,
    /// Reservations that are not settled.
    open_writes: AtomicUsize,
    writes_settled: Notify,
    syncs: Arc<AtomicU64>,
    sync_waiters: AtomicU64,
    pub(crate) read_meters: ReadMeters,
    pub(crate) write_meters: WriteMeters,
    _lock: Box<dyn Send + Sync>,
}

impl Engine {
    /// Where the superblock of a data directory is: without it the directory is no disk, or not yet.
    pub fn superblock_path(dir: &Path) -> PathBuf {
        dir.join("superblock")
    }

    /// Opens a data directory, or makes one, and recovers what a crash left.
    ///
    /// # Errors
    /// [`OpenError`]; the directory is unchanged but for what recovery finished.
    pub async fn open(
        config: EngineConfig,
        io: Arc<dyn BlockIo>,
        pool: Arc<BufferPool>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let background = config.background;
        let (inner, report) = recover::open(config, io, pool).await?;
        let engine = Self { inner: Arc::new(inner) };
        if background {
            faults::start_watch(&engine.inner)
                .map_err(|source| OpenError::Io { context: "start to watch the disk".to_owned(), source })?;
            maintain::start_thread(&engine.inner)
                .map_err(|source| OpenError::Io { context: "start the maintenance thread".to_owned(), source })?;
        }
        Ok((engine, report))
    }

    /// Reserves space for a chunk and starts to write it. `label` is opaque, at most 24 KiB.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is visible then.
    pub async fn create(&self, id: ChunkId, size_bytes: u32, label: &[u8]) -> Result<ChunkWriter, WriteError> {
        self.inner.watch.while_responsive(ChunkWriter::start(&self.inner, id, size_bytes, label)).await
    }

    /// Reads `range` of a chunk's payload. Touches no disk; checks happen as pieces are asked for.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Invalid`].
    pub fn read(&self, id: ChunkId, range: std::ops::Range<u32>) -> Result<ChunkReader, ReadError> {
        self.reader(id, range, Pieces::Lent)
    }

    /// As [`Engine::read`], for who looks at the bytes instead of sending them by the connection writer: no piece is a
    /// slice of a mapping, so what was verified stays what it is.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Invalid`].
    pub fn read_copied(&self, id: ChunkId, range: std::ops::Range<u32>) -> Result<ChunkReader, ReadError> {
        self.reader(id, range, Pieces::Copied)
    }

    pub(crate) fn reader(
        &self,
        id: ChunkId,
        range: std::ops::Range<u32>,
        pieces: Pieces,
    ) -> Result<ChunkReader, ReadError> {
        let (location, pin) = self.inner.pin(&id).ok_or(ReadError::NotFound(id))?;
        if range.start > range.end || range.end > location.payload_len() {
            let detail = format!("{range:?} of {} bytes", location.payload_len());
            return Err(ReadError::Invalid { chunk: id, detail });
        }
        Ok(ChunkReader::new(Arc::clone(&self.inner), id, (location, pin), range, pieces))
    }

    /// What is stored under `id`.
    pub fn stat(&self, id: &ChunkId) -> Option<ChunkStat> {
        let location = self.inner.index.get(id)?;
        Some(ChunkStat { id: *id, size_bytes: location.payload_len() })
    }

    /// Deletes chunks; those that do not exist are skipped. Durable on return. Space comes back when no reader holds
    /// it.
    ///
    /// Cancel safe: what was begun is either deleted or not.
    ///
    /// # Errors
    /// [`WriteError`]; some of the chunks may then be deleted.
    pub async fn delete(&self, ids: &[ChunkId]) -> Result<(), WriteError> {
        self.inner.watch.while_responsive(self.inner.delete(ids)).await
    }

    /// At most `limit` chunks that follow `after` in [`crate::index::list_order`].
    pub fn list(&self, after: Option<&ChunkId>, limit: usize) -> Vec<ChunkStat> {
        let page = self.inner.index.page(after, limit);
        page.into_iter().map(|(id, location)| ChunkStat { id, size_bytes: location.payload_len() }).collect()
    }

    /// A chunk's label as it was given to [`Engine::create`], read from the disk and checked.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn label(&self, id: ChunkId) -> Result<bytes::Bytes, ReadError> {
        crate::read::label(&self.inner, id).await
    }

    /// Reads a chunk's whole record, head, label and payload, past the page cache, and compares it with its checksums:
    /// whether the chunk is whole on the disk, whatever is in memory. Costs the read. What does not match is not served
    /// from memory any more either.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Corrupt`], [`ReadError::Io`].
    pub async fn verify(&self, id: ChunkId) -> Result<ChunkStat, ReadError> {
        crate::verify::verify(&self.inner, id).await
    }

    /// As [`Engine::list`], of one shard of the cluster only. Walks the index in memory up to the last chunk that it
    /// returns.
    pub fn list_shard(
        &self,
        shard: ShardId,
        shard_count: u32,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Vec<ChunkStat> {
        let page = self.inner.index.page_of(after, limit, |id| ShardId::of_chunk(id, shard_count) == shard);
        page.into_iter().map(|(id, location)| ChunkStat { id, size_bytes: location.payload_len() }).collect()
    }

    /// Runs `visit` on every chunk of some shards of the cluster, in list order, with its shard. Walks once over the
    /// index in memory, however many shards there are. `visit` runs under short locks of the index: it must not wait,
    /// nor ask this engine.
    pub fn for_each_of_shards(
        &self,
        shards: &BTreeSet<ShardId>,
        shard_count: u32,
        mut visit: impl FnMut(ShardId, ChunkStat),
    ) {
        self.inner.index.for_each(|id, location| {
            let shard = ShardId::of_chunk(id, shard_count);
            if shards.contains(&shard) {
                visit(shard, ChunkStat { id: *id, size_bytes: location.payload_len() });
            }
        });
    }

    /// Runs the jobs that wait: holes, index files, removal of dead segments. For engines without a background thread.
    pub async fn run_jobs(&self) {
        self.inner.run_jobs().await;
    }

    /// Writes the index files of segments with dead records anew, so that tombstones can be forgotten. The background
    /// thread does so every few seconds where much of a segment is dead; for the rest this is to be called now and
    /// then.
    pub async fn settle(&self) {
        let inner = Arc::clone(&self.inner);
        self.apart(async move { inner.settle_all().await }).await;
    }

    /// Does housekeeping of this disk on a thread of its own: it blocks now and then, and would block whoever does it
    /// for as long as the disk hangs. Dropped, it drops `work`, as soon as the disk lets it. `None` when the runtime
    /// ends.
    pub async fn apart<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.inner.apart(work).await
    }

    /// Moves live chunks out of sparse segments, until about `budget_bytes` were moved or nothing is left to do. To be
    /// called again and again at whatever pace the disk can bear. Cancel safe.
    ///
    /// # Errors
    /// [`WriteError`]; what was not moved stays where it was.
    pub async fn compact(&self, budget_bytes: u64) -> Result<CompactionReport, WriteError> {
        let inner = Arc::clone(&self.inner);
        let compaction = self.apart(async move { inner.compact(budget_bytes).await });
        let compaction = async { compaction.await.unwrap_or(Err(WriteError::Closed)) };
        self.inner.watch.while_responsive(compaction).await
    }

    /// Why the disk takes no writes, if it does not.
    pub fn fenced(&self) -> Option<Arc<str>> {
        self.inner.fence.lock().clone()
    }

    /// Whether it takes no writes; see [`Engine::fenced`].
    pub fn is_fenced(&self) -> bool {
        self.inner.fenced.load(Ordering::SeqCst)
    }

    /// Whether the disk does not answer: it takes no writes then, and gives what is in memory only.
    pub fn is_unresponsive(&self) -> bool {
        self.inner.watch.is_unresponsive()
    }

    /// Whether new chunks are better written elsewhere: it has not answered something for a while.
    pub(crate) fn is_slow(&self) -> bool {
        self.inner.watch.is_slow()
    }

    /// Lets time pass for the watch over the disk. For engines without background threads.
    pub fn tick(&self, by: Duration) {
        if let Some(age) = self.inner.watch.tick(by) {
            self.inner.fence_unresponsive(age);
        }
    }

    /// Identity of the directory, as it is on the disk.
    pub fn superblock(&self) -> &Superblock {
        &self.inner.superblock
    }

    /// Where a chunk's record lies, for operators and tests.
    pub fn locate(&self, id: &ChunkId) -> Option<RecordLocation> {
        let location = self.inner.index.get(id)?;
        let path = self.inner.segment(location.segment)?.path.clone();
        let start = location.record_offset();
        let payload_start = start + u64::from(location.payload_offset());
        Some(RecordLocation {
            path,
            record: start..start + u64::from(location.record_len()),
            payload: payload_start..payload_start + u64::from(location.payload_len()),
        })
    }

    /// Bytes free on the file system, 0 if it does not say. Not older than a second, unless the disk does not answer.
    pub fn free_bytes(&self) -> u64 {
        self.inner.known_space().1
    }

    /// The directory.
    pub fn dir(&self) -> &std::path::Path {
        &self.inner.config.dir
    }

    /// Refuses new writes, waits for those that run, and writes the index files. Reads go on.
    ///
    /// # Errors
    /// [`WriteError::Fenced`] when index files could not be written, [`WriteError::Unresponsive`] when the disk does
    /// not answer: the next start scans.
    pub async fn shutdown(&self) -> Result<(), WriteError> {
        self.inner.shutdown().await
    }

    /// Each segment in numbers, by number: for operators who wonder where the space is.
    pub fn segments(&self) -> Vec<SegmentStats> {
        self.inner.segments_sorted().iter().map(|segment| self.inner.segment_stats(segment)).collect()
    }

    /// The disk in numbers. Cheap, and asks the disk nothing.
    pub fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
}

impl Inner {
    /// Looks a chunk up and pins its record.
    pub(crate) fn pin(&self, id: &ChunkId) -> Option<(Location, Pin)> {
        self.index.get_with(id, |location| {
            let segments = self.segments.read();
            let segment = segments.get(&location.segment).expect("an indexed chunk's segment is known");
            (location, segment.pin(location.block))
        })
    }

    pub(crate) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&number).cloned()
    }

    /// All segments by number.
    pub(crate) fn segments_sorted(&self) -> Vec<Arc<Segment>> {
        let mut all: Vec<_> = self.segments.read().values().cloned().collect();
        all.sort_by_key(|segment| segment.number());
        all
    }

    /// Bytes of live records.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.state.lock().live_bytes).sum()
    }

    /// A file of the data directory.
    pub(crate) async fn read_small_file(&self, name: &str) -> std::io::Result<Vec<u8>> {
        small_files::read_file(&self.io, &self.pool, &self.config.dir.join(name)).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs.close();
        self.watch.end();
    }
}
