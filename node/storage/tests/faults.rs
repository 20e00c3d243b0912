//! Faults one at a time: what a client and an operator see of each.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "faults/hanging.rs"]
mod hanging;
#[path = "faults/races.rs"]
mod races;
#[path = "faults/unreadable.rs"]
mod unreadable;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{config, get, id, open_with, payload, put, std_io};
use holdfast_storage::buf::{IoBuf, SharedBuf};
use holdfast_storage::io::flights::Flights;
use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::io::{BlockFile, BlockIo, IoFuture, OpenMode, Preference};
use holdfast_storage::{
    ChunkWriter, DiskSet, Engine, EngineConfig, Finding, FindingSource, OpenError, ReadError, ScrubConfig, ScrubStep,
    Scrubber, WriteError,
};
use parking_lot::Mutex;

fn sim_config() -> EngineConfig {
    let mut config = config(Path::new("/disk"));
    config.segment_size_bytes = 512 << 10;
    config.reserve_bytes = 512 << 10;
    config
}

async fn sim_engine(io: &SimIo) -> Engine {
    open_with(sim_config(), Arc::new(io.clone())).await.0
}

#[tokio::test]
async fn failed_sync_fences_the_disk_and_reads_go_on() {
    let io = SimIo::new(1);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), b"before").await.unwrap();
    io.inject(io.ops() + 1, Fault::FailedSync);
    assert!(matches!(put(&engine, id(2), b"lost").await, Err(WriteError::Io { .. })));
    let syncs = engine.stats().syncs;
    assert!(matches!(put(&engine, id(3), b"refused").await, Err(WriteError::Fenced(_))));
    assert!(matches!(engine.delete(&[id(1)]).await, Err(WriteError::Fenced(_))));
    engine.run_jobs().await;
    assert_eq!(engine.stats().syncs, syncs, "a failed sync is never retried");
    assert!(engine.fenced().unwrap().contains("sync segment"));
    assert_eq!(get(&engine, id(1)).await.unwrap(), b"before");
    assert!(matches!(get(&engine, id(2)).await, Err(ReadError::NotFound(_))));
}

/// A chunk of which all but the sync is under way.
async fn unfinished(engine: &Engine, n: u32) -> ChunkWriter {
    let bytes = payload(u64::from(n), 6000);
    let mut writer = engine.create(id(n), bytes.len() as u32, b"").await.unwrap();
    writer.write(&bytes).await.unwrap();
    writer.finish_input().unwrap();
    writer
}

#[tokio::test]
async fn a_sync_that_fails_for_an_abandoned_chunk_acknowledges_nobody_elses() {
    let mut refused = 0;
    for seed in 0..24 {
        let io = SimIo::new(seed);
        let engine = sim_engine(&io).await;
        put(&engine, id(1), b"before").await.unwrap();
        let (first, second, left) =
            (unfinished(&engine, 2).await, unfinished(&engine, 3).await, unfinished(&engine, 4).await);
        io.set_slow_syncs(1000);
        let (mut first, syncs) = (Box::pin(first.finish()), engine.stats().syncs);
        while engine.stats().syncs == syncs {
            assert!(futures::poll!(first.as_mut()).is_pending());
            // What is prepared in the background may be in its way.
            tokio::task::yield_now().await;
        }
        // Its writes end, and it waits for the sync after the one that runs.
        let mut second = Box::pin(second.finish());
        for _ in 0..30 {
            assert!(futures::poll!(second.as_mut()).is_pending());
        }
        drop(left);
        io.set_slow_syncs(0);
        io.inject(io.ops() + 1, Fault::FailedSync);
        let ((), first, second) = tokio::join!(engine.run_jobs(), first, second);
        assert!(engine.fenced().is_some());
        refused += u32::from(second.is_err());
        drop(engine);
        io.crash();
        io.recover();
        let engine = sim_engine(&io).await;
        for (n, written) in [(2, first), (3, second)] {
            if written.is_ok() {
                let read = get(&engine, id(n)).await;
                assert!(read.is_ok_and(|read| read == payload(u64::from(n), 6000)), "seed {seed}: {n} is lost");
            }
        }
    }
    assert_eq!(refused, 24);
}

