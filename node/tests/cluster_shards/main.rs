//! Shards are founded, moved and healed by real actors, while nodes come and go.

mod random;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::chunks::ReplicaStore as _;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::coordination::{CacheMode, Coordination as _};
use holdfast_actors::service::cluster::{self, ClusterSettings, LoopKind};
use holdfast_protocol::{ChunkId, ContentId, ShardId};

use world::{SHARDS, World, assign, eventually, id, settings};

fn slow_to_give_up() -> ClusterSettings {
    ClusterSettings { rebuild_delay: Duration::from_secs(3_600), ..settings() }
}

/// The running nodes that are members of a chunk's shard.
fn members(world: &World, chunk: ChunkId) -> Vec<u64> {
    let state = world.shards().remove(&ShardId::of_chunk(&chunk, SHARDS)).expect("a placed shard");
    world.nodes.iter().filter(|(_, node)| state.is_member(node.id)).map(|(number, _)| *number).collect()
}

fn holds_nothing(world: &World, node: u64) -> Result<(), String> {
    let left = world.stores[&node].list(None, 10);
    if left.is_empty() { Ok(()) } else { Err(format!("node {node} still holds {left:?}")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applied_layout_founds_every_shard_and_it_is_verified() {
    let world = World::new(4, settings()).await;
    world.put_many(50, 700).await;
    world.settle("the cluster is healthy").await;
    let shards = world.shards();
    assert!(shards.values().all(|state| state.epoch.0 == 1), "nothing moved");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_rebuilt_elsewhere_without_being_asked_for() {
    let mut world = World::new(5, settings()).await;
    world.put_many(150, 900).await;
    world.settle("the cluster is healthy").await;
    world.kill(2).await;
    // Clients go on meanwhile.
    world.put_many(50, 900).await;
    // The layout still wants it; its share is with the others as long as it is gone.
    let moved = async || {
        let holds = world.shards().values().filter(|state| state.is_member(id(2))).count();
        if holds == 0 { world.settled().await } else { Err(format!("it still has {holds} shards")) }
    };
    eventually("its shards are rebuilt", moved).await;
    let said = async || {
        let status = world.controller().and_then(|controller| world.nodes[&controller].handle.controller());
        if status.as_ref().is_some_and(|s| s.lost.contains(&id(2))) { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("the controller says that it is lost", said).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_in_time_moves_nothing_and_gets_what_it_missed() {
    let mut world = World::new(4, slow_to_give_up()).await;
    world.put_many(40, 500).await;
    let before = world.shards();
    world.kill(3).await;
    world.put_many(40, 500).await;
    world.start(3).await;
    world.settle("what it missed is repaired").await;
    assert_eq!(world.shards(), before);
    assert!(world.nodes[&3].handle.repairs().done > 0, "it missed writes");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_ends_empty_while_clients_write() {
    let world = World::new(5, settings()).await;
    world.put_many(100, 800).await;
    world.apply(|layout| layout.nodes.get_mut(&id(1)).expect("in the layout").draining = true).await;
    world.put_many(100, 800).await;
    world.settle("everything moved").await;
    eventually("it deleted what it held", async || holds_nothing(&world, 1)).await;
    world.check_nothing_is_lost().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_node_takes_its_share_a_few_shards_at_a_time() {
    let mut world = World::new(4, settings()).await;
    world.put_many(100, 800).await;
    world.start(5).await;
    world.apply(|layout| assign(layout, 5)).await;
    let max = world.settings.joins_per_node_max;
    let taken = async || {
        let shards = world.shards();
        let joins = shards.values().filter(|state| state.is_joining(id(5))).count();
        assert!(joins <= max, "{joins} joins at once");
        let share = shards.values().filter(|state| state.is_member(id(5))).count();
        if share >= 7 { world.settled().await } else { Err(format!("it has {share} shards")) }
    };
    eventually("it has its share", taken).await;
    world.check_nothing_is_lost().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_controller_ends_what_the_last_one_began() {
    // Slow enough that the moves outlast several controllers.
    let slow = ClusterSettings { repair_bandwidth_bytes: 100_000, joins_per_node_max: 1, ..slow_to_give_up() };
    let mut world = World::new(5, slow).await;
    world.put_many(120, 2_000).await;
    world.apply(|layout| layout.nodes.get_mut(&id(5)).expect("in the layout").draining = true).await;
    let moving = async |world: &World| {
        let moving = world.shards().values().any(|state| !state.joining.is_empty());
        world.controller().filter(|_| moving).ok_or("nothing moves".to_owned())
    };
    let first = eventually("moves begin", async || moving(&world).await).await;

    // Its session ends, and with it the lease.
    world.nodes[&first].coordination.cut();
    let replaced = async || match world.controller() {
        Some(next) if next != first => Ok(()),
        other => Err(format!("{other:?} is the controller")),
    };
    eventually("another node takes over", replaced).await;
    world.nodes[&first].coordination.restore();

    // An actor that dies takes the lease back, or another node gets it.
    let second = eventually("moves go on", async || moving(&world).await).await;
    assert!(world.nodes[&second].handle.kill_actor(LoopKind::Controller));
    // A whole node dies.
    let third = world.a_controller().await;
    world.kill(third).await;
    world.put_many(10, 2_000).await;
    world.start(third).await;
    for node in world.nodes.values() {
        node.handle.budget().set_rate_bytes(1 << 30);
    }
    world.settle("everything moved").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_starts_again_goes_on_with_what_it_has() {
    let slow = ClusterSettings { repair_bandwidth_bytes: 40_000, copies_max: 1, ..slow_to_give_up() };
    let mut world = World::new(3, slow).await;
    world.put_many(100, 2_000).await;
    world.start(4).await;
    world.apply(|layout| assign(layout, 4)).await;
    let some = async || {
        let fetched = world.nodes[&4].handle.rebuild().bytes_fetched;
        if fetched >= 20_000 { Ok(()) } else { Err(format!("{fetched} bytes are fetched")) }
    };
    eventually("the copy begins", some).await;
    let progress = world.nodes[&4].handle.rebuild();
    assert!(progress.copies.values().any(|copy| copy.chunks_expected > 0), "{progress:?}");
    world.kill(4).await;
    let kept = world.stores[&4].list(None, 1_000).len() as u64;
    assert!(kept > 0);
    world.start(4).await;
    world.nodes[&4].handle.budget().set_rate_bytes(1 << 30);
    world.settle("it has its share").await;
    let fetched = world.nodes[&4].handle.rebuild().bytes_fetched;
    let all = world.stores[&4].list(None, 1_000).len() as u64;
    assert!(fetched <= (all - kept) * 2_000, "{fetched} bytes were fetched, {kept} of {all} chunks were there");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_waits_for_members_that_could_still_acknowledge() {
    let mut world = World::new(3, slow_to_give_up()).await;
    world.put_many(60, 500).await;
    world.start(4).await;
    // It reaches one of three members only: the two others could acknowledge a write that it never hears of.
    // The one that it reaches is the controller, which has to hear of it.
    let controller = world.a_controller().await;
    let cut: Vec<u64> = (1..=3).filter(|node| *node != controller).collect();
    for node in &cut {
        world.network.set_cut(id(4), id(*node), true);
    }
    world.apply(|layout| assign(layout, 4)).await;
    let held_up = async || {
        let status = world.nodes[&4].handle.rebuild();
        if status.copies.values().any(|copy| copy.last_error.is_some()) { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("the copy is held up", held_up).await;
    assert!(world.shards().values().all(|state| !state.is_member(id(4))));
    // Two of three are enough: no write quorum is without one of them.
    world.network.set_cut(id(4), id(cut[0]), false);
    let joined = async || {
        let joined = world.shards().values().filter(|state| state.is_member(id(4))).count();
        if joined > 0 { Ok(()) } else { Err("it joined nothing".into()) }
    };
    eventually("it joins", joined).await;
    world.network.set_cut(id(4), id(cut[1]), false);
    world.settle("it has its share").await;
    world.stop().await;
}

/// Two of three members are away, and may have what the third one missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_waits_for_absent_members_that_may_have_more() {
    let mut world = World::new(4, slow_to_give_up()).await;
    world.put_many(40, 500).await;
    let shards = world.shards();
    let (shard, state) = shards.iter().next().expect("a shard");
    let number = |node| (1..=4).find(|number| id(*number) == node).expect("one of four");
    let members: Vec<u64> = state.members.iter().map(|member| number(*member)).collect();
    let joiner = (1..=4).find(|node| !members.contains(node)).expect("one of four has no part");
    world.kill(members[0]).await;
    world.kill(members[1]).await;
    let gone = async || {
        let live = world.admin.membership().borrow().nodes.len();
        if live == 2 { Ok(()) } else { Err(format!("{live} nodes are alive")) }
    };
    eventually("two nodes are away", gone).await;
    world.apply(|layout| layout.nodes.get_mut(&id(members[0])).expect("in the layout").draining = true).await;
    let held_up = async || {
        let status = world.nodes[&joiner].handle.rebuild();
        let waits = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("are waited for"));
        if status.copies.get(shard).is_some_and(|copy| waits(&copy.last_error)) {
            Ok(())
        } else {
            Err(format!("{status:?}, {:?}", world.shards()[shard]))
        }
    };
    eventually("the copy is held up", held_up).await;
    assert!(!world.shards()[shard].is_member(id(joiner)));
    world.start(members[1]).await;
    let joined = async || {
        let state = world.shards().remove(shard).expect("a shard");
        if state.is_member(id(joiner)) { Ok(()) } else { Err(format!("{state:?}")) }
    };
    eventually("two of three are enough", joined).await;
    world.start(members[0]).await;
    world.settle("everything moved").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_reads_what_it_has_from_the_disk_before_it_counts() {
    let mut world = World::new(3, settings()).await;
    world.put_many(30, 700).await;
    world.settle("the cluster is healthy").await;
    // Node 4 has all of it from an earlier time: one chunk is good in memory only, another one not even there.
    let store = Arc::new(MemoryChunkStore::new());
    let written = world.written.lock().clone();
    for (at, (chunk, payload)) in written.iter().enumerate() {
        store.insert(*chunk, payload.clone());
        match at {
            0 => store.rot_beneath_memory(*chunk),
            1 => store.corrupt(*chunk),
            _ => {}
        }
    }
    world.stores.insert(4, store);
    world.start(4).await;
    // Repairs are not what heals it.
    world.nodes[&4].handle.pause_repairs();
    world
        .apply(|layout| {
            assign(layout, 4);
            layout.nodes.get_mut(&id(3)).expect("in the layout").draining = true;
        })
        .await;
    world.settle("everything moved").await;
    let fetched = world.nodes[&4].handle.rebuild().bytes_fetched;
    assert!(
        fetched >= 2 * 700,
        "{fetched} bytes are fetched: what is damaged, and what went as leftovers before the join"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_carries_out_its_repairs_before_it_is_a_member() {
    let mut world = World::new(3, settings()).await;
    world.put_many(30, 700).await;
    world.settle("the cluster is healthy").await;
    world.start(4).await;
    world.nodes[&4].handle.pause_repairs();
    let chunks: Vec<ChunkId> = world.written.lock().keys().copied().collect();
    let rows: Vec<_> = chunks.iter().map(|chunk| (*chunk, id(4))).collect();
    world.metadata.queue_repairs(&rows, 1).await.expect("queued");
    world
        .apply(|layout| {
            assign(layout, 4);
            layout.nodes.get_mut(&id(3)).expect("in the layout").draining = true;
        })
        .await;
    let joined = async || {
        let waiting = world.metadata.repairs(id(4), 0, 1_000).await.map_err(|e| e.to_string())?;
        let shards = world.shards();
        if shards.values().all(|state| state.is_member(id(4))) {
            assert_eq!(waiting, [], "it is a member, and its repairs wait");
            return Ok(());
        }
        Err(format!("{} repairs wait", waiting.len()))
    };
    eventually("it is a member everywhere", joined).await;
    world.settle("everything moved").await;
    world.stop().await;
}

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
    for node in world.nodes.values() {
        node.handle.start_comparison();
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_go_only_once_the_members_have_them() {
    let mut world = World::new(4, settings()).await;
    let chunk = world.put(600).await;
    world.settle("the cluster is healthy").await;
    let payload = world.written.lock()[&chunk].clone();
    let holders = members(&world, chunk);
    let outsider = (1..=4).find(|node| !holders.contains(node)).expect("one of four holds nothing of it");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_new_disks_joins_its_shards_anew() {
    let mut world = World::new(4, slow_to_give_up()).await;
    world.put_many(400, 200).await;
    world.kill(2).await;
    world.stores.insert(2, Arc::new(MemoryChunkStore::new()));
    world.start(2).await;
    eventually("everything is back", async || world.settled().await).await;
    assert!(world.nodes[&2].handle.rebuild().shards_joined > 0, "not chunk by chunk");
    world.check_nothing_is_lost().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_whose_disks_are_full_gives_up_and_is_tried_again() {
    use holdfast_actors::ports::chunks::memory::Fault;

    let mut world = World::new(3, settings()).await;
    world.put_many(60, 500).await;
    world.start(4).await;
    world.stores[&4].fail(Fault::Create, 3);
    world.apply(|layout| assign(layout, 4)).await;
    world.settle("it has its share").await;
    let error = world.nodes[&4].handle.rebuild().last_error;
    assert!(error.as_ref().is_some_and(|e| e.contains("no space")), "{error:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actors_that_are_killed_come_back_and_go_on() {
    let world = World::new(4, settings()).await;
    world.put_many(60, 500).await;
    world.apply(|layout| layout.nodes.get_mut(&id(4)).expect("in the layout").draining = true).await;
    for kind in LoopKind::ALL {
        for node in world.nodes.values() {
            let before = node.handle.actor_id(kind);
            assert!(node.handle.kill_actor(kind));
            let back = async || if node.handle.actor_id(kind) == before { Err(format!("{kind:?}")) } else { Ok(()) };
            eventually("it is started again", back).await;
        }
    }
    world.put_many(20, 500).await;
    world.settle("everything moved").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_session_ended_registers_again() {
    let world = World::new(3, slow_to_give_up()).await;
    let node = &world.nodes[&2];
    let before = node.handle.membership();
    node.coordination.cut();
    let gone = async || {
        let there = world.admin.membership().borrow().nodes.contains_key(&id(2));
        if there { Err("it still counts as alive".to_owned()) } else { Ok(()) }
    };
    eventually("its session ends", gone).await;
    node.coordination.restore();
    let back = async || {
        let now = node.handle.membership();
        if now.registered && now.incarnation > before.incarnation { Ok(()) } else { Err(format!("{now:?}")) }
    };
    eventually("it registers again", back).await;
    // These nodes have no cache: whoever switches it on is overruled.
    let present = world.admin.cache_state().await.expect("a state");
    let warming = present.value.warming(None, "a server");
    world.admin.store_cache_state(present.version, &warming).await.expect("stored");
    let mut states = world.admin.watch_cache_state();
    let off = states.wait_for(|state| state.generation > warming.generation);
    let off = tokio::time::timeout(world::PATIENCE, off).await.expect("in time").expect("a state").clone();
    assert_eq!(off.mode, CacheMode::Off, "{off:?}");
    let generation = off.generation;
    world.admin.cache_generation_seen(generation, world::PATIENCE).await.expect("every node acknowledges at once");
    world.settle("the cluster is healthy").await;
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

/// Prints how much of it it used: half at least, on a machine that does nothing else. Chunks are small, so that a pause
/// between two of them would show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_keeps_to_its_budget() {
    const RATE: u64 = 1 << 20;
    let budget = ClusterSettings { repair_bandwidth_bytes: RATE, ..settings() };
    let mut world = World::new(4, budget).await;
    world.put_many(600, 32 << 10).await;
    world.settle("the cluster is healthy").await;
    world.kill(4).await;
    let begun = Instant::now();
    let rebuilt = async || {
        let holds = world.shards().values().filter(|state| state.is_member(id(4))).count();
        if holds == 0 { Ok(()) } else { Err(format!("{holds} shards are left")) }
    };
    eventually("the node is replaced", rebuilt).await;
    let time = begun.elapsed() - world.settings.rebuild_delay;
    let fetched: Vec<u64> = world.nodes.values().map(|node| node.handle.rebuild().bytes_fetched).collect();
    let most = fetched.iter().copied().max().unwrap_or(0);
    let share = most as f64 / time.as_secs_f64() / RATE as f64;
    println!("{fetched:?} bytes in {time:?}: {share:.2} of the budget of the node that fetched most");
    // The promise: how much less it was depends on what else the machine does.
    assert!(most > 0 && share < 1.5, "{most} bytes, {share} of the budget");
    world.stop().await;
}
