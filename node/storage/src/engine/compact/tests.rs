//! What must hold when a segment is settled while its records move or die.

use std::path::Path;

use futures::FutureExt;
use holdfast_protocol::{ChunkId, ContentId};

use super::*;
use crate::buf::{BufferPool, BufferPoolConfig};
use crate::engine::{Engine, EngineConfig};
use crate::io::sim::SimIo;

fn id(n: u32) -> ChunkId {
    ContentId([7; 12]).chunk(n)
}

async fn put(engine: &Engine, n: u32, len: usize) {
    let mut writer = engine.create(id(n), len as u32, b"").await.unwrap();
    writer.write(&vec![n as u8; len]).await.unwrap();
    writer.finish_input().unwrap();
    writer.finish().await.unwrap();
}

/// A disk with one chunk, 0, in a segment that is worth to be compacted, and one, 5, in the active one; all is settled.
/// Returns both segments, too.
async fn sparse(io: &SimIo) -> (Engine, Arc<Segment>, Arc<Segment>) {
    let mut config = EngineConfig::new(Path::new("/disk"), [1; 16], [2; 16]);
    (config.segment_size_bytes, config.reserve_bytes, config.background) = (512 << 10, 512 << 10, false);
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
    let (engine, _) = Engine::open(config, Arc::new(io.clone()), pool).await.unwrap();
    put(&engine, 0, 20_000).await;
    for n in 1..6 {
        put(&engine, n, 100_000).await;
    }
    engine.run_jobs().await;
    engine.delete(&[id(1), id(2), id(3), id(4)]).await.unwrap();
    engine.run_jobs().await;
    engine.settle().await;
    let segment_of = |n| engine.inner.segment(engine.inner.index.get(&id(n)).unwrap().segment).unwrap();
    let (segment, active) = (segment_of(0), segment_of(5));
    assert_ne!(segment.number(), active.number());
    assert!(!engine.inner.retention.lock().is_needed(active.number()), "all is settled");
    // It stays, whatever becomes of it, and is to be settled once more.
    {
        let mut state = segment.state.lock();
        (state.compacting, state.unsettled) = (true, true);
    }
    (engine, segment, active)
}

async fn listed(engine: &Engine, segment: &Segment) -> Vec<ChunkId> {
    engine.inner.listed(segment).await.unwrap().0.into_iter().map(|entry| entry.id).collect()
}

#[tokio::test]
async fn a_settling_amid_a_move_does_not_forget_the_original() {
    let io = SimIo::new(1);
    let (engine, segment, active) = sparse(&io).await;
    let inner = &engine.inner;
    let (from, pin) = inner.pin(&id(0)).unwrap();
    let (entries, _) = inner.listed(&segment).await.unwrap();
    let entry = entries[0];
    assert_eq!((entry.id, entries.len()), (id(0), 1));
    let mut reservation = inner.reserve(u64::from(from.record_len()), Purpose::Chunk).await.unwrap();
    assert!(inner.copy_record(&segment, &entry, &mut reservation).await.is_ok());
    inner.writes_done(&mut reservation).await.unwrap();
    inner.sync_segment(&reservation.segment).await.unwrap();
    assert_eq!(reservation.segment.number(), active.number());

    // It waits for its sync when the index comes to name the copy.
    io.set_slow_syncs(1000);
    let mut settling = Box::pin(engine.settle());
    let moved = IndexEntry { block: reservation.block(), ..entry };
    let exchanged = inner.exchange(&segment, from, &active, moved, || {
        for _ in 0..100 {
            assert!(settling.as_mut().now_or_never().is_none(), "its sync takes longer");
        }
        !segment.state.lock().unsettled
    });
    assert!(exchanged, "settling has begun");
    reservation.settle();
    io.set_slow_syncs(0);
    settling.await;
    assert_eq!(listed(&engine, &segment).await, [id(0)], "it is not punched");
    engine.delete(&[id(0)]).await.unwrap();
    // The tombstone lies where the copy died, which alone would not need it.
    assert!(inner.retention.lock().is_needed(active.number()), "the original may be found again");
    drop(pin);
    engine.run_jobs().await;
    engine.settle().await;
    assert!(listed(&engine, &segment).await.is_empty());
    assert!(!inner.retention.lock().is_needed(active.number()), "nothing of it is left");
}

#[tokio::test]
async fn a_settling_amid_a_deletion_lists_what_is_not_punched() {
    let io = SimIo::new(2);
    let (engine, segment, active) = sparse(&io).await;
    io.set_slow_syncs(1000);
    let mut settling = Box::pin(engine.settle());
    for _ in 0..100 {
        assert!(settling.as_mut().now_or_never().is_none(), "its sync takes longer");
    }
    io.set_slow_syncs(0);
    engine.delete(&[id(0)]).await.unwrap();
    settling.await;
    assert_eq!(listed(&engine, &segment).await, [id(0)], "a start after a crash has to know what to punch");
    assert!(engine.inner.retention.lock().is_needed(active.number()));
    engine.run_jobs().await;
    engine.settle().await;
    assert!(listed(&engine, &segment).await.is_empty());
    assert!(!engine.inner.retention.lock().is_needed(active.number()));
}

#[tokio::test]
async fn tombstones_that_fill_segments_are_not_moved_in_circles() {
    let mut config = EngineConfig::new(Path::new("/disk"), [1; 16], [2; 16]);
    (config.segment_size_bytes, config.reserve_bytes, config.background) = (4 << 20, 1 << 20, false);
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
    let (engine, _) = Engine::open(config, Arc::new(SimIo::new(3)), pool).await.unwrap();
    for n in 0..500 {
        put(&engine, n, 4).await;
    }
    // What is read is not punched: until then the tombstones of its segment are needed.
    let reader = engine.read(id(0), 0..4).unwrap();
    for n in 0..4 * KILLS_MAX as u32 {
        engine.delete(&[id(n)]).await.unwrap();
        if n % 16 == 0 {
            put(&engine, 1000 + n, 4).await;
        }
    }
    engine.run_jobs().await;
    engine.settle().await;
    let report = engine.compact(1 << 20).await.unwrap();
    assert!(report.finished, "{report:?}");

    drop(reader);
    engine.run_jobs().await;
    engine.settle().await;
    let report = engine.compact(1 << 20).await.unwrap();
    assert!(report.finished && report.segments_emptied > 0, "{report:?}");
    assert_eq!(engine.stats().segments, 2, "the first, of which much is alive, and the active one");
}
