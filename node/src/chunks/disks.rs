//! The ports of chunks and disks on `holdfast_storage`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::domain::admission::DiskHealth;
use holdfast_actors::ports::chunks::{ChunkInfo, ChunkReceipt, DiskCount, ReplicaStore};
use holdfast_actors::ports::peers::ShardDigest;
use holdfast_actors::ports::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore, Disk, DiskStatus, ScrubStep};
use holdfast_protocol::{ChunkId, ShardId};
use holdfast_storage::scrub::{self, ScrubConfig, Scrubber};
use holdfast_storage::{ChunkReader, ChunkWriter, DiskSet, Engine, ReadError, WriteError};
use tokio::sync::Mutex;

use super::digests::Digests;

/// Chunks on the disks of this node.
pub struct DiskChunks {
    disks: DiskSet,
    digests: Digests,
}

impl DiskChunks {
    /// On `disks`.
    pub fn new(disks: DiskSet) -> Self {
        Self { disks, digests: Digests::default() }
    }
}

#[async_trait]
impl ChunkStore for DiskChunks {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        let writer = self.disks.create(spec.id, spec.size_bytes, &spec.label).await.map_err(of_write)?;
        Ok(Box::new(Sink { writer }))
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.disks.read(id, range).map(body).map_err(of_read)
    }

    fn read_copied(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.disks.read_copied(id, range).map(body).map_err(of_read)
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.disks.stat(&id).map(|stat| ChunkInfo { id: stat.id, size_bytes: stat.size_bytes })
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.disks.delete(ids).await.map_err(of_write)
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        let page = self.disks.list(after.as_ref(), limit);
        page.into_iter().map(|stat| ChunkInfo { id: stat.id, size_bytes: stat.size_bytes }).collect()
    }
}

#[async_trait]
impl ReplicaStore for DiskChunks {
    async fn label(&self, id: ChunkId) -> Result<Bytes, ChunkError> {
        self.disks.label(id).await.map_err(of_read)
    }

    async fn verify(&self, id: ChunkId) -> Result<ChunkInfo, ChunkError> {
        let stat = self.disks.verify(id).await.map_err(of_read)?;
        Ok(ChunkInfo { id: stat.id, size_bytes: stat.size_bytes })
    }

    fn list_shard(&self, shard: ShardId, shard_count: u32, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        let page = self.disks.list_shard(shard, shard_count, after.as_ref(), limit);
        page.into_iter().map(|stat| ChunkInfo { id: stat.id, size_bytes: stat.size_bytes }).collect()
    }

    fn digest(&self, shard: ShardId, shard_count: u32) -> ShardDigest {
        self.digests.of(shard, shard_count, |digests| {
            let shards: BTreeSet<ShardId> = digests.keys().copied().collect();
            self.disks.for_each_of_shards(&shards, shard_count, |shard, stat| {
                if let Some(digest) = digests.get_mut(&shard) {
                    digest.add(&stat.id, stat.size_bytes);
                }
            });
        })
    }

    fn disk_count(&self) -> DiskCount {
        let (working, fenced) = self.disks.count();
        DiskCount { working: working as u32, fenced: fenced as u32 }
    }

    fn is_stranded(&self, id: ChunkId) -> bool {
        self.disks.is_stranded(&id)
    }

    fn list_stranded(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        let page = self.disks.list_stranded(after.as_ref(), limit);
        page.into_iter().map(|stat| ChunkInfo { id: stat.id, size_bytes: stat.size_bytes }).collect()
    }
}

fn body(reader: ChunkReader) -> ChunkBody {
    Box::pin(futures::TryStreamExt::map_err(reader, of_read))
}

struct Sink {
    writer: ChunkWriter,
}

#[async_trait]
impl ChunkSink for Sink {
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.writer.write(data).await.map_err(of_write)
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        self.writer.finish_input().map_err(of_write)
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        self.writer.finish().await.map_err(of_write)?;
        Ok(ChunkReceipt::default())
    }
}

fn of_write(error: WriteError) -> ChunkError {
    match error {
        WriteError::Exists(id) => ChunkError::Exists(id),
        WriteError::NoSpace => ChunkError::NoSpace,
        WriteError::Fenced(_) | WriteError::Unresponsive | WriteError::Closed => {
            ChunkError::Unavailable(error.to_string())
        }
        WriteError::Invalid(detail) => ChunkError::Invalid(detail),
        // Of the process, not of the disk: a later attempt may find some.
        WriteError::Io { ref source, .. } if is_out_of_descriptors(source) => {
            ChunkError::Unavailable(format!("{error}: {source}"))
        }
        WriteError::Io { context, source } => ChunkError::Io {
            context: context.to_owned(),
            // One failed sync is told to many waiters, so the error is shared; its kind is what callers look at.
            source: std::io::Error::new(source.kind(), source.to_string()),
        },
    }
}

fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn of_read(error: ReadError) -> ChunkError {
    match error {
        ReadError::NotFound(id) => ChunkError::NotFound(id),
        ReadError::Invalid { chunk, detail } => ChunkError::Invalid(format!("chunk {chunk}: {detail}")),
        ReadError::Corrupt { chunk, detail } => ChunkError::Corrupt { chunk, detail },
        ReadError::Unresponsive(_) => ChunkError::Unavailable(error.to_string()),
        ReadError::Io { chunk, source } => ChunkError::Io { context: format!("read chunk {chunk}"), source },
    }
}

/// One disk, as the disk actor sees it.
pub struct EngineDisk {
    engine: Engine,
    name: String,
    /// Made at the first step. A step that is cut off leaves it where it was: see [`Scrubber::step`].
    scrubber: Arc<Mutex<Option<Scrubber>>>,
}

impl EngineDisk {
    /// The disk behind `engine`.
    pub fn new(engine: Engine) -> Self {
        let name = engine.dir().display().to_string();
        Self { engine, name, scrubber: Arc::default() }
    }
}

#[async_trait]
impl Disk for EngineDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(&self) -> DiskStatus {
        let stats = self.engine.stats();
        let (health, detail) = match (stats.fenced, stats.unresponsive, stats.full) {
            (Some(reason), ..) => (DiskHealth::Fenced, Some(reason)),
            (None, true, _) => {
                let detail = match stats.oldest_operation_ms / 1000 {
                    0 => "it has answered, and is watched for a while".to_owned(),
                    seconds => format!("no answer for {seconds} s"),
                };
                (DiskHealth::Unresponsive, Some(detail))
            }
            (None, false, true) => (DiskHealth::Full, Some(format!("{} bytes free", stats.free_bytes))),
            (None, false, false) => (DiskHealth::Healthy, None),
        };
        DiskStatus {
            health,
            detail,
            total_bytes: stats.capacity_bytes,
            free_bytes: stats.free_bytes,
            live_bytes: stats.live_bytes,
            chunks: stats.chunks,
            segments: stats.segments,
        }
    }

    async fn checkpoint(&self) -> Result<(), ChunkError> {
        self.engine.settle().await;
        Ok(())
    }

    async fn scrub_step(&self, bytes_max: u64) -> Result<ScrubStep, ChunkError> {
        let step = scrub_step(self.engine.clone(), Arc::clone(&self.scrubber), bytes_max);
        let done = self.engine.apart(step).await;
        done.unwrap_or_else(|| Err(ChunkError::Unavailable("the node is stopping".to_owned())))
    }

    async fn compact_step(&self, bytes_max: u64) -> Result<u64, ChunkError> {
        let report = self.engine.compact(bytes_max).await.map_err(of_write)?;
        if report.segments_emptied > 0 {
            tracing::info!(
                disk = self.name,
                chunks = report.chunks_moved,
                bytes = report.bytes_moved,
                segments = report.segments_emptied,
                "segments compacted"
            );
        }
        Ok(if report.finished { 0 } else { report.bytes_moved })
    }
}

