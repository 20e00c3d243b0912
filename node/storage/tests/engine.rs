//! The engine on real files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{config, get, get_pieces, get_range, id, open, open_with, payload, pool, put, std_io};
use holdfast_storage::format::BLOCK_BYTES;
use holdfast_storage::format::index_file::IndexFile;
use holdfast_storage::format::segment::SEGMENT_BYTES_MAX;
use holdfast_storage::io::sim::SimIo;
use holdfast_storage::{Engine, OpenError, ReadError, WriteError};

const SIZES: [usize; 12] =
    [1, 100, 3000, 3900, 4096, 5000, 65_536, 65_537, 1_000_000, 1 << 20, (3 << 20) + 17, 16 << 20];

async fn write_all_sizes(engine: &Engine) {
    for (n, size) in SIZES.iter().enumerate() {
        put(engine, id(n as u32), &payload(n as u64, *size)).await.unwrap();
    }
}

async fn check_all_sizes(engine: &Engine) {
    for (n, size) in SIZES.iter().enumerate() {
        assert!(get(engine, id(n as u32)).await.unwrap() == payload(n as u64, *size), "chunk of {size} bytes");
    }
}

fn segment_file(dir: &Path, number: u32) -> std::path::PathBuf {
    dir.join(format!("segment-{number:08x}.data"))
}

fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[tokio::test]
async fn chunks_of_every_size_are_read_back_before_and_after_a_clean_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, report) = open(dir.path()).await;
    assert!(report.created);
    write_all_sizes(&engine).await;
    check_all_sizes(&engine).await;
    engine.shutdown().await.unwrap();
    drop(engine);
    let (engine, report) = open(dir.path()).await;
    assert_eq!(report.segments_scanned, 0);
    assert_eq!(report.chunks, SIZES.len() as u64);
    check_all_sizes(&engine).await;
    put(&engine, id(1000), b"appended after the restart").await.unwrap();
    assert_eq!(get(&engine, id(1000)).await.unwrap(), b"appended after the restart");
}

/// What the background thread has in hand when the engine ends is waited for: an index file that is missing makes the
/// next start scan, and a scan cannot tell rot at the end of a segment from a write that a crash interrupted.
#[tokio::test]
async fn a_clean_end_waits_for_the_index_files_that_the_background_thread_writes() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let mut config = config(dir.path());
        config.background = true;
        let (engine, report) = Engine::open(config, std_io(), pool()).await.unwrap();
        assert_eq!(report.segments_scanned, 0, "after round {round}");
        put(&engine, id(round), &payload(u64::from(round), 100_000)).await.unwrap();
        engine.shutdown().await.unwrap();
        // At once: the thread may be writing still.
        assert!(segment_file(dir.path(), 1).with_extension("index").exists(), "no index file in round {round}");
    }
}

#[tokio::test]
async fn chunks_are_found_by_a_scan_when_the_end_was_not_clean() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    write_all_sizes(&engine).await;
    engine.delete(&[id(3), id(11)]).await.unwrap();
    drop(engine);
    let (engine, report) = open(dir.path()).await;
    assert!(report.segments_scanned > 0);
    assert_eq!(report.chunks, SIZES.len() as u64 - 2);
    assert!((report.torn, report.damaged) == (vec![], vec![]));
    assert!(matches!(get(&engine, id(3)).await, Err(ReadError::NotFound(_))));
    put(&engine, id(3), &payload(3, SIZES[3])).await.unwrap();
    put(&engine, id(11), &payload(11, SIZES[11])).await.unwrap();
    check_all_sizes(&engine).await;
}

#[tokio::test]
async fn a_reserve_of_all_that_can_be_counted_is_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.reserve_bytes = u64::MAX;
    let (engine, _) = open_with(config, std_io()).await;
    assert!(matches!(put(&engine, id(0), b"payload").await, Err(WriteError::NoSpace)));
}

#[tokio::test]
async fn a_file_with_the_name_of_the_last_segment_that_can_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).await);
    std::fs::write(segment_file(dir.path(), u32::MAX), b"").unwrap();
    let refused = Engine::open(config(dir.path()), std_io(), pool()).await.map(drop);
    assert!(matches!(refused, Err(OpenError::Config(_))));
}

