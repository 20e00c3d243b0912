//! A cluster and its nodes: registrations, sessions and what ends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use tokio::time::{Instant, timeout};

use super::{Harness, PATIENCE, announcement, change_cache, controller, found, insist, shard, until};
use crate::ports::coordination::{
    ClusterIdentity, CoordinationError, FORMAT, NodeAnnouncement, NodeState, SessionState,
};

pub async fn cluster_is_created_exactly_once(harness: &dyn Harness) {
    let first = harness.participant().await;
    assert!(matches!(first.cluster().await, Err(CoordinationError::NotFound(_))));
    assert!(matches!(first.layout().await, Err(CoordinationError::NotFound(_))));
    let wrong = ClusterIdentity { format: FORMAT + 1, ..ClusterIdentity::new(16, 0) };
    let refused = first.create_cluster(&wrong, &LayoutDocument::new(3)).await;
    assert!(matches!(refused, Err(CoordinationError::Invalid(_))), "{refused:?}");
    let none = ClusterIdentity { shard_count: 0, ..ClusterIdentity::new(16, 0) };
    let refused = first.create_cluster(&none, &LayoutDocument::new(3)).await;
    assert!(matches!(refused, Err(CoordinationError::Invalid(_))), "{refused:?}");

    let mut races = tokio::task::JoinSet::new();
    for i in 0..4 {
        let participant = harness.participant().await;
        races.spawn(async move {
            let identity = ClusterIdentity::new(16, i);
            (identity.clone(), participant.create_cluster(&identity, &LayoutDocument::new(3)).await)
        });
    }
    let results = races.join_all().await;
    let winners: Vec<&ClusterIdentity> = results.iter().filter(|(_, r)| r.is_ok()).map(|(i, _)| i).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert_eq!(first.cluster().await.unwrap(), *winners[0]);
    for (_, result) in results.iter().filter(|(_, r)| r.is_err()) {
        assert_eq!(*result, Err(CoordinationError::ClusterExists(winners[0].id)));
    }
    assert_eq!(first.layout().await.unwrap().value, LayoutDocument::new(3));
}

pub async fn node_of_another_cluster_is_refused(harness: &dyn Harness) {
    let participant = harness.participant().await;
    let stranger = ClusterId::generate();
    let early = participant.register(stranger, announcement(1)).await;
    assert!(matches!(early, Err(CoordinationError::NotFound(_))), "{early:?}");
    let found = found(&participant).await;
    let refused = participant.register(stranger, announcement(1)).await;
    assert_eq!(refused, Err(CoordinationError::WrongCluster { expected: stranger, found }));
    participant.register(found, announcement(1)).await.unwrap();
}

pub async fn registration_is_seen_by_others_and_ends_with_the_session(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    let missing = a.announce(announcement(1)).await;
    assert!(matches!(missing, Err(CoordinationError::NotFound(_))), "{missing:?}");
    let first = a.register(cluster, announcement(1)).await.unwrap();
    let seen = until(b.membership(), |m| m.nodes.contains_key(&NodeId::from(1))).await;
    let live = &seen.nodes[&NodeId::from(1)];
    assert_eq!(live.announcement, announcement(1));
    assert_eq!(live.incarnation, first.incarnation);

    let changed = NodeAnnouncement { state: NodeState::Stopping, ..announcement(1) };
    a.announce(changed.clone()).await.unwrap();
    until(b.membership(), |m| m.nodes.values().any(|n| n.announcement == changed)).await;
    let lease = controller(&a, 1).await;
    a.close().await;
    until(b.membership(), |m| m.nodes.is_empty()).await;
    until(b.leases(), |l| l.is_empty()).await;
    assert!(!lease.is_held(), "closing ends what was held, whoever still has it in hand");
    assert_eq!(a.layout().await, Err(CoordinationError::SessionExpired), "a closed session is not opened again");
    assert!(!a.ownership().is_proven());

    let c = harness.participant().await;
    let second = c.register(cluster, announcement(1)).await.unwrap();
    assert!(second.incarnation > first.incarnation, "a restart is seen");
}

pub async fn second_live_node_with_the_same_id_is_refused(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    a.register(cluster, announcement(1)).await.unwrap();
    let refused = b.register(cluster, announcement(1)).await;
    let expected = CoordinationError::NodeIdTaken { node: NodeId::from(1), holder: "127.0.0.1:7001".into() };
    assert_eq!(refused, Err(expected));
    b.register(cluster, announcement(2)).await.unwrap();
    // While one waits for the other to go, it may go: then the waiting one gets the id.
    let is_gone = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn({
        let (c, is_gone) = (harness.participant().await, is_gone.clone());
        async move {
            loop {
                match c.register(cluster, announcement(2)).await {
                    // It waits for about as long as a session lives, and the machine stood still for longer than that.
                    Err(CoordinationError::NodeIdTaken { .. }) if !is_gone.load(Ordering::SeqCst) => {}
                    registered => return registered.map(|_| c),
                }
            }
        }
    });
    tokio::task::yield_now().await;
    b.close().await;
    is_gone.store(true, Ordering::SeqCst);
    let _c = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
}

