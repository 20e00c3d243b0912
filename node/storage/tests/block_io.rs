//! What every implementation of `BlockIo` must do, run over all of them: uring from its own thread and from another
//! runtime, std, and the simulation.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use holdfast_storage::buf::{BufferPool, BufferPoolConfig, IoBuf, LARGE_BYTES, SMALL_BYTES};
use holdfast_storage::io::flights::Flights;
use holdfast_storage::io::sim::SimIo;
use holdfast_storage::io::std::StdIo;
use holdfast_storage::io::uring::{self, UringIo};
use holdfast_storage::io::{self, BlockIo, OpenMode, Preference};

/// One implementation with a directory to work in.
struct Universe {
    io: Arc<dyn BlockIo>,
    pool: Arc<BufferPool>,
    dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
}

fn pool() -> Arc<BufferPool> {
    BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 8 }).unwrap()
}

impl Universe {
    /// In the build directory: on a disk with `O_DIRECT`, which a temporary directory in memory may lack.
    fn real(io: Arc<dyn BlockIo>, pool: Arc<BufferPool>) -> Universe {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Universe { io, pool, dir: temp.path().to_path_buf(), _temp: Some(temp) }
    }

    fn std() -> Universe {
        Universe::real(Arc::new(StdIo::new().unwrap()), pool())
    }

    fn uring() -> Option<Universe> {
        if let Err(reason) = uring::probe() {
            eprintln!("skipped, no io_uring here: {reason}");
            return None;
        }
        let pool = pool();
        Some(Universe::real(Arc::new(UringIo::new(&pool).unwrap()), pool))
    }

    fn sim() -> Universe {
        let (io, dir) = (SimIo::new(1), PathBuf::from("/data"));
        io.create_dir(&dir).unwrap();
        Universe { io: Arc::new(io), pool: pool(), dir, _temp: None }
    }

    async fn filled(&self, len: usize, fill: impl Fn(usize) -> u8) -> IoBuf {
        let mut buf = self.pool.acquire(len).await;
        for (index, byte) in buf[..len].iter_mut().enumerate() {
            *byte = fill(index);
        }
        buf
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn is_send<T: Send>(future: T) -> T {
    future
}

/// What has not come by then does not come, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for something that another thread does, without a fixed sleep.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn bytes_written_in_flight_together_are_read_back(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let mut writes = vec![];
    for part in 0..4usize {
        let buf = universe.filled(LARGE_BYTES, |index| (index / 512 + part * 7) as u8).await.freeze();
        writes.push(is_send(file.write_at((part * LARGE_BYTES) as u64, buf, 0..LARGE_BYTES)));
    }
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
    is_send(file.sync_data()).await.unwrap();
    assert_eq!(file.len().unwrap(), 4 * LARGE_BYTES as u64);
    for mode in [OpenMode::Direct, OpenMode::Buffered] {
        let file = universe.io.open(&universe.path("a"), mode).unwrap();
        for part in 0..4usize {
            let buf = universe.pool.acquire(LARGE_BYTES).await;
            let (read, buf) = is_send(file.read_at((part * LARGE_BYTES) as u64, buf, LARGE_BYTES)).await;
            assert_eq!(read.unwrap(), LARGE_BYTES);
            assert!(buf.iter().enumerate().all(|(index, byte)| *byte == (index / 512 + part * 7) as u8));
        }
    }
    assert!(universe.pool.is_idle());
}

async fn write_takes_the_named_part_of_a_buffer(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let buf = universe.filled(SMALL_BYTES, |index| (index / 4096) as u8).await.freeze();
    file.write_at(4096, buf.clone(), 8192..16384).await.unwrap();
    file.write_at(0, buf, 4096..8192).await.unwrap();
    let (read, buf) = file.read_at(0, universe.pool.acquire(SMALL_BYTES).await, 12288).await;
    assert_eq!(read.unwrap(), 12288);
    for (index, fill) in [1u8, 2, 3].into_iter().enumerate() {
        assert!(buf[index * 4096..(index + 1) * 4096].iter().all(|byte| *byte == fill));
    }
}

async fn read_across_the_end_is_short(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let buf = universe.filled(8192, |_| 5).await.freeze();
    file.write_at(0, buf, 0..8192).await.unwrap();
    for mode in [OpenMode::Direct, OpenMode::Buffered] {
        let file = universe.io.open(&universe.path("a"), mode).unwrap();
        let (read, buf) = file.read_at(4096, universe.pool.acquire(SMALL_BYTES).await, SMALL_BYTES).await;
        assert_eq!(read.unwrap(), 4096);
        assert!(buf[..4096].iter().all(|byte| *byte == 5));
        let (read, _) = file.read_at(8192, buf, 4096).await;
        assert_eq!(read.unwrap(), 0);
    }
}

async fn buffered_file_takes_any_offset(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Buffered).unwrap();
    let buf = universe.filled(100, |index| index as u8).await.freeze();
    file.write_at(3, buf, 10..30).await.unwrap();
    file.sync_data().await.unwrap();
    let (read, buf) = file.read_at(0, universe.pool.acquire(1).await, 100).await;
    assert_eq!(read.unwrap(), 23);
    assert_eq!(buf[..3], [0, 0, 0]);
    assert!((0..20).all(|index| buf[3 + index] == 10 + index as u8));
}

