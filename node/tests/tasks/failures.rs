//! What fails again and again ends as a dead letter, and holds up nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_actors::domain::admission::{ClassLimits, Limits as AdmissionLimits};
use holdfast_actors::domain::dispatch::BY_BUS_MAX;
use holdfast_actors::flow::consume::ConsumeSettings;
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::reclaim::{ClusterDuty, Reclaimer, Writers};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::tasks::{Dispatcher, consume_settings};
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::events::{EventBus, EventError};
use holdfast_actors::ports::locks::LockName;
use holdfast_actors::ports::{Journal, SystemClock};
use holdfast_actors::service::cleanup::CleanupSettings;
use holdfast_actors::service::disk::DiskSettings;
use holdfast_actors::service::{self, NodeParts};
use holdfast_actors::wait::{eventually, until};
use holdfast_node::locks::InProcessLocks;
use tokio::task::JoinHandle;

use super::{BATCH, GRACE_MS, PATIENCE, World, hasty, patient, reclaimer_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_always_fails_becomes_a_dead_letter_and_others_pass() {
    let mut world = World::new(patient()).await;
    world.employ(ConsumeSettings { attempts_max: 2, ..consume_settings() });
    let contents = world.due(BATCH + 10).await;
    let sick = contents[7];
    world.chunks.refuse(sick);
    let journal: &dyn Journal = &*world.store;
    let left_and_dead = async || {
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
        (world.waiting().await, journal.dead_letters(0, 10).await.unwrap())
    };
    let (_, dead) = until("one is left, and dead", left_and_dead, |(left, dead)| *left == 1 && dead.len() == 1).await;
    let dead = &dead[0];
    assert!(contents.iter().all(|content| world.has(content) == (*content == sick)), "the others of its task too");
    assert_eq!((dead.topic.as_str(), dead.group.as_str(), dead.attempts), ("tasks", "tasks", 2));
    assert!(dead.error.starts_with(&format!("1 of {BATCH} could not be done")), "{}", dead.error);
    // It is not sent again and again, and what is new passes.
    let more = world.due(5).await;
    for _ in 0..20 {
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
    }
    assert!(more.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), 3);
    assert_eq!(journal.dead_letters(0, 10).await.unwrap().len(), 1);

    // What made it fail is put right, and an operator has it tried again.
    world.chunks.accept();
    let (topic, message) = journal.dead_message(dead.number).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    world.bus.publish(topic, &message, deadline).await.unwrap();
    assert!(!world.has(&sick));
    assert_eq!(world.waiting().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_everywhere_is_tried_by_hand_at_last_and_new_things_pass() {
    let mut world = World::new(hasty()).await;
    world.employ(ConsumeSettings { attempts_max: 1, ..consume_settings() });
    let sick = world.due(1).await[0];
    world.chunks.refuse(sick);
    let pass = async || world.dispatcher.reclaim(GRACE_MS).await;
    let error = until("it is tried by hand", pass, Result::is_err).await.unwrap_err().to_string();
    assert!(error.contains("delete chunks"), "{error}");
    assert_eq!(world.bus.published().len(), BY_BUS_MAX as usize);
    let more = world.due(5).await;
    let begun = Instant::now();
    while more.iter().any(|content| world.has(content)) {
        drop(world.dispatcher.reclaim(GRACE_MS).await);
        assert!(begun.elapsed() < PATIENCE, "the others do not pass");
    }
    assert!(world.has(&sick));
    world.chunks.accept();
    world.settle().await;
    assert!(!world.has(&sick));
}

/// Asks nobody.
struct NoWriters;

#[async_trait::async_trait]
impl Writers for NoWriters {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_fails_again_and_again_lets_another_node_have_the_duty() {
    let world = World::new(patient()).await;
    let (locks, name) = (Arc::new(InProcessLocks::new()), LockName::new("cleanup").unwrap());
    let (mine, other) = (Duty::new(locks.clone(), name.clone()), Duty::new(locks, name));
    let ownership = Ownership::default();
    ownership.extend(tokio::time::Instant::now(), Duration::from_secs(3_600));
    let duty = ClusterDuty {
        local: world.chunks.clone(),
        duty: mine.clone(),
        ownership,
        sweep_from: Instant::now(),
        writers: Arc::new(NoWriters),
    };
    let reclaimer = Reclaimer { cluster: Some(duty), ..reclaimer_of(&world.store, &world.chunks, &world.clock) };
    let dispatcher = Dispatcher::new(reclaimer, world.bus.clone(), world.tally.clone(), patient());
    world.bus.refuse(EventError::Unavailable("no broker".into()));
    world.chunks.refuse(world.due(1).await[0]);
    let mut standing = Vec::new();
    for duty in [mine.clone(), other.clone()] {
        standing.push(tokio::spawn(async move { duty.stand().await }));
        eventually("the duty is had", || mine.fence().is_some()).await;
    }
    let mut failures = 0;
    let pass = async || {
        // What could not be done has its turn again a moment later.
        world.go_on(1);
        failures += u32::from(dispatcher.reclaim(GRACE_MS).await.is_err());
        (other.fence().is_some(), failures)
    };
    until("another node has the duty after some failures", pass, |(has_it, _)| *has_it).await;
    assert!(failures > 0);
    standing.iter().for_each(JoinHandle::abort);
}

/// What one pass panics at is done by the next one. The actor is not even started again: that would end the node at
/// last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_panics_is_made_again() {
    let world = World::new(patient()).await;
    world.bus.refuse(EventError::Unavailable("no broker".into()));
    let content = world.due(1).await[0];
    world.chunks.panic_once();
    let (quick, hour) = (Duration::from_millis(10), Duration::from_secs(3_600));
    let class = ClassLimits { jobs_max: 1, bytes_max: 1, queue_max: 1, refused: None };
    let parts = NodeParts {
        disks: vec![],
        dispatcher: world.dispatcher.clone(),
        limits: AdmissionLimits { read: class, write: class, queue_wait_ms: 1 },
        disk: DiskSettings {
            scrub_period: None,
            scrub_interval: hour,
            compact_interval: hour,
            compact_step_bytes: 1,
            checkpoint_interval: hour,
            step_timeout: hour,
        },
        cleanup: CleanupSettings {
            tick: quick,
            stale_upload_age: None,
            grace: Duration::from_millis(GRACE_MS),
            upload_interval: hour,
            reclaim_interval: quick,
            orphan_interval: hour,
            pass_timeout: hour,
        },
        reporter: Reporter::new("node", Arc::new(SystemClock)),
        health_interval: quick,
        restarts_max: 0,
        restart_window: hour,
    };
    let actors = service::start(parts).await.unwrap();
    let is_there = async || {
        // So that the claim of the one that panicked ends.
        world.go_on(1_000);
        world.has(&content)
    };
    until("another pass is made", is_there, |is_there| !is_there).await;
    let failures: u64 = actors.cleanup_report().iter().map(|(_, report)| report.failures).sum();
    assert_eq!(failures, 1);
    actors.stop(PATIENCE).await;
}
