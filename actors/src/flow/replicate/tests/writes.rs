//! Quorums, cuts, fences and what an abandoned write leaves: nothing.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use holdfast_protocol::cluster::Joiner;
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ChunkLabel, ColdPlace, ContentId, Manifest, STUB_INDEX, VersionId};
use tokio::time::Instant;

use super::peers::{Stall, Stalling};
use super::*;
use crate::flow::replica_service::LocalReplicas;
use crate::flow::test_cluster::{chunk, pattern, replica_write, shard_on};
use crate::ports::chunks::memory::{Fault, MemoryChunkStore};
use crate::ports::peers::ReplicaService as _;
use crate::wait::eventually;

#[tokio::test(start_paused = true)]
async fn chunk_is_on_every_replica_when_all_are_well() {
    for (nodes, members, through) in [(1, 1, 0), (2, 2, 1), (3, 3, 2), (4, 3, 3)] {
        let cluster = TestCluster::new(nodes, members);
        let chunks = chunks_on(&cluster, through);
        for (index, size) in [1, 300_000, 5_000_001].into_iter().enumerate() {
            let (id, data) = (chunk(index as u32), pattern(size, index as u32));
            let receipt = put(&chunks, id, &data).await.unwrap();
            assert_eq!(receipt.missed, []);
            assert_eq!(receipt.fence, Some((cluster.nodes[0].view.shard_of(&id), EPOCH)));
            assert_eq!(holders(&cluster, id), (0..members).collect::<Vec<_>>());
            for index in 0..members {
                assert!(cluster.nodes[index].store.payload(id).unwrap() == data);
            }
        }
    }
}

