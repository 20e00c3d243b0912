//! Fences, repeated writes and bounds of [`LocalReplicas`].

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;

use super::places::SILENT_MIN;
use super::*;
use crate::flow::test_cluster::{TestCluster, chunk, node_id, pattern, replica_write, spec};
use crate::ports::chunks::ChunkStore as _;
use crate::ports::chunks::memory::MemoryChunkStore;
use crate::wait::eventually;
use holdfast_protocol::{Epoch, ShardId};

async fn write(replicas: &LocalReplicas, id: ChunkId, data: &[u8], epoch: u64) -> Result<(), PeerError> {
    let mut sink = replicas.create(node_id(9), replica_write(id, data.len(), epoch)).await?;
    for slice in data.chunks(100_000) {
        sink.write(slice).await?;
    }
    sink.finish_input()?;
    sink.finish().await?;
    Ok(())
}

fn fence(id: ChunkId, epoch: u64) -> Fence {
    replica_write(id, 1, epoch).fence
}

#[tokio::test]
async fn write_under_an_older_epoch_is_refused_at_its_beginning() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    write(&node.replicas, chunk(0), b"bytes", 3).await.unwrap();
    let refused = write(&node.replicas, chunk(0), b"bytes", 2).await.unwrap_err();
    assert!(matches!(refused, PeerError::Stale { current: Epoch(3), .. }), "{refused}");
    assert!(node.store.stat(chunk(0)).is_some(), "the chunk of the later epoch stays");
}

#[tokio::test]
async fn write_that_a_list_overtakes_is_refused_at_its_end_and_leaves_nothing() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let mut sink = node.replicas.create(node_id(9), replica_write(chunk(0), 5, 1)).await.unwrap();
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    let listed = node.replicas.list(node_id(8), fence(chunk(0), 2), None, 10).await.unwrap();
    assert!(listed.is_empty());
    let refused = PeerError::from(sink.finish().await.unwrap_err());
    assert!(matches!(refused, PeerError::Stale { current: Epoch(2), .. }), "{refused}");
    assert!(node.store.is_empty());
    write(&node.replicas, chunk(0), b"bytes", 2).await.unwrap();
}

#[tokio::test]
async fn node_that_lost_its_session_neither_takes_nor_acknowledges() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let mut sink = node.replicas.create(node_id(9), replica_write(chunk(0), 5, 1)).await.unwrap();
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    node.ownership.revoke();
    assert!(matches!(PeerError::from(sink.finish().await.unwrap_err()), PeerError::Fenced));
    assert!(node.store.is_empty());
    assert!(matches!(write(&node.replicas, chunk(0), b"bytes", 1).await, Err(PeerError::Fenced)));
    let listed = node.replicas.list(node_id(8), fence(chunk(0), 1), None, 10).await;
    assert!(matches!(listed, Err(PeerError::Fenced)), "what it has proves nothing either");
    assert!(!node.replicas.health(node_id(8)).await.unwrap().owner);
}

#[tokio::test]
async fn repeated_write_of_the_same_bytes_is_acknowledged_and_of_others_refused() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let data = pattern(5_000_000, 1);
    write(&node.replicas, chunk(0), &data, 1).await.unwrap();
    write(&node.replicas, chunk(0), &data, 1).await.unwrap();
    let mut other = data.to_vec();
    other[4_999_999] ^= 1;
    for wrong in [&other[..], &data[..4_999_999]] {
        let refused = write(&node.replicas, chunk(0), wrong, 1).await.unwrap_err();
        assert!(matches!(refused, PeerError::Chunk(ChunkError::Exists(_))), "{refused}");
    }
    assert_eq!(node.store.payload(chunk(0)).unwrap(), data);
    node.store.corrupt(chunk(0));
    let refused = write(&node.replicas, chunk(0), &data, 1).await.unwrap_err();
    assert!(matches!(refused, PeerError::Chunk(ChunkError::Corrupt { .. })), "{refused}");
}

#[tokio::test]
async fn repeated_write_behind_its_fence_does_not_take_the_first_ones_chunk_away() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    write(&node.replicas, chunk(0), b"bytes", 1).await.unwrap();
    let mut sink = node.replicas.create(node_id(9), replica_write(chunk(0), 5, 1)).await.unwrap();
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    node.view.hear(fence(chunk(0), 2));
    assert!(matches!(sink.finish().await, Err(ChunkError::Stale { .. })));
    assert!(node.store.stat(chunk(0)).is_some());
}

