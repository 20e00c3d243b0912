//! The values of the `Coordination` port.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::cluster::{SHARD_COUNT_MAX, ShardState};
use holdfast_protocol::hash::fnv1a;
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use serde::{Deserialize, Serialize};

/// The newest format of what is stored in the coordination service that this program knows.
pub const FORMAT: u32 = 1;

/// A value's generation in the coordination service: it changes with every write of the value. It means nothing outside
/// of compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i32);

/// A value and the version to replace it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// For compare-and-set.
    pub version: Version,
    /// The value.
    pub value: T,
}

/// What never changes about a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Its name.
    pub id: ClusterId,
    /// How its coordination data is to be read.
    pub format: u32,
    /// How many shards it has.
    pub shard_count: u32,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
}

impl ClusterIdentity {
    /// A new cluster.
    pub fn new(shard_count: u32, created_ms: u64) -> Self {
        Self { id: ClusterId::generate(), format: FORMAT, shard_count, created_ms }
    }

    /// Whether a cluster can be like this.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if (1..=SHARD_COUNT_MAX).contains(&self.shard_count) {
            return Ok(());
        }
        Err(format!("{} shards: a cluster has 1 to {SHARD_COUNT_MAX}", self.shard_count))
    }
}

/// Where a node listens, as `host:port` that others can reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// Peers (QUIC).
    pub peer: String,
    /// S3.
    pub s3: String,
    /// The admin API.
    pub admin: String,
}

/// What a node says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Recovering its disks: does not take requests yet.
    Starting,
    /// Takes requests.
    Ready,
    /// Finishes what it began, then leaves.
    Stopping,
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnnouncement {
    /// Its id.
    pub id: NodeId,
    /// Where it listens.
    pub addresses: NodeAddresses,
    /// The zone in its configuration. The layout decides; this is a hint for who assigns it.
    pub zone: String,
    /// What its disks can hold.
    pub capacity_bytes: u64,
    /// What is free of that; a hint, refreshed now and then.
    pub free_bytes: u64,
    /// Version of the program.
    pub version: String,
    /// What it is doing.
    pub state: NodeState,
    /// Whether it publishes events: only such a node may own a partition of the outbox.
    #[serde(default)]
    pub publishes: bool,
    /// How many of its disks work; `None` before it knows, and of a node that does not say.
    #[serde(default)]
    pub disks_working: Option<u32>,
    /// Disks that failed while the node runs, for as long as something that they held is nowhere else on it.
    #[serde(default)]
    pub disks_unrebuilt: u32,
}

/// A node that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveNode {
    /// What it says.
    pub announcement: NodeAnnouncement,
    /// Rises with each registration, so that a restart between two looks is seen.
    pub incarnation: u64,
}

/// The nodes that are alive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// By id.
    pub nodes: BTreeMap<NodeId, LiveNode>,
}

impl Membership {
    /// Whether a node is alive and has disks that work: what it held counts.
    pub fn holds(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|live| live.announcement.disks_working != Some(0))
    }

    /// Whether a disk of the node failed, and not all that was on it is on its other disks by now.
    pub fn is_short(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|live| live.announcement.disks_unrebuilt > 0)
    }

    /// A number for which nodes are here, in which of their lives, and how many of their disks failed: the same
    /// wherever the same is known, and all but certainly another one where a node left or came back. Peers compare it,
    /// of whatever version they are, so it is made in one way for good.
    pub fn lives(&self) -> u64 {
        fnv1a(self.nodes.iter().flat_map(|(node, live)| {
            let (incarnation, unrebuilt) = (live.incarnation, live.announcement.disks_unrebuilt);
            node.0.into_iter().chain(incarnation.to_be_bytes()).chain(unrebuilt.to_be_bytes())
        }))
    }
}

/// All shards that are placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// By id.
    pub shards: BTreeMap<ShardId, Arc<Versioned<ShardState>>>,
}

/// What registration returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// See [`LiveNode::incarnation`].
    pub incarnation: u64,
    /// The state of the shared cache that this node counts as having acknowledged.
    pub cache_generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::coordination::conformance::announcement;

    /// Where nodes of two versions made different numbers of the same, nothing would be proven to either, and none of
    /// them could be stopped to be upgraded.
    #[test]
    fn lives_are_one_number_in_all_versions_and_another_one_when_a_node_leaves_comes_back_or_loses_a_disk() {
        let node = |id: u64, incarnation| (NodeId::from(id), LiveNode { announcement: announcement(id), incarnation });
        let here = Membership { nodes: [node(1, 7), node(2, 9)].into() };
        assert_eq!(here.lives(), 0x317e_52b5_c7a9_052e);
        let [mut left, mut back, mut short, mut told] = [(); 4].map(|()| here.clone());
        left.nodes.remove(&NodeId::from(2));
        back.nodes.extend([node(2, 10)]);
        short.nodes.values_mut().for_each(|node| node.announcement.disks_unrebuilt = 1);
        for changed in [left, back, short] {
            assert_ne!(changed.lives(), here.lives(), "{changed:?}");
        }
        told.nodes.values_mut().for_each(|node| node.announcement.free_bytes = 1);
        assert_eq!(told.lives(), here.lives(), "what is told now and then is no other life");
    }
}
