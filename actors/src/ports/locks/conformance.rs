//! What every adapter of [`Locks`] does, as tests. An adapter's test crate implements [`Harness`] and calls
//! [`crate::locks_conformance!`].

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{FencingToken, Lease, LockError, LockName, LockResult, Locks};
use crate::ports::coordination::conformance::Connection;
use crate::wait::{eventually, until};

/// Longer than anything here takes, the end of a silent holder included.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node's access.
#[derive(Clone)]
pub struct Participant {
    pub locks: Arc<dyn Locks>,
    /// Its way to the service; `None` where there is nothing between them that could break.
    pub connection: Option<Arc<dyn Connection>>,
}

impl std::ops::Deref for Participant {
    type Target = dyn Locks;

    fn deref(&self) -> &Self::Target {
        &*self.locks
    }
}

/// A service without locks in it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Another participant of the same service.
    async fn participant(&self) -> Participant;

    /// Takes a lock away from its holder, as the service does with one that it gave up.
    async fn take_away(&self, lease: &Lease);

    /// How many stand in the queue of a lock, its holder counted or not; `None` where that cannot be seen.
    async fn waiting(&self, _lock: &LockName) -> Option<usize> {
        None
    }

    /// How long the service waits for a holder that it does not hear of.
    fn time_limit(&self) -> Duration;
}

/// Expands to one test a case. `$harness` is an expression that makes a fresh, empty service: it may await.
#[macro_export]
macro_rules! locks_conformance {
    ($harness:expr) => {
        $crate::locks_conformance! { @each $harness;
            lock_has_one_holder_and_rising_tokens
            waiters_are_served_in_order
            wait_ends_at_its_limit_and_leaves_no_place
            dropped_waiter_leaves_the_queue
            dropped_lease_gives_the_lock_back
            names_do_not_meet
            held_lock_outlives_the_time_limit
            lost_lock_is_observed_and_granted_under_a_higher_token
            raised_tokens_stay_raised
            silent_holder_knows_before_the_next_is_granted
        }
    };
    (@each $harness:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $harness;
                $crate::ports::locks::conformance::$case(&harness).await;
            }
        )*
    };
}

fn name(text: &str) -> LockName {
    LockName::new(text).unwrap()
}

/// Takes a lock that is free, or soon will be.
async fn take(participant: &Participant, lock: &LockName) -> Lease {
    let lease = participant.acquire(lock, PATIENCE).await.unwrap();
    assert!(lease.is_held(), "{lease:?}");
    assert_eq!(lease.name(), lock);
    lease
}

/// A place in the queue, taken by a task.
async fn stand(
    harness: &dyn Harness,
    participant: &Participant,
    lock: &LockName,
) -> tokio::task::JoinHandle<LockResult<Lease>> {
    let before = harness.waiting(lock).await;
    let waiter = tokio::spawn({
        let (participant, lock) = (participant.clone(), lock.clone());
        async move { participant.acquire(&lock, PATIENCE).await }
    });
    match before {
        // Its request may take long on a busy machine.
        Some(before) => {
            let ask = async || {
                assert!(!waiter.is_finished(), "somebody else holds it");
                harness.waiting(lock).await
            };
            until("it takes a place in the queue", ask, |now| now.is_some_and(|now| now > before)).await;
        }
        // Nothing shows from outside when it has its place; a request takes far less.
        None => sleep(Duration::from_millis(300)).await,
    }
    assert!(!waiter.is_finished(), "somebody else holds it");
    waiter
}

async fn granted(waiter: tokio::task::JoinHandle<LockResult<Lease>>) -> Lease {
    timeout(PATIENCE, waiter).await.expect("it is its turn").unwrap().unwrap()
}

fn timed_out(result: &LockResult<Lease>) -> bool {
    matches!(result, Err(LockError::TimedOut { .. }))
}

pub async fn lock_has_one_holder_and_rising_tokens(harness: &dyn Harness) {
    let lock = name("one");
    let (holders, highest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (participant, lock) = (harness.participant().await, lock.clone());
        let (holders, highest) = (holders.clone(), highest.clone());
        tasks.spawn(async move {
            for _ in 0..5 {
                let lease = take(&participant, &lock).await;
                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two hold it at once");
                let token = lease.token().0;
                assert!(highest.swap(token, Ordering::SeqCst) < token, "tokens rise");
                // It is held for a moment, in which another one would be seen.
                sleep(Duration::from_millis(2)).await;
                assert!(lease.is_held());
                holders.fetch_sub(1, Ordering::SeqCst);
                lease.release().await;
            }
        });
    }
    while let Some(done) = timeout(PATIENCE, tasks.join_next()).await.expect("everybody gets it") {
        done.unwrap();
    }
    assert_eq!(holders.load(Ordering::SeqCst), 0);
}

pub async fn waiters_are_served_in_order(harness: &dyn Harness) {
    let lock = name("queue");
    let holder = harness.participant().await;
    let first = take(&holder, &lock).await;
    let mut waiters = Vec::new();
    for _ in 0..3 {
        let participant = harness.participant().await;
        let waiter = stand(harness, &participant, &lock).await;
        // Without its connection nobody can give a lock back: each would go by its time limit.
        waiters.push((participant, waiter));
    }
    // Who holds it now comes again, behind the others, and so does everybody who asks without waiting.
    assert!(timed_out(&holder.acquire(&lock, Duration::ZERO).await));
    first.release().await;
    for at in 0..waiters.len() {
        let (_participant, waiter) = waiters.remove(0);
        let lease = granted(waiter).await;
        assert!(waiters.iter().all(|(_, later)| !later.is_finished()), "place {at} is served first");
        assert!(timed_out(&holder.acquire(&lock, Duration::ZERO).await), "it is taken");
        lease.release().await;
    }
    take(&holder, &lock).await.release().await;
}