#[tokio::test]
async fn ranges_are_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let bytes = payload(5, (3 << 20) + 17);
    put(&engine, id(0), &bytes).await.unwrap();
    for (start, end) in
        [(0, 1), (65_535, 65_537), (1 << 20, 1 << 21), (3 << 20, (3 << 20) + 17), (17, 17), (5, 3_000_000)]
    {
        for _ in 0..2 {
            let got = get_range(&engine, id(0), start..end).await.unwrap();
            assert!(got == bytes[start as usize..end as usize], "{start}..{end}");
        }
    }
    assert!(matches!(engine.read(id(0), 0..(3 << 20) + 18), Err(ReadError::Invalid { .. })));
}

#[tokio::test]
async fn a_range_reads_only_the_blocks_that_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    put(&engine, id(0), &payload(5, 16 << 20)).await.unwrap();
    // Damage far from the range does not matter, because it is not read.
    flip(&segment_file(dir.path(), 1), 4096 + 4096 + (9 << 20));
    assert_eq!(get_range(&engine, id(0), 100..200).await.unwrap().len(), 100);
    assert!(matches!(get_range(&engine, id(0), (9 << 20)..(9 << 20) + 1).await, Err(ReadError::Corrupt { .. })));
}

#[tokio::test]
async fn resident_verified_chunk_is_one_slice_of_the_mapping() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let bytes = payload(5, 2 << 20);
    put(&engine, id(0), &bytes).await.unwrap();
    assert!(get(&engine, id(0)).await.unwrap() == bytes);
    let mut reader = engine.read(id(0), 10..2 << 20).unwrap();
    let piece = futures::FutureExt::now_or_never(reader.next()).expect("no await").unwrap().unwrap();
    assert!(piece == bytes[10..]);
    assert!(holdfast_storage::mapping::find(&piece).is_some());
}

#[tokio::test]
async fn a_flipped_byte_is_never_served_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let found = std::sync::Arc::new(parking_lot::Mutex::new(vec![]));
    let mut config = config(dir.path());
    let sink = std::sync::Arc::clone(&found);
    config.on_finding = Some(std::sync::Arc::new(move |finding| sink.lock().push(finding)));
    let (engine, _) = common::open_with(config, std_io()).await;
    put(&engine, id(0), &payload(0, 200_000)).await.unwrap();
    // Segment header, then the record: its head is one block.
    flip(&segment_file(dir.path(), 1), 4096 + 4096 + 70_000);
    assert_eq!(get_range(&engine, id(0), 0..65_536).await.unwrap(), payload(0, 200_000)[..65_536]);
    let error = get_range(&engine, id(0), 69_000..69_001).await.unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { chunk, .. } if chunk == id(0)), "{error}");
    assert_eq!(found.lock().iter().filter(|finding| finding.chunk == Some(id(0))).count(), 1);
}

#[tokio::test]
async fn dropped_writer_leaves_nothing_and_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    put(&engine, id(0), b"makes the segment").await.unwrap();
    let before = blocks(&segment_file(dir.path(), 1));
    let mut writer = engine.create(id(1), 8 << 20, b"").await.unwrap();
    drop(writer.write(&payload(1, 5 << 20)).await.unwrap());
    drop(writer);
    engine.run_jobs().await;
    assert!(engine.stat(&id(1)).is_none());
    let given_back = before - blocks(&segment_file(dir.path(), 1));
    assert!(given_back >= 8 << 20, "{given_back} bytes came back");
    put(&engine, id(1), b"the id is free again").await.unwrap();
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_segment_whose_writer_left_before_it_was_made_leaves_no_file() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.background = true;
        let (engine, _) = open_with(config, std_io()).await;
        // The one thread that makes files is busy until the writer has left.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || wait.recv());
        let mut creating = Box::pin(engine.create(id(1), 10, b""));
        assert!(futures::poll!(creating.as_mut()).is_pending());
        drop(creating);
        go.send(()).unwrap();
        busy.await.unwrap().unwrap();
        // Queued behind the making.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.extension().is_none_or(|kind| kind != "data")), "{left:?}");
        put(&engine, id(1), b"again").await.unwrap();
        engine.shutdown().await.unwrap();
    });
}

