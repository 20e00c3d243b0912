//! Random interleavings of writes, reads, cuts, moves of shards and restarts. Afterwards every acknowledged chunk is
//! whole on members of its epoch that intersect every quorum, so that whoever lists all live members of a shard finds
//! it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::flow::test_cluster::{chunk, pattern, shard_on};
use crate::ports::peers::{Fence, ReplicaService as _};

const NODES: usize = 5;
const MEMBERS: usize = 3;

/// What the commit of a chunk would have known.
struct Acknowledged {
    epoch: Epoch,
    members: Vec<usize>,
    missed: Vec<NodeId>,
    data: Bytes,
}

fn size_of(rng: &mut StdRng) -> usize {
    *[1, 4_096, 70_000, 1_500_000].choose(rng).unwrap()
}

async fn simulate(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = TestCluster::new(NODES, MEMBERS);
    let mut members: Vec<usize> = (0..MEMBERS).collect();
    let mut epoch = 1;
    let mut acknowledged: BTreeMap<ChunkId, Acknowledged> = BTreeMap::new();
    let mut next = 0;
    for _ in 0..60 {
        match rng.random_range(0..10) {
            0..5 => {
                // Some writes at once, with a fault in their midst.
                let mut writes = vec![];
                for _ in 0..rng.random_range(1..4) {
                    let through = rng.random_range(0..NODES);
                    let data = pattern(size_of(&mut rng), next);
                    let chunks = chunks_on(&cluster, through);
                    let id = chunk(next);
                    next += 1;
                    writes.push(async move { (id, put(&chunks, id, &data).await, data) });
                }
                let (cut, raised) = (rng.random_bool(0.3), rng.random_bool(0.2));
                let (a, b) = (rng.random_range(0..NODES), rng.random_range(0..NODES));
                let pause = Duration::from_millis(rng.random_range(0..3));
                let before = epoch;
                let fault = async {
                    tokio::time::sleep(pause).await;
                    if cut {
                        cluster.network.set_cut(node_id(a), node_id(b), true);
                    }
                    if raised {
                        // A joiner lists a replica under a later epoch, of which the map here does not know yet.
                        let fence =
                            Fence { shard: cluster.nodes[0].view.shard_of(&chunk(0)), epoch: Epoch(before + 1) };
                        cluster.nodes[members[0]].view.hear(fence);
                    }
                };
                let (done, ()) = tokio::join!(futures::future::join_all(writes), fault);
                for (id, result, data) in done {
                    let Ok(ChunkReceipt { fence, missed }) = result else { continue };
                    let (_, epoch) = fence.unwrap();
                    acknowledged.insert(id, Acknowledged { epoch, members: members.clone(), missed, data });
                }
                if raised {
                    epoch += 1;
                    cluster.set_map(&shard_on(&members, epoch));
                }
            }
            5 => {
                let (a, b) = (rng.random_range(0..NODES), rng.random_range(0..NODES));
                cluster.network.set_cut(node_id(a), node_id(b), true);
            }
            6 => {
                for a in 0..NODES {
                    cluster.isolate(a, false);
                }
            }
            7 => cluster.restart(rng.random_range(0..NODES)),
            8 => {
                // One mirror is late by an epoch that changes nothing but the number.
                epoch += 1;
                let late = rng.random_range(0..NODES);
                for (index, node) in cluster.nodes.iter().enumerate() {
                    if index != late {
                        node.set_map(&shard_on(&members, epoch));
                    }
                }
            }
            _ => {
                // A read sees the chunk's bytes or fails; it never sees others.
                let Some((id, chunk)) = acknowledged.iter().nth(rng.random_range(0..acknowledged.len().max(1))) else {
                    continue;
                };
                let chunks = chunks_on(&cluster, rng.random_range(0..NODES));
                if let Ok(read) = get(&chunks, *id, 0..chunk.data.len() as u32).await {
                    assert!(read == chunk.data, "seed {seed}: chunk {id} has other bytes");
                }
            }
        }
        if rng.random_bool(0.1) {
            epoch += 1;
            members.rotate_left(1);
            cluster.set_map(&shard_on(&members, epoch));
        }
    }
    for index in 0..NODES {
        cluster.isolate(index, false);
        cluster.network.set_cut(node_id(index), node_id(index), false);
    }
    epoch += 1;
    cluster.set_map(&shard_on(&members, epoch));
    tokio::time::sleep(LONG).await;
    assert!(cluster.nodes.iter().all(|node| node.store.sinks_open() == 0), "seed {seed}: a sink is left");
    for (id, chunk) in &acknowledged {
        // The members that acknowledged, by the receipt, have it still: nothing that a fence refused later was counted.
        let holders: Vec<_> = chunk.members.iter().filter(|m| !chunk.missed.contains(&node_id(**m))).collect();
        assert!(holders.len() > chunk.members.len() / 2, "seed {seed}: {id} of epoch {} has no quorum", chunk.epoch);
        for index in holders {
            let stored = cluster.nodes[*index].store.payload(*id);
            assert!(stored.as_ref() == Some(&chunk.data), "seed {seed}: {id} is not on node {index}");
        }
        for through in 0..NODES {
            let read = get(&chunks_on(&cluster, through), *id, 0..chunk.data.len() as u32).await;
            assert!(read.unwrap_or_else(|e| panic!("seed {seed}: {id}: {e}")) == chunk.data, "seed {seed}: {id}");
        }
    }
    // Whoever lists a majority of the members under the last epoch finds all of them.
    let mut listed = std::collections::BTreeSet::new();
    for index in members.iter().take(MEMBERS / 2 + 1) {
        let node = &cluster.nodes[*index];
        for shard in (0..crate::flow::test_cluster::SHARDS).map(holdfast_protocol::ShardId) {
            let fence = Fence { shard, epoch: Epoch(epoch) };
            let page = node.replicas.list(node_id(9), fence, None, 4_096).await.unwrap();
            listed.extend(page.into_iter().map(|info| info.id));
        }
    }
    assert!(acknowledged.keys().all(|id| listed.contains(id)), "seed {seed}: a joiner would not find every chunk");
}

#[tokio::test(start_paused = true)]
async fn acknowledged_chunks_survive_random_faults() {
    let seeds = match std::env::var("HOLDFAST_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_TEST_SEED is a number")],
        Err(_) => (0..12_u64).collect(),
    };
    for seed in seeds {
        println!("seed {seed}");
        simulate(seed).await;
    }
}