/// Every replication factor, every set of failing replicas, every way to fail, through a member and through another
/// node.
#[tokio::test(start_paused = true)]
async fn write_succeeds_exactly_when_a_quorum_of_members_does() {
    for members in 1..=3_usize {
        for failing in 0_u32..1 << members {
            for fault in [Fault::Create, Fault::Finish] {
                for through in [0, members] {
                    let cluster = TestCluster::new(members + 1, members);
                    let failing: BTreeSet<_> = (0..members).filter(|index| failing >> index & 1 == 1).collect();
                    for index in &failing {
                        cluster.nodes[*index].store.fail(fault, 0);
                    }
                    let chunks = chunks_on(&cluster, through);
                    let result = put(&chunks, chunk(0), &pattern(400_000, 0)).await;
                    let context = format!("{failing:?} of {members} fail in {fault:?}, through {through}: {result:?}");
                    if members - failing.len() > members / 2 {
                        let missed: BTreeSet<_> = result.expect(&context).missed.into_iter().collect();
                        assert_eq!(missed, failing.iter().map(|index| node_id(*index)).collect(), "{context}");
                        assert_eq!(holders(&cluster, chunk(0)).len(), members - failing.len(), "{context}");
                    } else {
                        let error = result.expect_err(&context);
                        assert!(matches!(error, ChunkError::Unavailable(_) | ChunkError::NoSpace), "{context}");
                        eventually("nothing is left", || nothing_left(&cluster)).await;
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn dead_members_are_missed_and_a_dead_quorum_is_refused_at_once() {
    let cluster = TestCluster::new(3, 3);
    let chunks = chunks_on(&cluster, 0);
    cluster.set_alive(&[0, 1]);
    let receipt = put(&chunks, chunk(0), b"bytes").await.unwrap();
    assert_eq!(receipt.missed, [node_id(2)]);
    cluster.set_alive(&[0]);
    let begun = Instant::now();
    let error = put(&chunks, chunk(1), b"bytes").await.unwrap_err();
    assert!(matches!(&error, ChunkError::Unavailable(detail) if detail.contains("shard")), "{error}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    cluster.set_alive(&[0, 1, 2]);
    cluster.nodes[0].ownership.revoke();
    let error = put(&chunks, chunk(1), b"bytes").await.unwrap_err();
    assert!(matches!(error, ChunkError::Unavailable(_)), "a fenced node coordinates nothing: {error}");
    assert!(holders(&cluster, chunk(1)).is_empty());
}

#[tokio::test(start_paused = true)]
async fn joiner_is_written_and_does_not_count() {
    let cluster = TestCluster::new(3, 2);
    let mut state = shard_on(&[0, 1], 2);
    state.joining.push(Joiner { node: node_id(2), since: Epoch(2) });
    cluster.set_map(&state);
    let chunks = chunks_on(&cluster, 0);
    assert_eq!(put(&chunks, chunk(0), b"bytes").await.unwrap().missed, []);
    assert_eq!(holders(&cluster, chunk(0)), [0, 1, 2]);
    cluster.isolate(2, true);
    assert_eq!(put(&chunks, chunk(1), b"bytes").await.unwrap().missed, [node_id(2)]);
    cluster.isolate(2, false);
    cluster.isolate(1, true);
    let error = put(&chunks, chunk(2), b"bytes").await.unwrap_err();
    assert!(matches!(error, ChunkError::Unavailable(_)), "one member and a joiner are no quorum of two: {error}");
    eventually("nothing is left where it can be reached", || {
        !holders(&cluster, chunk(2)).iter().any(|index| *index != 1)
    })
    .await;
}

/// Two disks of three were replaced one after the other: the members are one, and one is no quorum of three.
#[tokio::test(start_paused = true)]
async fn a_last_member_acknowledges_nothing_alone() {
    let cluster = TestCluster::new(3, 3);
    let mut state = shard_on(&[0, 1, 2], 3);
    state.members = vec![node_id(0)];
    state.joining = [1, 2].map(|index| Joiner { node: node_id(index), since: Epoch(3) }).to_vec();
    cluster.set_map(&state);
    let chunks = chunks_on(&cluster, 0);
    cluster.isolate(2, true);
    assert_eq!(put(&chunks, chunk(0), b"bytes").await.unwrap().missed, [node_id(2)], "two of three have it");
    cluster.isolate(1, true);
    let error = put(&chunks, chunk(1), b"bytes").await.unwrap_err();
    assert!(matches!(error, ChunkError::Unavailable(_)), "{error}");
    cluster.set_alive(&[0]);
    let error = put(&chunks, chunk(2), b"bytes").await.unwrap_err();
    assert!(error.to_string().contains("1 of 3 wanted replicas are alive, 2 are needed"), "{error}");
    eventually("nothing is left", || nothing_left(&cluster) || holders(&cluster, chunk(0)) == [0, 1]).await;
    assert!(holders(&cluster, chunk(1)).is_empty() && holders(&cluster, chunk(2)).is_empty());
}

/// From before its first chunk until after its commit: a slow body shows nowhere else between two chunks.
#[tokio::test(start_paused = true)]
async fn content_is_told_of_as_long_as_it_is_being_written() {
    use crate::flow::put::{StoreRequest, store};

    let cluster = TestCluster::new(3, 3);
    let report = SelfReport::new();
    let chunks: Arc<dyn ChunkStore> = Arc::new(ReplicatedChunks::start(ReplicateParts {
        local: cluster.nodes[0].store.clone(),
        peers: Arc::new(cluster.network.peers_of(node_id(0))),
        view: cluster.nodes[0].view.clone(),
        repairs: Arc::<Repairs>::default(),
        self_report: report.clone(),
        reporter: None,
        options: ReplicateOptions::default(),
    }));
    let label = ChunkLabel {
        bucket: "b".into(),
        key: "k".into(),
        version: VersionId::NULL,
        part: None,
        content_size_bytes: 5,
        created_ms: 0,
        attributes: None,
        is_stub: false,
    };
    let request = StoreRequest { content: ContentId::generate(1_234), label, algorithms: vec![] };
    let body = futures::stream::iter([Ok(Bytes::from_static(b"bytes"))]).inspect(|_| {
        assert_eq!(report.oldest_write_seconds(), Some(1_234));
    });
    let stored = store(&chunks, request, body, |_| Ok(())).await.unwrap();
    let replicas =
        LocalReplicas::new(cluster.nodes[0].store.clone(), cluster.nodes[0].view.clone(), Default::default());
    let told = replicas.with_self_report(report.clone()).health(node_id(1)).await.unwrap();
    assert_eq!(told.oldest_write_seconds, Some(1_234), "not committed yet");
    let commit = async {
        assert_eq!(report.oldest_write_seconds(), Some(1_234));
        Ok(())
    };
    stored.settle(commit).await.unwrap();
    assert_eq!(report.oldest_write_seconds(), None);
}

/// The stub of a cold content is a chunk like others: on every replica, with the evidence that its commit is judged by,
/// and one deletion reaches all.
#[tokio::test(start_paused = true)]
async fn a_stub_is_on_every_replica_and_is_deleted_from_all() {
    use crate::flow::cold::stub::write_stub;
    use crate::ports::metadata::{Content, ContentPlace, ETag, MoveEnd};

    let cluster = TestCluster::new(4, 3);
    let chunks: Arc<dyn ChunkStore> = Arc::new(chunks_on(&cluster, 3));
    let id = ContentId::generate(1_234);
    let place = ColdPlace {
        tier: "OSS".parse().unwrap(),
        size_bytes: 5,
        piece_bytes: u64::from(BLOCK_BYTES_MIN),
        block_bytes: BLOCK_BYTES_MIN,
        names: vec!["piece".into()],
        sums: vec![1],
    };
    let content = Content {
        id,
        manifest: Manifest::single(id, 5),
        place: ContentPlace::Tier(Arc::new(place)),
        etag: ETag { md5: [1; 16], parts: None },
        checksum: None,
        parts: vec![],
    };
    let label = ChunkLabel {
        bucket: "b".into(),
        key: "k".into(),
        version: VersionId::NULL,
        part: None,
        content_size_bytes: 5,
        created_ms: 0,
        attributes: None,
        is_stub: true,
    };
    let stub = write_stub(&chunks, &content, label).await.unwrap();
    let chunk = id.chunk(STUB_INDEX);
    assert_eq!(stub.evidence.epochs, [(cluster.nodes[0].view.shard_of(&chunk), EPOCH)]);
    assert_eq!(stub.evidence.missed, []);
    assert_eq!(holders(&cluster, chunk), [0, 1, 2]);
    stub.settle(async { Ok(MoveEnd::Done) }).await.unwrap();
    chunks.delete(&[chunk]).await.unwrap();
    assert!(holders(&cluster, chunk).is_empty());
}

/// A cut of each way, before each step of a write.
#[tokio::test(start_paused = true)]
async fn cut_at_any_step_costs_one_replica_and_not_the_write() {
    for step in 0..4 {
        for (from, to) in [(0, 1), (1, 0)] {
            let cluster = TestCluster::new(3, 3);
            let chunks = chunks_on(&cluster, 0);
            let cut = |at| {
                if at == step {
                    cluster.network.set_cut(node_id(from), node_id(to), true);
                }
            };
            let data = pattern(3_000_000, step);
            cut(0);
            let mut sink = chunks.create(spec(chunk(0), data.len())).await.unwrap();
            cut(1);
            sink.write(&data[..2_000_000]).await.unwrap();
            cut(2);
            sink.write(&data[2_000_000..]).await.unwrap();
            sink.finish_input().unwrap();
            cut(3);
            let receipt = sink.finish().await.unwrap();
            let expected = if from == 0 { vec![node_id(1)] } else { vec![] };
            assert_eq!(receipt.missed, expected, "{from} to {to} cut at step {step}");
            assert!(get(&chunks, chunk(0), 0..3_000_000).await.unwrap() == data);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_peer_is_given_up_after_its_patience_and_sooner_the_next_time() {
    for stall in [Stall::Create, Stall::Send(0), Stall::Send(2 << 20), Stall::Finish] {
        let cluster = TestCluster::new(3, 3);
        let peers = Stalling::new(cluster.network.peers_of(node_id(0)));
        peers.set(node_id(1), Some(stall));
        let chunks = chunks_with(&cluster.nodes[0], Arc::new(peers.clone()), Arc::default());
        let data = pattern(16 << 20, 3);
        let begun = Instant::now();
        let receipt = put(&chunks, chunk(0), &data).await.unwrap();
        assert_eq!(receipt.missed, [node_id(1)], "{stall:?}");
        let first = begun.elapsed();
        assert!(first <= Duration::from_millis(2_200), "{stall:?} cost {first:?}");
        let begun = Instant::now();
        put(&chunks, chunk(1), &data).await.unwrap();
        let second = begun.elapsed();
        assert!(second <= Duration::from_millis(400), "{stall:?} cost {second:?} again");
        peers.set(node_id(1), None);
        tokio::time::sleep(LONG).await;
        assert_eq!(put(&chunks, chunk(2), &data).await.unwrap().missed, [], "{stall:?}");
        assert_eq!(chunks.shared.queued.available_permits(), feed::units(chunks.shared.options.queued_bytes_max));
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_peer_that_is_needed_is_waited_for_and_fails_the_write_in_the_end() {
    let cluster = TestCluster::new(2, 2);
    let peers = Stalling::new(cluster.network.peers_of(node_id(0)));
    peers.set(node_id(1), Some(Stall::Send(0)));
    let chunks = chunks_with(&cluster.nodes[0], Arc::new(peers), Arc::default());
    let begun = Instant::now();
    let error = put(&chunks, chunk(0), &pattern(16 << 20, 3)).await.unwrap_err();
    assert!(matches!(error, ChunkError::Unavailable(_)), "{error}");
    assert!(begun.elapsed() > Duration::from_secs(20));
    eventually("nothing is left", || nothing_left(&cluster)).await;
}

/// However many writes there are, what waits for a stalled peer stays within the node's budget, and the others are
/// written.
#[tokio::test(start_paused = true)]
async fn queued_bytes_are_bounded_and_a_stalled_peer_does_not_starve_the_others() {
    let cluster = TestCluster::new(3, 3);
    let peers = Stalling::new(cluster.network.peers_of(node_id(0)));
    peers.set(node_id(1), Some(Stall::Send(0)));
    let chunks = chunks_with(&cluster.nodes[0], Arc::new(peers), Arc::default());
    let total = feed::units(chunks.shared.options.queued_bytes_max);
    let data = pattern(8 << 20, 1);
    let writes = futures::future::join_all((0..16).map(|n| put(&chunks, chunk(n), &data)));
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let free = chunks.shared.queued.available_permits();
            assert!(free >= total / 2, "one stalled peer holds {} of {total} units", total - free);
        }
    };
    let begun = Instant::now();
    let receipts = tokio::select! {
        receipts = writes => receipts,
        () = watch => unreachable!(),
    };
    for receipt in receipts {
        assert_eq!(receipt.unwrap().missed, [node_id(1)]);
    }
    // Each write is patient once, side by side: the budget lets them through in a few turns.
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn epoch_raised_before_the_first_byte_is_planned_anew() {
    let cluster = TestCluster::new(3, 3);
    let chunks = chunks_on(&cluster, 0);
    // A replica has heard of the move; the map here shows it a moment later.
    cluster.nodes[1].view.hear(replica_write(chunk(0), 1, 2).fence);
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.set_map(&shard_on(&[0, 1, 2], 2));
    };
    let (receipt, ()) = tokio::join!(put(&chunks, chunk(0), b"bytes"), late);
    let receipt = receipt.unwrap();
    assert_eq!(receipt.fence.map(|(_, epoch)| epoch), Some(Epoch(2)));
    assert_eq!(receipt.missed, []);
    // A map that never shows it: the write is refused, in bounded time.
    cluster.nodes[2].view.hear(replica_write(chunk(1), 1, 9).fence);
    let error = put(&chunks, chunk(1), b"bytes").await.unwrap_err();
    assert!(matches!(error, ChunkError::Unavailable(_)), "{error}");
    eventually("nothing is left", || holders(&cluster, chunk(1)).is_empty()).await;
}

/// A chunk of five bytes of which all but the end of the write is done.
async fn written(chunks: &ReplicatedChunks) -> Box<dyn ChunkSink> {
    let mut sink = chunks.create(spec(chunk(0), 5)).await.unwrap();
    sink.write(b"bytes").await.unwrap();
    sink.finish_input().unwrap();
    sink
}

#[tokio::test(start_paused = true)]
async fn epoch_raised_during_a_write_refuses_it_and_takes_the_chunk_away() {
    for moved_at in 0..3 {
        let cluster = TestCluster::new(3, 3);
        let chunks = chunks_on(&cluster, 0);
        let sink = written(&chunks).await;
        cluster.nodes[moved_at].view.hear(replica_write(chunk(0), 1, 2).fence);
        let error = sink.finish().await.unwrap_err();
        assert!(matches!(&error, ChunkError::Unavailable(detail) if detail.contains("retry")), "{error}");
        eventually("the chunk is gone", || nothing_left(&cluster)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn coordinator_that_is_fenced_before_the_answer_does_not_give_it() {
    for through in [0, 3] {
        let cluster = TestCluster::new(4, 3);
        let chunks = chunks_on(&cluster, through);
        let sink = written(&chunks).await;
        cluster.nodes[through].ownership.revoke();
        let error = sink.finish().await.unwrap_err();
        assert!(matches!(error, ChunkError::Unavailable(_)), "{error}");
        eventually("the chunk is gone", || nothing_left(&cluster)).await;
    }
}

/// The write is stopped in every operation of every store, and dropped there.
#[tokio::test(start_paused = true)]
async fn write_dropped_at_any_await_leaves_nothing_anywhere() {
    for stalling in 0..3 {
        for through in [0, 3] {
            // create, as many writes as there are slices here or pieces there, finish.
            let operations = if stalling == through { 7 } else { 4 };
            for operation in 0..operations {
                let stores = (0..4).map(|index| {
                    let store = if index == stalling {
                        MemoryChunkStore::stalling_at(operation)
                    } else {
                        MemoryChunkStore::new()
                    };
                    Arc::new(store)
                });
                let cluster = TestCluster::with_stores(stores.collect(), 3);
                let chunks = chunks_on(&cluster, through);
                let data = pattern(1_500_000, 0);
                let write = put(&chunks, chunk(0), &data);
                tokio::select! {
                    biased;
                    () = cluster.nodes[stalling].store.stalled() => {}
                    result = write => {
                        // The others were enough before the stall was reached.
                        let receipt = result.unwrap();
                        assert!(receipt.missed.len() <= 1);
                        chunks.delete(&[chunk(0)]).await.unwrap();
                    }
                }
                eventually("nothing is left", || nothing_left(&cluster)).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sizes_are_enforced_without_a_local_replica_too() {
    for through in [0, 1] {
        let cluster = TestCluster::new(2, 1);
        let chunks = chunks_on(&cluster, through);
        let mut sink = chunks.create(spec(chunk(0), 10)).await.unwrap();
        sink.write(&[0; 9]).await.unwrap();
        assert!(matches!(sink.finish_input(), Err(ChunkError::Invalid(_))));
        assert!(matches!(sink.write(&[0; 2]).await, Err(ChunkError::Invalid(_))));
        drop(sink);
        eventually("nothing is left", || nothing_left(&cluster)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_reaches_every_replica_that_can_be_reached() {
    let cluster = TestCluster::new(4, 3);
    let chunks = chunks_on(&cluster, 3);
    for index in 0..3 {
        put(&chunks, chunk(index), b"bytes").await.unwrap();
    }
    cluster.isolate(1, true);
    chunks.delete(&[chunk(0), chunk(1), chunk(9)]).await.unwrap();
    for index in 0..2 {
        assert_eq!(holders(&cluster, chunk(index)), [1], "what cannot be reached keeps it");
    }
    assert_eq!(holders(&cluster, chunk(2)), [0, 1, 2]);
}
