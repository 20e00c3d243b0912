//! What this node knows of its cluster: a snapshot of who holds which shard, who is alive, and whether this node may
//! act.
//!
//! The shard map is a mirror of the coordination service and may be late. What makes that harmless are epochs: requests
//! carry the one they were planned under, and [`ClusterView::admit`] refuses those that are older than any that this
//! node has heard of, be it from the mirror or from a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{ChunkId, Epoch, NodeId, ShardId};
use tokio::sync::watch;

use crate::ports::coordination::{Membership, Ownership, ShardMap};
use crate::ports::peers::{Fence, PeerError};

/// See the module's page. Shared by [`Arc`].
#[derive(Debug)]
pub struct ClusterView {
    me: NodeId,
    shard_count: u32,
    shards: watch::Receiver<Arc<ShardMap>>,
    membership: watch::Receiver<Arc<Membership>>,
    ownership: Ownership,
    /// The highest epoch heard of, by shard.
    seen: Box<[AtomicU64]>,
}

/// Who holds a chunk.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Shard and epoch.
    pub fence: Fence,
    /// The shard.
    pub state: ShardState,
}

impl ClusterView {
    /// A view that follows the mirror of the coordination service.
    pub fn new(
        me: NodeId,
        shard_count: u32,
        shards: watch::Receiver<Arc<ShardMap>>,
        membership: watch::Receiver<Arc<Membership>>,
        ownership: Ownership,
    ) -> Arc<Self> {
        let seen = (0..shard_count).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { me, shard_count, shards, membership, ownership, seen })
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Shards of the cluster.
    pub fn shard_count(&self) -> u32 {
        self.shard_count
    }

    /// The shard map, to wait for changes of it.
    pub fn shards(&self) -> watch::Receiver<Arc<ShardMap>> {
        self.shards.clone()
    }

    /// The nodes that are alive, to wait for changes.
    pub fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.membership.clone()
    }

    /// Whether a node is alive as far as is known.
    pub fn is_alive(&self, node: NodeId) -> bool {
        node == self.me || self.membership.borrow().nodes.contains_key(&node)
    }

    /// Whether a node is alive and has a disk that works.
    pub fn holds_data(&self, node: NodeId) -> bool {
        let membership = self.membership.borrow();
        membership.holds(node) || (node == self.me && !membership.nodes.contains_key(&node))
    }

    /// Whether a disk of a live node failed, and not all that was on it is on its other disks by now.
    pub fn is_short(&self, node: NodeId) -> bool {
        self.membership.borrow().is_short(node)
    }

    /// Whether this node may act as an owner. To be asked after the work and before the answer.
    pub fn is_owner(&self) -> bool {
        self.ownership.is_proven()
    }

    /// The shard of a chunk.
    pub fn shard_of(&self, chunk: &ChunkId) -> ShardId {
        ShardId::of_chunk(chunk, self.shard_count)
    }

    /// Who holds a chunk; `None` before its shard was placed.
    pub fn placement(&self, chunk: &ChunkId) -> Option<Placement> {
        let shard = self.shard_of(chunk);
        let state = self.shards.borrow().shards.get(&shard)?.value.clone();
        self.hear(Fence { shard, epoch: state.epoch });
        Some(Placement { fence: Fence { shard, epoch: state.epoch }, state })
    }

    /// Takes note of an epoch; never lowers one.
    pub fn hear(&self, fence: Fence) {
        if let Some(seen) = self.seen.get(fence.shard.index()) {
            seen.fetch_max(fence.epoch.0, Ordering::AcqRel);
        }
    }

    /// Takes note of the request's epoch, and refuses the request when a later one is known or when this node cannot
    /// prove its membership. To be called when work begins, and again after it is durable and before it is
    /// acknowledged.
    ///
    /// # Errors
    /// [`PeerError::Stale`], [`PeerError::Fenced`]; [`PeerError::Protocol`] for a shard that the cluster does not have.
    pub fn admit(&self, fence: Fence) -> Result<(), PeerError> {
        let Some(seen) = self.seen.get(fence.shard.index()) else {
            return Err(PeerError::Protocol(format!("shard {} of {}", fence.shard, self.shard_count)));
        };
        if let Some(state) = self.shards.borrow().shards.get(&fence.shard) {
            seen.fetch_max(state.value.epoch.0, Ordering::AcqRel);
        }
        let before = seen.fetch_max(fence.epoch.0, Ordering::AcqRel);
        if before > fence.epoch.0 {
            return Err(PeerError::Stale { shard: fence.shard, current: Epoch(before) });
        }
        // Last, so that nothing waits between the look at the clock and the answer.
        if self.is_owner() { Ok(()) } else { Err(PeerError::Fenced) }
    }
}
