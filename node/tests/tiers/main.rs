//! Objects move to cold tiers and back over real metadata: each is whole at every moment, whatever fails, and nothing is left
//! behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod clocks;
mod crashes;
mod doubles;
mod lying;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../support/metadata.rs"]
mod support_metadata;
mod world;
mod yielding;

use std::pin::pin;
use std::time::Duration;

use holdfast_actors::flow::cold::mover::{MoverParts, MoverSettings, MoverStats, run};
use holdfast_actors::flow::cold::sweep::{SweeperSettings, run_sweeper};
use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::metadata::{MoveQueued, MoveReason, Restore, Versioning};
use holdfast_actors::ports::tiers::Tiers as _;
use holdfast_actors::wait::until_ok;
use holdfast_protocol::{ChunkLabel, STUB_INDEX, TierName};
use tokio::time::Instant;

use doubles::{Fault, Gate};
use world::{HOUR, PIECE_BYTES, World, node, pattern, tier};

/// Blocks and pieces of more than one size, the last ones short.
const LEN: usize = 2 * PIECE_BYTES as usize + 150_001;

fn moved(objects: u64, bytes: u64) -> MoverStats {
    MoverStats { claimed: objects, moved: objects, moved_bytes: bytes, ..MoverStats::default() }
}

#[tokio::test]
async fn objects_of_every_size_are_in_the_tier_whole_and_nowhere_else() {
    let world = World::new(Versioning::Unversioned).await;
    let block = 128 << 10;
    let sizes = [1, block - 1, block, block + 1, PIECE_BYTES as usize, PIECE_BYTES as usize + 1, LEN];
    for (salt, size) in sizes.into_iter().enumerate() {
        let data = pattern(size, salt as u32);
        world.put(&format!("key-{size}"), &data, Some("ONE")).await;
    }
    assert_eq!(world.pass("ONE").await, moved(7, sizes.iter().sum::<usize>() as u64));
    for (salt, size) in sizes.into_iter().enumerate() {
        let key = format!("key-{size}");
        assert_eq!(world.place(&key).await, "ONE");
        assert!(world.read(&key).await == pattern(size, salt as u32), "{size}");
        let content = world.content(&key).await;
        assert_eq!(content.cold().unwrap().names.len(), size.div_ceil(PIECE_BYTES as usize));
        let label = world.memory.label(content.id.chunk(STUB_INDEX)).expect("a stub");
        let label = ChunkLabel::decode(&label).unwrap();
        assert!(label.is_stub && label.bucket == "bucket" && label.key == key, "{label:?}");
    }
    assert_eq!(world.object("key-1").await.class, Some(tier("ONE")));
    world.assert_clean().await;
    let events = world.events().await;
    assert_eq!(events.len(), 7);
    assert!(events.contains(&"LifecycleTransition bucket/key-1".to_owned()), "{events:?}");
}

#[tokio::test]
async fn empty_object_changes_its_class_and_has_nothing_to_move() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("empty", &pattern(0, 0), Some("ONE")).await;
    let stats = world.pass("ONE").await;
    assert_eq!(stats, MoverStats { claimed: 1, in_place: 1, ..MoverStats::default() });
    assert_eq!(world.object("empty").await.class, Some(tier("ONE")));
    assert!(world.read("empty").await.is_empty());
    world.assert_clean().await;
}

#[tokio::test]
async fn many_tiny_objects_are_all_moved() {
    let world = World::new(Versioning::Unversioned).await;
    for number in 0..100 {
        world.put(&format!("key-{number:03}"), &pattern(number + 1, number as u32), Some("ONE")).await;
    }
    assert_eq!(world.pass("ONE").await, moved(100, 5_050));
    for number in 0..100 {
        assert!(world.read(&format!("key-{number:03}")).await == pattern(number + 1, number as u32));
    }
    world.assert_clean().await;
}

#[tokio::test]
async fn object_comes_back_as_if_it_had_been_put() {
    let world = World::new(Versioning::Enabled).await;
    let data = pattern(LEN, 3);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    let cold = world.content("key").await;
    assert_eq!(world.request("key", None, MoveReason::Command).await, MoveQueued::Queued);
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    assert_eq!(world.place("key").await, "cluster");
    assert!(world.read("key").await == data);
    let (object, hot) = (world.object("key").await, world.content("key").await);
    assert_eq!((object.class.clone(), hot.etag), (None, cold.etag));
    assert_ne!(hot.id, cold.id);
    let label = ChunkLabel::decode(&world.memory.label(hot.id.chunk(0)).unwrap()).unwrap();
    assert_eq!((label.version, label.created_ms), (object.version, object.last_modified_ms));
    assert!(label.attributes.unwrap().contains("text/plain"));
    world.assert_clean().await;
}

