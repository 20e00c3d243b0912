//! What is to be deleted goes from the tiers, whatever fails there.

use std::time::Duration;

use holdfast_actors::flow::cold::mover::{MoverSettings, run};
use holdfast_actors::flow::cold::sweep::{SweeperSettings, run_sweeper};
use holdfast_actors::ports::ChunkStore as _;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::metadata::Versioning;
use holdfast_actors::ports::tiers::Tiers as _;
use holdfast_actors::wait::until_ok;
use holdfast_protocol::TierName;
use tokio::time::Instant;

use super::LEN;
use super::doubles::{Fault, Gate};
use super::world::{World, pattern, tier};

#[tokio::test]
async fn sweeper_leaves_a_tier_alone_that_fails_and_deletes_when_it_works_again() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("key", &pattern(LEN, 1), Some("ONE")).await;
    world.pass("ONE").await;
    world.delete_for_good("key").await;
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
        world.delete_for_good("key").await;
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
    world.delete_for_good("key").await;
    let stats = world.sweeper.pass(&tier("ONE")).await.unwrap();
    assert_eq!((stats.given, stats.deleted, stats.failed), (3, 2, 1));
    assert!(!stats.is_tier_failing, "the tier says that it works");
    world.one.send_away(None);
    world.assert_clean().await;
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
    world.comes_to("one", "ONE").await;
    world.put("two", &two, Some("TWO")).await;
    world.registry.add(tier("TWO"), second);
    world.comes_to("two", "TWO").await;
    assert!(world.read("one").await == one && world.read("two").await == two);
    world.delete_for_good("one").await;
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
