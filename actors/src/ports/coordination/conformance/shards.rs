//! The layout and the shards: who may write them, and what races leave.

use std::sync::Arc;

use holdfast_protocol::cluster::Joiner;
use holdfast_protocol::{Epoch, NodeId, ShardId};

use super::{Harness, controller, found, insist, shard, until};
use crate::ports::coordination::{CoordinationError, LeaseName, Version};

pub async fn racing_writers_of_the_layout_lose_no_update(harness: &dyn Harness) {
    const EACH: u64 = 10;
    let first = harness.participant().await;
    found(&first).await;
    let mut races = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let participant = harness.participant().await;
        races.spawn(async move {
            let mut conflicts = 0;
            let mut done = 0;
            while done < EACH {
                let mut layout = participant.layout().await.unwrap();
                layout.value.version += 1;
                match participant.store_layout(layout.version, &layout.value).await {
                    Ok(_) => done += 1,
                    Err(CoordinationError::Conflict(_)) => conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            conflicts
        });
    }
    let conflicts: u64 = races.join_all().await.into_iter().sum();
    let layout = first.layout().await.unwrap();
    assert_eq!(layout.value.version, 4 * EACH, "with {conflicts} conflicts");
    until(first.watch_layout(), |l| l.as_ref().is_some_and(|l| **l == layout)).await;
}

pub async fn shard_is_created_once_and_replaced_only_by_who_read_it(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    found(&a).await;
    let lease = controller(&a, 1).await;
    assert!(matches!(a.shard(ShardId(3)).await, Err(CoordinationError::NotFound(_))));
    let first = a.store_shard(ShardId(3), None, &shard(&[1, 2]), &lease).await.unwrap();
    let twice = a.store_shard(ShardId(3), None, &shard(&[1, 3]), &lease).await;
    assert!(matches!(twice, Err(CoordinationError::Conflict(_))), "{twice:?}");
    assert_eq!(b.shard(ShardId(3)).await.unwrap().value, shard(&[1, 2]));

    let mut moved = shard(&[1, 2]);
    moved.epoch = Epoch(2);
    moved.joining.push(Joiner { node: NodeId::from(3), since: Epoch(2) });
    let second = a.store_shard(ShardId(3), Some(first), &moved, &lease).await.unwrap();
    let stale = a.store_shard(ShardId(3), Some(first), &shard(&[9]), &lease).await;
    assert!(matches!(stale, Err(CoordinationError::Conflict(_))), "{stale:?}");
    let absent = a.store_shard(ShardId(4), Some(Version(0)), &shard(&[9]), &lease).await;
    assert!(matches!(absent, Err(CoordinationError::Conflict(_))), "{absent:?}");
    let read = b.shard(ShardId(3)).await.unwrap();
    assert_eq!((read.version, read.value), (second, moved.clone()));
    let map = until(b.shards(), |s| s.shards.get(&ShardId(3)).is_some_and(|s| s.version == second)).await;
    assert_eq!(map.shards[&ShardId(3)].value, moved);
}

pub async fn racing_writers_of_a_shard_lose_no_update(harness: &dyn Harness) {
    let a = harness.participant().await;
    found(&a).await;
    let lease = Arc::new(controller(&a, 1).await);
    a.store_shard(ShardId(0), None, &shard(&[1]), &lease).await.unwrap();
    let mut races = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (a, lease) = (a.clone(), lease.clone());
        races.spawn(async move {
            for _ in 0..5 {
                loop {
                    let mut read = a.shard(ShardId(0)).await.unwrap();
                    read.value.epoch = read.value.epoch.next();
                    match a.store_shard(ShardId(0), Some(read.version), &read.value, &lease).await {
                        Ok(_) => break,
                        Err(CoordinationError::Conflict(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    races.join_all().await;
    assert_eq!(a.shard(ShardId(0)).await.unwrap().value.epoch, Epoch(41));
}

pub async fn invalid_shard_is_refused(harness: &dyn Harness) {
    let a = harness.participant().await;
    found(&a).await;
    let lease = controller(&a, 1).await;
    let mut twice = shard(&[1, 2]);
    twice.joining.push(Joiner { node: NodeId::from(2), since: Epoch(1) });
    let refused = a.store_shard(ShardId(0), None, &twice, &lease).await;
    assert!(matches!(refused, Err(CoordinationError::Invalid(_))), "{refused:?}");
}

pub async fn controller_that_was_replaced_changes_nothing(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    found(&a).await;
    let old = controller(&a, 1).await;
    let version = a.store_shard(ShardId(0), None, &shard(&[1]), &old).await.unwrap();
    a.expire().await;
    let new = controller(&b, 2).await;
    assert!(new.token() > old.token());
    // Even with a new session of the same process: the lease is what counts.
    insist(|| a.renew_session()).await;
    let late = a.store_shard(ShardId(0), Some(version), &shard(&[6]), &old).await;
    assert_eq!(late, Err(CoordinationError::LeaseLost(LeaseName::controller())));
    let late = a.store_shard(ShardId(1), None, &shard(&[6]), &old).await;
    assert_eq!(late, Err(CoordinationError::LeaseLost(LeaseName::controller())));
    b.store_shard(ShardId(0), Some(version), &shard(&[2]), &new).await.unwrap();
    assert_eq!(b.shard(ShardId(0)).await.unwrap().value, shard(&[2]));
}
