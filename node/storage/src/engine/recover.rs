//! Opening a data directory: what a clean end, a crash or a damaged disk left becomes a running engine.
//!
//! 1. Lock the directory; read or write the superblock; remove what interrupted renames left.
//! 2. For each segment: its header and the tombstones of its index file. A segment without a good index file is scanned
//!    ([`super::scan`]; `segments`).
//! 3. A scanned record that does not match is *torn* (nobody was told of it) or, at or below the highest stable
//!    sequence number seen, *damaged*: it stays in the index and answers "corrupt", so that repair learns of it. A copy
//!    that compaction made is torn where its original or a tombstone is found, and damaged else. Everything in a
//!    scanned segment that is no good record is punched. What no sync is known to have covered (records above the
//!    stable number, copies of compaction) is written again as it is, and all of it synced, before anything is served:
//!    the caches of kernel and disk may show what the platter does not have, and after a failed sync no later one would
//!    write it (`settle`).
//! 4. Chunks enter the index, unless a tombstone kills them (`fill`).
//! 5. Scanned segments are sealed. After a clean end the last segment goes on where it ended.
//!
//! **What cannot be read.** An unreadable index file costs a scan, and an unreadable piece of a chunk that chunk. But
//! where a scan could not read what lies between the records that it found, or the header of a segment without an index
//! file, there may have been tombstones, and numbers that all later ones must be above. What is derived from a log with
//! a hole in it must not be written down: an index file without those tombstones would bring their chunks back for
//! good, and a tombstone that is only needed by a record in the hole would be removed. So such a disk is opened
//! **fenced**: what was found is served, and no segment is written, punched, settled or removed, not even as far as
//! recovery does it else. A chunk whose tombstone is in the hole answers while that lasts; the fence, the log and the
//! findings say that this may be so. A later start that can read the hole finds everything as it was. Who cannot wait
//! for that says so by a file ([`GIVEN_UP`]): then the holes are punched, and what was in them is lost.
//! docs/adr/0016 has the reasons.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use holdfast_protocol::ChunkId;
use parking_lot::{Mutex, RwLock};
use rand::RngCore;
use tokio::sync::Notify;

use super::retention::Retention;
use super::scan::Scan;
use super::small_files::{read_file, replace_file};
use super::space::{Sequences, Space};
use super::{Engine, EngineConfig, Inner, ReadMeters, WriteMeters};
use crate::buf::{BufferPool, Share};
use crate::error::OpenError;
use crate::finding::{Finding, FindingSource};
use crate::format::BLOCK_BYTES;
use crate::format::index_file::IndexFile;
use crate::format::record::Kill;
use crate::format::segment::SEGMENT_BYTES_MAX;
use crate::format::superblock::Superblock;
use crate::index::Index;
use crate::io::{BlockIo, OpenMode};
use crate::jobs::JobQueue;
use crate::segment::Segment;
use crate::watch::Watch;

mod fill;
mod segments;
mod settle;

/// In a data directory: what cannot be read of its segments is given up at the next start.
const GIVEN_UP: &str = "unreadable.given-up";

/// How long a start waits for the directory's lock; what a dead process left in its rings ends within milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Pause between two tries.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What a start found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the directory was made by this start.
    pub created: bool,
    /// Segments read from their index file.
    pub segments_indexed: u64,
    /// Segments that had to be scanned.
    pub segments_scanned: u64,
    /// Segments whose header and index file are both unusable; their files are left alone.
    pub segments_unreadable: Vec<u32>,
    /// Chunks in the index.
    pub chunks: u64,
    /// Records whose write a crash interrupted, and which are gone: nobody was told that they exist.
    pub torn: Vec<ChunkId>,
    /// Records that are damaged though they were written whole: reading them answers "corrupt".
    pub damaged: Vec<ChunkId>,
    /// Bytes of segments that could not be read and may have held anything. Not 0: the disk is fenced, unless they were
    /// given up.
    pub unread_bytes: u64,
    /// Wall time in milliseconds.
    pub elapsed_ms: u64,
}

/// A segment between its reading and the engine's start.
struct Found {
    segment: Arc<Segment>,
    /// From a scan; index files are read one by one later.
    scan: Option<Scan>,
    kills: Vec<Kill>,
}