#[tokio::test]
async fn attempts_at_one_chunk_exclude_each_other_until_the_first_has_ended() {
    // Operations: create, write, finish, then the deletion, which stalls.
    let store = Arc::new(MemoryChunkStore::stalling_at(3));
    let cluster = TestCluster::with_stores(vec![store.clone()], 1);
    let node = &cluster.nodes[0];
    let mut sink = node.replicas.create(node_id(9), replica_write(chunk(0), 5, 1)).await.unwrap();
    assert!(matches!(write(&node.replicas, chunk(0), b"bytes", 1).await, Err(PeerError::Busy)));
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    node.ownership.revoke();
    let finishing = tokio::spawn(sink.finish());
    store.stalled().await;
    node.ownership.extend(tokio::time::Instant::now(), Duration::from_secs(60));
    // The chunk is still there, and about to go: nobody may be told that it is safe.
    assert!(node.store.stat(chunk(0)).is_some());
    assert!(matches!(write(&node.replicas, chunk(0), b"bytes", 1).await, Err(PeerError::Busy)));
    finishing.abort();
    assert!(matches!(write(&node.replicas, chunk(0), b"bytes", 1).await, Err(PeerError::Busy)));
}

/// A repair that looks at the chunk now would find it whole, a moment before it goes.
#[tokio::test]
async fn chunk_that_its_fence_refuses_is_held_until_it_is_deleted() {
    let store = Arc::new(MemoryChunkStore::stalling_at(3));
    let cluster = TestCluster::with_stores(vec![store.clone()], 1);
    let node = &cluster.nodes[0];
    let locks = ChunkLocks::new();
    let replicas = LocalReplicas::new(store.clone(), node.view.clone(), ReplicaLimits::default());
    let replicas = replicas.with_chunk_locks(locks.clone());
    let mut sink = replicas.create(node_id(9), replica_write(chunk(0), 5, 1)).await.unwrap();
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    node.view.hear(fence(chunk(0), 2));
    let finishing = tokio::spawn(sink.finish());
    store.stalled().await;
    assert!(node.store.stat(chunk(0)).is_some());
    assert!(locks.lock_within(chunk(0), Duration::from_millis(20)).await.is_none(), "it is about to go");
    assert!(locks.lock_within(chunk(1), Duration::from_millis(20)).await.is_some());
    finishing.abort();
    assert!(locks.lock_within(chunk(0), Duration::from_millis(20)).await.is_none(), "whoever asked for it goes away");
}

#[tokio::test]
async fn repeated_write_of_a_chunk_that_rotted_on_the_disk_is_refused() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    write(&node.replicas, chunk(0), b"bytes", 1).await.unwrap();
    node.store.rot_beneath_memory(chunk(0));
    let refused = write(&node.replicas, chunk(0), b"bytes", 1).await.unwrap_err();
    assert!(matches!(refused, PeerError::Chunk(ChunkError::Corrupt { .. })), "{refused}");
}

#[tokio::test]
async fn dropped_write_frees_its_chunk_and_its_permits() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let limits = ReplicaLimits { writes_max: 2, bytes_max: 64 << 10, walks_max: 1 };
    let replicas = LocalReplicas::new(node.store.clone(), node.view.clone(), limits);
    let first = replicas.create(node_id(9), replica_write(chunk(0), 40 << 10, 1)).await.unwrap();
    let refused = replicas.create(node_id(9), replica_write(chunk(1), 40 << 10, 1)).await.err();
    assert!(matches!(refused, Some(PeerError::Busy)), "bytes are bounded");
    let second = replicas.create(node_id(9), replica_write(chunk(2), 1, 1)).await.unwrap();
    let refused = replicas.create(node_id(9), replica_write(chunk(3), 1, 1)).await.err();
    assert!(matches!(refused, Some(PeerError::Busy)), "writes are bounded");
    drop((first, second));
    eventually("sinks are gone", || node.store.sinks_open() == 0).await;
    write(&replicas, chunk(0), &pattern(60 << 10, 0), 1).await.unwrap();
}

/// Ends as the task of a stream does that waits for bytes.
fn waiting(sink: Box<dyn ChunkSink>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let taken_back = sink.taken_back();
        taken_back.cancelled().await;
        drop(sink);
    })
}