#[tokio::test]
async fn restored_object_goes_back_when_its_time_is_over() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 4);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    let restore = MoveReason::Restore { keep_ms: 24 * HOUR };
    assert_eq!(world.request("key", None, restore).await, MoveQueued::Queued);
    assert_eq!(world.object("key").await.restore, Some(Restore::Ongoing));
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    let object = world.object("key").await;
    assert!(matches!(object.restore, Some(Restore::Until(_))), "{:?}", object.restore);
    assert_eq!((object.class.clone(), world.place("key").await), (Some(tier("ONE")), "cluster".to_owned()));
    assert_eq!(world.pass("ONE").await.claimed, 0, "its time is not over");
    world.go_on(25 * HOUR);
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    assert_eq!(world.place("key").await, "ONE");
    assert!(world.read("key").await == data);
    world.assert_clean().await;
    let expected =
        ["LifecycleTransition bucket/key", "ObjectRestore:Completed bucket/key", "ObjectRestore:Delete bucket/key"];
    assert_eq!(world.events().await, expected);
}

#[tokio::test]
async fn object_goes_from_tier_to_tier() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 5);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    world.request("key", Some("TWO"), MoveReason::Command).await;
    assert_eq!(world.pass("TWO").await, moved(1, LEN as u64));
    assert_eq!((world.place("key").await, world.object("key").await.class.clone()), ("TWO".into(), Some(tier("TWO"))));
    assert!(world.read("key").await == data);
    world.assert_clean().await;
}

/// Runs a pass that stops where the gate says, does something meanwhile, and lets it go on.
async fn with_a_stop(world: &World, gate: Gate, meanwhile: impl AsyncFnOnce(&World)) -> MoverStats {
    world.one.close(gate);
    let mover = world.mover.clone();
    let lane = tier("ONE");
    let mut pass = pin!(mover.pass(&lane));
    tokio::select! {
        ended = &mut pass => panic!("the pass ended before it came to {gate:?}: {ended:?}"),
        () = world.one.reached() => {}
    }
    let other = async {
        meanwhile(world).await;
        world.one.open();
    };
    tokio::join!(pass, other).0.unwrap()
}

#[tokio::test]
async fn overwrite_and_deletion_during_a_move_win() {
    for gate in [Gate::AtPut, Gate::AtGet] {
        let world = World::new(Versioning::Unversioned).await;
        world.put("key", &pattern(LEN, 1), Some("ONE")).await;
        let later = pattern(70_000, 2);
        let stats = with_a_stop(&world, gate, async |world| {
            world.put("key", &later, None).await;
        })
        .await;
        assert_eq!((stats.overtaken + stats.lost, stats.moved), (1, 0), "{stats:?}");
        assert_eq!(world.bytes_in("ONE").await, 0, "what it stored goes at once");
        assert!(world.read("key").await == later);
        assert_eq!((world.place("key").await, world.object("key").await.class.clone()), ("cluster".into(), None));
        world.assert_clean().await;

        world.put("gone", &pattern(LEN, 3), Some("ONE")).await;
        let stats = with_a_stop(&world, gate, async |world| world.delete("gone").await).await;
        assert_eq!((stats.overtaken + stats.lost, stats.moved), (1, 0), "{stats:?}");
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn copy_that_is_made_during_a_move_keeps_what_it_shares() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 1);
    world.put("key", &data, Some("ONE")).await;
    let stats = with_a_stop(&world, Gate::AtGet, async |world| world.copy("key", "copy", None).await).await;
    assert_eq!(stats, moved(1, LEN as u64));
    world.assert_clean().await;
    for (key, place) in [("key", "ONE"), ("copy", "cluster")] {
        assert_eq!(world.place(key).await, place);
        assert!(world.read(key).await == data, "{key}");
    }
    // A copy of a cold object shares what lies in the tier, and keeps it when the object goes.
    world.copy("key", "cold", Some("ONE")).await;
    world.delete("key").await;
    world.assert_clean().await;
    assert!(world.read("cold").await == data);
}

