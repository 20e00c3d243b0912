//! Reads from whoever has the chunk.

use tokio::time::Instant;

use super::peers::{Stall, Stalling};
use super::*;
use crate::flow::test_cluster::{chunk, pattern, shard_on};
use crate::wait::eventually;
use holdfast_protocol::cluster::Leaver;

#[tokio::test(start_paused = true)]
async fn local_pieces_pass_untouched() {
    let cluster = TestCluster::new(3, 3);
    let data = pattern(5_000_000, 1);
    cluster.nodes[0].store.insert(chunk(0), data.clone());
    let chunks = chunks_on(&cluster, 0);
    let pieces: Vec<Bytes> = chunks.read(chunk(0), 100..4_500_000).unwrap().try_collect().await.unwrap();
    let mut at = data.as_ptr().wrapping_add(100);
    for piece in &pieces {
        assert_eq!(piece.as_ptr(), at, "the very bytes of the store");
        at = at.wrapping_add(piece.len());
    }
}

#[tokio::test(start_paused = true)]
async fn missing_and_damaged_replicas_are_read_around_and_queued_for_repair() {
    let cluster = TestCluster::new(4, 3);
    let data = pattern(100_000, 1);
    for index in [1, 2] {
        cluster.nodes[index].store.insert(chunk(0), data.clone());
        cluster.nodes[index].store.insert(chunk(1), data.clone());
    }
    cluster.nodes[0].store.insert(chunk(1), data.clone());
    cluster.nodes[0].store.corrupt(chunk(1));
    cluster.nodes[1].store.corrupt(chunk(1));
    for through in [0, 3] {
        let repairs = Arc::new(Repairs::default());
        let peers = Arc::new(cluster.network.peers_of(node_id(through)));
        let chunks = chunks_with(&cluster.nodes[through], peers, repairs.clone());
        for (id, from, expected) in [(chunk(0), 0, &[0][..]), (chunk(1), 70_000, &[0, 1])] {
            let read = get(&chunks, id, from..100_000).await.unwrap();
            assert!(read == data[from as usize..]);
            if through == 0 {
                let queued = || repairs.0.lock().clone();
                let all = || expected.iter().all(|index| queued().contains(&(id, node_id(*index))));
                eventually("repairs are queued", all).await;
            }
        }
        let queued = repairs.0.lock().clone();
        assert!(queued.iter().all(|(_, node)| [node_id(0), node_id(1)].contains(node)), "{queued:?}");
    }
}

