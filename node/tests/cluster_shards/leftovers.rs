//! What a node that left a shard still has goes only once the members have it.

use std::time::Duration;

use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::chunks::memory::Fault;
use holdfast_actors::service::cluster::ClusterSettings;
use holdfast_protocol::ContentId;
use holdfast_protocol::cluster::Layout;

use super::world::{World, eventually, id, settings};
use super::{chunk_and_outsider, slow_to_give_up};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_go_only_once_the_members_have_them() {
    let mut world = World::new(4, settings()).await;
    let (chunk, payload, holders, outsider) = chunk_and_outsider(&world).await;
    // The only whole replica lies where it should not: it is what the members get it from.
    for node in &holders {
        world.nodes[node].handle.pause_repairs();
        world.stores[node].delete(&[chunk]).await.expect("deleted");
    }
    world.stores[&outsider].insert(chunk, payload);
    let orphan = ContentId::generate(1).chunk(0);
    world.stores[&outsider].insert(orphan, bytes::Bytes::from_static(b"orphan"));
    world.kill(outsider).await;
    world.start(outsider).await;
    let kept = async || {
        let kept = world.nodes[&outsider].handle.rebuild().leftovers_kept;
        let waiting = world.metadata.repair_backlog().await.map_err(|e| e.to_string())?.len();
        if kept > 0 && waiting == 3 { Ok(()) } else { Err(format!("{kept} are kept, {waiting} members repair")) }
    };
    eventually("it is kept and queued for the members", kept).await;
    assert!(world.stores[&outsider].stat(chunk).is_some());
    for node in &holders {
        world.nodes[node].handle.resume_repairs();
    }
    world.settle("the members have it, the outsider has not").await;
    world.stop().await;
}

/// What a member has found damaged is in its index all the same, and who left may have the last whole copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_members_are_to_repair_is_no_copy_for_which_a_leftover_goes() {
    let mut world = World::new(4, settings()).await;
    let (chunk, payload, holders, outsider) = chunk_and_outsider(&world).await;
    for node in &holders {
        world.nodes[node].handle.pause_repairs();
        world.stores[node].corrupt(chunk);
        world.nodes[node].findings.push(chunk);
    }
    let queued = async || {
        let backlog = world.metadata.repair_backlog().await.map_err(|e| e.to_string())?;
        if backlog.len() == 3 { Ok(()) } else { Err(format!("{backlog:?}")) }
    };
    eventually("the members find out", queued).await;
    world.kill(outsider).await;
    world.stores[&outsider].insert(chunk, payload);
    world.start(outsider).await;
    let kept = async || {
        assert!(world.stores[&outsider].stat(chunk).is_some(), "the last whole copy is deleted");
        let kept = world.nodes[&outsider].handle.rebuild().leftovers_kept;
        if kept > 0 { Ok(()) } else { Err("it was not looked at".to_owned()) }
    };
    eventually("it is kept", kept).await;
    for node in &holders {
        world.nodes[node].handle.resume_repairs();
    }
    world.settle("the members have it whole, the outsider has not").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_that_is_to_be_left_is_read_before_the_others_go() {
    let world = World::new(3, settings()).await;
    let chunk = world.put(5_000).await;
    world.settle("the cluster is healthy").await;
    let payload = world.written.lock()[&chunk].clone();
    // It rotted, and nobody has found out yet.
    world.nodes[&1].handle.pause_repairs();
    world.stores[&1].corrupt(chunk);
    let only_one = |layout: &mut Layout| {
        layout.replication_factor = 1;
        layout.nodes.retain(|node, _| *node == id(1));
    };
    world.apply(only_one).await;
    let found = async || {
        let backlog = world.metadata.repair_backlog().await.map_err(|e| e.to_string())?;
        if backlog == [(id(1), 1)] { Ok(()) } else { Err(format!("{backlog:?}")) }
    };
    eventually("who is about to delete it finds out", found).await;
    assert_eq!(world.copies(chunk, &payload).await, [2, 3]);
    world.nodes[&1].handle.resume_repairs();
    let moved = async || {
        let copies = world.copies(chunk, &payload).await;
        if copies == [1] { Ok(()) } else { Err(format!("it lies on {copies:?}")) }
    };
    eventually("it is whole where it is to be, and nowhere else", moved).await;
    world.stop().await;
}

/// The walks between those that follow a failure are an hour apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_deleted_is_tried_again_soon() {
    let seldom = ClusterSettings { leftovers_interval: Duration::from_secs(3_600), ..slow_to_give_up() };
    let mut world = World::new(4, seldom).await;
    let (chunk, payload, _, outsider) = chunk_and_outsider(&world).await;
    world.kill(outsider).await;
    world.stores[&outsider].insert(chunk, payload);
    world.stores[&outsider].fail(Fault::Delete, 0);
    world.start(outsider).await;
    let gone = async || {
        let is_there = world.stores[&outsider].stat(chunk).is_some();
        if is_there { Err(format!("{:?}", world.nodes[&outsider].handle.rebuild())) } else { Ok(()) }
    };
    eventually("it is deleted after all", gone).await;
    world.settle("all is well").await;
    world.stop().await;
}