struct Opener {
    config: EngineConfig,
    io: Arc<dyn BlockIo>,
    pool: Arc<BufferPool>,
    jobs: Arc<JobQueue>,
    watch: Arc<Watch>,
    report: RecoveryReport,
    findings: Vec<Finding>,
    sequence_max: u64,
    /// What could not be read is given up: an operator says so.
    gives_up: bool,
}

pub(super) async fn open(
    config: EngineConfig,
    io: Arc<dyn BlockIo>,
    pool: Arc<BufferPool>,
) -> Result<(Inner, RecoveryReport), OpenError> {
    let started = Instant::now();
    check_config(&config)?;
    let dir = config.dir.clone();
    let watch = Watch::new(&dir, config.unresponsive_after, config.fence_unresponsive_after);
    let io = io.for_disk(&dir, watch.flights()).map_err(failed("start I/O for", &dir))?;
    io.create_dir(&dir).map_err(failed("create data directory", &dir))?;
    let lock = lock_dir(&io, &config).await?;
    let block = io.block_size(&dir).map_err(failed("ask for the block size", &dir))?;
    if block > BLOCK_BYTES {
        return Err(OpenError::Config(format!("the disk's blocks of {block} bytes are larger than {BLOCK_BYTES}")));
    }
    let report = RecoveryReport::default();
    let jobs = Arc::<JobQueue>::default();
    let mut opener =
        Opener { config, io, pool, jobs, watch, report, findings: vec![], sequence_max: 0, gives_up: false };
    let superblock = opener.superblock().await?;
    let (numbers, highest) = opener.clean_and_list()?;
    // Numbers rise with use, whatever a file's name says.
    let next_segment = highest.checked_add(1).ok_or_else(|| {
        OpenError::Config(format!("{} has the segment of the highest number, no other can follow it", dir.display()))
    })?;
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        found.extend(opener.load(number, &superblock).await?);
    }
    opener.settle_scans(&mut found).await?;
    let (index, retention) = opener.fill(&mut found).await?;
    let resumed = if opener.must_not_write() { None } else { opener.resume(&found).await };
    opener.have_given_up()?;
    let inner = opener.build(found, index, retention, resumed, next_segment, superblock, lock, started);
    Ok(inner)
}

/// Takes the lock of the data directory.
///
/// The kernel ends what a killed process had in its rings only after the process is gone, and its files, with their
/// locks, stay open until then: a start right after a kill -9 waits a moment before it takes the directory for somebody
/// else's.
async fn lock_dir(io: &Arc<dyn BlockIo>, config: &EngineConfig) -> Result<Box<dyn Send + Sync>, OpenError> {
    let dir = &config.dir;
    let patience = if config.background { LOCK_PATIENCE } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    loop {
        match io.lock_dir(dir) {
            Ok(lock) => return Ok(lock),
            Err(source) if source.kind() != io::ErrorKind::WouldBlock => {
                return Err(failed("lock data directory", dir)(source));
            }
            Err(_) if Instant::now() < deadline => tokio::time::sleep(LOCK_RETRY).await,
            Err(_) => return Err(OpenError::Locked { dir: dir.display().to_string() }),
        }
    }
}

fn check_config(config: &EngineConfig) -> Result<(), OpenError> {
    let size = config.segment_size_bytes;
    if !(64 << 10..=SEGMENT_BYTES_MAX).contains(&size) || !size.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(OpenError::Config(format!(
            "segment size of {size} bytes: must be whole blocks of {BLOCK_BYTES}, from 64 KiB to 4 GiB"
        )));
    }
    Ok(())
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let context = format!("{what} {}", path.display());
    move |source| OpenError::Io { context, source }
}

impl Opener {
    /// Reads the superblock, or writes one into an empty directory.
    async fn superblock(&mut self) -> Result<Superblock, OpenError> {
        let dir = self.config.dir.clone();
        let name = dir.display().to_string();
        let path = Engine::superblock_path(&dir);
        let bytes = match read_file(&self.io, &self.pool, &path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.new_superblock(&path).await,
            Err(error) => return Err(failed("read superblock", &path)(error)),
        };
        let superblock =
            Superblock::decode(&bytes).map_err(|source| OpenError::Superblock { dir: name.clone(), source })?;
        for (owner, found, expected) in
            [("cluster", superblock.cluster, self.config.cluster), ("node", superblock.node, self.config.node)]
        {
            if found != expected {
                let (found, expected) = (ChunkId(found).to_string(), ChunkId(expected).to_string());
                return Err(OpenError::Foreign { dir: name, owner, found, expected });
            }
        }
        Ok(superblock)
    }

