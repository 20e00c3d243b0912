//! Faults one at a time: what a client and an operator see of each.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "faults/disks.rs"]
mod disks;
#[path = "faults/hanging.rs"]
mod hanging;
#[path = "faults/races.rs"]
mod races;
#[path = "faults/rot.rs"]
mod rot;
#[path = "faults/scrub.rs"]
mod scrub;
#[path = "faults/unreadable.rs"]
mod unreadable;

use std::path::Path;
use std::sync::Arc;

use common::{config, get, id, open_with, payload, put, std_io};
use holdfast_storage::io::Preference;
use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::{ChunkWriter, Engine, EngineConfig, OpenError, ReadError, WriteError};

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
async fn a_process_without_descriptors_blames_no_disk_for_it() {
    let mut refused = 0;
    for at in (0..400).step_by(8) {
        let io = SimIo::new(at);
        let engine = sim_engine(&io).await;
        io.inject(io.ops() + at, Fault::NoDescriptors);
        let mut stored = vec![];
        for n in 0..24 {
            match put(&engine, id(n), &payload(u64::from(n), 60_000)).await {
                Ok(()) => stored.push(n),
                Err(WriteError::Io { .. }) => refused += 1,
                Err(error) => panic!("none at {at}: {error}"),
            }
        }
        let (doomed, kept) = stored.split_at(20);
        let doomed: Vec<_> = doomed.iter().copied().map(id).collect();
        let deleted = engine.delete(&doomed).await;
        // Index files, removal of segments, compaction.
        engine.run_jobs().await;
        engine.settle().await;
        let _ = engine.compact(u64::MAX).await;
        engine.run_jobs().await;
        assert!(engine.fenced().is_none(), "none at {at}");
        io.clear_faults();
        put(&engine, id(99), b"after").await.unwrap();
        engine.settle().await;
        drop(engine);
        io.crash();
        io.recover();
        let engine = sim_engine(&io).await;
        for n in kept {
            assert_eq!(get(&engine, id(*n)).await.unwrap(), payload(u64::from(*n), 60_000), "none at {at}");
        }
        for id in doomed.iter().filter(|_| deleted.is_ok()) {
            assert!(matches!(get(&engine, *id).await, Err(ReadError::NotFound(_))), "none at {at}: {id} is back");
        }
        assert_eq!(get(&engine, id(99)).await.unwrap(), b"after");
    }
    assert!(refused > 0, "no write was struck");
}

#[tokio::test]
async fn tombstones_are_not_kept_for_ever_for_a_segment_that_went_without_a_descriptor() {
    for at in 0..100 {
        let io = SimIo::new(at);
        let engine = sim_engine(&io).await;
        for round in 0..2 {
            let ids: Vec<_> = (0..12).map(|n| id(round * 12 + n)).collect();
            for id in &ids {
                put(&engine, *id, &[7; 100_000]).await.unwrap();
            }
            if round == 0 {
                io.inject(io.ops() + at, Fault::NoDescriptors);
            }
            let _ = engine.delete(&ids).await;
            for _ in 0..2 {
                engine.run_jobs().await;
                engine.settle().await;
            }
            io.clear_faults();
            engine.delete(&ids).await.unwrap();
        }
        for _ in 0..2 {
            engine.run_jobs().await;
            engine.settle().await;
        }
        assert!(engine.fenced().is_none(), "none at {at}");
        assert!(engine.stats().segments <= 1, "none at {at}: {:#?}", engine.segments());
    }
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

#[tokio::test]
async fn the_last_segment_goes_on_only_where_that_leaves_room_for_deletions() {
    let io = SimIo::new(4);
    let engine = sim_engine(&io).await;
    put(&engine, id(0), b"first").await.unwrap();
    drop(engine);
    io.crash();
    io.recover();
    // This start gives the unused end of the segment back, and the next one would go on there.
    let engine = sim_engine(&io).await;
    engine.run_jobs().await;
    engine.shutdown().await.unwrap();
    drop(engine);
    io.set_capacity(io.allocated_bytes() + (300 << 10));
    let engine = sim_engine(&io).await;
    for n in 1..1000 {
        match put(&engine, id(n), b"more").await {
            Ok(()) => {}
            Err(WriteError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    engine.delete(&[id(0)]).await.unwrap();
    assert!(matches!(get(&engine, id(0)).await, Err(ReadError::NotFound(_))));
}

/// Flips a bit of a file.
fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
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
