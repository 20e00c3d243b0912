//! What must hold while the thread of the jobs settles a whole disk.

use std::path::Path;

use holdfast_protocol::{ChunkId, ContentId};

use super::*;
use crate::buf::{BufferPool, BufferPoolConfig};
use crate::engine::{Engine, EngineConfig};
use crate::io::sim::SimIo;
use crate::segment::PUT_OFF_MAX;

async fn open(io: &SimIo) -> Engine {
    let mut config = EngineConfig::new(Path::new("/disk"), [1; 16], [2; 16]);
    (config.segment_size_bytes, config.reserve_bytes, config.background) = (512 << 10, 512 << 10, false);
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
    Engine::open(config, Arc::new(io.clone()), pool).await.unwrap().0
}

/// A disk with some segments that are full of chunks of `len` bytes, and have their index files.
async fn disk(io: &SimIo, chunks: u32, len: usize) -> (Engine, Vec<Arc<Segment>>) {
    let engine = open(io).await;
    for n in 0..chunks {
        let mut writer = engine.create(ContentId([7; 12]).chunk(n), len as u32, b"").await.unwrap();
        writer.write(&vec![n as u8; len]).await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
    }
    engine.run_jobs().await;
    let mut full = engine.inner.segments_sorted();
    full.retain(|segment| segment.state.lock().indexed);
    (engine, full)
}

#[tokio::test]
async fn what_is_queued_while_a_disk_is_settled_waits_for_one_segment_and_not_for_all() {
    let io = SimIo::new(3);
    let (engine, full) = disk(&io, 20, 100_000).await;
    let [first, second, other, ..] = &full[..] else { panic!("{} segments are full", full.len()) };
    for segment in [first, second] {
        let mut state = segment.state.lock();
        (state.unsettled, state.put_off) = (true, PUT_OFF_MAX);
    }
    other.state.lock().compacting = true;
    tokio::task::yield_now().await;

    io.hold();
    let mut settling = Box::pin(engine.inner.settle_amid_jobs());
    assert!(futures::poll!(settling.as_mut()).is_pending(), "it waits for the disk");
    assert!(!first.state.lock().unsettled && second.state.lock().unsettled, "the first one is at hand");
    engine.inner.jobs.push(Job::EndCompaction(Arc::clone(other)));
    // One operation of the disk after the other.
    while second.state.lock().unsettled {
        io.release();
        io.hold();
        assert!(futures::poll!(settling.as_mut()).is_pending(), "it waits for the disk");
        tokio::task::yield_now().await;
    }
    assert!(!first.state.lock().unsettled, "the first one is settled");
    assert!(!other.state.lock().compacting, "what was queued waits still");
    io.release();
    settling.await;
}

async fn listed(engine: &Engine, segment: &Segment) -> Vec<ChunkId> {
    engine.inner.listed(segment).await.unwrap().0.into_iter().map(|entry| entry.id).collect()
}

async fn delete(engine: &Engine, ids: &[ChunkId]) {
    engine.delete(ids).await.unwrap();
    engine.run_jobs().await;
}

#[tokio::test]
async fn an_index_file_is_written_anew_once_much_of_it_is_gone() {
    let io = SimIo::new(4);
    let (engine, full) = disk(&io, 60, 20_000).await;
    let ids = listed(&engine, &full[0]).await;
    assert!(ids.len() > 16, "{} chunks in a segment", ids.len());
    delete(&engine, &ids[..1]).await;
    engine.inner.settle_amid_jobs().await;
    assert_eq!(listed(&engine, &full[0]).await, ids, "one of many is not worth it");
    let tombstones = engine.inner.segments_sorted().pop().unwrap().number();
    assert!(engine.inner.retention.lock().is_needed(tombstones), "or it would be back after a crash");
    delete(&engine, &ids[1..4]).await;
    engine.inner.settle_amid_jobs().await;
    assert_eq!(listed(&engine, &full[0]).await, ids[4..]);
    assert!(!engine.inner.retention.lock().is_needed(tombstones));
    // Whoever asks for it by name gets all of it.
    delete(&engine, &ids[4..5]).await;
    engine.settle().await;
    assert_eq!(listed(&engine, &full[0]).await, ids[5..]);
}

#[tokio::test]
async fn an_index_file_that_little_is_gone_from_waits_for_a_bounded_time() {
    let io = SimIo::new(5);
    let (engine, full) = disk(&io, 60, 20_000).await;
    let ids = listed(&engine, &full[0]).await;
    delete(&engine, &ids[..1]).await;
    for _ in 0..PUT_OFF_MAX {
        engine.inner.settle_amid_jobs().await;
    }
    assert_eq!(listed(&engine, &full[0]).await, ids);
    engine.inner.settle_amid_jobs().await;
    assert_eq!(listed(&engine, &full[0]).await, ids[1..]);
    delete(&engine, &ids[1..2]).await;
    engine.inner.settle_amid_jobs().await;
    assert_eq!(listed(&engine, &full[0]).await, ids[1..], "it begins anew");
}

#[tokio::test]
async fn deaths_that_no_index_file_knows_of_are_found_after_a_crash() {
    let io = SimIo::new(6);
    let (engine, full) = disk(&io, 60, 20_000).await;
    let ids = listed(&engine, &full[0]).await;
    delete(&engine, &ids[..1]).await;
    engine.inner.settle_amid_jobs().await;
    assert_eq!(listed(&engine, &full[0]).await, ids);
    let number = full[0].number();
    drop((engine, full));
    io.crash();
    io.recover();

    let engine = open(&io).await;
    engine.run_jobs().await;
    assert_eq!(engine.stat(&ids[0]), None);
    assert!(engine.stat(&ids[1]).is_some());
    engine.settle().await;
    let segment = engine.inner.segment(number).unwrap();
    assert_eq!(listed(&engine, &segment).await, ids[1..]);
    assert!(!engine.inner.segments_sorted().iter().any(|s| engine.inner.retention.lock().is_needed(s.number())));
}