pub async fn wait_ends_at_its_limit_and_leaves_no_place(harness: &dyn Harness) {
    let lock = name("limit");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let lease = take(&a, &lock).await;
    let patience = Duration::from_millis(300);
    let begun = Instant::now();
    let refused = b.acquire(&lock, patience).await;
    assert_eq!(refused.unwrap_err(), LockError::TimedOut { name: lock.clone(), patience });
    assert!(begun.elapsed() >= patience && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    lease.release().await;
    let lease = timeout(PATIENCE, a.acquire(&lock, PATIENCE)).await.expect("nobody stands before it").unwrap();
    assert!(lease.is_held());
}

pub async fn dropped_waiter_leaves_the_queue(harness: &dyn Harness) {
    let lock = name("dropped");
    let (a, b, c) = (harness.participant().await, harness.participant().await, harness.participant().await);
    let lease = take(&a, &lock).await;
    let waiter = stand(harness, &b, &lock).await;
    let next = stand(harness, &c, &lock).await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    lease.release().await;
    assert!(granted(next).await.is_held());
}

pub async fn dropped_lease_gives_the_lock_back(harness: &dyn Harness) {
    let lock = name("drop");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let mut waits = Vec::new();
    // A machine that stands still makes one of them long. The time limit, which holders renew at a small part of it,
    // makes all of them so.
    while waits.len() < 5 {
        let lease = take(&a, &lock).await;
        let waiter = stand(harness, &b, &lock).await;
        let begun = Instant::now();
        drop(lease);
        let next = granted(waiter).await;
        let waited = begun.elapsed();
        assert!(next.is_held());
        if waited < harness.time_limit() / 2 {
            return;
        }
        waits.push(waited);
        next.release().await;
    }
    panic!("by its time limit: {waits:?}");
}

pub async fn names_do_not_meet(harness: &dyn Harness) {
    let participant = harness.participant().await;
    let (a, b) = (take(&participant, &name("a")).await, take(&participant, &name("b")).await);
    assert!(timed_out(&participant.acquire(&name("a"), Duration::ZERO).await), "not even by its own holder");
    a.release().await;
    assert!(b.is_held());
    assert!(take(&participant, &name("a")).await.is_held());
}

pub async fn held_lock_outlives_the_time_limit(harness: &dyn Harness) {
    let lock = name("long");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let lease = take(&a, &lock).await;
    let refused = b.acquire(&lock, harness.time_limit() * 3 / 2).await;
    assert!(timed_out(&refused), "{refused:?}");
    assert!(lease.is_held());
    assert!(timeout(Duration::ZERO, lease.lost()).await.is_err());
}

pub async fn lost_lock_is_observed_and_granted_under_a_higher_token(harness: &dyn Harness) {
    let lock = name("lost");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let lease = take(&a, &lock).await;
    harness.take_away(&lease).await;
    let other = take(&b, &lock).await;
    assert!(other.token() > lease.token(), "{} after {}", other.token(), lease.token());
    timeout(PATIENCE, lease.lost()).await.expect("the holder is told");
    assert!(!lease.is_held());
    // Giving back what is lost takes nothing from who has it now.
    lease.release().await;
    // Nothing happens for a while.
    sleep(Duration::from_millis(100)).await;
    assert!(other.is_held());
    assert!(timed_out(&a.acquire(&lock, Duration::ZERO).await));
}

pub async fn raised_tokens_stay_raised(harness: &dyn Harness) {
    let lock = name("raised");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let lease = take(&a, &lock).await;
    let above = FencingToken(lease.token().0 + 1_000_000_000_000);
    a.raise(&lock, above).await.unwrap();
    lease.release().await;
    let raised = take(&b, &lock).await;
    assert!(raised.token() > above, "{} is not above {above}", raised.token());
    let token = raised.token();
    // Raising to what is passed already lowers nothing.
    b.raise(&lock, FencingToken(1)).await.unwrap();
    raised.release().await;
    assert!(take(&a, &lock).await.token() > token);
}

pub async fn silent_holder_knows_before_the_next_is_granted(harness: &dyn Harness) {
    let lock = name("silent");
    let (a, b) = (harness.participant().await, harness.participant().await);
    let Some(connection) = &a.connection else { return };
    let lease = take(&a, &lock).await;
    let waiter = stand(harness, &b, &lock).await;
    connection.cut().await;
    let is_lost = || {
        assert!(!waiter.is_finished() || !lease.is_held(), "two hold it at once");
        !lease.is_held()
    };
    eventually("the clock alone says that it is lost", is_lost).await;
    let next = granted(waiter).await;
    assert!(next.token() > lease.token());
    connection.restore().await;
    timeout(PATIENCE, lease.lost()).await.expect("the holder is told");
    // Nothing happens for a while.
    sleep(Duration::from_millis(100)).await;
    assert!(next.is_held() && !lease.is_held());
}
