//! Tiers that fail, are full, unknown or give bytes that are not right: nothing is lost, and others are not held up.

use holdfast_actors::flow::cold::mover::{MoverStats, run};
use holdfast_actors::ports::metadata::{MoveReason, Versioning};

use super::doubles::Fault;
use super::world::{HOUR, World, pattern, tier};
use super::{LEN, moved};

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
async fn what_lies_in_a_full_tier_comes_back_while_nothing_goes_there() {
    let mut world = World::new(Versioning::Unversioned).await;
    world.leave_failing_tiers_alone();
    let (cold, hot) = (pattern(LEN, 1), pattern(LEN, 2));
    world.put("cold", &cold, Some("ONE")).await;
    assert_eq!(world.pass("ONE").await.moved, 1);
    world.one.set(Fault::Full);
    world.put("hot", &hot, Some("ONE")).await;
    let movers = tokio::spawn(run(world.mover.clone()));
    world.waiting_fails("the tier is found to be full").await;
    world.request("cold", None, MoveReason::Command).await;
    world.comes_to("cold", "cluster").await;
    movers.abort();
    assert_eq!(world.place("hot").await, "cluster");
    assert!(world.read("cold").await == cold && world.read("hot").await == hot);
}

#[tokio::test]
async fn object_that_cannot_be_read_holds_up_no_other_of_its_tier() {
    let mut world = World::new(Versioning::Unversioned).await;
    world.leave_failing_tiers_alone();
    let (away, there) = (pattern(LEN, 1), pattern(LEN, 2));
    world.put("away", &away, Some("ONE")).await;
    world.put("there", &there, Some("ONE")).await;
    assert_eq!(world.pass("ONE").await.moved, 2);
    world.one.send_away(world.content("away").await.cold().unwrap().names.first().cloned());
    world.request("away", None, MoveReason::Command).await;
    let movers = tokio::spawn(run(world.mover.clone()));
    world.waiting_fails("it is found to be away").await;
    world.request("there", None, MoveReason::Command).await;
    world.comes_to("there", "cluster").await;
    movers.abort();
    assert_eq!(world.place("away").await, "ONE");
    assert!(world.read("there").await == there);
}
