//! The state of the cache that all nodes share.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_protocol::NodeId;

use super::{Harness, PATIENCE, Participant, announcement, change_cache, found, insist, until};
use crate::ports::coordination::{CacheMode, CacheSeen, CacheState, CoordinationError, turn_cache_off};

async fn acknowledge(participant: &Participant, generation: u64) {
    let seen = CacheSeen { generation, server: Some(format!("server {generation}")), problem: None };
    participant.acknowledge_cache(&seen).await.unwrap();
}

pub async fn cache_generation_is_seen_by_every_live_node(harness: &dyn Harness) {
    let (a, b, c) = (harness.participant().await, harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    for (participant, id) in [(&a, 1), (&b, 2), (&c, 3)] {
        participant.register(cluster, announcement(id)).await.unwrap();
    }
    let generation = change_cache(&a).await;
    acknowledge(&a, generation).await;
    acknowledge(&b, generation).await;
    let waiting = a.cache_generation_seen(generation, Duration::from_millis(300)).await;
    assert_eq!(waiting, Err(CoordinationError::NotSeen { generation, waiting: vec![NodeId::from(3)] }));

    let wait = tokio::spawn({
        let a = a.clone();
        async move { a.cache_generation_seen(generation, PATIENCE).await }
    });
    let seen = until(c.watch_cache_state(), |state| state.generation >= generation).await;
    acknowledge(&c, seen.generation).await;
    wait.await.unwrap().unwrap();
    let said = b.cache_seen().await.unwrap();
    assert_eq!(said.len(), 3);
    assert_eq!(said[&NodeId::from(3)].server, Some(format!("server {generation}")));

    // A node that is cut off counts as soon as its session is over.
    let next = change_cache(&b).await;
    assert_eq!(next, generation + 1);
    acknowledge(&b, next).await;
    acknowledge(&a, next).await;
    let lower = CacheSeen { generation, server: None, problem: Some("a reason".into()) };
    a.acknowledge_cache(&lower).await.unwrap();
    let said = b.cache_seen().await.unwrap();
    assert_eq!(said[&NodeId::from(1)], CacheSeen { generation: next, ..lower }, "the generation is not lowered");
    c.connection.cut().await;
    b.cache_generation_seen(next, PATIENCE).await.unwrap();
    assert!(!c.ownership().is_proven());
    assert_eq!(b.cache_seen().await.unwrap().len(), 2);
    c.connection.restore().await;
    // A node that comes later acts by the state that it finds: nobody waits for it.
    let d = harness.participant().await;
    let registration = d.register(cluster, announcement(4)).await.unwrap();
    assert_eq!(registration.cache_generation, next);
    b.cache_generation_seen(next, PATIENCE).await.unwrap();
}

pub async fn racing_changes_of_the_cache_lose_none(harness: &dyn Harness) {
    let a = harness.participant().await;
    found(&a).await;
    let first = a.cache_state().await.unwrap().value;
    assert_eq!(first, CacheState::initial());
    let mut races = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let participant = harness.participant().await;
        races.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..5 {
                made.push(change_cache(&participant).await);
            }
            made
        });
    }
    let all = races.join_all().await;
    let made: BTreeSet<u64> = all.iter().flatten().copied().collect();
    assert_eq!(made, (first.generation + 1..=first.generation + 20).collect(), "each generation was made once");
    until(a.watch_cache_state(), |state| state.generation == first.generation + 20).await;
}

pub async fn cache_is_turned_off_once_by_many(harness: &dyn Harness) {
    let a = harness.participant().await;
    found(&a).await;
    while a.cache_state().await.unwrap().value.mode != CacheMode::On {
        change_cache(&a).await;
    }
    let on = a.cache_state().await.unwrap().value;
    let mut races = tokio::task::JoinSet::new();
    for id in 0..4 {
        let participant = harness.participant().await;
        races.spawn(async move {
            let by = Some(NodeId::from(id));
            let off = || async {
                // On a busy machine it may have ended.
                participant.renew_session().await?;
                turn_cache_off(&*participant.coordination, by, None, "a test", |state| state.failures + 1).await
            };
            insist(off).await
        });
    }
    assert_eq!(races.join_all().await, [on.generation + 1; 4]);
    let other = Some(on.keyspace + 1);
    let left = turn_cache_off(&*a.coordination, None, other, "a test", |_| 9).await.unwrap();
    assert_eq!(left, on.generation + 1);
    let off = a.cache_state().await.unwrap().value;
    assert_eq!((off.mode, off.failures, off.keyspace), (CacheMode::Off, 1, on.keyspace));
}