#[tokio::test]
async fn write_error_fences_the_disk() {
    let io = SimIo::new(2);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), b"before").await.unwrap();
    io.inject(io.ops() + 1, Fault::Eio);
    assert!(put(&engine, id(2), b"lost").await.is_err());
    assert!(matches!(put(&engine, id(3), b"refused").await, Err(WriteError::Fenced(_))));
    assert_eq!(get(&engine, id(1)).await.unwrap(), b"before");
}

#[tokio::test]
async fn a_sector_of_an_index_file_or_a_segment_header_that_cannot_be_read_keeps_no_disk_from_opening() {
    let io = SimIo::new(8);
    let engine = sim_engine(&io).await;
    let chunks = 0..12;
    for n in chunks.clone() {
        put(&engine, id(n), &payload(u64::from(n), 100_000)).await.unwrap();
    }
    engine.shutdown().await.unwrap();
    drop(engine);
    let (mut scanned, mut at) = (0, 0);
    loop {
        at += 1;
        io.inject(io.ops() + at, Fault::Eio);
        match Engine::open(sim_config(), Arc::new(io.clone()), common::pool()).await {
            Ok((engine, report)) => {
                io.clear_faults();
                scanned += report.segments_scanned;
                if report.unread_bytes > 0 {
                    // A scan met it; the next start reads all.
                    assert!(engine.fenced().is_some(), "error at {at}");
                    continue;
                }
                for n in chunks.clone() {
                    assert_eq!(get(&engine, id(n)).await.unwrap(), payload(u64::from(n), 100_000), "error at {at}");
                }
                engine.shutdown().await.unwrap();
                if report.segments_scanned == 0 && at > 100 {
                    break;
                }
            }
            Err(OpenError::Io { context, .. }) => {
                let bearable = ["read index file", "read segment header", "scan segment", "read segment"];
                assert!(!bearable.iter().any(|start| context.starts_with(start)), "error at {at}: {context}");
            }
            Err(error) => panic!("error at {at}: {error}"),
        }
        io.clear_faults();
    }
    assert!(scanned > 3, "{scanned} segments were scanned");
}

#[tokio::test]
async fn full_disk_refuses_writes_serves_reads_takes_deletes_and_recovers() {
    let io = SimIo::new(3);
    io.set_capacity(4 << 20);
    let engine = sim_engine(&io).await;
    let mut written = 0;
    let refusal = loop {
        match put(&engine, id(written), &payload(u64::from(written), 60_000)).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, WriteError::NoSpace));
    assert!(written > 20, "{written} chunks fitted");
    assert!(engine.stats().full && engine.fenced().is_none());
    assert_eq!(get(&engine, id(0)).await.unwrap(), payload(0, 60_000));
    // One by one, so that many tombstone records are needed.
    for n in 0..written {
        engine.delete(&[id(n)]).await.unwrap();
    }
    engine.run_jobs().await;
    engine.settle().await;
    engine.run_jobs().await;
    put(&engine, id(9999), &payload(1, 60_000)).await.unwrap();
    assert!(!engine.stats().full);
}

fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test]
async fn scrub_reads_everything_reports_damage_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let findings = Arc::new(Mutex::new(Vec::<Finding>::new()));
    let mut config = config(dir.path());
    config.segment_size_bytes = 4 << 20;
    let sink = Arc::clone(&findings);
    config.on_finding = Some(Arc::new(move |finding| sink.lock().push(finding)));
    let (engine, _) = open_with(config.clone(), std_io()).await;
    for n in 0..20 {
        put(&engine, id(n), &payload(u64::from(n), 700_000)).await.unwrap();
    }
    engine.run_jobs().await;
    let victims = [3, 11, 17];
    for victim in victims {
        let place = engine.locate(&id(victim)).unwrap();
        // Payload, label and header in turn.
        let offset =
            [place.payload.start + 500_000, place.record.start + 180, place.record.start + 20][victim as usize % 3];
        flip(&place.path, offset);
    }
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    let (mut good, mut bad, mut segments) = (0, 0, 0);
    while segments < 4 {
        match scrubber.step().await.unwrap() {
            ScrubStep::Record { good: true, .. } => good += 1,
            ScrubStep::Record { good: false, .. } => bad += 1,
            ScrubStep::SegmentDone => segments += 1,
            ScrubStep::RoundDone => panic!("not all is read"),
        }
    }
    assert!(scrubber.position().next_segment > 1);
    drop(scrubber);
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    loop {
        match scrubber.step().await.unwrap() {
            ScrubStep::Record { good: true, .. } => good += 1,
            ScrubStep::Record { good: false, .. } => bad += 1,
            ScrubStep::SegmentDone => {}
            ScrubStep::RoundDone => break,
        }
    }
    assert_eq!((good, bad), (17, 3));
    let mut found: Vec<_> =
        findings.lock().iter().map(|finding| (finding.chunk.unwrap().index(), finding.source)).collect();
    found.sort_unstable_by_key(|(chunk, _)| *chunk);
    assert_eq!(found, victims.map(|victim| (victim, FindingSource::Scrub)));
    assert_eq!(scrubber.position().rounds, 1);
}

