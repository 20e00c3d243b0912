//! Disks that fail while their node runs.

use std::time::Duration;

use bytes::Bytes;
use holdfast_actors::domain::admission::DiskHealth;
use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::chunks::ReplicaStore as _;
use holdfast_actors::ports::chunks::memory::Fault;
use holdfast_actors::service::cluster::ClusterSettings;
use holdfast_protocol::{ChunkId, ContentId};

use super::world::{World, eventually, id, settings};
use super::{chunk_and_outsider, slow_to_give_up};

/// Some of what a node holds.
fn half_of(world: &World, node: u64) -> Vec<ChunkId> {
    world.stores[&node].list(None, 1_000).into_iter().map(|info| info.id).step_by(2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lay_on_a_disk_that_failed_is_rebuilt_and_not_called_proven_before() {
    let world = World::new(3, slow_to_give_up()).await;
    world.put_many(40, 700).await;
    world.settle("the cluster is healthy").await;
    let chunks = half_of(&world, 2);
    world.nodes[&2].handle.pause_repairs();
    world.stores[&2].fail_disk_of(&chunks);
    let doubted = async || {
        for node in world.nodes.values() {
            let verdicts = node.handle.verified_everywhere().await;
            if let Some((shard, _)) = verdicts.iter().find(|(_, verdict)| verdict.is_ok()) {
                return Err(format!("node {} calls shard {shard} proven", node.id));
            }
        }
        let backlog = world.metadata.repair_backlog().await.map_err(|error| error.to_string())?;
        if backlog == [(id(2), chunks.len() as u64)] { Ok(()) } else { Err(format!("{backlog:?}")) }
    };
    eventually("every node hears of it, and repairs are queued", doubted).await;
    let epochs: Vec<_> = world.shards().values().map(|state| state.epoch).collect();
    world.nodes[&2].handle.resume_repairs();
    world.settle("it is on the disk that works").await;
    assert!(chunks.iter().all(|chunk| !world.stores[&2].is_stranded(*chunk)));
    let after: Vec<_> = world.shards().values().map(|state| state.epoch).collect();
    assert_eq!(after, epochs, "nothing has to move");
    world.stop().await;
}

/// Whoever looks meanwhile would stop a node that is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_failed_is_told_at_once_and_nobody_who_heard_of_it_calls_its_shards_proven() {
    let never = ClusterSettings { announce_interval: Duration::from_secs(3_600), ..slow_to_give_up() };
    let world = World::new(3, never).await;
    world.put_many(20, 700).await;
    world.settle("the cluster is healthy").await;
    world.nodes[&2].handle.pause_repairs();
    world.stores[&2].fail_disk_of(&half_of(&world, 2));
    for node in world.nodes.values() {
        let heard = async || if node.view.is_short(id(2)) { Ok(()) } else { Err(format!("not node {}", node.id)) };
        eventually("it is told", heard).await;
        let verdicts =
            node.handle.verified_everywhere().await.into_values().chain(node.handle.verified().into_values());
        let proven = verdicts.filter(Result::is_ok).count();
        assert_eq!(proven, 0, "node {} calls shards proven", node.id);
    }
    world.nodes[&2].handle.resume_repairs();
    world.settle("it is on the disk that works").await;
    world.stop().await;
}

/// Nobody else has it any more, and the disk can still be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_replica_of_something_is_taken_from_a_disk_that_failed() {
    let world = World::new(3, slow_to_give_up()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    for node in [1, 3] {
        world.stores[&node].delete(&[chunk]).await.expect("deleted");
    }
    world.stores[&2].fail_disk_of(&[chunk]);
    let saved = async || if world.stores[&2].is_stranded(chunk) { Err("not yet".to_owned()) } else { Ok(()) };
    eventually("it is on the disk that works", saved).await;
    world.compare();
    world.settle("the others have it again").await;
    world.stop().await;
}

/// A damaged copy hides nothing: reads of a client find the whole one, and so does the repair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_on_a_disk_that_works_is_taken_from_one_that_failed() {
    let world = World::new(3, slow_to_give_up()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    for node in [1, 3] {
        world.stores[&node].delete(&[chunk]).await.expect("deleted");
    }
    world.stores[&2].corrupt_beside_failed_disk(chunk);
    world.nodes[&2].findings.push(chunk);
    let whole = async || world.stores[&2].verify(chunk).await.map(drop).map_err(|error| error.to_string());
    eventually("it is whole on the disk that works", whole).await;
    world.compare();
    world.settle("the others have it again").await;
    world.stop().await;
}

/// A read goes on with the disk that failed where the one that works gives nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_disk_that_failed_reads_back_is_not_repaired() {
    let world = World::new(3, slow_to_give_up()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    world.stores[&2].fail(Fault::Keep, 0);
    world.stores[&2].fail_disk_of(&[chunk]);
    // A copy that is damaged from the start would not be found out again.
    world.settle("it is whole on the disk that works").await;
    assert!(world.nodes[&2].handle.repairs().failures > 0, "what was not kept was taken for kept");
    world.stop().await;
}

/// The disk cannot be read any more, one node has none, and the one that has it cannot be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_that_cannot_be_asked_is_not_called_gone() {
    let world = World::new(3, slow_to_give_up()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    world.isolate(3, true);
    world.stores[&1].delete(&[chunk]).await.expect("deleted");
    world.stores[&2].corrupt(chunk);
    world.stores[&2].fail_disk_of(&[chunk]);
    let tried = async || {
        let status = world.nodes[&2].handle.repairs();
        if status.last_errors.is_empty() { Err(format!("{status:?}")) } else { Ok(status.last_errors) }
    };
    for error in eventually("a repair fails", tried).await {
        assert!(!error.contains("is on no node"), "{error}");
    }
    world.isolate(3, false);
    let saved = async || if world.stores[&2].is_stranded(chunk) { Err("not yet".to_owned()) } else { Ok(()) };
    eventually("it is on the disk that works", saved).await;
    world.compare();
    world.settle("all have it again").await;
    world.stop().await;
}

/// One of three members lacks it, and one has it on a disk that will be gone with the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leftover_does_not_go_for_what_a_member_has_on_a_disk_that_failed() {
    let world = World::new(4, slow_to_give_up()).await;
    let (chunk, payload, holders, outsider) = chunk_and_outsider(&world).await;
    holders.iter().for_each(|node| world.nodes[node].handle.pause_repairs());
    world.stores[&holders[0]].delete(&[chunk]).await.expect("deleted");
    world.stores[&holders[1]].fail_disk_of(&[chunk]);
    let short = id(holders[1]);
    let heard = async || if world.nodes[&outsider].view.is_short(short) { Ok(()) } else { Err("not yet".to_owned()) };
    eventually("the outsider hears of the disk", heard).await;
    world.stores[&outsider].insert(chunk, payload);
    let kept = async || {
        let kept = world.nodes[&outsider].handle.rebuild().leftovers_kept;
        if kept > 0 { Ok(()) } else { Err(format!("{kept} are kept")) }
    };
    eventually("it is looked at, and kept", kept).await;
    assert!(world.stores[&outsider].stat(chunk).is_some());
    holders.iter().for_each(|node| world.nodes[node].handle.resume_repairs());
    world.settle("the members have it, the outsider has not").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_which_every_disk_failed_is_replaced_though_it_lives() {
    let world = World::new(4, settings()).await;
    world.put_many(60, 700).await;
    world.settle("the cluster is healthy").await;
    world.stores[&2].fail_all_disks();
    let replaced = async || {
        let holds = world.shards().values().filter(|state| state.write_set().any(|node| node == id(2))).count();
        if holds == 0 { world.settled().await } else { Err(format!("it still has {holds} shards")) }
    };
    eventually("its shards are rebuilt on the others", replaced).await;
    world.check_nothing_is_lost().await;
    world.stop().await;
}

/// It is not fenced, since it may be back in a moment, with everything that is on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disks_are_silent_alone_is_replaced_and_has_a_part_again_when_they_answer() {
    let soon = ClusterSettings { give_up_silent_after: Some(Duration::from_millis(100)), ..settings() };
    let world = World::new(4, soon).await;
    world.put_many(60, 700).await;
    world.settle("the cluster is healthy").await;
    let held = || world.shards().values().filter(|state| state.write_set().any(|node| node == id(2))).count();
    // What was deleted meanwhile is on the disks that are silent still, and in lists. Nobody can give it.
    for _ in 0..60 {
        world.stores[&2].insert(ContentId::generate(1).chunk(0), Bytes::from_static(b"deleted elsewhere"));
    }
    world.stores[&2].refuse_reads(true);
    world.disks[&2].tell(DiskHealth::Unresponsive);
    let replaced = async || match held() {
        0 => world.settled().await,
        shards => Err(format!("it still has {shards} shards")),
    };
    eventually("its shards are rebuilt on the others", replaced).await;
    world.check_nothing_is_lost().await;
    assert!(world.nodes[&2].handle.membership().registered, "it lives, and is asked for what only it has");
    world.stores[&2].refuse_reads(false);
    world.disks[&2].tell(DiskHealth::Healthy);
    let back = async || match held() {
        0 => Err("it has no shard yet".to_owned()),
        _ => world.settled().await,
    };
    eventually("it has its part again", back).await;
    world.check_nothing_is_lost().await;
    world.stop().await;
}