    async fn new_superblock(&mut self, path: &Path) -> Result<Superblock, OpenError> {
        let dir = self.config.dir.clone();
        let files = self.io.list(&dir).map_err(failed("list data directory", &dir))?;
        if files.iter().any(|path| parse_segment_name(path).is_some()) {
            return Err(OpenError::NoSuperblock { dir: dir.display().to_string() });
        }
        let mut disk = [0; 16];
        rand::rng().fill_bytes(&mut disk);
        let superblock =
            Superblock { cluster: self.config.cluster, node: self.config.node, disk, created_ms: crate::unix_ms() };
        replace_file(&self.io, &self.pool, &dir, path, &superblock.encode())
            .await
            .map_err(failed("write superblock", path))?;
        self.report.created = true;
        Ok(superblock)
    }

    /// Whether something could not be read that may matter for all else, and nobody gave it up.
    fn must_not_write(&self) -> bool {
        self.report.unread_bytes > 0 && !self.gives_up
    }

    /// Takes note of what could not be read; see the module's text.
    fn note_unread(&mut self, number: u32, unread: &[Range<u64>]) {
        let what = if self.gives_up {
            "could not be read and were given up, with the chunks and deletions that were there"
        } else {
            "cannot be read: chunks may be there, and deletions of others"
        };
        for range in unread {
            let len = range.end - range.start;
            let detail = format!("{len} bytes of the segment {what}");
            self.findings.push(finding(number, range.start, detail));
            self.report.unread_bytes += len;
        }
    }

    /// What was given up is gone: the next time it has to be said again.
    fn have_given_up(&self) -> Result<(), OpenError> {
        if !self.gives_up {
            return Ok(());
        }
        let path = self.config.dir.join(GIVEN_UP);
        self.io.unlink(&path).map_err(failed("remove", &path))?;
        // Or a crash brings the file back, and a later start gives up what nobody said.
        self.io.sync_dir(&self.config.dir).map_err(failed("sync data directory", &self.config.dir))
    }

    /// Removes leftovers; returns the numbers of the segments, and the highest number that any file has.
    fn clean_and_list(&mut self) -> Result<(Vec<u32>, u32), OpenError> {
        let dir = &self.config.dir;
        let files = self.io.list(dir).map_err(failed("list data directory", dir))?;
        let mut segments: Vec<u32> = files
            .iter()
            .filter_map(|path| parse_segment_name(path).filter(|(_, kind)| *kind == "data"))
            .map(|(number, _)| number)
            .collect();
        segments.sort_unstable();
        let mut highest = segments.last().copied().unwrap_or(0);
        self.gives_up = files.iter().any(|path| path.file_name().is_some_and(|name| name == GIVEN_UP));
        for path in &files {
            let temporary = path.extension().is_some_and(|extension| extension == "new");
            let orphan = parse_segment_name(path).is_some_and(|(number, kind)| {
                highest = highest.max(number);
                kind == "index" && segments.binary_search(&number).is_err()
            });
            if temporary || orphan {
                self.io.unlink(path).map_err(failed("remove leftover", path))?;
            }
        }
        Ok((segments, highest))
    }

    /// After a clean end the last segment goes on: its index file is removed before anything is appended.
    async fn resume(&mut self, found: &[Found]) -> Option<Arc<Segment>> {
        let segment = &found.last()?.segment;
        let due = {
            let state = segment.state.lock();
            state.indexed && state.cursor <= segment.header.len_bytes / 4 * 3
        };
        // A header that was taken from the index file is worth nothing without it.
        if !due || segment.header.created_ms == 0 || !self.has_space_for_rest(segment) {
            return None;
        }
        match self.reopen(segment).await {
            Ok(()) => Some(Arc::clone(segment)),
            Err(error) => {
                tracing::warn!(segment = segment.number(), %error, "last segment not continued: a new one is made");
                None
            }
        }
    }

