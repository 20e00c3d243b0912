//! How passes and the loop around them go on: so much at once, where the lock is, and for rules that are in force.

use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::lifecycle::LifecycleDuty;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::locks::LockName;
use holdfast_actors::wait::until;
use holdfast_node::locks::InProcessLocks;

use super::*;

/// Each object is looked at once when its time has come; new rules look at all of that age anew.
#[tokio::test]
async fn the_cost_follows_what_becomes_due() {
    let world = World::new(Versioning::Unversioned).await;
    world.rules(vec![LifecycleRule { filter: prefix("gone/"), ..after_days(1) }]).await;
    for number in 0..10 {
        world.put(&format!("kept/{number}")).await;
    }
    world.put("gone/a").await;
    world.at(NOON + DAY);
    for number in 0..300 {
        world.put(&format!("young/{number}")).await;
    }
    world.at(NOON + 2 * DAY);
    let stats = world.pass().await;
    assert_eq!((stats.examined, stats.expired), (11, 1));
    assert_eq!(world.pass().await.examined, 0);
    world.at(NOON + 2 * DAY + 11 * HOUR);
    assert_eq!(world.pass().await.examined, 0, "not before the next midnight");
    world.rules(vec![LifecycleRule { filter: prefix("kept/"), ..after_days(1) }]).await;
    let stats = world.pass().await;
    assert_eq!((stats.examined, stats.expired), (10, 10));
    world.at(NOON + 3 * DAY);
    assert_eq!(world.pass().await.examined, 300);
}

#[tokio::test]
async fn a_pass_does_so_much_and_the_next_one_goes_on_even_after_a_restart() {
    let mut world = World::new(Versioning::Unversioned).await;
    world.parts.settings = LifecycleSettings { batch: 3, batches_max: 2, ..LifecycleSettings::default() };
    world.rules(vec![LifecycleRule { filter: prefix("gone/"), ..after_days(1) }]).await;
    for number in 0..20 {
        world.put(&format!("kept/{number}")).await;
    }
    world.at(NOON + HOUR);
    for number in 0..4 {
        world.put(&format!("gone/{number}")).await;
    }
    world.at(NOON + 2 * DAY);
    let mut examined = Vec::new();
    loop {
        // Nothing but the store remembers.
        let (stats, end) = world.parts.clone().pass().await.unwrap();
        examined.push(stats.examined);
        if end == PassEnd::Done {
            break;
        }
    }
    assert_eq!(examined.iter().sum::<u64>(), 24, "{examined:?}");
    assert!(examined.len() >= 4 && examined.iter().all(|count| *count <= 6), "{examined:?}");
    assert!(!world.exists("gone/3").await && world.exists("kept/3").await);
}

#[tokio::test]
async fn disabled_and_removed_rules_do_nothing() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("k").await;
    world.rules(vec![LifecycleRule { enabled: false, ..after_days(1) }]).await;
    world.at(NOON + 9 * DAY);
    assert_eq!(world.pass().await, LifecycleStats::default());
    world.rules(vec![after_days(1)]).await;
    world.store().set_bucket_config("bucket", world.bucket, BucketConfigKind::Lifecycle, None).await.unwrap();
    assert_eq!(world.pass().await, LifecycleStats::default());
    assert!(world.exists("k").await);
}

#[tokio::test]
async fn a_node_that_does_not_hold_the_lock_does_nothing() {
    let mut world = World::new(Versioning::Unversioned).await;
    world.put("k").await;
    world.rules(vec![after_days(1)]).await;
    world.at(NOON + 9 * DAY);
    let duty = Duty::new(Arc::new(InProcessLocks::new()), LockName::new("lifecycle").unwrap());
    world.parts.cluster = Some(LifecycleDuty { duty, ownership: Ownership::default() });
    assert_eq!(world.pass().await, LifecycleStats::default());
    world.parts.cluster = None;
    assert_eq!(world.pass().await.expired, 1);
}

/// Waits until a key is gone.
async fn until_gone(world: &World, key: &str) {
    let is_there = async || world.exists(key).await;
    until(&format!("{key} goes"), is_there, |is_there| !is_there).await;
}

/// Of two nodes the holder of the lock does the work, and when it is gone the other one goes on.
#[tokio::test]
async fn the_loop_runs_where_the_lock_is_and_moves_with_it() {
    let world = World::new(Versioning::Unversioned).await;
    world.rules(vec![after_days(1)]).await;
    let locks = Arc::new(InProcessLocks::new());
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let ownership = Ownership::default();
        ownership.extend(tokio::time::Instant::now(), std::time::Duration::from_secs(600));
        let duty = Duty::new(locks.clone(), LockName::new("lifecycle").unwrap());
        let mut parts = world.parts.clone();
        parts.settings.interval = std::time::Duration::from_millis(10);
        // The clock leaps by days here.
        parts.settings.hold = std::time::Duration::ZERO;
        parts.cluster = Some(LifecycleDuty { duty: duty.clone(), ownership: ownership.clone() });
        nodes.push((tokio::spawn(holdfast_actors::flow::lifecycle::run(parts)), duty, ownership));
    }
    world.put("first").await;
    world.at(NOON + 2 * DAY);
    until_gone(&world, "first").await;
    // Fenced, it does nothing while it holds the lock.
    let holder = nodes.iter().position(|(_, duty, _)| duty.fence().is_some()).unwrap();
    nodes[holder].2.revoke();
    world.put("second").await;
    world.at(NOON + 4 * DAY);
    assert!(world.exists("second").await);
    nodes[holder].0.abort();
    until_gone(&world, "second").await;
    assert!(nodes[1 - holder].1.fence().is_some());
    for (node, ..) in &nodes {
        node.abort();
    }
}
