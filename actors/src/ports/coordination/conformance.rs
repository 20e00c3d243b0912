//! What every adapter of [`Coordination`] does, as tests. An adapter's test crate implements [`Harness`] and calls
//! [`crate::coordination_conformance!`].

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::cluster::{Joiner, LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, Epoch, NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{
    CacheMode, CacheSeen, CacheState, ClusterIdentity, Coordination, CoordinationError, FORMAT, FencingToken, Lease,
    LeaseName, NodeAddresses, NodeAnnouncement, NodeState, Pause, Pauses, SessionState, Version, set_repair_pause,
    turn_cache_off,
};

/// Longer than anything here takes, expiry of a session included.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connection of one participant, to be disturbed.
#[async_trait]
pub trait Connection: Send + Sync {
    /// Cuts it. Nothing arrives and nothing is refused, as with a cable pulled.
    async fn cut(&self);
    /// Lets it work again.
    async fn restore(&self);
}

/// One node's access.
#[derive(Clone)]
pub struct Participant {
    pub coordination: Arc<dyn Coordination>,
    pub connection: Arc<dyn Connection>,
}

impl std::ops::Deref for Participant {
    type Target = dyn Coordination;

    fn deref(&self) -> &Self::Target {
        &*self.coordination
    }
}

impl Participant {
    /// Cuts the connection until the session is over, then restores it.
    pub async fn expire(&self) {
        self.connection.cut().await;
        until(self.session(), |s| *s == SessionState::Expired).await;
        self.connection.restore().await;
    }
}

/// A service without a cluster in it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Another participant of the same service.
    async fn participant(&self) -> Participant;
}

/// Expands to one test a case. `$harness` is an expression that makes a fresh, empty service: it may await.
#[macro_export]
macro_rules! coordination_conformance {
    ($harness:expr) => {
        $crate::coordination_conformance! { @each $harness;
            cluster_is_created_exactly_once
            node_of_another_cluster_is_refused
            registration_is_seen_by_others_and_ends_with_the_session
            second_live_node_with_the_same_id_is_refused
            late_participant_sees_everything_that_is_there
            short_interruption_loses_nothing
            expired_session_fences_until_it_is_renewed
            own_registration_of_an_earlier_session_is_replaced
            racing_writers_of_the_layout_lose_no_update
            shard_is_created_once_and_replaced_only_by_who_read_it
            racing_writers_of_a_shard_lose_no_update
            invalid_shard_is_refused
            controller_that_was_replaced_changes_nothing
            lease_has_one_holder_and_rising_tokens
            waiters_are_served_in_order_and_may_leave
            lease_passes_on_when_its_holder_expires
            cache_generation_is_seen_by_every_live_node
            racing_changes_of_the_cache_lose_none
            cache_is_turned_off_once_by_many
            pause_holds_for_everybody_until_it_is_taken_back
        }
    };
    (@each $harness:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $harness;
                $crate::ports::coordination::conformance::$case(&harness).await;
            }
        )*
    };
}

/// Waits until the channel shows what is asked for.
pub async fn until<T: Clone + std::fmt::Debug>(mut channel: watch::Receiver<T>, mut is: impl FnMut(&T) -> bool) -> T {
    let found = timeout(PATIENCE, channel.wait_for(|v| is(v))).await.map(|r| r.map(|v| v.clone()));
    match found {
        Ok(Ok(value)) => value,
        Ok(Err(_)) => panic!("the adapter is gone"),
        Err(_) => panic!("not seen in {PATIENCE:?}; last: {:?}", *channel.borrow()),
    }
}

pub fn announcement(id: u64) -> NodeAnnouncement {
    NodeAnnouncement {
        id: NodeId::from(id),
        addresses: NodeAddresses {
            peer: format!("127.0.0.1:{}", 7000 + id),
            s3: "127.0.0.1:9000".into(),
            admin: "127.0.0.1:9001".into(),
        },
        zone: "a".into(),
        capacity_bytes: 1 << 40,
        free_bytes: 1 << 39,
        version: "1.2.3".into(),
        state: NodeState::Ready,
        publishes: true,
    }
}

/// Creates a cluster and returns its id.
pub async fn found(participant: &Participant) -> ClusterId {
    let identity = ClusterIdentity::new(16, 1_700_000_000_000);
    participant.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
    identity.id
}

