//! Nodes that register, are cut off, taken for stopped or refused, and what the next controller says.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_actors::ports::coordination::{CacheMode, CacheSeen, Coordination as _, FILLING, LeaseName, NodeState};
use holdfast_actors::service::cluster::{self, LoopKind};
use holdfast_actors::wait::PATIENCE;
use holdfast_protocol::{Epoch, ShardId};

use super::world::{SHARDS, World, assign, eventually, id, settings};
use super::{holds_nothing, slow_to_give_up};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_session_ended_registers_again() {
    let world = World::new(3, slow_to_give_up()).await;
    let node = &world.nodes[&2];
    let before = node.handle.membership();
    node.coordination.cut();
    world.session_ends(2).await;
    node.coordination.restore();
    world.registers_again(2, before.incarnation).await;
    // These nodes have no cache: whoever switches it on is overruled.
    let off = world.overruled_cache().await;
    assert_eq!(off.mode, CacheMode::Off, "{off:?}");
    let generation = off.generation;
    world.admin.cache_generation_seen(generation, PATIENCE).await.expect("every node acknowledges at once");
    world.settle("the cluster is healthy").await;
    world.stop().await;
}

/// By the sessions all nodes are stopped, and one only stood still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_taken_for_stopped_stays_away_while_a_tool_fills_the_metadata() {
    let world = World::new(3, slow_to_give_up()).await;
    let node = &world.nodes[&2];
    let before = node.handle.membership();
    let name = LeaseName::new(FILLING).expect("a name");
    let lease = world.admin.acquire(&name, id(9)).await.expect("a lease");
    let mut leases = node.coordination.leases();
    let seen = leases.wait_for(|leases| leases.contains_key(FILLING));
    tokio::time::timeout(PATIENCE, seen).await.expect("in time").expect("the table");
    node.coordination.cut();
    world.session_ends(2).await;
    node.coordination.restore();
    let away = async || {
        let now = node.handle.membership();
        let knows = now.last_error.as_ref().is_some_and(|error| error.contains("fills the metadata"));
        if knows && !now.registered { Ok(()) } else { Err(format!("{now:?}")) }
    };
    eventually("it stays away", away).await;
    assert!(!node.coordination.ownership().is_proven(), "it may act as a member");
    lease.release().await;
    world.registers_again(2, before.incarnation).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordination_service_that_was_set_back_is_named_by_the_next_controller() {
    let mut world = World::new(3, slow_to_give_up()).await;
    world.put_many(5, 100).await;
    let controller = world.a_controller().await;
    let told = world.nodes[&controller].handle.controller().map(|status| status.set_back);
    assert_eq!(told, Some(BTreeSet::new()));
    // The shard moved, and what was written down of it is gone.
    let shard = ShardId(3);
    assert_eq!(world.metadata.raise_epochs(&[(shard, Epoch(99))]).await.expect("raised"), []);
    world.kill(controller).await;
    let named = async || {
        let statuses = world.nodes.values().filter_map(|node| node.handle.controller());
        let told: Vec<_> = statuses.map(|status| status.set_back).collect();
        if told == [BTreeSet::from([shard])] { Ok(()) } else { Err(format!("{told:?}")) }
    };
    eventually("it says of which shard writes are refused", named).await;
    world.stop().await;
}

/// Nobody knows any more who had which shard, and nodes that never had them are to have them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_shard_map_was_lost_new_members_get_everything_from_whoever_has_it() {
    let mut world = World::new(6, slow_to_give_up()).await;
    world.put_many(40, 500).await;
    world.settle("the cluster is healthy").await;
    for node in 1..=6 {
        world.kill(node).await;
    }
    world.lose_coordination().await;
    for node in 1..=6 {
        world.start(node).await;
    }
    world.apply(|layout| (4..=6).for_each(|node| assign(layout, node))).await;
    let placed = async || {
        let count = world.shards().len();
        if count == SHARDS as usize { Ok(()) } else { Err(format!("{count} shards are placed")) }
    };
    eventually("the shards are placed anew", placed).await;
    world.settle("the members have everything").await;
    for node in 1..=3 {
        eventually("nobody else has anything", async || holds_nothing(&world, node)).await;
    }
    world.stop().await;
}

/// Another life would have every shard of its compared anew, and its writes refused until it is registered again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_could_say_nothing_for_a_moment_stays_registered() {
    let world = World::new(3, slow_to_give_up()).await;
    let node = &world.nodes[&2];
    let shown = || world.admin.membership().borrow().nodes.get(&id(2)).map(|live| live.announcement.state);
    for state in [NodeState::Starting, NodeState::Stopping].into_iter().cycle() {
        let (term, before) = (node.coordination.ownership().term(), node.handle.membership().incarnation);
        node.coordination.cut();
        node.handle.set_state(state);
        let failed = async || {
            let now = node.handle.membership();
            if now.last_error.is_some() { Ok(()) } else { Err(format!("{now:?}")) }
        };
        eventually("what it has to say does not arrive", failed).await;
        node.coordination.restore();
        let told = async || {
            let now = node.handle.membership();
            let is_told = now.registered && now.last_error.is_none() && shown() == Some(state);
            if is_told { Ok(()) } else { Err(format!("{now:?}")) }
        };
        eventually("it arrives then", told).await;
        // On a busy machine the session was over before it was restored.
        if node.coordination.ownership().term() == term {
            assert_eq!(node.handle.membership().incarnation, before, "it was registered anew");
            break;
        }
    }
    world.stop().await;
}

