//! A mover changes something only as long as the move is its own, and its node a member.

use std::time::Duration;

use holdfast_actors::flow::cold::mover::{MoverParts, MoverStats};
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::metadata::{MoveReason, Versioning};
use holdfast_actors::wait::until_ok;
use holdfast_protocol::TierName;
use tokio::time::Instant;

use super::doubles::Gate;
use super::world::{HOUR, World, node, pattern, tier};
use super::{LEN, moved, with_a_stop};

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