#[tokio::test]
async fn existing_and_unfinished_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let writer = engine.create(id(0), 10, b"").await.unwrap();
    assert!(matches!(engine.create(id(0), 10, b"").await, Err(WriteError::Exists(_))));
    drop(writer);
    put(&engine, id(0), b"x").await.unwrap();
    assert!(matches!(put(&engine, id(0), b"y").await, Err(WriteError::Exists(_))));
    assert_eq!(get(&engine, id(0)).await.unwrap(), b"x");
}

#[tokio::test]
async fn announced_size_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let mut writer = engine.create(id(0), 10, b"").await.unwrap();
    assert!(matches!(writer.write(&[0; 11]).await, Err(WriteError::Invalid(_))));
    writer.write(&[0; 9]).await.unwrap();
    assert!(matches!(writer.finish_input(), Err(WriteError::Invalid(_))));
    assert!(matches!(writer.finish().await, Err(WriteError::Invalid(_))));
    assert!(matches!(engine.create(id(0), 0, b"").await, Err(WriteError::Invalid(_))));
    assert!(matches!(engine.create(id(0), (16 << 20) + 1, b"").await, Err(WriteError::Invalid(_))));
    assert!(matches!(engine.create(id(0), 1, &[0; 25 << 10]).await, Err(WriteError::Invalid(_))));
}

#[tokio::test]
async fn a_pinned_chunk_keeps_its_bytes_after_its_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let bytes = payload(1, 1 << 20);
    put(&engine, id(0), &bytes).await.unwrap();
    get(&engine, id(0)).await.unwrap();
    let pieces = get_pieces(&engine, id(0), 0..1 << 20).await.unwrap();
    let before = blocks(&segment_file(dir.path(), 1));
    engine.delete(&[id(0)]).await.unwrap();
    engine.run_jobs().await;
    assert!(matches!(engine.read(id(0), 0..1), Err(ReadError::NotFound(_))));
    assert!(common::concat(&pieces) == bytes, "the slices outlive the chunk");
    assert_eq!(blocks(&segment_file(dir.path(), 1)), before);
    drop(pieces);
    engine.run_jobs().await;
    assert!(blocks(&segment_file(dir.path(), 1)) <= before - (1 << 20));
}

#[tokio::test]
async fn a_segment_with_nothing_alive_is_unlinked_and_its_tombstones_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.segment_size_bytes = 4 << 20;
    let (engine, _) = common::open_with(config.clone(), std_io()).await;
    for n in 0..40 {
        put(&engine, id(n), &payload(u64::from(n), 500_000)).await.unwrap();
    }
    engine.run_jobs().await;
    assert!(engine.stats().segments >= 5);
    engine.delete(&(0..40).map(id).collect::<Vec<_>>()).await.unwrap();
    engine.run_jobs().await;
    assert_eq!(engine.stats().segments, 1, "the active one is left");
    assert_eq!((engine.stats().chunks, engine.stats().live_bytes), (0, 0));
    engine.shutdown().await.unwrap();
    drop(engine);
    let (engine, report) = common::open_with(config, std_io()).await;
    assert_eq!(report.chunks, 0);
    assert!(engine.list(None, 10).is_empty());
}

#[tokio::test]
async fn second_process_foreign_and_future_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let again = Engine::open(config(dir.path()), std_io(), common::pool()).await;
    assert!(matches!(again, Err(OpenError::Locked { .. })));
    drop(engine);
    let mut foreign = config(dir.path());
    foreign.cluster = [9; 16];
    let refused = Engine::open(foreign, std_io(), common::pool()).await.err().unwrap();
    assert!(matches!(&refused, OpenError::Foreign { owner: "cluster", .. }), "{refused}");
    flip(&dir.path().join("superblock"), 8);
    let refused = Engine::open(config(dir.path()), std_io(), common::pool()).await.err().unwrap();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(source, "superblock has format version 17, this build reads version 1");
    std::fs::remove_file(dir.path().join("superblock")).unwrap();
    std::fs::write(segment_file(dir.path(), 1), b"").unwrap();
    let refused = Engine::open(config(dir.path()), std_io(), common::pool()).await.err().unwrap();
    assert!(matches!(refused, OpenError::NoSuperblock { .. }));
}

