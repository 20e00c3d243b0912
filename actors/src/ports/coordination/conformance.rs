//! What every adapter of [`Coordination`] does, as tests. An adapter's test crate implements [`Harness`] and calls
//! [`crate::coordination_conformance!`].

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{
    CacheMode, ClusterIdentity, Coordination, CoordinationError, Lease, LeaseName, NodeAddresses, NodeAnnouncement,
    NodeState, SessionState,
};

pub mod caches;
pub mod leases;
pub mod nodes;
pub mod pauses;
pub mod shards;

/// Longer than anything here takes, expiry of a session included.
const PATIENCE: Duration = Duration::from_secs(120);

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

    /// How long an interruption may last for certain without ending anything. What a test means to be shorter, and a
    /// machine that stands still makes longer, is begun anew.
    fn interruption_max(&self) -> Duration {
        Duration::MAX
    }
}

/// Expands to one test a case. `$harness` is an expression that makes a fresh, empty service: it may await.
#[macro_export]
macro_rules! coordination_conformance {
    ($harness:expr) => {
        $crate::coordination_conformance! { @each $harness;
            nodes::cluster_is_created_exactly_once,
            nodes::node_of_another_cluster_is_refused,
            nodes::registration_is_seen_by_others_and_ends_with_the_session,
            nodes::second_live_node_with_the_same_id_is_refused,
            nodes::late_participant_sees_everything_that_is_there,
            nodes::short_interruption_loses_nothing,
            nodes::expired_session_fences_until_it_is_renewed,
            nodes::own_registration_of_an_earlier_session_is_replaced,
            nodes::node_that_registers_again_owns_nothing_until_it_says_that_it_is_registered,
            shards::racing_writers_of_the_layout_lose_no_update,
            shards::shard_is_created_once_and_replaced_only_by_who_read_it,
            shards::racing_writers_of_a_shard_lose_no_update,
            shards::invalid_shard_is_refused,
            shards::controller_that_was_replaced_changes_nothing,
            leases::lease_has_one_holder_and_rising_tokens,
            leases::waiters_are_served_in_order_and_may_leave,
            leases::lease_passes_on_when_its_holder_expires,
            leases::renewed_session_shows_what_was_taken_while_there_was_none,
            caches::cache_generation_is_seen_by_every_live_node,
            caches::racing_changes_of_the_cache_lose_none,
            caches::cache_is_turned_off_once_by_many,
            pauses::pause_holds_for_everybody_until_it_is_taken_back,
        }
    };
    (@each $harness:expr; $($module:ident :: $case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $harness;
                $crate::ports::coordination::conformance::$module::$case(&harness).await;
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
        disks_working: None,
        disks_unrebuilt: 0,
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