async fn dropped_operation_still_happens_and_returns_its_buffer(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    {
        let buf = universe.filled(4096, |_| 9).await.freeze();
        let mut write = pin!(file.write_at(0, buf, 0..4096));
        let polled = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(()))));
    }
    eventually("the buffer is back", || universe.pool.is_idle()).await;
    let (read, buf) = file.read_at(0, universe.pool.acquire(4096).await, 4096).await;
    assert_eq!(read.unwrap(), 4096);
    assert!(buf[..4096].iter().all(|byte| *byte == 9));
}

async fn operation_never_polled_does_nothing(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let buf = universe.filled(4096, |_| 9).await.freeze();
    drop(file.write_at(0, buf, 0..4096));
    assert!(universe.pool.is_idle());
    file.sync_data().await.unwrap();
    assert_eq!(file.len().unwrap(), 0);
}

async fn allocated_and_punched_ranges_read_as_zeros(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    file.allocate(1 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20);
    file.allocate(4096).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20, "allocation never shortens");
    let buf = universe.filled(SMALL_BYTES, |_| 7).await.freeze();
    file.write_at(0, buf, 0..SMALL_BYTES).await.unwrap();
    file.punch_hole(4096, 8192).unwrap();
    let (read, buf) = file.read_at(0, universe.pool.acquire(LARGE_BYTES).await, LARGE_BYTES).await;
    assert_eq!(read.unwrap(), LARGE_BYTES);
    let expected = |index: usize| if index < SMALL_BYTES && !(4096..12288).contains(&index) { 7 } else { 0 };
    assert!(buf.iter().enumerate().all(|(index, byte)| *byte == expected(index)));
    assert_eq!(file.len().unwrap(), 1 << 20, "a hole does not shorten the file");
}

async fn operations_of_a_disk_are_counted_until_their_end(universe: Universe) {
    let flights = Flights::new(Duration::from_secs(64));
    let io = universe.io.for_disk(&universe.dir, &flights).unwrap();
    let file = io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let buf = universe.filled(4096, |_| 9).await.freeze();
    drop(file.write_at(0, buf.clone(), 0..4096));
    assert_eq!(flights.oldest(), None, "what was never polled is not in flight");
    for fill in 0..100 {
        let mut write = pin!(file.write_at(fill * 4096, buf.clone(), 0..4096));
        let _ = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // Dropped: it happens all the same.
    }
    drop(buf);
    eventually("what was dropped has ended", || universe.pool.is_idle() && flights.oldest().is_none()).await;
    file.sync_data().await.unwrap();
    let (read, _) = file.read_at(0, universe.pool.acquire(4096).await, 4096).await;
    assert_eq!(read.unwrap(), 4096);
    io.space(&universe.dir).unwrap();
    assert_eq!(flights.oldest(), None, "who has a result finds nothing in flight");
}

async fn names_are_created_once_listed_renamed_and_removed(universe: Universe) {
    let (io, a, b) = (&universe.io, universe.path("a"), universe.path("b"));
    let kind = |result: std::io::Result<Arc<dyn io::BlockFile>>| result.map(drop).unwrap_err().kind();
    assert_eq!(kind(io.open(&a, OpenMode::Direct)), ErrorKind::NotFound);
    io.create(&a, OpenMode::Direct).unwrap();
    assert_eq!(kind(io.create(&a, OpenMode::Direct)), ErrorKind::AlreadyExists);
    assert_eq!(kind(io.create(&a, OpenMode::Buffered)), ErrorKind::AlreadyExists);
    io.create_dir(&universe.path("below/deep")).unwrap();
    assert_eq!(io.list(&universe.dir).unwrap(), std::slice::from_ref(&a));
    io.create(&b, OpenMode::Buffered).unwrap();
    io.rename(&a, &b).unwrap();
    assert_eq!(io.list(&universe.dir).unwrap(), std::slice::from_ref(&b));
    io.sync_dir(&universe.dir).unwrap();
    io.unlink(&b).unwrap();
    io.sync_dir(&universe.dir).unwrap();
    assert_eq!(io.unlink(&b).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(io.list(&universe.dir).unwrap().is_empty());
    assert_eq!(io.list(Path::new("/no/such/directory")).unwrap_err().kind(), ErrorKind::NotFound);
}

async fn directory_is_locked_for_one_owner(universe: Universe) {
    let held = universe.io.lock_dir(&universe.dir).unwrap();
    let refused = universe.io.lock_dir(&universe.dir).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    drop(held);
    universe.io.lock_dir(&universe.dir).unwrap();
}

async fn block_size_and_space_are_plausible(universe: Universe) {
    let block = universe.io.block_size(&universe.dir).unwrap();
    assert!(block.is_power_of_two() && (512..=4096).contains(&block));
    let (total, free) = universe.io.space(&universe.dir).unwrap();
    assert!(total > 0 && free <= total);
}

async fn many_operations_share_the_device(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    file.allocate(64 * 4096).unwrap();
    let one = async |index: u64| {
        let buf = universe.filled(4096, |_| index as u8).await.freeze();
        file.write_at(index * 4096, buf, 0..4096).await.unwrap();
        file.sync_data().await.unwrap();
        let (read, buf) = file.read_at(index * 4096, universe.pool.acquire(4096).await, 4096).await;
        assert_eq!(read.unwrap(), 4096);
        assert!(buf[..4096].iter().all(|byte| *byte == index as u8));
    };
    futures::future::join_all((0..64).map(one)).await;
    assert!(universe.pool.is_idle());
}

/// More than a submission queue holds.
async fn many_operations_at_once_all_end(universe: Universe) {
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let synced = futures::future::join_all((0..400).map(|_| file.sync_data())).await;
    assert!(synced.iter().all(Result::is_ok));
}

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod std_io {
            $(#[test] fn $test() { super::current_thread().block_on(super::$test(super::Universe::std())); })*
        }
        mod sim_io {
            $(#[test] fn $test() { super::current_thread().block_on(super::$test(super::Universe::sim())); })*
        }
        mod uring_background {
            $(#[test] fn $test() {
                if let Some(universe) = super::Universe::uring() {
                    super::current_thread().block_on(super::$test(universe));
                }
            })*
        }
        mod uring_own_ring {
            $(#[test] fn $test() {
                if let Some(universe) = super::Universe::uring() {
                    let pool = universe.pool.clone();
                    super::uring::block_on(&pool, super::$test(universe)).unwrap();
                }
            })*
        }
    };
}