/// Its session lives, and so it would hold the lease. It is to be registered anew, for which it waits for somebody who
/// hears nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_whose_registration_is_held_up_makes_way_for_another() {
    let mut world = World::new(3, slow_to_give_up()).await;
    let (parts, ..) = world.parts(9);
    let slow = world.coordination.participant();
    slow.register(parts.cluster, parts.announcement).await.expect("one that is slow to hear");
    let off = world.overruled_cache().await.generation;
    let held_up = world.a_controller().await;
    let node = &world.nodes[&held_up];
    assert!(node.handle.kill_actor(LoopKind::Membership));
    let another = async || match world.controller() {
        Some(controller) if controller != held_up => Ok(()),
        found => Err(format!("{found:?}, {:?}", node.handle.membership())),
    };
    eventually("another node is the controller", another).await;
    slow.acknowledge_cache(&CacheSeen { generation: off, ..CacheSeen::default() }).await.expect("heard");
    let back = async || {
        let now = node.handle.membership();
        if now.registered { Ok(()) } else { Err(format!("{now:?}")) }
    };
    eventually("it is registered again", back).await;
    drop(slow);
    world.stop().await;
}

/// It has no cache, so its writes mark nothing: none may be acknowledged while somebody has still to hear that the
/// cache is off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_new_session_owns_nothing_before_the_others_heard_what_it_has_to_say() {
    let mut world = World::new(3, slow_to_give_up()).await;
    let (parts, ..) = world.parts(9);
    let slow = world.coordination.participant();
    slow.register(parts.cluster, parts.announcement).await.expect("one that is slow to hear");
    let node = &world.nodes[&2];
    assert!(node.view.is_owner());
    node.coordination.cut();
    world.session_ends(2).await;
    let off = world.overruled_cache().await.generation;
    node.coordination.restore();
    let there = async || {
        let there = world.admin.membership().borrow().nodes.contains_key(&id(2));
        if there { Ok(()) } else { Err("it is still away".to_owned()) }
    };
    eventually("the others see it again", there).await;
    assert!(!node.view.is_owner(), "one of them has not heard that the cache is off");
    slow.acknowledge_cache(&CacheSeen { generation: off, ..CacheSeen::default() }).await.expect("heard");
    let owner = async || {
        let registered = node.handle.membership();
        if node.view.is_owner() { Ok(()) } else { Err(format!("{registered:?}")) }
    };
    eventually("it owns something again", owner).await;
    drop(slow);
    world.stop().await;
}

/// What it has to say finds that out before the mirror shows it. It is to be registered anew, for which it waits for
/// somebody who hears nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_finds_its_registration_gone_owns_nothing_until_it_is_registered_again() {
    let mut world = World::new(3, slow_to_give_up()).await;
    let (parts, ..) = world.parts(9);
    let slow = world.coordination.participant();
    slow.register(parts.cluster, parts.announcement).await.expect("one that is slow to hear");
    let off = world.overruled_cache().await.generation;
    let node = &world.nodes[&2];
    let before = node.handle.membership().incarnation;
    assert!(node.view.is_owner());
    world.coordination.unregister_unseen(id(2));
    node.handle.set_state(NodeState::Stopping);
    let there = async || {
        let membership = world.admin.membership().borrow().clone();
        let there = membership.nodes.get(&id(2)).is_some_and(|live| live.incarnation > before);
        if there { Ok(()) } else { Err(format!("{:?}", node.handle.membership())) }
    };
    eventually("it is registered anew", there).await;
    assert!(!node.view.is_owner(), "one of the others has not heard that the cache is off");
    slow.acknowledge_cache(&CacheSeen { generation: off, ..CacheSeen::default() }).await.expect("heard");
    let owner = async || {
        let now = node.handle.membership();
        if node.view.is_owner() { Ok(()) } else { Err(format!("{now:?}")) }
    };
    eventually("it owns something again", owner).await;
    drop(slow);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_id_that_runs_elsewhere_and_a_foreign_cluster_are_refused_with_the_reason() {
    let mut world = World::new(3, settings()).await;
    let (parts, ..) = world.parts(2);
    let second = cluster::start(parts).await.expect("the actors start");
    let reason = second.registered().await.expect_err("the id is taken");
    assert!(reason.contains("is running already, at node-2:1"), "{reason}");
    second.stop(Duration::ZERO).await;
    let (mut parts, ..) = world.parts(9);
    parts.cluster = holdfast_protocol::ClusterId::generate();
    let foreign = cluster::start(parts).await.expect("the actors start");
    let reason = foreign.failed().await;
    assert!(reason.contains("this node belongs to cluster"), "{reason}");
    foreign.stop(Duration::ZERO).await;
    world.stop().await;
}
