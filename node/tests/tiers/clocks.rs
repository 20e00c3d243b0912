//! Clocks that leap by a year while objects move: nothing is lost, nothing is left behind, and restores are not over at
//! once.

use std::time::Duration;

use holdfast_actors::flow::cold::mover::{MoverParts, MoverSettings, run};
use holdfast_actors::ports::metadata::{MoveReason, Versioning};
use holdfast_actors::wait::until_ok;

use super::doubles::Gate;
use super::world::{HOUR, PIECE_BYTES, World, node, pattern, tier};
use super::{LEN, with_a_stop};

const YEAR: u64 = 365 * 24 * HOUR;

fn leap(world: &World, is_ahead: bool) {
    if is_ahead { world.go_on(YEAR) } else { world.go_back(YEAR) }
}

#[tokio::test]
async fn clock_that_leaps_during_a_move_loses_nothing_and_leaves_nothing() {
    for gate in [Gate::AtPut, Gate::AtGet] {
        for is_ahead in [true, false] {
            for comes_back in [true, false] {
                let case = format!("{gate:?}, ahead {is_ahead}, and back {comes_back}");
                let world = World::new(Versioning::Unversioned).await;
                let second = MoverParts { node: node(2), ..world.mover.clone() };
                let (data, other) = (pattern(LEN, 7), pattern(PIECE_BYTES as usize, 8));
                world.put("key", &data, Some("ONE")).await;
                let first = with_a_stop(&world, gate, async |world| {
                    leap(world, is_ahead);
                    // Another node takes the move for given up, and its pieces for left over, or has nothing to do for
                    // a year.
                    world.sweeper.pass(&tier("ONE")).await.unwrap();
                    second.pass(&tier("ONE")).await.unwrap();
                    world.put("other", &other, Some("ONE")).await;
                    if comes_back {
                        leap(world, !is_ahead);
                    }
                })
                .await;
                // What the sweeper took for left over is missed when it is read back.
                assert!(first.moved + first.lost + first.failed == 1, "{case}: {first:?}");
                assert!(world.read("key").await == data, "{case}");
                // What the wrong clock put off an operator makes due.
                world.ledger.retry_moves(&tier("ONE"), world.clock_ms()).await.unwrap();
                world.go_on(HOUR);
                world.pass("ONE").await;
                for (key, data) in [("key", &data), ("other", &other)] {
                    assert_eq!(world.place(key).await, "ONE", "{case}: {key}");
                    assert!(world.read(key).await == *data, "{case}: {key}");
                }
                // Its chunks and pieces are reclaimed by the clock, too.
                world.go_on(2 * YEAR);
                world.assert_clean().await;
            }
        }
    }
}

#[tokio::test]
async fn restored_object_stays_while_movers_hold_still_after_a_leap_and_after_the_start() {
    let mut world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 9);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    world.request("key", None, MoveReason::Restore { keep_ms: 24 * HOUR }).await;
    world.pass("ONE").await;
    assert_eq!(world.place("key").await, "cluster");
    let quick = Duration::from_millis(10);
    let held = MoverSettings { poll: quick, hold: Duration::from_secs(900), ..world.mover.settings.clone() };
    world.mover.settings = held.clone();
    let polls = async |world: &World| {
        let looks = world.clock.looks();
        until_ok("movers look at the clock", async || {
            let seen = world.clock.looks() - looks;
            if seen > 50 { Ok(()) } else { Err(format!("{seen} times")) }
        })
        .await;
    };

    // They have seen the right time, and see another.
    let movers = tokio::spawn(run(world.mover.clone()));
    polls(&world).await;
    world.go_on(YEAR);
    world.put("new", &data, Some("ONE")).await;
    polls(&world).await;
    assert_eq!((world.place("key").await, world.place("new").await), ("cluster".into(), "cluster".into()));
    movers.abort();

    // They know no other time, and move what was not restored.
    let movers = tokio::spawn(run(world.mover.clone()));
    world.comes_to("new", "ONE").await;
    polls(&world).await;
    assert_eq!(world.place("key").await, "cluster");
    movers.abort();

    let mover = MoverParts { settings: MoverSettings { hold: Duration::ZERO, ..held }, ..world.mover.clone() };
    let movers = tokio::spawn(run(mover));
    // Its time is over.
    world.comes_to("key", "ONE").await;
    movers.abort();
    assert!(world.read("key").await == data && world.read("new").await == data);
    world.assert_clean().await;
}