#[tokio::test(start_paused = true)]
async fn writes_on_which_nothing_comes_give_their_places_up_the_longest_silent_first() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let limits = ReplicaLimits { writes_max: 3, bytes_max: 1 << 20, walks_max: 1 };
    let replicas = LocalReplicas::new(node.store.clone(), node.view.clone(), limits);
    let begin = async |index| replicas.create(node_id(9), replica_write(chunk(index), 20_000, 1)).await;
    let oldest = waiting(begin(0).await.unwrap());
    tokio::time::advance(Duration::from_secs(1)).await;
    let older = waiting(begin(1).await.unwrap());
    let mut slow = begin(2).await.unwrap();
    assert!(matches!(begin(3).await.err(), Some(PeerError::Busy)), "a client may be slow");
    tokio::time::advance(SILENT_MIN).await;
    slow.write(&[1; 1_000]).await.unwrap();
    let fourth = begin(3).await.unwrap();
    oldest.await.unwrap();
    assert!(!older.is_finished(), "one place was needed");
    let fifth = begin(4).await.unwrap();
    older.await.unwrap();
    assert!(matches!(begin(5).await.err(), Some(PeerError::Busy)), "something came on the others");
    for mut sink in [slow, fourth, fifth] {
        sink.write(&[1; 1_000]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_place_is_taken_back_where_that_makes_no_room_and_no_byte_taken_after_one_was() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let limits = ReplicaLimits { writes_max: 8, bytes_max: 64 << 10, walks_max: 1 };
    let replicas = LocalReplicas::new(node.store.clone(), node.view.clone(), limits);
    let begin = async |index, size| replicas.create(node_id(9), replica_write(chunk(index), size, 1)).await;
    let mut silent = begin(0, 20 << 10).await.unwrap();
    let mut slow = begin(1, 40 << 10).await.unwrap();
    tokio::time::advance(SILENT_MIN).await;
    slow.write(&[1; 1_000]).await.unwrap();
    assert!(matches!(begin(2, 40 << 10).await.err(), Some(PeerError::Busy)));
    silent.write(&[1; 1_000]).await.unwrap();
    tokio::time::advance(SILENT_MIN).await;
    slow.write(&[1; 1_000]).await.unwrap();
    // It would be enough, but whoever has it does not drop it.
    assert!(matches!(begin(2, 20 << 10).await.err(), Some(PeerError::Busy)));
    assert!(matches!(silent.write(&[1; 1_000]).await, Err(ChunkError::Unavailable(_))));
    drop(silent);
    begin(2, 20 << 10).await.unwrap();
}

#[tokio::test]
async fn chunk_of_another_shard_and_oversize_requests_break_the_protocol() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let mut wrong = replica_write(chunk(0), 5, 1);
    wrong.fence.shard = ShardId(wrong.fence.shard.0 + 1);
    assert!(matches!(node.replicas.create(node_id(9), wrong).await.err(), Some(PeerError::Protocol(_))));
    let ids = vec![chunk(0); IDS_MAX + 1];
    assert!(matches!(node.replicas.probe(node_id(9), &ids).await, Err(PeerError::Protocol(_))));
    assert!(matches!(node.replicas.delete(node_id(9), &ids).await, Err(PeerError::Protocol(_))));
    let listed = node.replicas.list(node_id(9), fence(chunk(0), 1), None, LIST_MAX + 1).await;
    assert!(matches!(listed, Err(PeerError::Protocol(_))));
}

#[tokio::test]
async fn reports_reach_the_controller_only_where_it_is() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let inbox = Arc::new(ReportInbox::default());
    let replicas = LocalReplicas::new(node.store.clone(), node.view.clone(), ReplicaLimits::default());
    let replicas = replicas.with_reports(inbox.clone());
    let report = ShardReport::DataLost { shard: ShardId(1) };
    assert!(matches!(replicas.report(node_id(9), report.clone()).await, Err(PeerError::Fenced)));
    inbox.set_open(true);
    replicas.report(node_id(9), report.clone()).await.unwrap();
    assert_eq!(inbox.take(), [(node_id(9), report)]);
}

#[tokio::test]
async fn peers_read_probe_and_list_what_is_here() {
    let cluster = TestCluster::new(1, 1);
    let node = &cluster.nodes[0];
    let data = pattern(300_000, 4);
    write(&node.replicas, chunk(0), &data, 1).await.unwrap();
    let body = node.replicas.read(node_id(9), chunk(0), 100..250_000).unwrap();
    let read: Vec<Bytes> = body.try_collect().await.unwrap();
    assert!(read.concat() == data[100..250_000]);
    let probed = node.replicas.probe(node_id(9), &[chunk(1), chunk(0)]).await.unwrap();
    assert_eq!(probed, [None, node.store.stat(chunk(0))]);
    assert_eq!(node.replicas.label(node_id(9), chunk(0)).await.unwrap(), spec(chunk(0), 1).label);
    let fence = fence(chunk(0), 1);
    let listed = node.replicas.list(node_id(9), fence, None, 10).await.unwrap();
    assert_eq!(listed, [node.store.stat(chunk(0)).unwrap()]);
    assert_eq!(node.replicas.digest(node_id(9), fence).await.unwrap().chunks, 1);
    node.replicas.delete(node_id(9), &[chunk(0), chunk(1)]).await.unwrap();
    assert!(node.store.is_empty());
}
