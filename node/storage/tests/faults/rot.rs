//! Bytes that rot beneath good pages or beneath a reader, and files that are long in being made.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use holdfast_storage::buf::{IoBuf, SharedBuf};
use holdfast_storage::io::flights::Flights;
use holdfast_storage::io::{BlockFile, BlockIo, IoFuture, OpenMode};
use holdfast_storage::{Finding, ReadError};
use parking_lot::Mutex;

use super::common::{self, config, get, id, open_with, payload, put, std_io};
use super::flip;

/// Tells that something is about to be done, and waits until it may be.
type Hold = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// The files of a disk that rots beneath the page cache: what is read past it has one wrong byte. It may also take its
/// time to make a file.
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

    fn for_disk(&self, dir: &Path, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        let inner = self.inner.for_disk(dir, flights)?;
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
