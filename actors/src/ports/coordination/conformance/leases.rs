//! Leases: one holder at a time, and how they pass on.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use tokio::time::timeout;

use super::{Harness, PATIENCE, controller, found, insist, until};
use crate::ports::coordination::{FencingToken, LeaseName, SessionState};

pub async fn lease_has_one_holder_and_rising_tokens(harness: &dyn Harness) {
    let a = harness.participant().await;
    found(&a).await;
    let name = LeaseName::new("outbox-7").unwrap();
    let inside = Arc::new(parking_lot::Mutex::new((false, Vec::<FencingToken>::new())));
    let mut races = tokio::task::JoinSet::new();
    for i in 0..6 {
        let participant = harness.participant().await;
        let (name, inside) = (name.clone(), inside.clone());
        races.spawn(async move {
            let lease = participant.acquire(&name, NodeId::from(i)).await.unwrap();
            {
                let mut inside = inside.lock();
                assert!(!inside.0, "two holders");
                inside.0 = true;
                inside.1.push(lease.token());
            }
            assert!(lease.is_held());
            let nobody = participant.try_acquire(&name, NodeId::from(99)).await.unwrap();
            assert!(nobody.is_none(), "it is held");
            until(participant.leases(), |l| l.get("outbox-7").is_some_and(|h| h.token == lease.token())).await;
            inside.lock().0 = false;
            lease.release().await;
        });
    }
    timeout(PATIENCE, races.join_all()).await.expect("everybody gets it");
    let tokens = inside.lock().1.clone();
    assert!(tokens.len() == 6 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    until(a.leases(), |l| !l.contains_key("outbox-7")).await;
    let free = a.try_acquire(&name, NodeId::from(5)).await.unwrap().expect("it is free");
    assert!(free.token() > tokens[5]);
    let other = a.try_acquire(&LeaseName::new("outbox-8").unwrap(), NodeId::from(5)).await.unwrap();
    assert!(other.is_some(), "leases do not touch each other");
}

pub async fn waiters_are_served_in_order_and_may_leave(harness: &dyn Harness) {
    let (a, b, c) = (harness.participant().await, harness.participant().await, harness.participant().await);
    found(&a).await;
    let name = LeaseName::new("x").unwrap();
    let held = a.acquire(&name, NodeId::from(1)).await.unwrap();
    {
        let waiting = b.acquire(&name, NodeId::from(2));
        assert!(timeout(Duration::from_millis(300), waiting).await.is_err(), "it is held");
        // Dropped here: b has left the queue.
    }
    let third = tokio::spawn({
        let (c, name) = (c.clone(), name.clone());
        async move { c.acquire(&name, NodeId::from(3)).await }
    });
    drop(held);
    let lease = timeout(PATIENCE, third).await.expect("the one that left does not block it").unwrap().unwrap();
    assert!(lease.is_held());
    until(a.leases(), |l| l.get("x").is_some_and(|h| h.node == NodeId::from(3))).await;
}

pub async fn lease_passes_on_when_its_holder_expires(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    found(&a).await;
    let old = controller(&a, 1).await;
    let next = tokio::spawn({
        let b = b.clone();
        async move { b.acquire(&LeaseName::controller(), NodeId::from(2)).await }
    });
    a.connection.cut().await;
    let new = timeout(PATIENCE, next).await.expect("it passes on").unwrap().unwrap();
    assert!(!old.is_held(), "the old holder knows before the new one gets it");
    assert!(new.is_held() && new.token() > old.token());
    timeout(PATIENCE, old.lost()).await.expect("the old holder is told");
    a.connection.restore().await;
    until(b.leases(), |l| l.get("controller").is_some_and(|h| h.node == NodeId::from(2))).await;
    insist(|| a.renew_session()).await;
    assert!(!old.is_held(), "a new session does not bring it back");
    drop(old);
    assert!(a.try_acquire(&LeaseName::controller(), NodeId::from(1)).await.unwrap().is_none());
    assert!(new.is_held(), "what the old holder gives back is not the new one's");
}

/// Whoever renews decides by what it sees then.
pub async fn renewed_session_shows_what_was_taken_while_there_was_none(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    found(&b).await;
    a.connection.cut().await;
    until(a.session(), |s| *s == SessionState::Expired).await;
    let lease = b.acquire(&LeaseName::new("x").unwrap(), NodeId::from(2)).await.unwrap();
    a.connection.restore().await;
    insist(|| a.renew_session()).await;
    let holder = a.leases().borrow().get("x").map(|holder| (holder.node, holder.token));
    assert_eq!(holder, Some((NodeId::from(2), lease.token())), "it shows what an earlier session saw");
    lease.release().await;
}
