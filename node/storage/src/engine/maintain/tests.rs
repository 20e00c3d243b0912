//! What must hold while the thread of the jobs settles a whole disk.

use std::path::Path;

use holdfast_protocol::ContentId;

use super::*;
use crate::buf::{BufferPool, BufferPoolConfig};
use crate::engine::{Engine, EngineConfig};
use crate::io::sim::SimIo;

/// A disk with some segments that are full, and have their index files.
async fn disk(io: &SimIo) -> (Engine, Vec<Arc<Segment>>) {
    let mut config = EngineConfig::new(Path::new("/disk"), [1; 16], [2; 16]);
    (config.segment_size_bytes, config.reserve_bytes, config.background) = (512 << 10, 512 << 10, false);
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
    let (engine, _) = Engine::open(config, Arc::new(io.clone()), pool).await.unwrap();
    for n in 0..20 {
        let mut writer = engine.create(ContentId([7; 12]).chunk(n), 100_000, b"").await.unwrap();
        writer.write(&[n as u8; 100_000]).await.unwrap();
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
    let (engine, full) = disk(&io).await;
    let [first, second, other, ..] = &full[..] else { panic!("{} segments are full", full.len()) };
    for segment in [first, second] {
        segment.state.lock().unsettled = true;
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