#[tokio::test]
async fn tier_that_fails_loses_nothing_and_is_tried_again() {
    for (fault, says) in [
        (Fault::Damages, "checksum"),
        (Fault::Short, "1 bytes early"),
        (Fault::Full, "full"),
        (Fault::Denied, "the key is wrong"),
        (Fault::Down, "it is down"),
        (Fault::Lags(1_000), "the tier has no"),
        (Fault::BreaksOff(1_000), "it broke off"),
    ] {
        let world = World::new(Versioning::Unversioned).await;
        let data = pattern(LEN, 1);
        world.put("key", &data, Some("ONE")).await;
        world.one.set(fault);
        let stats = world.pass("ONE").await;
        assert_eq!(stats, MoverStats { claimed: 1, failed: 1, ..MoverStats::default() }, "{fault:?}");
        assert_eq!(world.place("key").await, "cluster");
        assert!(world.read("key").await == data);
        let waiting = world.waiting().await;
        let error = waiting.error.unwrap();
        assert!(error.contains(says) && error.contains("ONE"), "{fault:?}: {error}");
        assert_eq!((waiting.failures, waiting.owner), (1, None));
        world.one.set(Fault::None);
        assert_eq!(world.bytes_in("ONE").await, 0, "what it stored goes at once: {fault:?}");
        world.assert_clean().await;
        assert_eq!(world.pass("ONE").await, moved(1, LEN as u64), "{fault:?}");
        assert!(world.read("key").await == data);
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn tier_that_is_unknown_postpones_what_goes_there() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("key", &pattern(10, 1), Some("ONE")).await;
    world.registry.remove(&tier("ONE"));
    assert_eq!(world.pass("ONE").await.failed, 1);
    assert!(world.waiting().await.error.unwrap().contains("no tier ONE is set up"));
}

#[tokio::test]
async fn pieces_that_fail_a_few_times_are_tried_again_on_their_own() {
    for fault in [Fault::Lags(2), Fault::BreaksOff(2)] {
        let world = World::new(Versioning::Unversioned).await;
        let data = pattern(LEN, 1);
        world.put("key", &data, Some("ONE")).await;
        world.one.set(fault);
        assert_eq!(world.pass("ONE").await, moved(1, LEN as u64), "{fault:?}");
        assert!(world.read("key").await == data);
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn damaged_source_is_never_moved() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    let content = world.content("key").await;
    world.memory.corrupt(content.id.chunk(0));
    assert_eq!(world.pass("ONE").await.failed, 1);
    assert!(world.waiting().await.error.unwrap().contains("corrupt"));
    assert_eq!(world.content("key").await.id, content.id);
    world.delete("key").await;

    let data = pattern(LEN, 2);
    world.put("other", &data, Some("ONE")).await;
    world.go_on(HOUR);
    assert_eq!(world.pass("ONE").await.moved, 1);
    world.request("other", None, MoveReason::Command).await;
    for fault in [Fault::Damages, Fault::Short, Fault::Down] {
        world.one.set(fault);
        assert_eq!(world.pass("ONE").await.failed, 1, "{fault:?}");
        assert_eq!(world.place("other").await, "ONE");
        world.go_on(2 * HOUR);
    }
    world.one.set(Fault::None);
    assert!(world.read("other").await == data);
    assert_eq!(world.pass("ONE").await.moved, 1);
    assert!(world.read("other").await == data);
    world.assert_clean().await;
}

#[tokio::test]
async fn mover_whose_claim_is_over_changes_nothing() {
    let mut world = World::new(Versioning::Unversioned).await;
    // So long that nothing is renewed in this test.
    world.mover.settings.claim = Duration::from_secs(3_600);
    let data = pattern(LEN, 1);
    world.put("key", &data, Some("ONE")).await;
    let second = MoverParts { node: node(2), ..world.mover.clone() };
    let mut by_second = None;
    let first = with_a_stop(&world, Gate::AtGet, async |world| {
        assert_eq!(second.pass(&tier("ONE")).await.unwrap().claimed, 0, "the first one has it");
        world.go_on(HOUR + 1);
        by_second = Some(second.pass(&tier("ONE")).await.unwrap());
    })
    .await;
    assert_eq!(by_second, Some(moved(1, LEN as u64)));
    assert_eq!(first, MoverStats { claimed: 1, lost: 1, ..MoverStats::default() });
    assert!(world.read("key").await == data);
    world.assert_clean().await;
}

#[tokio::test]
async fn claim_is_renewed_while_the_work_takes_and_given_up_when_it_is_lost() {
    let mut world = World::new(Versioning::Unversioned).await;
    world.mover.settings.claim = Duration::from_millis(300);
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    world.one.close(Gate::AtPut);
    let (mover, lane): (_, TierName) = (world.mover.clone(), tier("ONE"));
    let other = async {
        world.one.reached().await;
        let due_ms = world.waiting().await.due_ms;
        world.go_on(250);
        until_ok("the claim is renewed", async || {
            let renewed = world.waiting().await.due_ms;
            if renewed > due_ms { Ok(()) } else { Err(format!("it ends at {renewed}")) }
        })
        .await;
        world.request("key", Some("TWO"), MoveReason::Command).await;
    };
    // The gate stays closed: the mover does not wait for the tier.
    let (stats, ()) = tokio::join!(mover.pass(&lane), other);
    assert_eq!(stats.unwrap(), MoverStats { claimed: 1, lost: 1, ..MoverStats::default() });
    world.one.open();
    assert_eq!(world.pass("TWO").await.moved, 1);
    world.assert_clean().await;
}

#[tokio::test]
async fn node_that_is_no_member_claims_nothing_and_stops_what_it_does() {
    let mut world = World::new(Versioning::Unversioned).await;
    let ownership = Ownership::default();
    world.mover.ownership = Some(ownership.clone());
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    assert_eq!(world.pass("ONE").await.claimed, 0);
    ownership.extend(Instant::now(), Duration::from_secs(3_600));
    world.one.close(Gate::AtPut);
    let (mover, lane): (_, TierName) = (world.mover.clone(), tier("ONE"));
    let revoke = async {
        world.one.reached().await;
        ownership.revoke();
    };
    // The gate stays closed.
    let (stats, ()) = tokio::join!(mover.pass(&lane), revoke);
    assert_eq!(stats.unwrap(), MoverStats { claimed: 1, lost: 1, ..MoverStats::default() });
    world.one.open();
    ownership.extend(Instant::now(), Duration::from_secs(3_600));
    world.go_on(HOUR);
    assert_eq!(world.pass("ONE").await.moved, 1);
    world.assert_clean().await;
}

#[tokio::test]
async fn sweeper_leaves_a_tier_alone_that_fails_and_deletes_when_it_works_again() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    world.pass("ONE").await;
    world.delete("key").await;
    world.go_on(HOUR);
    world.reclaimer.reclaim_due(0).await.unwrap();
    world.go_on(HOUR);
    world.one.set(Fault::Down);
    let stats = world.sweeper.pass(&tier("ONE")).await.unwrap();
    assert!(stats.is_tier_failing && stats.deleted == 0 && stats.given == 3, "{stats:?}");
    assert_eq!(world.sweeper.pass(&tier("ONE")).await.unwrap().given, 0, "they come again after a while");
    world.one.set(Fault::None);
    world.assert_clean().await;
}

/// While it stood still metadata may have been put back in which the pieces are an object's again.
#[tokio::test]
async fn sweeper_that_is_no_member_any_more_deletes_no_further_piece() {
    for is_member_again in [false, true] {
        let mut world = World::new(Versioning::Unversioned).await;
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), Duration::from_secs(3_600));
        world.sweeper.ownership = Some(ownership.clone());
        world.sweeper.settings.deletions = 1;
        world.put("key", &pattern(LEN, 1), Some("ONE")).await;
        world.pass("ONE").await;
        world.delete("key").await;
        world.go_on(HOUR);
        world.reclaimer.reclaim_due(0).await.unwrap();
        world.go_on(HOUR);
        world.one.close(Gate::AtDelete);
        let (sweeper, lane): (_, TierName) = (world.sweeper.clone(), tier("ONE"));
        let revoke = async {
            world.one.reached().await;
            ownership.revoke();
            if is_member_again {
                ownership.extend(Instant::now(), Duration::from_secs(3_600));
            }
            world.one.open();
        };
        let (stats, ()) = tokio::join!(sweeper.pass(&lane), revoke);
        let stats = stats.unwrap();
        assert!(stats.given == 3 && stats.deleted == 1, "{is_member_again}: {stats:?}");
        ownership.extend(Instant::now(), Duration::from_secs(3_600));
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn piece_that_cannot_be_deleted_holds_up_no_other() {
    let mut world = World::new(Versioning::Unversioned).await;
    // One after the other, the one that fails first.
    world.sweeper.settings.deletions = 1;
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    world.pass("ONE").await;
    world.one.send_away(world.content("key").await.cold().unwrap().names.first().cloned());
    world.delete("key").await;
    world.go_on(HOUR);
    world.reclaimer.reclaim_due(0).await.unwrap();
    world.go_on(HOUR);
    let stats = world.sweeper.pass(&tier("ONE")).await.unwrap();
    assert_eq!((stats.given, stats.deleted, stats.failed), (3, 2, 1));
    assert!(!stats.is_tier_failing, "the tier says that it works");
    world.one.send_away(None);
    world.assert_clean().await;
}

#[tokio::test]
async fn what_lies_in_a_full_tier_comes_back_while_nothing_goes_there() {
    let mut world = World::new(Versioning::Unversioned).await;
    // A tier that fails is left alone for longer than this test takes.
    let (poll, never) = (Duration::from_millis(20), Duration::from_secs(3_600));
    world.mover.settings = MoverSettings { poll, breaker_min: never, breaker_max: never, ..world.mover.settings };
    let (cold, hot) = (pattern(LEN, 1), pattern(LEN, 2));
    world.put("cold", &cold, Some("ONE")).await;
    assert_eq!(world.pass("ONE").await.moved, 1);
    world.one.set(Fault::Full);
    world.put("hot", &hot, Some("ONE")).await;
    let movers = tokio::spawn(run(world.mover.clone()));
    until_ok("the tier is found to be full", async || {
        let waiting = world.waiting().await;
        if waiting.failures > 0 { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    world.request("cold", None, MoveReason::Command).await;
    until_ok("what lies there comes back", async || {
        let place = world.place("cold").await;
        if place == "cluster" { Ok(()) } else { Err(format!("it is in {place}")) }
    })
    .await;
    movers.abort();
    assert_eq!(world.place("hot").await, "cluster");
    assert!(world.read("cold").await == cold && world.read("hot").await == hot);
}

#[tokio::test]
async fn object_that_cannot_be_read_holds_up_no_other_of_its_tier() {
    let mut world = World::new(Versioning::Unversioned).await;
    // A tier that fails is left alone for longer than this test takes.
    let (poll, never) = (Duration::from_millis(20), Duration::from_secs(3_600));
    world.mover.settings = MoverSettings { poll, breaker_min: never, breaker_max: never, ..world.mover.settings };
    let (away, there) = (pattern(LEN, 1), pattern(LEN, 2));
    world.put("away", &away, Some("ONE")).await;
    world.put("there", &there, Some("ONE")).await;
    assert_eq!(world.pass("ONE").await.moved, 2);
    world.one.send_away(world.content("away").await.cold().unwrap().names.first().cloned());
    world.request("away", None, MoveReason::Command).await;
    let movers = tokio::spawn(run(world.mover.clone()));
    until_ok("it is found to be away", async || {
        let waiting = world.waiting().await;
        if waiting.failures > 0 { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    world.request("there", None, MoveReason::Command).await;
    until_ok("the other one comes back", async || {
        let place = world.place("there").await;
        if place == "cluster" { Ok(()) } else { Err(format!("it is in {place}")) }
    })
    .await;
    movers.abort();
    assert_eq!(world.place("away").await, "ONE");
    assert!(world.read("there").await == there);
}

#[tokio::test]
async fn loops_move_and_sweep_by_themselves_and_find_new_tiers() {
    let mut world = World::new(Versioning::Unversioned).await;
    let quick = Duration::from_millis(20);
    world.mover.settings = MoverSettings { poll: quick, ..world.mover.settings };
    world.sweeper.settings = SweeperSettings { interval: quick, ..world.sweeper.settings };
    let second = world.registry.tier(&tier("TWO")).unwrap();
    world.registry.remove(&tier("TWO"));
    let movers = tokio::spawn(run(world.mover.clone()));
    let sweepers = tokio::spawn(run_sweeper(world.sweeper.clone()));
    let (one, two) = (pattern(LEN, 1), pattern(LEN, 2));
    world.put("one", &one, Some("ONE")).await;
    let is_in = async |key: &str, place: &str| {
        let found = world.place(key).await;
        if found == place { Ok(()) } else { Err(format!("{key} is in {found}")) }
    };
    until_ok("it is moved", || is_in("one", "ONE")).await;
    world.put("two", &two, Some("TWO")).await;
    world.registry.add(tier("TWO"), second);
    until_ok("a new tier is found", || is_in("two", "TWO")).await;
    assert!(world.read("one").await == one && world.read("two").await == two);
    world.delete("one").await;
    world.go_on(HOUR);
    world.reclaimer.reclaim_due(0).await.unwrap();
    world.go_on(HOUR);
    until_ok("what was deleted goes from the tier", async || {
        let usage = world.ledger.tier_usage().await.unwrap();
        if usage.iter().all(|usage| usage.pieces_to_delete == 0) { Ok(()) } else { Err(format!("{usage:?}")) }
    })
    .await;
    movers.abort();
    sweepers.abort();
    world.assert_clean().await;
    let left = world.memory.list(None, 10);
    assert_eq!(left.len(), 1, "the stub of what is cold: {left:?}");
}
