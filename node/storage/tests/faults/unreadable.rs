//! Disks that cannot read a part of what they hold.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::ChunkId;
use holdfast_storage::io::sim::SimIo;
use holdfast_storage::io::{BlockIo, OpenMode};
use holdfast_storage::{
    ChunkReader, DiskSet, Engine, Finding, FindingSource, ReadError, RecoveryReport, ScrubConfig, ScrubStep, Scrubber,
    WriteError,
};
use parking_lot::Mutex;

use super::common::{get, id, open_with, payload, put};
use super::{sim_config, sim_engine};

const BLOCK: u64 = 4096;

/// Opens the simulated disk, and keeps what is found damaged.
async fn open_and_find(io: &SimIo) -> (Engine, RecoveryReport, Arc<Mutex<Vec<Finding>>>) {
    let findings = Arc::new(Mutex::new(Vec::<Finding>::new()));
    let sink = Arc::clone(&findings);
    let mut config = sim_config();
    config.on_finding = Some(Arc::new(move |finding| sink.lock().push(finding)));
    let (engine, report) = open_with(config, Arc::new(io.clone())).await;
    (engine, report, findings)
}

fn bytes(n: u32) -> Vec<u8> {
    payload(u64::from(n), 30_000)
}

/// Writes chunks 0 to 6 and deletes 2 in between; the process dies before anything else is done. Returns where the
/// tombstone is.
async fn with_a_deletion(io: &SimIo) -> (PathBuf, Range<u64>) {
    let engine = sim_engine(io).await;
    for n in 0..6 {
        put(&engine, id(n), &bytes(n)).await.unwrap();
    }
    engine.delete(&[id(2)]).await.unwrap();
    put(&engine, id(6), &bytes(6)).await.unwrap();
    let (before, behind) = (engine.locate(&id(5)).unwrap(), engine.locate(&id(6)).unwrap());
    assert_eq!(before.path, behind.path);
    let tombstone = before.record.end..behind.record.start;
    assert_eq!(tombstone.end - tombstone.start, BLOCK);
    (before.path, tombstone)
}