/// Scrubs until `bytes_max` bytes were read or the pass is over.
async fn scrub_step(
    engine: Engine,
    scrubber: Arc<Mutex<Option<Scrubber>>>,
    bytes_max: u64,
) -> Result<ScrubStep, ChunkError> {
    let mut scrubber = scrubber.lock().await;
    if scrubber.is_none() {
        // The pace is the disk actor's business: it asks for so many bytes at a time.
        *scrubber = Some(Scrubber::resume(&engine, ScrubConfig::default()).await);
    }
    let scrubber = scrubber.as_mut().expect("made above");
    let mut done = ScrubStep::default();
    while done.bytes < bytes_max && !done.pass_finished {
        let step = scrubber.step().await;
        match step.map_err(|source| ChunkError::Io { context: "scrub".to_owned(), source })? {
            scrub::ScrubStep::Record { bytes, good } => {
                done.bytes += bytes;
                done.chunks += 1;
                done.corrupt += u64::from(!good);
            }
            scrub::ScrubStep::SegmentDone => {}
            scrub::ScrubStep::RoundDone => done.pass_finished = true,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::TryStreamExt as _;
    use holdfast_actors::ports::chunks::conformance;
    use holdfast_protocol::ContentId;
    use holdfast_storage::EngineConfig;
    use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
    use holdfast_storage::io::sim::SimIo;
    use holdfast_storage::io::{Preference, choose};
    use parking_lot::Mutex;

    use super::*;

    /// Makes stores on directories that live as long as it does.
    #[derive(Default)]
    struct Stores {
        dirs: Mutex<Vec<tempfile::TempDir>>,
    }

    impl Stores {
        async fn make(&self, disks: usize) -> Arc<DiskChunks> {
            let pool = BufferPool::new(BufferPoolConfig { large_count: 20, small_count: 96 }).expect("buffers");
            let io = choose(&pool, Preference::Std).expect("std I/O").io;
            let mut engines = vec![];
            for _ in 0..disks {
                let dir = tempfile::tempdir().expect("a directory");
                let mut config = EngineConfig::new(dir.path(), [1; 16], [2; 16]);
                config.segment_size_bytes = 64 << 20;
                config.reserve_bytes = 1 << 20;
                engines.push(Engine::open(config, io.clone(), pool.clone()).await.expect("an engine").0);
                self.dirs.lock().push(dir);
            }
            Arc::new(DiskChunks::new(DiskSet::new(engines)))
        }
    }

    #[tokio::test]
    async fn one_disk_keeps_the_contract_of_replicas() {
        let stores = Stores::default();
        conformance::replicas::all(|| async { stores.make(1).await as Arc<dyn ReplicaStore> }).await;
    }

    #[test]
    fn a_write_that_found_no_descriptor_may_be_made_again() {
        let failed = |errno: rustix::io::Errno| {
            let source = Arc::new(std::io::Error::from(errno));
            of_write(WriteError::Io { context: "allocate segment", source })
        };
        assert!(matches!(failed(rustix::io::Errno::MFILE), ChunkError::Unavailable(_)));
        assert!(matches!(failed(rustix::io::Errno::IO), ChunkError::Io { .. }));
    }

    #[tokio::test]
    async fn only_the_connection_writer_gets_slices_of_a_mapping() {
        let stores = Stores::default();
        let store = stores.make(1).await;
        let (id, data) = (ContentId([1; 12]).chunk(0), vec![7; 1 << 20]);
        let range = 0..data.len() as u32;
        let spec = ChunkSpec { id, size_bytes: range.end, label: Bytes::new() };
        let mut sink = store.create(spec).await.expect("create");
        sink.write(&data).await.expect("write");
        sink.finish_input().expect("finish input");
        sink.finish().await.expect("finish");
        for copied in [false, true] {
            let open = || if copied { store.read_copied(id, range.clone()) } else { store.read(id, range.clone()) };
            // Once, so that it is in memory.
            let _: Vec<Bytes> = open().expect("open").try_collect().await.expect("read");
            let pieces: Vec<Bytes> = open().expect("open").try_collect().await.expect("read again");
            assert!(pieces.concat() == data);
            let lent = pieces.iter().any(|piece| holdfast_storage::mapping::find(piece).is_some());
            assert_eq!(lent, !copied);
        }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_told_of_and_refuses_with_what_can_be_tried_again() {
        let pool = BufferPool::new(BufferPoolConfig { large_count: 20, small_count: 96 }).expect("buffers");
        let io = SimIo::new(1);
        let mut config = EngineConfig::new("/disk", [1; 16], [2; 16]);
        config.segment_size_bytes = 64 << 20;
        config.reserve_bytes = 1 << 20;
        config.background = false;
        let (engine, _) = Engine::open(config, Arc::new(io.clone()), pool).await.expect("an engine");
        let (disk, store) = (EngineDisk::new(engine.clone()), DiskChunks::new(DiskSet::new(vec![engine.clone()])));
        let spec = |n| ChunkSpec { id: ContentId([1; 12]).chunk(n), size_bytes: 4, label: Bytes::new() };
        let mut sink = store.create(spec(0)).await.expect("create");
        sink.write(b"data").await.expect("write");
        io.hold();
        sink.finish_input().expect("finish input");
        (0..40).for_each(|_| engine.tick(Duration::from_secs(1)));
        assert!(matches!(sink.finish().await, Err(ChunkError::Unavailable(_))));
        let status = disk.status();
        assert_eq!(status.health, DiskHealth::Unresponsive);
        assert!(status.detail.is_some_and(|detail| detail.starts_with("no answer for 3")));
        assert!(matches!(store.create(spec(1)).await, Err(ChunkError::Unavailable(_))));
        assert_eq!((store.disk_count().working, store.disk_count().fenced), (1, 0));
        io.release();
        (0..15).for_each(|_| engine.tick(Duration::from_secs(1)));
        assert_eq!(disk.status().health, DiskHealth::Healthy);
        assert!(store.create(spec(1)).await.is_ok());
    }

    #[tokio::test]
    async fn several_disks_keep_the_contract_of_replicas_and_of_chunks() {
        let stores = Stores::default();
        conformance::replicas::all(|| async { stores.make(3).await as Arc<dyn ReplicaStore> }).await;
        conformance::listing_pages_through_everything(stores.make(3).await).await;
    }
}