/// Tells that something is about to be done, and waits until it may be.
type Hold = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// The files of a disk that rots beneath the page cache: what is read past it has one wrong byte. It may also take its time
/// to make a file.
struct Rotten {
    inner: Arc<dyn BlockIo>,
    /// Where, in any file, once it is set.
    at: Arc<Mutex<Option<u64>>>,
    /// Told when the next file is about to be made, and waited for.
    hold: Arc<Mutex<Option<Hold>>>,
}

struct RottenFile {
    inner: Arc<dyn BlockFile>,
    at: Arc<Mutex<Option<u64>>>,
}

impl Rotten {
    fn file(&self, inner: Arc<dyn BlockFile>, mode: OpenMode) -> Arc<dyn BlockFile> {
        match mode {
            OpenMode::Direct => Arc::new(RottenFile { inner, at: self.at.clone() }),
            OpenMode::Buffered => inner,
        }
    }
}

impl BlockFile for RottenFile {
    fn write_at(&self, offset: u64, buf: SharedBuf, range: Range<usize>) -> IoFuture<io::Result<()>> {
        self.inner.write_at(offset, buf, range)
    }

    fn read_at(&self, offset: u64, buf: IoBuf, len: usize) -> IoFuture<(io::Result<usize>, IoBuf)> {
        let (read, at) = (self.inner.read_at(offset, buf, len), *self.at.lock());
        Box::pin(async move {
            let (count, mut buf) = read.await;
            if let Some(at) = at.and_then(|at| at.checked_sub(offset)).filter(|at| *at < len as u64) {
                buf[at as usize] ^= 1;
            }
            (count, buf)
        })
    }

    fn sync_data(&self) -> IoFuture<io::Result<()>> {
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, len)
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_fd()
    }
}

impl BlockIo for Rotten {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn for_disk(&self, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        let inner = self.inner.for_disk(flights)?;
        Ok(Arc::new(Rotten { inner, at: self.at.clone(), hold: self.hold.clone() }))
    }

