//! Who owns a partition, and up to when that is proven.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::hash::fnv1a;
use tokio::sync::watch;

use super::RelayOwner;
use crate::ports::coordination::{Lease, LeaseName, LiveNode, Membership, NodeState};

/// How long it is waited for that a lease is given back, which goes on after that.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the coordination service refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// The right to publish from a partition.
pub(super) enum Hold {
    /// Of the only node.
    Alone,
    /// Under a lease.
    Lease(Lease, RelayOwner),
}

impl Hold {
    /// How long the right is proven from now on. Zero: nothing may be begun.
    pub(super) fn proven(&self) -> Duration {
        match self {
            Self::Alone => Duration::MAX,
            Self::Lease(lease, RelayOwner::Cluster { coordination, .. }) if lease.is_held() => {
                coordination.ownership().remaining()
            }
            Self::Lease(..) => Duration::ZERO,
        }
    }

    /// Resolves when the right is lost, or another node should have it.
    pub(super) async fn over(&self, partition: u16) {
        match self {
            Self::Alone => std::future::pending().await,
            Self::Lease(lease, owner) => tokio::select! {
                () = lease.lost() => {}
                () = wait_until(owner, partition, false) => {}
            },
        }
    }

    pub(super) async fn release(self) {
        if let Self::Lease(lease, _) = self {
            drop(tokio::time::timeout(RELEASE_TIMEOUT, lease.release()).await);
        }
    }
}

/// Waits until the partition is this node's.
pub(super) async fn acquire(owner: &RelayOwner, partition: u16) -> Hold {
    let RelayOwner::Cluster { coordination, me } = owner else { return Hold::Alone };
    let name = LeaseName::new(format!("events-{partition}")).expect("letters and digits");
    loop {
        wait_until(owner, partition, true).await;
        tokio::select! {
            // Leaves the queue.
            () = wait_until(owner, partition, false) => {}
            acquired = coordination.acquire(&name, *me) => match acquired {
                Ok(lease) => return Hold::Lease(lease, owner.clone()),
                Err(error) => {
                    tracing::debug!(%error, partition, "this node does not get a partition of the outbox");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            },
        }
    }
}

/// Waits until this node should have the partition, or should not.
async fn wait_until(owner: &RelayOwner, partition: u16, should_have: bool) {
    let RelayOwner::Cluster { coordination, me } = owner else { return };
    let mut membership: watch::Receiver<Arc<Membership>> = coordination.membership();
    let decided = membership.wait_for(|members| (owner_of(members, partition) == Some(*me)) == should_have);
    let decided = decided.await.is_ok();
    if !decided {
        // The connection is gone: nothing will ever be decided.
        std::future::pending::<()>().await;
    }
}

/// Which of the nodes that take requests and publish should own a partition: the one with the highest hash of both, so
/// that a node that comes or goes moves no more than its own.
pub(super) fn owner_of(members: &Membership, partition: u16) -> Option<NodeId> {
    let said = |node: &LiveNode| node.announcement.state == NodeState::Ready && node.announcement.publishes;
    let ready = members.nodes.iter().filter(|(_, node)| said(node));
    ready.map(|(id, _)| *id).max_by_key(|id| (weight(*id, partition), *id))
}

fn weight(node: NodeId, partition: u16) -> u64 {
    let hash = fnv1a(node.as_bytes().iter().copied().chain(partition.to_be_bytes()));
    // Mixed, as the last bytes differ least.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