conformance!(
    bytes_written_in_flight_together_are_read_back,
    write_takes_the_named_part_of_a_buffer,
    read_across_the_end_is_short,
    buffered_file_takes_any_offset,
    dropped_operation_still_happens_and_returns_its_buffer,
    operation_never_polled_does_nothing,
    allocated_and_punched_ranges_read_as_zeros,
    operations_of_a_disk_are_counted_until_their_end,
    names_are_created_once_listed_renamed_and_removed,
    directory_is_locked_for_one_owner,
    block_size_and_space_are_plausible,
    many_operations_share_the_device,
    many_operations_at_once_all_end,
);

#[test]
fn ring_drains_operations_in_flight_before_it_ends() {
    let Some(universe) = Universe::uring() else { return };
    let pool = universe.pool.clone();
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    uring::block_on(&pool, async {
        for part in 0..8u64 {
            let buf = universe.filled(LARGE_BYTES, |_| 3).await.freeze();
            let mut write = file.write_at(part * LARGE_BYTES as u64, buf, 0..LARGE_BYTES);
            assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
    })
    .unwrap();
    assert!(pool.is_idle(), "operations in flight outlived the ring");
    assert_eq!(file.len().unwrap(), 8 * LARGE_BYTES as u64);
}

#[test]
fn ring_serves_tasks_outside_the_local_set() {
    let Some(universe) = Universe::uring() else { return };
    let pool = universe.pool.clone();
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    uring::block_on(&pool, async {
        let buf = universe.filled(4096, |_| 3).await.freeze();
        tokio::spawn(async move { file.write_at(0, buf, 0..4096).await }).await.unwrap().unwrap();
    })
    .unwrap();
    assert!(pool.is_idle());
}

#[test]
fn ring_serves_a_buffer_of_another_pool() {
    let Some(universe) = Universe::uring() else { return };
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    uring::block_on(&pool(), async {
        let buf = universe.filled(4096, |_| 3).await.freeze();
        file.write_at(0, buf, 0..4096).await.unwrap();
        let (read, buf) = file.read_at(0, universe.pool.acquire(1).await, 4096).await;
        assert_eq!(read.unwrap(), 4096);
        assert!(buf[..4096].iter().all(|byte| *byte == 3));
    })
    .unwrap();
}

#[test]
fn ring_progresses_beside_busy_local_tasks() {
    let Some(universe) = Universe::uring() else { return };
    let pool = universe.pool.clone();
    let file = universe.io.create(&universe.path("a"), OpenMode::Direct).unwrap();
    let done = uring::block_on(&pool, async {
        // Always runnable, as a connection with a fast reader is: wakes itself, never parks, does not use yield_now.
        let busy: Vec<_> = (0..4)
            .map(|_| {
                tokio_uring::spawn(futures::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    Poll::<()>::Pending
                }))
            })
            .collect();
        let buf = universe.filled(4096, |_| 3).await.freeze();
        let done = tokio::time::timeout(PATIENCE, file.write_at(0, buf, 0..4096)).await;
        busy.iter().for_each(tokio::task::JoinHandle::abort);
        done
    });
    done.unwrap().expect("the write was never submitted").unwrap();
}

#[test]
fn choice_follows_the_preference_and_falls_back() {
    let pool = pool();
    assert_eq!(io::choose(&pool, Preference::Std).unwrap().io.name(), "std");
    let chosen = io::choose(&pool, Preference::Auto).unwrap();
    assert_eq!(chosen.io.name(), if uring::probe().is_ok() { "uring" } else { "std" });
    assert_eq!(chosen.rings.is_some(), chosen.io.name() == "uring");
}