pub async fn late_participant_sees_everything_that_is_there(harness: &dyn Harness) {
    let a = harness.participant().await;
    let cluster = found(&a).await;
    a.register(cluster, announcement(1)).await.unwrap();
    let lease = controller(&a, 1).await;
    for id in 0..16 {
        a.store_shard(ShardId(id), None, &shard(&[1]), &lease).await.unwrap();
    }
    let generation = change_cache(&a).await;
    let b = harness.participant().await;
    until(b.shards(), |s| s.shards.len() == 16).await;
    until(b.membership(), |m| m.nodes.len() == 1).await;
    until(b.watch_layout(), |l| l.as_ref().is_some_and(|l| l.value == LayoutDocument::new(3))).await;
    until(b.watch_cache_state(), |state| state.generation == generation).await;
    let holder = until(b.leases(), |l| l.contains_key("controller")).await;
    assert_eq!((holder["controller"].node, holder["controller"].token), (NodeId::from(1), lease.token()));
}

static ONE: std::sync::LazyLock<ShardState> = std::sync::LazyLock::new(|| shard(&[1]));

pub async fn short_interruption_loses_nothing(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    let (registration, lease, term) = loop {
        let registration = a.register(cluster, announcement(1)).await.unwrap();
        let lease = controller(&a, 1).await;
        let term = a.ownership().term();
        until(a.session(), |s| *s == SessionState::Connected).await;
        let begun = Instant::now();
        a.connection.cut().await;
        until(a.session(), |s| *s != SessionState::Connected).await;
        a.connection.restore().await;
        if begun.elapsed() < harness.interruption_max() {
            break (registration, lease, term);
        }
        insist(|| a.renew_session()).await;
    };
    until(a.session(), |s| *s == SessionState::Connected).await;
    assert!(a.ownership().is_proven() && lease.is_held());
    assert_eq!(a.ownership().term(), term);
    // What changed meanwhile is seen although the connection was not there when it changed.
    let generation = change_cache(&b).await;
    until(a.watch_cache_state(), |state| state.generation == generation).await;
    // And what changes from then on.
    for _ in 0..4 {
        let generation = change_cache(&b).await;
        until(a.watch_cache_state(), |state| state.generation == generation).await;
    }
    insist(|| a.store_shard(ShardId(1), None, &ONE, &lease)).await;
    let seen = until(b.membership(), |m| m.nodes.contains_key(&NodeId::from(1))).await;
    assert_eq!(seen.nodes[&NodeId::from(1)].incarnation, registration.incarnation, "it never left");
}

pub async fn expired_session_fences_until_it_is_renewed(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    a.register(cluster, announcement(1)).await.unwrap();
    until(b.membership(), |m| m.nodes.len() == 1).await;
    let ownership = a.ownership();
    assert!(ownership.is_proven());
    let term = ownership.term();
    a.connection.cut().await;
    let mut membership = b.membership();
    timeout(PATIENCE, membership.wait_for(|m| m.nodes.is_empty())).await.expect("its session ends").unwrap();
    assert!(!ownership.is_proven(), "it fences itself before others see it go");
    until(a.session(), |s| *s == SessionState::Expired).await;
    a.connection.restore().await;
    assert_eq!(a.cache_state().await, Err(CoordinationError::SessionExpired));
    assert_eq!(a.register(cluster, announcement(1)).await, Err(CoordinationError::SessionExpired));
    assert!(!ownership.is_proven(), "a connection alone proves nothing");

    let before = change_cache(&b).await;
    insist(|| a.renew_session()).await;
    until(a.session(), |s| *s == SessionState::Connected).await;
    assert!(ownership.is_proven());
    assert_ne!(ownership.term(), term, "what was proven before is another matter");
    assert!(b.membership().borrow().nodes.is_empty(), "nothing is taken back silently");
    let again = a.register(cluster, announcement(1)).await.unwrap();
    assert!(again.cache_generation >= before);
    until(b.membership(), |m| m.nodes.len() == 1).await;
    until(a.watch_cache_state(), |state| state.generation >= before).await;
}

pub async fn own_registration_of_an_earlier_session_is_replaced(harness: &dyn Harness) {
    let a = harness.participant().await;
    let cluster = found(&a).await;
    let mut last = a.register(cluster, announcement(1)).await.unwrap();
    let again = a.register(cluster, NodeAnnouncement { free_bytes: 7, ..announcement(1) }).await.unwrap();
    assert!(again.incarnation > last.incarnation);
    last = again;
    a.expire().await;
    insist(|| a.renew_session()).await;
    let again = a.register(cluster, announcement(1)).await.unwrap();
    assert!(again.incarnation > last.incarnation);
}

/// The new registration counts as having seen how the cache stands; the node itself has yet to see it.
pub async fn node_that_registers_again_owns_nothing_until_it_says_that_it_is_registered(harness: &dyn Harness) {
    let node = harness.participant().await;
    let cluster = found(&node).await;
    let ownership = node.ownership();
    ownership.require_registration();
    node.register(cluster, announcement(1)).await.unwrap();
    ownership.registered(ownership.term());
    let term = ownership.term();
    assert!(ownership.is_proven());
    node.register(cluster, announcement(1)).await.unwrap();
    assert!(!ownership.is_proven());
    assert_eq!(ownership.term(), term, "the session is the same");
    ownership.registered(ownership.term());
    assert!(ownership.is_proven());
}
