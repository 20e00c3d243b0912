//! A node that joins a shard: what it waits for, and what it looks at before it counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::coordination::Coordination as _;
use holdfast_actors::service::cluster::{ClusterSettings, LoopKind};
use holdfast_protocol::{ChunkId, ShardId};

use super::slow_to_give_up;
use super::world::{SHARDS, World, assign, eventually, id, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_starts_again_goes_on_with_what_it_has() {
    let slow = ClusterSettings { repair_bandwidth_bytes: 40_000, copies_max: 1, ..slow_to_give_up() };
    let mut world = World::new(3, slow).await;
    world.put_many(100, 2_000).await;
    world.start(4).await;
    world.apply(|layout| assign(layout, 4)).await;
    let some = async || {
        let progress = world.nodes[&4].handle.rebuild();
        // Between the copies of two shards there is none for a moment.
        let is_told = progress.copies.values().any(|copy| copy.chunks_expected > 0);
        if progress.bytes_fetched >= 20_000 && is_told { Ok(()) } else { Err(format!("{progress:?}")) }
    };
    eventually("the copy is under way, and is told", some).await;
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

/// Two of three members lived and could not be reached for as long as nodes are waited for. Only then they go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_in_which_live_members_could_not_be_reached_is_none_in_which_they_were_away() {
    // They are seen to be waited for within it, on a busy machine too.
    let delay = Duration::from_secs(10);
    let mut world = World::new(4, ClusterSettings { rebuild_delay: delay, ..settings() }).await;
    world.put_many(40, 500).await;
    let shards = world.shards();
    let (shard, state) = shards.iter().next().expect("a shard");
    let members: Vec<u64> = (1..=4).filter(|node| state.is_member(id(*node))).collect();
    let joiner = (1..=4).find(|node| !members.contains(node)).expect("one of four has no part");
    let gone = [members[0], members[1]];
    gone.iter().for_each(|node| world.network.set_cut(id(joiner), id(*node), true));
    world.apply(|layout| layout.nodes.get_mut(&id(gone[0])).expect("in the layout").draining = true).await;
    let tells = async |world: &World, text: &str| {
        let status = world.nodes[&joiner].handle.rebuild();
        let error = status.copies.get(shard).and_then(|copy| copy.last_error.as_ref());
        if error.is_some_and(|error| error.contains(text)) { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("the copy is held up", async || tells(&world, "list the shard on its members").await).await;
    let since = Instant::now();
    let long = async || if since.elapsed() > delay { Ok(()) } else { Err("not for long".to_owned()) };
    eventually("it is held up for long", long).await;
    for node in gone {
        world.kill(node).await;
    }
    eventually("those that are away are waited for", async || tells(&world, "are waited for").await).await;
    gone.iter().for_each(|node| world.network.set_cut(id(joiner), id(*node), false));
    for node in gone {
        world.start(node).await;
    }
    world.settle("everything moved").await;
    world.stop().await;
}

/// Node 4 takes the place of node 3 in all shards.
async fn replace_3_by_4(world: &World) {
    world
        .apply(|layout| {
            assign(layout, 4);
            layout.nodes.get_mut(&id(3)).expect("in the layout").draining = true;
        })
        .await;
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
    replace_3_by_4(&world).await;
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
    replace_3_by_4(&world).await;
    let joined = async || {
        // First: as a member it carries out none, since they are paused.
        let shards = world.shards();
        let waiting = world.metadata.repairs(id(4), 0, 1_000).await.map_err(|e| e.to_string())?;
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
async fn a_joiner_whose_disks_are_full_gives_up_and_is_tried_again() {
    use holdfast_actors::ports::chunks::memory::Fault;

    let mut world = World::new(3, settings()).await;
    world.put_many(60, 500).await;
    world.start(4).await;
    world.stores[&4].fail(Fault::Create, 3);
    world.apply(|layout| assign(layout, 4)).await;
    let mut is_told = false;
    let settled = async || {
        // Another error may be the last one.
        let error = world.nodes[&4].handle.rebuild().last_error;
        is_told |= error.is_some_and(|error| error.contains("no space"));
        world.settled().await
    };
    eventually("it has its share", settled).await;
    world.check_nothing_is_lost().await;
    assert!(is_told, "{:?}", world.nodes[&4].handle.rebuild());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_cannot_go_on_do_not_keep_others_from_being_copied() {
    let all_at_once = ClusterSettings { joins_per_node_max: SHARDS as usize, copies_max: 2, ..slow_to_give_up() };
    let mut world = World::new(3, all_at_once).await;
    world.put_many(60, 300).await;
    world.start(4).await;
    // As if a peer wrote one chunk of each of the first shards, and never came to an end.
    let chunks: Vec<ChunkId> = world.written.lock().keys().copied().collect();
    let first: BTreeMap<ShardId, ChunkId> =
        chunks.into_iter().map(|chunk| (ShardId::of_chunk(&chunk, SHARDS), chunk)).collect();
    let mut locks = Vec::new();
    let mut held = Vec::new();
    for (shard, chunk) in first.into_iter().take(3) {
        let lock = world.nodes[&4].chunk_locks.lock_within(chunk, Duration::ZERO).await;
        locks.push(lock.expect("nobody else has it"));
        held.push(shard);
    }
    replace_3_by_4(&world).await;
    let joined = async || {
        let shards = world.shards();
        assert!(held.iter().all(|shard| !shards[shard].is_member(id(4))), "a join ended without a chunk");
        let left = shards.iter().filter(|(shard, state)| !held.contains(shard) && !state.is_member(id(4))).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} shards wait: {:?}", world.nodes[&4].handle.rebuild())) }
    };
    eventually("all others are joined", joined).await;
    drop(locks);
    world.settle("everything moved").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_at_which_the_program_falls_over_stops_neither_joins_nor_repairs() {
    let mut world = World::new(3, settings()).await;
    world.put_many(30, 300).await;
    world.settle("the cluster is healthy").await;
    let chunks: Vec<ChunkId> = world.written.lock().keys().copied().collect();
    let (poisonous, other) = (chunks[0], chunks[1]);
    (1..=3).for_each(|node| world.stores[&node].poison(Some(poisonous)));
    world.start(4).await;
    let actors = |world: &World| {
        let handle = &world.nodes[&4].handle;
        [LoopKind::Rebuild, LoopKind::Repair].map(|kind| handle.actor_id(kind))
    };
    let before = actors(&world);
    replace_3_by_4(&world).await;
    let joined = async || {
        let left = world.shards().values().filter(|state| !state.is_member(id(4))).count();
        let backlog = world.metadata.repair_backlog().await.map_err(|error| error.to_string())?;
        if left == 0 && backlog == [(id(4), 1)] { Ok(()) } else { Err(format!("{left} joins, {backlog:?}")) }
    };
    eventually("everything is joined, and one repair waits", joined).await;
    world.stores[&4].corrupt(other);
    world.nodes[&4].findings.push(other);
    let healed = async || {
        let status = world.nodes[&4].handle.repairs();
        let told = status.last_errors.iter().any(|error| error.contains("poisoned by a test"));
        if status.bytes >= 300 && told { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually("another chunk is repaired", healed).await;
    assert_eq!(actors(&world), before, "nothing was started again");
    (1..=3).for_each(|node| world.stores[&node].poison(None));
    world.settle("it is healed, too").await;
    world.stop().await;
}