/// On a simulated disk, where a flush takes eight times as long as a write: on a real one that ratio, and with it how
/// many writers meet in a flush, is the machine's business.
#[tokio::test]
async fn concurrent_small_writers_share_syncs() {
    let config = config(Path::new("/disk"));
    let io = SimIo::new(1);
    io.set_slow_syncs(64);
    let (engine, _) = open_with(config, Arc::new(io)).await;
    put(&engine, id(9999), b"makes the segment").await.unwrap();
    let before = engine.stats();
    let writers = (0..64u32).map(|writer| {
        let engine = engine.clone();
        async move {
            for n in 0..10 {
                put(&engine, id(writer * 10 + n), &payload(u64::from(n), 4096)).await.unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let after = engine.stats();
    let (syncs, waiters) = (after.syncs - before.syncs, after.sync_waiters - before.sync_waiters);
    assert_eq!(waiters, 640);
    assert!(syncs * 8 <= waiters, "{syncs} syncs for {waiters} writers");
}

#[tokio::test]
async fn damaged_index_files_cost_a_scan_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    write_all_sizes(&engine).await;
    engine.delete(&[id(0)]).await.unwrap();
    engine.shutdown().await.unwrap();
    drop(engine);
    for offset in [3, 100] {
        flip(&dir.path().join("segment-00000001.index"), offset);
        let (engine, report) = open(dir.path()).await;
        assert_eq!(report.segments_scanned, 1);
        assert_eq!(report.chunks, SIZES.len() as u64 - 1);
        assert!(get(&engine, id(5)).await.unwrap() == payload(5, SIZES[5]));
        engine.run_jobs().await;
        engine.shutdown().await.unwrap();
    }
}

/// Readers look where it says, in a mapping of the segment.
#[tokio::test]
async fn an_index_file_that_reaches_behind_its_segment_costs_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    write_all_sizes(&engine).await;
    engine.shutdown().await.unwrap();
    drop(engine);
    let path = dir.path().join("segment-00000001.index");
    let mut file = IndexFile::decode(&std::fs::read(&path).unwrap()).unwrap();
    file.tail = SEGMENT_BYTES_MAX;
    file.entries[0].block = (SEGMENT_BYTES_MAX / BLOCK_BYTES as u64) as u32 - 1;
    std::fs::write(&path, file.encode()).unwrap();
    let (engine, report) = open(dir.path()).await;
    assert_eq!(report.segments_scanned, 1);
    check_all_sizes(&engine).await;
}

#[tokio::test]
async fn damaged_segment_header_is_taken_from_the_index_file() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    write_all_sizes(&engine).await;
    engine.shutdown().await.unwrap();
    drop(engine);
    flip(&segment_file(dir.path(), 1), 17);
    let (engine, report) = open(dir.path()).await;
    assert_eq!(report.segments_unreadable, Vec::<u32>::new());
    check_all_sizes(&engine).await;
}

#[tokio::test]
async fn listing_by_pages_sees_every_chunk_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    for n in 0..50 {
        put(&engine, id(n), &[n as u8]).await.unwrap();
    }
    let (mut seen, mut after) = (vec![], None);
    loop {
        let page = engine.list(after.as_ref(), 7);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.iter().map(|stat| stat.id.index()));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn shutdown_refuses_new_writes_and_waits_for_running_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    let mut writer = engine.create(id(0), 4, b"").await.unwrap();
    let closing = tokio::spawn({
        let engine = engine.clone();
        async move { engine.shutdown().await }
    });
    tokio::task::yield_now().await;
    assert!(matches!(engine.create(id(1), 4, b"").await, Err(WriteError::Closed)));
    assert!(!closing.is_finished());
    drop(writer.write(b"late").await.unwrap());
    drop(writer.finish_input().unwrap());
    writer.finish().await.unwrap();
    closing.await.unwrap().unwrap();
    assert_eq!(get(&engine, id(0)).await.unwrap(), b"late");
}

#[tokio::test]
async fn a_chunk_that_was_read_once_stays_one_slice_at_every_size() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(dir.path()).await;
    write_all_sizes(&engine).await;
    check_all_sizes(&engine).await;
    for (n, size) in SIZES.iter().enumerate() {
        for _ in 0..100 {
            let mut reader = engine.read(id(n as u32), 0..*size as u32).unwrap();
            let piece = futures::FutureExt::now_or_never(reader.next());
            let piece = piece.unwrap_or_else(|| panic!("chunk of {size} bytes is not in memory")).unwrap().unwrap();
            assert_eq!(piece.len(), (*size).min(4 << 20));
        }
    }
}