    /// Whether the unused end of a segment may be written. A start after a crash gave its blocks back: written then, it
    /// would come out of the reserve, and a disk without any space takes no deletion. Else it is given back, and where
    /// new records go is decided by what is free.
    fn has_space_for_rest(&self, segment: &Segment) -> bool {
        let tail = segment.state.lock().cursor;
        let rest = segment.header.len_bytes.saturating_sub(tail);
        let free = self.io.space(&self.config.dir).map_or(0, |(_, free)| free);
        if free >= rest.saturating_add(self.config.reserve_bytes) {
            return true;
        }
        match segment.file.punch_hole(tail, rest) {
            Ok(()) => false,
            // It never was given back.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => true,
            Err(error) => {
                tracing::warn!(segment = segment.number(), %error, "the last segment's unused end is not given back");
                false
            }
        }
    }

    async fn reopen(&self, segment: &Arc<Segment>) -> io::Result<()> {
        let bytes = read_file(&self.io, &self.pool, &segment.index_path).await?;
        let file = IndexFile::decode(&bytes).map_err(io::Error::other)?;
        let direct = self.io.open(&segment.path, OpenMode::Direct)?;
        self.io.unlink(&segment.index_path)?;
        self.io.sync_dir(&self.config.dir)?;
        let mut state = segment.state.lock();
        state.sealed = false;
        state.indexed = false;
        state.entries = file.entries;
        state.kills = file.kills;
        segment.reopen_direct(direct);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "each is made by one step of `open`")]
    fn build(
        mut self,
        found: Vec<Found>,
        index: Index,
        retention: Retention,
        resumed: Option<Arc<Segment>>,
        next_segment: u32,
        superblock: Superblock,
        lock: Box<dyn Send + Sync>,
        started: Instant,
    ) -> (Inner, RecoveryReport) {
        let must_not_write = self.must_not_write();
        self.report.chunks = index.len() as u64;
        self.report.elapsed_ms = started.elapsed().as_millis() as u64;
        let segments = found.into_iter().map(|found| (found.segment.number(), found.segment)).collect();
        let inner = Inner {
            space: Space::new(next_segment, resumed),
            sequences: Mutex::new(Sequences::starting_at(self.sequence_max + 1)),
            retention: Mutex::new(retention),
            unsynced_removals: Mutex::default(),
            creating: Mutex::default(),
            deleting: Mutex::default(),
            running_jobs: tokio::sync::Mutex::new(()),
            settling: tokio::sync::Mutex::new(()),
            compacting: tokio::sync::Mutex::new(()),
            no_holes: AtomicBool::new(false),
            watch: self.watch,
            read_share: self.config.shares_buffers.then(|| Share::half_of(&self.pool)),
            neighbours: Mutex::default(),
            spared_told: Mutex::new(None),
            fence: Mutex::new(None),
            fenced: AtomicBool::new(false),
            full: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            open_writes: AtomicUsize::new(0),
            writes_settled: Notify::new(),
            syncs: Arc::default(),
            sync_waiters: AtomicU64::new(0),
            read_meters: ReadMeters::default(),
            write_meters: WriteMeters::default(),
            segments: RwLock::new(segments),
            config: self.config,
            io: self.io,
            pool: self.pool,
            jobs: self.jobs,
            superblock,
            index,
            _lock: lock,
        };
        for finding in self.findings {
            inner.found(finding);
        }
        let report = self.report;
        let disk = inner.config.dir.display().to_string();
        metrics::gauge!("holdfast_storage_unread_bytes", "disk" => disk).set(report.unread_bytes as f64);
        if must_not_write {
            let error = io::Error::other(format!(
                "{} bytes of segments are unreadable, chunks may be missing and deleted ones be back: see \"Replace a disk\" in \
                 the manual",
                report.unread_bytes
            ));
            inner.fence_off("read segments at the start", &error);
        }
        tracing::info!(
            disk = %inner.config.dir.display(), io = inner.io.name(), chunks = report.chunks,
            indexed = report.segments_indexed, scanned = report.segments_scanned, torn = report.torn.len(),
            damaged = report.damaged.len(), unread_bytes = report.unread_bytes, elapsed_ms = report.elapsed_ms, "disk opened"
        );
        (inner, report)
    }
}

fn finding(segment: u32, offset: u64, detail: String) -> Finding {
    Finding { chunk: None, segment, offset, detail, source: FindingSource::Recovery }
}

/// Number and kind (`data`, `index`) that a file name says.
fn parse_segment_name(path: &Path) -> Option<(u32, &str)> {
    let (number, kind) = path.file_name()?.to_str()?.strip_prefix("segment-")?.split_once('.')?;
    let number = u32::from_str_radix(number, 16).ok()?;
    matches!(kind, "data" | "index").then_some((number, kind))
}
