//! Damage, gaps and differences are found and mended, and nothing is deleted for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::chunks::ReplicaStore as _;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::service::cluster::ClusterSettings;
use holdfast_protocol::{ContentId, ShardId};

use super::world::{SHARDS, World, eventually, id, settings};
use super::{members, slow_to_give_up};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_looks_at_the_disk_and_not_at_the_memory() {
    let world = World::new(3, settings()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    let node = members(&world, chunk)[1];
    world.stores[&node].rot_beneath_memory(chunk);
    world.nodes[&node].findings.push(chunk);
    let healed = async || {
        let status = world.nodes[&node].handle.repairs();
        if status.done == 1 { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("the repair ends", healed).await;
    assert_eq!(world.nodes[&node].handle.repairs().bytes, 5_000, "good pages hid the rot");
    world.settle("it is whole again").await;
    world.stop().await;
}

/// Chunks are durable before their content is committed; damage that is found in between is healed, not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_a_chunk_that_is_not_committed_yet_is_repaired_too() {
    let world = World::new(3, settings()).await;
    let chunk = ContentId::generate(1).chunk(0);
    for store in world.stores.values() {
        store.insert(chunk, bytes::Bytes::from_static(b"not committed yet"));
    }
    world.stores[&2].corrupt(chunk);
    world.nodes[&2].findings.push(chunk);
    let whole = async || world.stores[&2].verify(chunk).await.map(drop).map_err(|error| error.to_string());
    eventually("it is whole again", whole).await;
    world.settle("no repair waits").await;
    world.stop().await;
}

/// Whoever holds it may be about to delete what its fence refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_waits_for_whoever_is_at_work_on_the_chunk() {
    let world = World::new(3, settings()).await;
    let chunk = world.put(5_000).await;
    let node = members(&world, chunk)[0];
    let lock = world.nodes[&node].chunk_locks.lock_within(chunk, Duration::ZERO).await.expect("nobody else has it");
    world.metadata.queue_repairs(&[(chunk, id(node))], 1).await.expect("queued");
    world.nodes[&node].handle.wake_repairs();
    let waits = async || {
        let status = world.nodes[&node].handle.repairs();
        assert_eq!(status.done, 0, "{status:?}");
        if status.last_errors.iter().any(|error| error.contains("being written")) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    };
    eventually("the repair is put off", waits).await;
    world.stores[&node].delete(&[chunk]).await.expect("deleted");
    drop(lock);
    world.settle("it is there again").await;
    assert_eq!(world.nodes[&node].handle.repairs().bytes, 5_000);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_a_disk_finds_is_repaired_from_another_node() {
    let world = World::new(3, settings()).await;
    let chunk = world.put(5_000).await;
    world.put_many(20, 300).await;
    let node = members(&world, chunk)[1];
    world.nodes[&node].handle.pause_repairs();
    world.stores[&node].corrupt(chunk);
    world.nodes[&node].findings.push(chunk);
    let queued = async || {
        let backlog = world.metadata.repair_backlog().await.map_err(|e| e.to_string())?;
        if backlog == [(id(node), 1)] { Ok(()) } else { Err(format!("{backlog:?}")) }
    };
    eventually("a repair is queued", queued).await;
    let status = world.nodes[&node].handle.repairs();
    assert!(status.paused && status.done == 0, "{status:?}");
    world.nodes[&node].handle.resume_repairs();
    world.settle("it is whole again").await;
    let status = world.nodes[&node].handle.repairs();
    assert_eq!((status.done, status.bytes), (1, 5_000), "{status:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_deletes_nothing_before_it_has_another() {
    let world = World::new(3, settings()).await;
    let chunk = world.put(5_000).await;
    let holders = members(&world, chunk);
    for node in &holders {
        world.stores[node].corrupt(chunk);
    }
    world.metadata.queue_repairs(&[(chunk, id(holders[0]))], 1).await.expect("queued");
    world.nodes[&holders[0]].handle.wake_repairs();
    let failed = async || {
        let failures = world.nodes[&holders[0]].handle.repairs().failures;
        if failures > 1 { Ok(()) } else { Err(format!("{failures} failures")) }
    };
    eventually("nobody has it whole", failed).await;
    assert!(world.stores[&holders[0]].stat(chunk).is_some(), "what is damaged is better than nothing");
    // What nothing knows needs no repair.
    let unknown = ContentId::generate(1).chunk(0);
    world.metadata.queue_repairs(&[(unknown, id(holders[0]))], 1).await.expect("queued");
    let forgotten = async || {
        let needless = world.nodes[&holders[0]].handle.repairs().needless;
        if needless == 1 { Ok(()) } else { Err(format!("{needless} were needless")) }
    };
    eventually("it is forgotten", forgotten).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_difference_is_found_and_healed_and_until_then_not_called_verified() {
    let world = World::new(4, settings()).await;
    world.put_many(60, 400).await;
    world.settle("the cluster is healthy").await;
    let chunk = *world.written.lock().keys().next().expect("a chunk");
    let shard = ShardId::of_chunk(&chunk, SHARDS);
    let holders = members(&world, chunk);
    let loser = holders[2];
    world.nodes[&loser].handle.pause_repairs();
    world.stores[&loser].delete(&[chunk]).await.expect("deleted");
    // An orphan differs too, and is nobody's loss.
    world.stores[&loser].insert(ContentId::generate(1).chunk(0), bytes::Bytes::from_static(b"orphan"));
    world.compare();
    let found = async || {
        let verdicts: BTreeMap<_, _> = world.nodes.values().flat_map(|n| n.handle.verified()).collect();
        if verdicts[&shard].is_err() { Ok(()) } else { Err("it is called verified".into()) }
    };
    eventually("the difference is found", found).await;
    for node in world.nodes.values() {
        let everywhere = node.handle.verified_everywhere().await;
        assert_eq!(everywhere.len(), SHARDS as usize);
        assert!(everywhere[&shard].is_err(), "node {} does not know what another one found", node.id);
    }
    // A comparer that cannot be asked has proven nothing.
    let comparer = world.nodes[&holders[1]].handle.comparer(&world.shards()[&shard]).expect("a live member");
    let asker = world.nodes.values().find(|node| node.id != comparer).expect("another node");
    world.network.set_cut(asker.id, comparer, true);
    let verdicts = asker.handle.verified_everywhere().await;
    assert!(verdicts.values().any(|v| v.as_ref().is_err_and(|why| why.contains("cannot be asked"))), "{verdicts:?}");
    world.network.set_cut(asker.id, comparer, false);
    world.nodes[&loser].handle.resume_repairs();
    world.settle("it is healed").await;
    world.stop().await;
}

/// A comparison proves nothing of what its members hold after that, and a node that starts again may have lost a disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_with_less_is_compared_anew() {
    let mut world = World::new(3, slow_to_give_up()).await;
    // So few that the node does not take its replicas for lost as a whole.
    world.put_many(24, 200).await;
    world.settle("the cluster is healthy").await;
    let chunk = *world.written.lock().keys().next().expect("a chunk");
    // Not the one that compares the shard: that does so at its start.
    let last = world.shards()[&ShardId::of_chunk(&chunk, SHARDS)].members[2];
    let node = (1..=3).find(|node| id(*node) == last).expect("one of the three");
    world.kill(node).await;
    world.stores.insert(node, Arc::new(MemoryChunkStore::new()));
    world.start(node).await;
    world.settle("it has again what it held").await;
    world.stop().await;
}

/// Else its peers would say that they may be stopped, for as long as a comparison takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_is_doubted_while_comparisons_go_on() {
    let endless = Duration::from_secs(3_600);
    let mut world = World::new(3, ClusterSettings { comparison_settle: endless, ..slow_to_give_up() }).await;
    world.settle("the cluster is healthy").await;
    // Only some have it: whoever compares its shard looks again after a pause.
    let chunk = ContentId::generate(1).chunk(0);
    let shard = ShardId::of_chunk(&chunk, SHARDS);
    let comparer = world.shards()[&shard].members[0];
    let comparer = (1..=3).find(|node| id(*node) == comparer).expect("one of the three");
    world.stores[&comparer].insert(chunk, bytes::Bytes::from_static(b"orphan"));
    world.nodes[&comparer].handle.start_comparison();
    let pausing = async || {
        let status = world.nodes[&comparer].handle.comparison();
        if status.running && status.waiting == 1 { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("one comparison is under way", pausing).await;
    let other = comparer % 3 + 1;
    world.kill(other).await;
    world.start(other).await;
    let doubted = async || {
        let verdicts = world.nodes[&comparer].handle.verified();
        if verdicts.values().all(Result::is_err) { Ok(()) } else { Err(format!("{verdicts:?}")) }
    };
    eventually("nothing is proven of a member that came back", doubted).await;
    world.stop().await;
}

/// A chunk never changes: whichever has another size than the others is wrong, though its checksums are right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_of_another_size_than_the_others_is_a_difference_and_is_replaced() {
    let world = World::new(3, slow_to_give_up()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    let node = members(&world, chunk)[1];
    world.stores[&node].delete(&[chunk]).await.expect("deleted");
    world.stores[&node].insert(chunk, bytes::Bytes::from_static(b"short"));
    world.compare();
    world.settle("it is what the others have").await;
    assert_eq!(world.nodes[&node].handle.repairs().bytes, 5_000);
    world.stop().await;
}

/// Others were away when much was deleted. What nothing knows any more is nobody's loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lacks_only_what_was_deleted_is_not_given_up() {
    let mut world = World::new(3, slow_to_give_up()).await;
    world.put_many(300, 50).await;
    world.settle("the cluster is healthy").await;
    let mut known: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
    for chunk in world.written.lock().keys() {
        known.entry(ShardId::of_chunk(chunk, SHARDS)).or_default().push(*chunk);
    }
    // One that is lost indeed, so that it is seen when all were looked at: reports are made in the order of the shards.
    let lost = *known.iter().rfind(|(_, chunks)| chunks.len() > 20).expect("of 300 chunks in 12 shards").0;
    let sound = *known.keys().find(|shard| **shard < lost).expect("another shard");
    let mut deleted = BTreeSet::new();
    while deleted.len() < 2 * known[&sound].len() + 40 {
        let chunk = ContentId::generate(1).chunk(0);
        if ShardId::of_chunk(&chunk, SHARDS) == sound && deleted.insert(chunk) {
            [1, 3].iter().for_each(|node| world.stores[node].insert(chunk, bytes::Bytes::from_static(b"deleted")));
        }
    }
    world.kill(2).await;
    world.stores[&2].delete(&known[&lost]).await.expect("deleted");
    world.start(2).await;
    let joined_anew = async || {
        let epoch = world.shards()[&lost].epoch.0;
        if epoch > 1 { Ok(()) } else { Err("its loss was not told".to_owned()) }
    };
    eventually("what is lost is joined anew", joined_anew).await;
    world.settle("it is whole again").await;
    assert_eq!(world.shards()[&sound].epoch.0, 1, "a sound replica was given up");
    world.stop().await;
}