    fn block_size(&self, dir: &Path) -> io::Result<usize> {
        self.inner.block_size(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        Ok(self.file(self.inner.open(path, mode)?, mode))
    }

    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let hold = self.hold.lock().take();
        if let Some((begun, go)) = hold {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
        Ok(self.file(self.inner.create(path, mode)?, mode))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock_dir(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        self.inner.space(dir)
    }
}

#[tokio::test]
async fn verifying_reads_the_disk_and_not_the_pages_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = Arc::new(Mutex::new(None));
    let findings = Arc::new(Mutex::new(Vec::<Finding>::new()));
    let mut config = config(dir.path());
    let sink = Arc::clone(&findings);
    config.on_finding = Some(Arc::new(move |finding| sink.lock().push(finding)));
    let io = Arc::new(Rotten { inner: std_io(), at: at.clone(), hold: Arc::default() });
    let (engine, _) = open_with(config, io).await;
    let chunks = [(1, 5), (2, 3_000), (3, 65_536), (4, 1_500_000)];
    for (n, len) in chunks {
        put(&engine, id(n), &payload(u64::from(n), len)).await.unwrap();
        assert_eq!(get(&engine, id(n)).await.unwrap(), payload(u64::from(n), len));
        assert_eq!(engine.verify(id(n)).await.unwrap().size_bytes as usize, len);
    }
    assert!(matches!(engine.verify(id(9)).await, Err(ReadError::NotFound(_))));
    // While the segment takes writes, and after that.
    for round in 0..2 {
        for (n, len) in chunks {
            let place = engine.locate(&id(n)).unwrap();
            // Of the header, the first and the last of the payload.
            for byte in [place.record.start + 20, place.payload.start, place.payload.end - 1] {
                *at.lock() = Some(byte);
                assert_eq!(get(&engine, id(n)).await.unwrap(), payload(u64::from(n), len), "what is in memory is good");
                let refused = engine.verify(id(n)).await;
                assert!(matches!(refused, Err(ReadError::Corrupt { .. })), "byte {byte} of {n}: {refused:?}");
            }
            *at.lock() = None;
            assert!(engine.verify(id(n)).await.is_ok());
        }
        if round == 0 {
            engine.shutdown().await.unwrap();
        }
    }
    assert!(findings.lock().is_empty(), "whoever asks is told by the error");
}

#[tokio::test]
async fn segments_are_used_in_the_order_of_their_numbers() {
    const LEN: usize = 700_000;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    (config.segment_size_bytes, config.background) = (4 << 20, true);
    let hold = Arc::default();
    let io = Arc::new(Rotten { inner: std_io(), at: Arc::default(), hold: Arc::clone(&hold) });
    let (engine, _) = open_with(config, io).await;
    let bytes = payload(1, LEN);
    for n in 0..4 {
        put(&engine, id(n), &bytes).await.unwrap();
    }
    let ((begin, begun), (go, wait)) = (mpsc::channel(), mpsc::channel());
    *hold.lock() = Some((begin, wait));
    // Three quarters are full: the next segment is prepared, slowly.
    put(&engine, id(4), &bytes).await.unwrap();
    begun.recv_timeout(Duration::from_secs(60)).unwrap();
    // And needed before it is there.
    let mut needed = Box::pin(put(&engine, id(5), &bytes));
    let early = tokio::time::timeout(Duration::from_millis(300), needed.as_mut()).await;
    go.send(()).unwrap();
    match early {
        Ok(done) => done.unwrap(),
        Err(_) => needed.await.unwrap(),
    }
    for n in 6..24 {
        put(&engine, id(n), &bytes).await.unwrap();
    }
    let used: Vec<_> = (0..24).map(|n| engine.locate(&id(n)).unwrap().path).collect();
    assert!(used.is_sorted() && used[0] < used[23], "{used:?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn scrub_keeps_its_pace() {
    let io = SimIo::new(5);
    let engine = sim_engine(&io).await;
    for n in 0..10 {
        put(&engine, id(n), &payload(u64::from(n), 100_000)).await.unwrap();
    }
    let config = ScrubConfig { round: Duration::from_secs(1), bytes_per_second_min: 1, bytes_per_second_max: 10_000 };
    let mut scrubber = Scrubber::resume(&engine, config).await;
    let cancel = tokio_util::sync::CancellationToken::new();
    let started = tokio::time::Instant::now();
    let stop = cancel.clone();
    let (_, ()) = tokio::join!(scrubber.run(&cancel), async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    });
    assert_eq!(started.elapsed().as_secs(), 60);
    // About 106 kB a record at 10 kB a second: some six records in a minute.
    // Of ten records in three segments.
    let place = scrubber.position();
    assert!(place.rounds == 0 && place.next_segment <= 2, "{place:?}");
}

#[tokio::test]
async fn compaction_moves_what_is_alive_and_removes_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.segment_size_bytes = 8 << 20;
    let (engine, _) = open_with(config.clone(), std_io()).await;
    for n in 0..40 {
        put(&engine, id(n), &payload(u64::from(n), 1_500_000)).await.unwrap();
    }
    put(&engine, id(100), b"small").await.unwrap();
    engine.run_jobs().await;
    let before = engine.stats().segments;
    // One of five chunks a segment stays: too much to move; then none but the small one and the last.
    engine.delete(&(0..39).map(id).collect::<Vec<_>>()).await.unwrap();
    for n in 200..206 {
        put(&engine, id(n), &payload(u64::from(n), 1_500_000)).await.unwrap();
    }
    engine.run_jobs().await;
    let kept = common::get_pieces(&engine, id(100), 0..5).await.unwrap();
    engine.delete(&[id(39)]).await.unwrap();
    engine.run_jobs().await;
    let report = engine.compact(u64::MAX).await.unwrap();
    assert!(report.finished);
    assert_eq!(report.chunks_moved, 1, "{report:?}");
    engine.run_jobs().await;
    assert!(engine.stats().segments < before);
    assert_eq!(get(&engine, id(100)).await.unwrap(), b"small");
    assert_eq!(common::concat(&kept), b"small", "a slice of the removed segment is still good");
    drop((kept, engine));
    let (engine, report) = open_with(config, std_io()).await;
    assert_eq!(report.chunks, 7);
    assert_eq!(get(&engine, id(100)).await.unwrap(), b"small");
    assert!(matches!(get(&engine, id(39)).await, Err(ReadError::NotFound(_))));
}