/// A peer goes away when so many bytes were read from it; the rest comes from another one.
#[tokio::test(start_paused = true)]
async fn read_goes_on_at_the_very_byte_where_a_replica_broke_off() {
    let size = 13_000_000_u32;
    for range in [0..size, 1..size - 1, 4_194_304..size, 4_194_303..8_388_609, 12_999_999..size] {
        for broken_after in 0..4 {
            let cluster = TestCluster::new(4, 3);
            let data = pattern(size as usize, 7);
            for index in 0..3 {
                cluster.nodes[index].store.insert(chunk(0), data.clone());
            }
            let chunks = chunks_on(&cluster, 3);
            let mut body = chunks.read(chunk(0), range.clone()).unwrap();
            let mut read = vec![];
            let mut pieces = 0;
            while let Some(piece) = body.try_next().await.unwrap() {
                read.extend_from_slice(&piece);
                pieces += 1;
                if pieces == broken_after {
                    cluster.network.leave(node_id(0));
                }
                if pieces == broken_after + 1 {
                    cluster.network.leave(node_id(1));
                }
            }
            assert!(read == data[range.start as usize..range.end as usize], "{range:?}, broken after {broken_after}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slow_replica_is_hedged_and_the_first_answer_taken() {
    let cluster = TestCluster::new(3, 2);
    let data = pattern(100_000, 2);
    for index in 0..2 {
        cluster.nodes[index].store.insert(chunk(0), data.clone());
    }
    let peers = Stalling::new(cluster.network.peers_of(node_id(2)));
    let chunks = chunks_with(&cluster.nodes[2], Arc::new(peers.clone()), Arc::default());
    peers.set(node_id(0), Some(Stall::Read(Duration::from_secs(30))));
    let begun = Instant::now();
    assert!(get(&chunks, chunk(0), 0..100_000).await.unwrap() == data);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(150), "{took:?}");
    // Both slow: the faster one wins.
    peers.set(node_id(1), Some(Stall::Read(Duration::from_secs(3))));
    let begun = Instant::now();
    assert!(get(&chunks, chunk(0), 0..100_000).await.unwrap() == data);
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_local_disk_that_hangs_is_given_up_for_another_replica() {
    let cluster = TestCluster::new(3, 3);
    let data = pattern(100_000, 3);
    for node in &cluster.nodes {
        node.store.insert(chunk(0), data.clone());
    }
    cluster.nodes[0].store.hang_reads();
    let read = tokio::time::timeout(LONG, get(&chunks_on(&cluster, 0), chunk(0), 10..100_000)).await;
    assert!(read.expect("it ends").unwrap() == data[10..]);
}

/// It may be slow, and nothing worse: under load, or in a cluster that keeps one replica.
#[tokio::test(start_paused = true)]
async fn a_local_disk_that_gives_nothing_for_long_is_waited_for_when_nobody_else_can_give_the_chunk() {
    for replicas in [1, 3] {
        let cluster = TestCluster::new(3, replicas);
        let data = pattern(9_000_000, 3);
        cluster.nodes[0].store.insert(chunk(0), data.clone());
        cluster.nodes[0].store.slow_reads(Duration::from_secs(60));
        let read = tokio::time::timeout(LONG, get(&chunks_on(&cluster, 0), chunk(0), 10..9_000_000)).await;
        assert!(read.expect("it ends").unwrap() == data[10..], "{replicas} replicas");
    }
}

#[tokio::test(start_paused = true)]
async fn leavers_are_asked_when_members_cannot_give() {
    let cluster = TestCluster::new(3, 1);
    let mut state = shard_on(&[0], 2);
    state.leaving.push(Leaver { node: node_id(1), since: Epoch(2) });
    cluster.set_map(&state);
    cluster.nodes[1].store.insert(chunk(0), Bytes::from_static(b"bytes"));
    assert_eq!(get(&chunks_on(&cluster, 2), chunk(0), 1..4).await.unwrap(), b"yte");
}

/// By a map that is late here, or left behind by moves: wherever the last replica is, it is found.
#[tokio::test(start_paused = true)]
async fn every_live_node_is_asked_before_a_chunk_is_said_to_be_nowhere() {
    let cluster = TestCluster::new(24, 3);
    cluster.nodes[23].store.insert(chunk(0), Bytes::from_static(b"bytes"));
    let chunks = chunks_on(&cluster, 0);
    assert_eq!(get(&chunks, chunk(0), 0..5).await.unwrap(), b"bytes");
    // A member that does not answer is not waited for.
    let peers = Stalling::new(cluster.network.peers_of(node_id(5)));
    peers.set(node_id(1), Some(Stall::Read(LONG)));
    let chunks = chunks_with(&cluster.nodes[5], Arc::new(peers), Arc::default());
    let begun = Instant::now();
    assert_eq!(get(&chunks, chunk(0), 0..5).await.unwrap(), b"bytes");
    assert!(begun.elapsed() < LONG);
    let chunks = chunks_on(&cluster, 0);
    assert!(matches!(get(&chunks, chunk(1), 0..5).await, Err(ChunkError::NotFound(_))));
    cluster.isolate(22, true);
    let error = get(&chunks, chunk(1), 0..5).await.unwrap_err();
    assert!(matches!(&error, ChunkError::Unavailable(text) if text.contains("more nodes")), "{error}");
}

/// In a large cluster nearly every read is one of a few of hundreds of nodes.
#[tokio::test(start_paused = true)]
async fn who_has_no_part_in_a_chunk_costs_its_readers_nothing_while_others_give_it() {
    let cluster = TestCluster::new(24, 3);
    cluster.nodes[1].store.insert(chunk(0), Bytes::from_static(b"bytes"));
    let chunks = chunks_on(&cluster, 5);
    assert_eq!(get(&chunks, chunk(0), 0..5).await.unwrap(), b"bytes");
    let looked_at = chunks.shared.book.known();
    assert!((1..=3).contains(&looked_at), "{looked_at}");
    assert!(matches!(get(&chunks, chunk(1), 0..5).await, Err(ChunkError::NotFound(_))));
    assert_eq!(chunks.shared.book.known(), 23, "as a last resort all of them are");
}

#[tokio::test(start_paused = true)]
async fn error_says_whether_another_attempt_can_help() {
    let cluster = TestCluster::new(3, 3);
    let chunks = chunks_on(&cluster, 0);
    assert!(matches!(get(&chunks, chunk(0), 0..1).await, Err(ChunkError::NotFound(id)) if id == chunk(0)));
    cluster.nodes[1].store.insert(chunk(0), Bytes::from_static(b"bytes"));
    cluster.nodes[1].store.corrupt(chunk(0));
    assert!(matches!(get(&chunks, chunk(0), 0..1).await, Err(ChunkError::Corrupt { .. })));
    cluster.isolate(2, true);
    let error = get(&chunks, chunk(0), 0..1).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ChunkError::Unavailable(_)) && text.contains(&node_id(2).to_string()), "{text}");
    let refused = chunks.read(chunk(0), Range { start: 3, end: 2 }).err();
    assert!(matches!(refused, Some(ChunkError::Invalid(_))));
}
