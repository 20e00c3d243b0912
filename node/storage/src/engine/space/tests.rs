//! Sequence numbers, and how many tombstones a segment takes.

use holdfast_protocol::ContentId;

use super::*;
use crate::buf::{BufferPool, BufferPoolConfig};
use crate::engine::{Engine, EngineConfig};
use crate::io::sim::SimIo;

#[test]
fn stable_is_below_the_oldest_unsettled_number() {
    let mut sequences = Sequences::starting_at(5);
    assert_eq!(sequences.stable(), 4);
    let (a, b) = (sequences.draw_unsettled(), sequences.draw_unsettled());
    assert_eq!((a, b, sequences.stable()), (5, 6, 4));
    sequences.settle(b);
    assert_eq!(sequences.stable(), 4);
    sequences.settle(a);
    assert_eq!(sequences.stable(), 6);
}

/// A disk with so many chunks, all in one segment that has room for their tombstones.
async fn stored(io: &SimIo, count: usize) -> (Engine, Vec<ChunkId>) {
    let mut config = EngineConfig::new("/disk", [1; 16], [2; 16]);
    (config.segment_size_bytes, config.reserve_bytes, config.background) = (4 << 20, 1 << 20, false);
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
    let (engine, _) = Engine::open(config, Arc::new(io.clone()), pool).await.unwrap();
    let ids: Vec<_> = (0..count as u32).map(|n| ContentId([7; 12]).chunk(n)).collect();
    for id in &ids {
        let mut writer = engine.create(*id, 4, b"").await.unwrap();
        drop(writer.write(b"data").await.unwrap());
        drop(writer.finish_input().unwrap());
        writer.finish().await.unwrap();
    }
    assert_eq!(engine.stats().segments, 1, "there is room for all in one");
    (engine, ids)
}

#[tokio::test]
async fn deletions_in_a_row_are_not_all_kept_in_one_segment() {
    let (engine, ids) = stored(&SimIo::new(1), 3 * KILLS_MAX).await;
    for id in &ids {
        engine.delete(&[*id]).await.unwrap();
        let most = engine.inner.segments_sorted().iter().map(|segment| segment.state.lock().kills.len()).max();
        assert!(most <= Some(KILLS_MAX), "{most:?} tombstones in a segment");
    }
    engine.run_jobs().await;
    engine.settle().await;
    assert!(ids.iter().all(|id| engine.stat(id).is_none()));
    assert!(engine.stats().segments <= 1, "segments of tombstones that nobody needs stay");
}

#[tokio::test]
async fn deletions_go_on_in_the_segment_at_hand_where_no_other_can_be_made() {
    let io = SimIo::new(2);
    let (engine, ids) = stored(&io, KILLS_MAX + 8).await;
    io.set_capacity(io.allocated_bytes());
    for id in &ids {
        engine.delete(&[*id]).await.unwrap();
    }
    assert!(ids.iter().all(|id| engine.stat(id).is_none()));
    assert_eq!(engine.stats().segments, 1);
}