#[tokio::test]
async fn disks_share_the_load_and_a_fenced_one_is_passed_over() {
    let ios = [SimIo::new(6), SimIo::new(7)];
    let disks = DiskSet::new(vec![sim_engine(&ios[0]).await, sim_engine(&ios[1]).await]);
    for n in 0..40 {
        let mut writer = disks.create(id(n), 10, b"").await.unwrap();
        assert!(matches!(disks.create(id(n), 10, b"").await, Err(WriteError::Exists(_))));
        writer.write(&payload(u64::from(n), 10)).await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
    }
    let stats = disks.stats();
    assert!(stats.iter().all(|disk| disk.chunks > 5), "{stats:?}");
    let page = disks.list(None, 25);
    let rest = disks.list(page.last().map(|stat| &stat.id), 100);
    assert_eq!((page.len(), rest.len()), (25, 15));
    ios[0].inject(ios[0].ops() + 1, Fault::Eio);
    let _ = put(&disks.disks()[0], id(1000), b"x").await;
    for n in 2000..2010 {
        let mut writer = disks.create(id(n), 1, b"").await.unwrap();
        writer.write(b"x").await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
        assert!(disks.disks()[1].stat(&id(n)).is_some());
    }
    let mut reader = disks.read(id(0), 0..10).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), payload(0, 10));
}

#[tokio::test]
async fn what_lies_on_a_fenced_disk_only_is_stranded_and_may_be_written_anew() {
    let ios = [SimIo::new(8), SimIo::new(9)];
    let disks = DiskSet::new(vec![sim_engine(&ios[0]).await, sim_engine(&ios[1]).await]);
    put(&disks.disks()[0], id(1), b"first").await.unwrap();
    put(&disks.disks()[1], id(2), b"second").await.unwrap();
    assert_eq!((disks.count(), disks.list_stranded(None, 10)), ((2, 0), vec![]));
    ios[0].inject(ios[0].ops() + 1, Fault::FailedSync);
    assert!(put(&disks.disks()[0], id(3), b"lost").await.is_err());
    assert_eq!(disks.count(), (1, 1));
    let stranded = || disks.list_stranded(None, 10).iter().map(|stat| stat.id).collect::<Vec<_>>();
    assert_eq!(stranded(), [id(1)]);
    assert!(disks.is_stranded(&id(1)) && !disks.is_stranded(&id(2)));
    assert_eq!(disks.stat(&id(1)).map(|stat| stat.size_bytes), Some(5), "it can be read");
    assert!(matches!(disks.verify(id(1)).await, Err(ReadError::NotFound(_))), "and is not to be counted on");
    assert_eq!(disks.list(None, 10).iter().map(|stat| stat.id).collect::<Vec<_>>(), [id(2)]);
    disks.delete(&[id(1)]).await.unwrap();
    assert!(disks.is_stranded(&id(1)), "a fenced disk is passed over");
    let mut writer = disks.create(id(1), 5, b"").await.unwrap();
    writer.write(b"first").await.unwrap();
    writer.finish_input().unwrap();
    writer.finish().await.unwrap();
    assert!(stranded().is_empty() && disks.disks()[1].stat(&id(1)).is_some());
    assert!(matches!(disks.create(id(1), 5, b"").await, Err(WriteError::Exists(_))));
}

