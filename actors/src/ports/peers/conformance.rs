//! What every adapter of the `Peers` port must do. An adapter's test calls [`all`] with a function that makes two
//! nodes: one that calls, and one that answers with a [`MemoryReplica`]; each check gets two of its own and panics with
//! what it found.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, ContentId, Epoch, NodeId, ShardId, chunk_order};

use super::memory::{MemoryReplica, Refuse};
use super::{Fence, IDS_MAX, PeerError, Peers, ReplicaWrite, ShardReport};
use crate::ports::chunks::conformance::pattern;
use crate::ports::chunks::memory::Fault;
use crate::ports::chunks::{ChunkError, ChunkInfo, ChunkSpec};
use crate::wait::eventually;

/// Shards of the cluster under test: one, so that every chunk is in it.
pub const SHARD_COUNT: u32 = 1;
/// A node that no address leads to.
pub const NOBODY: NodeId = NodeId([0xee; 8]);

const SHARD: ShardId = ShardId(0);

/// Two nodes.
pub struct Pair {
    /// The port of the node that calls.
    pub peers: Arc<dyn Peers>,
    /// Its id.
    pub me: NodeId,
    /// The node that answers.
    pub node: NodeId,
    /// What it answers with.
    pub service: Arc<MemoryReplica>,
    /// Whatever must live as long.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Runs every check, one after another.
pub async fn all<F: Future<Output = Pair>>(make: impl Fn() -> F) {
    written_chunk_is_read_back(make().await).await;
    ranges_are_exact(make().await).await;
    dropped_sink_leaves_nothing(make().await).await;
    wrong_sizes_are_refused(make().await).await;
    stale_epochs_are_refused_and_later_ones_taken_over(make().await).await;
    errors_of_the_store_keep_their_kind(make().await).await;
    refusals_keep_their_kind(make().await).await;
    probe_answers_in_the_order_asked(make().await).await;
    lists_page_through_a_shard(make().await).await;
    digest_arrives_whole(make().await).await;
    delete_is_idempotent(make().await).await;
    reports_and_health_arrive(make().await).await;
    missing_node_is_unreachable(make().await).await;
    chunks_are_written_at_the_same_time(make().await).await;
}

fn id(index: u32) -> ChunkId {
    ContentId([0x5a; 12]).chunk(index)
}

/// A fence of the shard.
pub fn fence(epoch: u64) -> Fence {
    Fence { shard: SHARD, epoch: Epoch(epoch) }
}

/// A write under epoch 1.
pub fn write_of(id: ChunkId, size_bytes: usize) -> ReplicaWrite {
    let label = Bytes::from(format!("{{\"of\":\"{id}\"}}"));
    ReplicaWrite { fence: fence(1), spec: ChunkSpec { id, size_bytes: size_bytes as u32, label } }
}

/// Writes a chunk in pieces of `step` bytes.
///
/// # Errors
/// Those of the port.
pub async fn put(
    peers: &dyn Peers,
    node: NodeId,
    write: ReplicaWrite,
    data: &Bytes,
    step: usize,
) -> Result<(), PeerError> {
    let mut sink = peers.create(node, write).await?;
    for piece in data.chunks(step) {
        sink.send(data.slice_ref(piece)).await?;
    }
    sink.finish().await
}

async fn get(pair: &Pair, id: ChunkId, range: std::ops::Range<u32>) -> Result<Vec<u8>, ChunkError> {
    let pieces: Vec<Bytes> = pair.peers.read(pair.node, id, range).try_collect().await?;
    Ok(pieces.concat())
}

/// Chunks of sizes around every border arrive, with their labels, from whom they came.
pub async fn written_chunk_is_read_back(pair: Pair) {
    let sizes = [1, 4097, 65_537, (256 << 10) + 1, 3_000_000, CHUNK_SIZE_MAX as usize];
    for (index, size) in sizes.into_iter().enumerate() {
        let (id, data) = (id(index as u32), pattern(size, index as u32));
        put(&*pair.peers, pair.node, write_of(id, size), &data, 1_000_000).await.expect("put");
        assert!(pair.service.store.payload(id).expect("stored") == data, "{size} bytes differ at the peer");
        assert!(get(&pair, id, 0..size as u32).await.expect("read") == data, "{size} bytes differ read back");
        let label = pair.peers.label(pair.node, id).await.expect("label");
        assert_eq!(label, write_of(id, size).spec.label);
    }
    assert!(pair.service.callers().iter().all(|from| *from == pair.me), "called by somebody else");
}

/// A range yields exactly its bytes; one beyond the end is refused.
pub async fn ranges_are_exact(pair: Pair) {
    let data = pattern(1_000_000, 3);
    put(&*pair.peers, pair.node, write_of(id(0), data.len()), &data, 77_777).await.expect("put");
    for range in [0..1, 65_535..65_537, 262_143..524_290, 999_999..1_000_000, 5..5] {
        let expected = &data[range.start as usize..range.end as usize];
        assert!(get(&pair, id(0), range.clone()).await.expect("read") == expected, "range {range:?} differs");
    }
    for range in [0..1_000_001, 0..u32::MAX] {
        let error = get(&pair, id(0), range.clone()).await.expect_err("beyond the end");
        assert!(matches!(error, ChunkError::Invalid(_)), "{range:?}: {error}");
    }
}

/// A sink that is dropped, at whatever point before its end, leaves nothing at the peer.
pub async fn dropped_sink_leaves_nothing(pair: Pair) {
    let data = pattern(2_000_000, 4);
    for sent in [0, 1, data.len()] {
        let mut sink = pair.peers.create(pair.node, write_of(id(0), data.len())).await.expect("create");
        if sent > 0 {
            sink.send(data.slice(..sent)).await.expect("send");
        }
        drop(sink);
        eventually("the peer drops the sink", || pair.service.store.sinks_open() == 0).await;
        assert!(pair.service.store.is_empty(), "a chunk of which {sent} bytes were sent is there");
    }
    put(&*pair.peers, pair.node, write_of(id(0), data.len()), &data, 500_000).await.expect("put");
    let body = pair.peers.read(pair.node, id(0), 0..data.len() as u32);
    drop(body);
}

/// Neither more nor fewer bytes than announced make a chunk, nor a size that no chunk has.
pub async fn wrong_sizes_are_refused(pair: Pair) {
    for (size, announced) in [(10, 11), (11, 10), (300_000, 700_000), (1, 0)] {
        let data = pattern(size, 5);
        let result = put(&*pair.peers, pair.node, write_of(id(0), announced), &data, 100_000).await;
        let error = result.expect_err("a wrong size");
        assert!(matches!(error, PeerError::Chunk(ChunkError::Invalid(_))), "{size} for {announced}: {error}");
    }
    eventually("the peer drops the sinks", || pair.service.store.sinks_open() == 0).await;
    assert!(pair.service.store.is_empty());
}

/// The peer keeps the highest epoch that it heard of, and refuses lower ones with it.
pub async fn stale_epochs_are_refused_and_later_ones_taken_over(pair: Pair) {
    let under = |epoch| ReplicaWrite { fence: fence(epoch), ..write_of(id(epoch as u32), 10) };
    let data = pattern(10, 6);
    put(&*pair.peers, pair.node, under(5), &data, 10).await.expect("put");
    pair.peers.list(pair.node, fence(7), None, 10).await.expect("list");
    assert_eq!(pair.service.epoch(SHARD), Some(Epoch(7)));
    let stale = |error: PeerError| matches!(error, PeerError::Stale { shard: SHARD, current: Epoch(7) });
    assert!(stale(put(&*pair.peers, pair.node, under(6), &data, 10).await.expect_err("stale write")));
    assert!(stale(pair.peers.list(pair.node, fence(6), None, 10).await.expect_err("stale list")));
    assert!(stale(pair.peers.digest(pair.node, fence(6)).await.expect_err("stale digest")));
    pair.peers.digest(pair.node, fence(9)).await.expect("digest");
    assert_eq!(pair.service.epoch(SHARD), Some(Epoch(9)));
}

/// What the peer's disks say arrives as it was said.
pub async fn errors_of_the_store_keep_their_kind(pair: Pair) {
    let data = pattern(3_000_000, 7);
    let write = || put(&*pair.peers, pair.node, write_of(id(0), data.len()), &data, 1 << 20);
    let store = &pair.service.store;

    store.fail(Fault::Create, 0);
    let error = write().await.expect_err("create fails");
    assert!(matches!(error, PeerError::Chunk(ChunkError::NoSpace)), "{error}");
    store.fail(Fault::Write, 1);
    let error = write().await.expect_err("write fails");
    assert!(matches!(error, PeerError::Chunk(ChunkError::Io { .. })), "{error}");
    store.fail(Fault::Finish, 0);
    let error = write().await.expect_err("finish fails");
    assert!(matches!(error, PeerError::Chunk(ChunkError::Io { .. })), "{error}");
    eventually("the peer drops the sinks", || store.sinks_open() == 0).await;

    let error = get(&pair, id(0), 0..1).await.expect_err("no such chunk");
    assert!(matches!(error, ChunkError::NotFound(chunk) if chunk == id(0)), "{error}");
    let error = pair.peers.label(pair.node, id(0)).await.expect_err("no such label");
    assert!(matches!(error, PeerError::Chunk(ChunkError::NotFound(chunk)) if chunk == id(0)), "{error}");

    write().await.expect("put");
    let error = write().await.expect_err("exists");
    assert!(matches!(error, PeerError::Chunk(ChunkError::Exists(chunk)) if chunk == id(0)), "{error}");
    store.corrupt(id(0));
    let error = get(&pair, id(0), 0..1).await.expect_err("corrupt");
    assert!(matches!(error, ChunkError::Corrupt { chunk, .. } if chunk == id(0)), "{error}");
}

/// A peer that refuses says why, whatever it was asked.
pub async fn refusals_keep_their_kind(pair: Pair) {
    for refuse in [Refuse::Busy, Refuse::Fenced] {
        pair.service.set_refuse(Some(refuse));
        let right = |error: PeerError| match refuse {
            Refuse::Busy => matches!(error, PeerError::Busy),
            Refuse::Fenced => matches!(error, PeerError::Fenced),
        };
        let data = pattern(3, 0);
        let write = put(&*pair.peers, pair.node, write_of(id(0), 3), &data, 3);
        assert!(right(write.await.expect_err("write")));
        assert!(right(pair.peers.probe(pair.node, &[id(0)]).await.expect_err("probe")));
        assert!(right(pair.peers.label(pair.node, id(0)).await.expect_err("label")));
        assert!(right(pair.peers.list(pair.node, fence(1), None, 1).await.expect_err("list")));
        assert!(right(pair.peers.digest(pair.node, fence(1)).await.expect_err("digest")));
        assert!(right(pair.peers.delete(pair.node, &[id(0)]).await.expect_err("delete")));
        let report = ShardReport::DataLost { shard: SHARD };
        assert!(right(pair.peers.report(pair.node, report).await.expect_err("report")));
        get(&pair, id(0), 0..1).await.expect_err("read");
    }
}

/// As many ids as a request may have, some of them there.
pub async fn probe_answers_in_the_order_asked(pair: Pair) {
    for index in [3, 1, 800] {
        pair.service.store.insert(id(index), pattern(index as usize, index));
    }
    let asked: Vec<ChunkId> = (0..IDS_MAX as u32).rev().map(id).collect();
    let found = pair.peers.probe(pair.node, &asked).await.expect("probe");
    for (asked, found) in asked.iter().zip(&found) {
        let expected =
            [1, 3, 800].contains(&asked.index()).then(|| ChunkInfo { id: *asked, size_bytes: asked.index() });
        assert_eq!(*found, expected);
    }
    assert_eq!(found.len(), asked.len());
    assert!(pair.peers.probe(pair.node, &[]).await.expect("probe nothing").is_empty());
}

/// Pages of any size make up the shard.
pub async fn lists_page_through_a_shard(pair: Pair) {
    let mut all: Vec<_> = (1..=100).map(|index| ChunkInfo { id: id(index), size_bytes: index }).collect();
    all.sort_unstable_by_key(|info| (chunk_order::place(&info.id), info.id));
    for info in &all {
        pair.service.store.insert(info.id, pattern(info.size_bytes as usize, 0));
    }
    for limit in [7, 100, super::LIST_MAX] {
        let (mut seen, mut after) = (vec![], None);
        loop {
            let page = pair.peers.list(pair.node, fence(1), after, limit).await.expect("list");
            assert!(page.len() <= limit);
            let last = page.len() < limit;
            after = page.last().map(|info| info.id).or(after);
            seen.extend(page);
            if last {
                break;
            }
        }
        assert_eq!(seen, all, "pages of {limit}");
    }
}

/// Every part of a digest arrives, large sums too.
pub async fn digest_arrives_whole(pair: Pair) {
    for index in 0..300 {
        pair.service.store.insert(id(index), pattern(10 + index as usize, 0));
    }
    let expected = super::ReplicaService::digest(&*pair.service, pair.me, fence(1)).await.expect("digest");
    assert_eq!(pair.peers.digest(pair.node, fence(1)).await.expect("digest"), expected);
    assert_eq!(expected.chunks, 300);
}

/// Deleting what is there and what is not.
pub async fn delete_is_idempotent(pair: Pair) {
    for index in 0..5 {
        pair.service.store.insert(id(index), pattern(5, 0));
    }
    for _ in 0..2 {
        pair.peers.delete(pair.node, &[id(0), id(9), id(3)]).await.expect("delete");
    }
    let left = pair.peers.probe(pair.node, &[0, 1, 2, 3, 4].map(id)).await.expect("probe");
    assert_eq!(left.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true, false, true]);
}