#[tokio::test]
async fn a_disk_whose_deletions_cannot_be_read_serves_and_keeps_them_for_who_can_read_them() {
    let io = SimIo::new(11);
    let (path, tombstone) = with_a_deletion(&io).await;
    io.set_unreadable(&path, tombstone.clone()).unwrap();
    for _ in 0..2 {
        let (engine, report, findings) = open_and_find(&io).await;
        assert_eq!((report.unread_bytes, report.segments_scanned), (BLOCK, 1));
        let reason = engine.fenced().expect("it takes no writes");
        assert!(reason.contains("4096 bytes of segments are unreadable"), "{reason}");
        assert_eq!(engine.stats().fenced.as_deref(), Some(&*reason));
        let found = findings.lock().clone();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].chunk, found[0].offset), (None, tombstone.start));
        assert_eq!(found[0].source, FindingSource::Recovery);
        for n in [0, 1, 3, 4, 5, 6] {
            assert_eq!(get(&engine, id(n)).await.unwrap(), bytes(n));
        }
        assert!(matches!(put(&engine, id(9), b"x").await, Err(WriteError::Fenced(_))));
        assert!(matches!(engine.delete(&[id(0)]).await, Err(WriteError::Fenced(_))));
        assert!(matches!(engine.compact(u64::MAX).await, Err(WriteError::Fenced(_))));
        engine.run_jobs().await;
        engine.settle().await;
        assert!(matches!(engine.shutdown().await, Err(WriteError::Fenced(_))));
    }
    // It was the cable.
    io.clear_unreadable();
    let (engine, report, findings) = open_and_find(&io).await;
    assert_eq!(report.unread_bytes, 0);
    assert!(engine.fenced().is_none() && findings.lock().is_empty());
    let deleted = get(&engine, id(2)).await;
    assert!(matches!(deleted, Err(ReadError::NotFound(_))), "what was opened without its tombstone brought it back");
    for n in [0, 1, 3, 4, 5, 6] {
        assert_eq!(get(&engine, id(n)).await.unwrap(), bytes(n));
    }
    put(&engine, id(9), b"x").await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_given_up_once_when_a_file_says_so() {
    let io = SimIo::new(12);
    let (path, tombstone) = with_a_deletion(&io).await;
    io.set_unreadable(&path, tombstone).unwrap();
    let said = Path::new("/disk/unreadable.given-up");
    drop(io.create(said, OpenMode::Buffered).unwrap());
    let (engine, report, findings) = open_and_find(&io).await;
    assert_eq!(report.unread_bytes, BLOCK);
    assert!(engine.fenced().is_none());
    assert_eq!(findings.lock().len(), 1);
    assert!(io.files().iter().all(|(path, _)| path != said), "the next time it has to be said again");
    put(&engine, id(9), b"x").await.unwrap();
    engine.run_jobs().await;
    drop(engine);
    let (engine, report, findings) = open_and_find(&io).await;
    assert_eq!(report.unread_bytes, 0);
    assert!(engine.fenced().is_none() && findings.lock().is_empty());
    for n in [0, 1, 3, 4, 5, 6] {
        assert_eq!(get(&engine, id(n)).await.unwrap(), bytes(n));
    }
    assert_eq!(get(&engine, id(9)).await.unwrap(), b"x");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_was_given_up_is_not_given_up_once_more_after_a_crash() {
    let said = Path::new("/disk/unreadable.given-up");
    for seed in 0..8 {
        let io = SimIo::new(seed);
        let (path, tombstone) = with_a_deletion(&io).await;
        io.set_unreadable(&path, tombstone).unwrap();
        drop(io.create(said, OpenMode::Buffered).unwrap());
        io.sync_dir(Path::new("/disk")).unwrap();
        let (engine, report, _) = open_and_find(&io).await;
        assert_eq!(report.unread_bytes, BLOCK);
        drop(engine);
        io.crash();
        io.recover();
        assert!(io.files().iter().all(|(path, _)| path != said), "seed {seed}: the file is back");
    }
}

#[tokio::test]
async fn the_only_disk_of_a_node_that_opens_fenced_stays_in_view_and_refuses_what_it_cannot_do() {
    let io = SimIo::new(20);
    let (path, tombstone) = with_a_deletion(&io).await;
    io.set_unreadable(&path, tombstone).unwrap();
    let (engine, ..) = open_and_find(&io).await;
    let disks = DiskSet::new(vec![engine]);
    assert_eq!(disks.count(), (0, 1));
    // A start without metadata must see that there is something, and rebuilding them what it is.
    assert_eq!(disks.stats()[0].chunks, 7, "2 answers while its tombstone cannot be read");
    let (mut listed, mut after): (Vec<ChunkId>, _) = (vec![], None);
    loop {
        let page = disks.list_stranded(after.as_ref(), 3);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        listed.extend(page.into_iter().map(|stat| stat.id));
    }
    listed.sort_unstable_by_key(|id| id.index());
    assert_eq!(listed, (0..7).map(id).collect::<Vec<_>>());
    assert_eq!(disks.label(id(1)).await.unwrap(), &b"label"[..]);
    assert_eq!(read_all(disks.read_copied(id(1), 0..30_000)).await.unwrap(), bytes(1));
    // Nothing that is there is taken for an orphan, and no deletion for done that is not.
    assert!(disks.list(None, 10).is_empty());
    assert!(matches!(disks.delete(&[id(0)]).await, Err(WriteError::Fenced(_))));
    assert!(disks.is_stranded(&id(0)));
    for n in [0, 9] {
        assert!(matches!(disks.create(id(n), 1, b"").await, Err(WriteError::Fenced(_))));
    }
    assert!(matches!(disks.verify(id(1)).await, Err(ReadError::NotFound(_))));
    assert!(matches!(disks.shutdown().await, Err(WriteError::Fenced(_))));
}

#[tokio::test]
async fn a_disk_that_fails_to_read_one_chunk_after_the_other_does_not_hold_the_start_up() {
    const CHUNKS: u32 = 270;
    let io = SimIo::new(21);
    let mut config = sim_config();
    config.segment_size_bytes = 8 << 20;
    let (engine, _) = open_with(config.clone(), Arc::new(io.clone())).await;
    for n in 0..CHUNKS {
        put(&engine, id(n), &payload(u64::from(n), 5000)).await.unwrap();
    }
    let places: Vec<_> = (0..CHUNKS).map(|n| engine.locate(&id(n)).unwrap()).collect();
    assert!(places.iter().all(|place| place.path == places[0].path));
    drop(engine);
    for place in &places {
        assert!(place.payload.start >= place.record.start + BLOCK, "the header can be read");
        io.set_unreadable(&place.path, place.payload.clone()).unwrap();
    }
    let (engine, report) = open_with(config, Arc::new(io.clone())).await;
    assert_eq!(report.damaged.len(), 256);
    assert!(report.unread_bytes > 0, "what lies behind was not looked at");
    assert!(engine.fenced().is_some());
}

#[tokio::test]
async fn an_unreadable_piece_of_a_chunk_costs_that_chunk_and_nothing_else() {
    let io = SimIo::new(13);
    let engine = sim_engine(&io).await;
    for n in 0..5 {
        put(&engine, id(n), &bytes(n)).await.unwrap();
    }
    // The last one: no later record says that it was written whole.
    let place = engine.locate(&id(4)).unwrap();
    drop(engine);
    io.set_unreadable(&place.path, place.payload.start + 2 * BLOCK..place.payload.start + 3 * BLOCK).unwrap();
    let (engine, report, findings) = open_and_find(&io).await;
    assert_eq!((report.unread_bytes, report.damaged), (0, vec![id(4)]));
    assert!(engine.fenced().is_none());
    let found: Vec<_> = findings.lock().iter().map(|finding| (finding.chunk, finding.source)).collect();
    assert_eq!(found, [(Some(id(4)), FindingSource::Recovery)], "repair hears of it");
    for n in 0..4 {
        assert_eq!(get(&engine, id(n)).await.unwrap(), bytes(n));
    }
    assert!(matches!(get(&engine, id(4)).await, Err(ReadError::Io { .. })));
    engine.delete(&[id(4)]).await.unwrap();
    put(&engine, id(4), &bytes(4)).await.unwrap();
    engine.shutdown().await.unwrap();
    drop(engine);
    let (engine, report, _) = open_and_find(&io).await;
    assert_eq!((report.chunks, report.segments_scanned), (5, 0));
    assert_eq!(get(&engine, id(4)).await.unwrap(), bytes(4));
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unreadable_block_behind_all_records_is_found_alone() {
    let io = SimIo::new(14);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    let path = engine.locate(&id(1)).unwrap().path;
    drop(engine);
    for at in [77 * BLOCK, 99 * BLOCK, 100 * BLOCK] {
        io.set_unreadable(&path, at..at + BLOCK).unwrap();
    }
    let (engine, report, findings) = open_and_find(&io).await;
    assert_eq!(report.unread_bytes, 3 * BLOCK);
    let found: Vec<_> = findings.lock().iter().map(|finding| finding.offset / BLOCK).collect();
    assert_eq!(found, [77, 99]);
    assert_eq!(get(&engine, id(1)).await.unwrap(), bytes(1));
}

#[tokio::test]
async fn a_segment_whose_header_cannot_be_read_leaves_the_others_to_be_served() {
    let io = SimIo::new(15);
    let engine = sim_engine(&io).await;
    for n in 0..20 {
        put(&engine, id(n), &bytes(n)).await.unwrap();
    }
    engine.run_jobs().await;
    let places: Vec<_> = (0..20).map(|n| engine.locate(&id(n)).unwrap().path).collect();
    let last = places[19].clone();
    assert_ne!(places[0], last);
    drop(engine);
    io.set_unreadable(&last, 0..BLOCK).unwrap();
    let (engine, report, _) = open_and_find(&io).await;
    assert_eq!((report.segments_unreadable.len(), report.segments_scanned), (1, 0));
    assert!(report.unread_bytes > 0 && engine.fenced().is_some());
    for (n, path) in (0..20).zip(&places) {
        let read = get(&engine, id(n)).await;
        if *path == last {
            assert!(matches!(read, Err(ReadError::NotFound(_))));
        } else {
            assert_eq!(read.unwrap(), bytes(n));
        }
    }
    drop(engine);
    io.clear_unreadable();
    let (engine, report, _) = open_and_find(&io).await;
    assert_eq!((report.chunks, report.unread_bytes), (20, 0));
    assert!(engine.fenced().is_none());
}

#[tokio::test]
async fn scrub_goes_on_behind_a_segment_that_it_cannot_list() {
    let io = SimIo::new(18);
    let engine = sim_engine(&io).await;
    for n in 0..20 {
        put(&engine, id(n), &bytes(n)).await.unwrap();
    }
    engine.run_jobs().await;
    let first = engine.locate(&id(0)).unwrap();
    let others = (1..20).filter(|n| engine.locate(&id(*n)).unwrap().path != first.path).count();
    assert!(others > 0);
    io.set_unreadable(&first.path.with_extension("index"), 0..BLOCK).unwrap();
    io.set_unreadable(&first.path, first.record.start..first.record.start + BLOCK).unwrap();
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    let (mut good, mut failed) = (0, 0);
    loop {
        match scrubber.step().await {
            Ok(ScrubStep::RoundDone) => break,
            Ok(ScrubStep::SegmentDone) => {}
            Ok(ScrubStep::Record { good: is_good, .. }) => good += usize::from(is_good),
            Err(error) => {
                failed += 1;
                assert!(failed < 9, "it does not go on: {error}");
            }
        }
    }
    assert_eq!((good, failed), (others, 1));
}

async fn read_all(reader: Result<ChunkReader, ReadError>) -> Result<Vec<u8>, ReadError> {
    let (mut reader, mut bytes) = (reader?, vec![]);
    while let Some(piece) = reader.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn what_one_disk_cannot_give_comes_from_the_next_one_that_has_it() {
    const LEN: u32 = 3_000_000;
    let content = payload(1, LEN as usize);
    let ios = [SimIo::new(16), SimIo::new(17)];
    let mut engines = vec![];
    for io in &ios {
        let mut config = sim_config();
        config.segment_size_bytes = 8 << 20;
        let (engine, _) = open_with(config, Arc::new(io.clone())).await;
        put(&engine, id(1), &content).await.unwrap();
        engines.push(engine);
    }
    let disks = DiskSet::new(engines.clone());
    let place = engines[0].locate(&id(1)).unwrap();
    // Behind the first pieces: the next disk goes on in the middle.
    ios[0].rot(&place.path, place.payload.start + 2_500_000, 3).unwrap();
    for _ in 0..2 {
        assert!(read_all(disks.read(id(1), 0..LEN)).await.unwrap() == content);
        assert!(read_all(disks.read_copied(id(1), 5..LEN)).await.unwrap() == content[5..]);
        ios[0].set_unreadable(&place.path, place.record.start..place.record.start + BLOCK).unwrap();
    }
    assert_eq!(&disks.label(id(1)).await.unwrap()[..], b"label");
    assert_eq!(disks.verify(id(1)).await.unwrap().size_bytes, LEN);
    assert!(engines[0].stat(&id(1)).is_none(), "the damaged copy is gone");
    let place = engines[1].locate(&id(1)).unwrap();
    ios[1].rot(&place.path, place.payload.start, 0).unwrap();
    assert!(matches!(disks.verify(id(1)).await, Err(ReadError::Corrupt { .. })));
    assert!(matches!(read_all(disks.read(id(1), 0..LEN)).await, Err(ReadError::Corrupt { .. })));
    assert!(engines[1].stat(&id(1)).is_some(), "the only copy stays, whatever it is worth");
}