async fn controller(participant: &Participant, node: u64) -> Lease {
    let name = LeaseName::controller();
    timeout(PATIENCE, participant.acquire(&name, NodeId::from(node))).await.expect("the lease is free").unwrap()
}

fn shard(nodes: &[u64]) -> ShardState {
    ShardState::founding(nodes.iter().map(|n| NodeId::from(*n)).collect())
}

/// Calls again as long as the service is not there.
async fn insist<T, F: Future<Output = Result<T, CoordinationError>>>(call: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(value) => return value,
            Err(CoordinationError::Unavailable(_) | CoordinationError::SessionExpired)
                if tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

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
    let waiting = tokio::spawn({
        let c = harness.participant().await;
        async move { c.register(cluster, announcement(2)).await.map(|_| c) }
    });
    tokio::task::yield_now().await;
    b.close().await;
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

pub async fn short_interruption_loses_nothing(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let cluster = found(&a).await;
    let registration = a.register(cluster, announcement(1)).await.unwrap();
    let lease = controller(&a, 1).await;
    let term = a.ownership().term();
    until(a.session(), |s| *s == SessionState::Connected).await;
    a.connection.cut().await;
    until(a.session(), |s| *s != SessionState::Connected).await;
    a.connection.restore().await;
    until(a.session(), |s| *s == SessionState::Connected).await;
    assert!(a.ownership().is_proven() && lease.is_held());
    assert_eq!(a.ownership().term(), term);
    // What changed meanwhile is seen although the connection was not there when it changed.
    let generation = change_cache(&b).await;
    until(a.watch_cache_state(), |state| state.generation == generation).await;
    insist(|| a.store_shard(ShardId(1), None, &ONE, &lease)).await;
    let seen = until(b.membership(), |m| m.nodes.contains_key(&NodeId::from(1))).await;
    assert_eq!(seen.nodes[&NodeId::from(1)].incarnation, registration.incarnation, "it never left");
}

static ONE: std::sync::LazyLock<ShardState> = std::sync::LazyLock::new(|| shard(&[1]));

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

/// Switches the cache to its next state, whatever that is.
async fn change_cache(participant: &Participant) -> u64 {
    loop {
        let present = insist(|| participant.cache_state()).await;
        let next = match present.value.mode {
            CacheMode::Off => present.value.warming(None, "a server"),
            CacheMode::Warming => present.value.on(None),
            CacheMode::On => present.value.off(None, "a test", 0),
        };
        match participant.store_cache_state(present.version, &next).await {
            Ok(_) => return next.generation,
            Err(CoordinationError::Conflict(_) | CoordinationError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

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

pub async fn pause_holds_for_everybody_until_it_is_taken_back(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let early = a.store_pauses(None, &Pauses::default()).await;
    assert!(matches!(early, Err(CoordinationError::NotFound(_))), "{early:?}");
    found(&a).await;
    assert_eq!(a.pauses().await.unwrap(), None);
    let paused = |by: &str| Some(Pause { since_ms: 5, by: by.into(), node: NodeId::from(1) });
    assert_eq!(set_repair_pause(&*a.coordination, paused("first")).await.unwrap(), paused("first"));
    until(b.watch_pauses(), |pauses| pauses.repairs == paused("first")).await;
    let again = set_repair_pause(&*b.coordination, paused("second")).await.unwrap();
    assert_eq!(again, paused("first"), "it is as old as it is");

    // Neither who asked for it nor a session is needed for it to hold.
    a.close().await;
    drop(a);
    b.expire().await;
    insist(|| b.renew_session()).await;
    let late = harness.participant().await;
    until(late.watch_pauses(), |pauses| pauses.repairs == paused("first")).await;
    let found = late.pauses().await.unwrap().expect("it was stored");
    assert_eq!(found.value.repairs, paused("first"));

    let stale = late.store_pauses(None, &Pauses::default()).await;
    assert!(matches!(stale, Err(CoordinationError::Conflict(_))), "{stale:?}");
    assert_eq!(set_repair_pause(&*b.coordination, None).await.unwrap(), None);
    until(late.watch_pauses(), |pauses| pauses.repairs.is_none()).await;
    let stale = late.store_pauses(Some(found.version), &found.value).await;
    assert!(matches!(stale, Err(CoordinationError::Conflict(_))), "{stale:?}");
    assert_eq!(set_repair_pause(&*late.coordination, paused("third")).await.unwrap(), paused("third"));
    until(b.watch_pauses(), |pauses| pauses.repairs == paused("third")).await;
}