/// Reports arrive as they were made, and a peer says who it is.
pub async fn reports_and_health_arrive(pair: Pair) {
    let since = Epoch(4);
    let reports = vec![
        ShardReport::Verified { shard: SHARD, since },
        ShardReport::JoinFailed { shard: SHARD, since, reason: "the disks are \"full\"\n".into() },
        ShardReport::DataLost { shard: ShardId(9) },
    ];
    for report in &reports {
        pair.peers.report(pair.node, report.clone()).await.expect("report");
    }
    assert_eq!(pair.service.reports(), reports);
    let health = pair.peers.health(pair.node).await.expect("health");
    assert_eq!((health.node, health.owner, health.writable), (pair.node, true, true));
    pair.service.set_refuse(Some(Refuse::Fenced));
    assert!(!pair.peers.health(pair.node).await.expect("health").owner);
}

/// A node that is not there.
pub async fn missing_node_is_unreachable(pair: Pair) {
    for _ in 0..2 {
        let error = pair.peers.health(NOBODY).await.expect_err("nobody is there");
        assert!(matches!(error, PeerError::Unreachable { node: NOBODY, .. }), "{error}");
        assert!(error.is_transient());
    }
    let result: Result<Vec<Bytes>, _> = pair.peers.read(NOBODY, id(0), 0..1).try_collect().await;
    let error = result.expect_err("nobody is there");
    assert!(matches!(error, ChunkError::Unavailable(_)), "{error}");
    pair.peers.health(pair.node).await.expect("the other one is");
}

/// Many at once, none of which waits for another.
pub async fn chunks_are_written_at_the_same_time(pair: Pair) {
    let data = pattern(700_000, 8);
    let mut sinks = vec![];
    for index in 0..24 {
        sinks.push(pair.peers.create(pair.node, write_of(id(index), data.len())).await.expect("create"));
    }
    for half in [data.slice(..300_000), data.slice(300_000..)] {
        for sink in &mut sinks {
            sink.send(half.clone()).await.expect("send");
        }
    }
    futures::future::try_join_all(sinks.into_iter().map(|sink| sink.finish())).await.expect("finish");
    for index in 0..24 {
        assert!(pair.service.store.payload(id(index)).expect("stored") == data);
    }
}