#[tokio::test]
async fn the_io_that_is_chosen_at_start_carries_the_engine() {
    let pool = common::pool();
    let dir = tempfile::tempdir().unwrap();
    let chosen = holdfast_storage::io::choose(&pool, Preference::Auto).unwrap().io;
    let mut config = config(dir.path());
    config.background = true;
    let (engine, _) = Engine::open(config, chosen, pool).await.unwrap();
    for n in 0..8 {
        put(&engine, id(n), &payload(u64::from(n), 3 << 20)).await.unwrap();
    }
    for n in 0..8 {
        assert!(get(&engine, id(n)).await.unwrap() == payload(u64::from(n), 3 << 20));
    }
    engine.delete(&[id(0)]).await.unwrap();
    engine.shutdown().await.unwrap();
}

/// Takes a file's pages out of the page cache.
fn evict(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[tokio::test]
async fn copied_pieces_stay_what_was_verified_whatever_becomes_of_the_pages() {
    // Not in a temporary directory: in memory nothing is ever evicted.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (engine, _) = common::open(dir.path()).await;
    let chunks = [(1, 3_000), (2, 90_000), (3, 3_000_000)];
    for (n, len) in chunks {
        put(&engine, id(n), &payload(u64::from(n), len)).await.unwrap();
    }
    for (n, len) in chunks {
        let expected = payload(u64::from(n), len);
        let mut read = vec![];
        // From the disk, then from memory.
        for _ in 0..2 {
            let mut reader = engine.read_copied(id(n), 0..len as u32).unwrap();
            let mut pieces = vec![];
            while let Some(piece) = reader.next().await {
                pieces.push(piece.unwrap());
            }
            read.push(pieces);
        }
        let place = engine.locate(&id(n)).unwrap();
        evict(&place.path);
        flip(&place.path, place.payload.start + len as u64 / 2);
        evict(&place.path);
        for pieces in read {
            assert!(common::concat(&pieces) == expected, "chunk {n} changed in the hands of its reader");
            assert!(pieces.iter().all(|piece| holdfast_storage::mapping::find(piece).is_none()));
        }
        let mut reader = engine.read_copied(id(n), 0..len as u32).unwrap();
        let damage = loop {
            match reader.next().await {
                Some(Ok(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(damage, Some(Err(ReadError::Corrupt { .. }))), "{damage:?}");
    }
}

#[tokio::test]
async fn bytes_that_rot_after_they_were_verified_are_not_served_when_compaction_brings_them_in() {
    // Not in a temporary directory: in memory nothing is ever evicted.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = config(dir.path());
    config.segment_size_bytes = 8 << 20;
    let (engine, _) = open_with(config, std_io()).await;
    for n in 0..8 {
        let len = if n == 0 { 300_000 } else { 1_500_000 };
        put(&engine, id(n), &payload(u64::from(n), len)).await.unwrap();
    }
    let first = engine.locate(&id(0)).unwrap();
    let doomed: Vec<_> = (1..8).map(id).filter(|id| engine.locate(id).unwrap().path == first.path).collect();
    engine.delete(&doomed).await.unwrap();
    engine.run_jobs().await;
    // Verified; not looked at, so that the process has none of its pages mapped.
    let pieces = common::get_pieces(&engine, id(0), 0..300_000).await.unwrap();
    let located = holdfast_storage::mapping::find(&pieces[0]).unwrap();
    drop(pieces);
    assert!(located.mapping.is_sendable(located.range.clone()));
    evict(&first.path);
    flip(&first.path, first.payload.start + 100_000);
    evict(&first.path);
    assert!(!located.mapping.is_resident(first.payload.clone()));
    engine.compact(u64::MAX).await.unwrap();
    assert_eq!(engine.locate(&id(0)).unwrap().path, first.path, "a damaged chunk stays where it is");
    let read = get(&engine, id(0)).await;
    assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{:?}", read.map(|bytes| bytes.len()));
}
