//! The vocabulary of a cluster: nodes, shards, epochs, the layout that the operator wants and the state of one shard.
//!
//! These values are stored in the coordination service and shown by the admin API, so their JSON form is a format: a
//! field may be added with a default, none may change its meaning. What is *decided* about them lives in
//! `holdfast_actors::domain::placement`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hash::mix64;
use crate::ids::ChunkId;

mod ids;
mod layout;

pub use ids::{ClusterId, NodeId, ParseClusterIdError};
pub use layout::{Layout, LayoutChange, LayoutDocument, LayoutNode};

/// Shards of a cluster unless its creator says otherwise.
pub const SHARD_COUNT_DEFAULT: u32 = 256;
/// The most shards a cluster may have. Each is one small node in the coordination service, and all are read at start.
pub const SHARD_COUNT_MAX: u32 = 16_384;
/// The most replicas of a shard.
pub const REPLICATION_FACTOR_MAX: u32 = 7;
/// The most nodes in a layout; the layout must fit one znode (1 MiB) with room for staged changes.
pub const LAYOUT_NODES_MAX: usize = 1024;
/// The most staged changes in a layout.
pub const STAGED_CHANGES_MAX: usize = 2048;
/// The largest weight of a node. Weights are relative; the bound keeps sums exact.
pub const WEIGHT_MAX: u32 = 1_000_000_000;
/// The longest name of a zone, in bytes.
pub const ZONE_NAME_BYTES_MAX: usize = 64;

/// One of the cluster's shards: `0..shard_count`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard that holds `chunk` in a cluster of `shard_count` shards.
    ///
    /// The function is a format: data is found by it, so it never changes. The id's two halves are folded and mixed
    /// with the finaliser of SplitMix64, since chunk ids begin with a time and end with an index.
    ///
    /// # Panics
    /// When `shard_count` is zero, which no cluster has.
    pub fn of_chunk(chunk: &ChunkId, shard_count: u32) -> Self {
        assert!(shard_count > 0, "a cluster has at least one shard");
        let bytes = u128::from_be_bytes(chunk.0);
        let high = mix64((bytes >> 64) as u64);
        let hash = mix64(high ^ bytes as u64);
        Self((hash % u64::from(shard_count)) as u32)
    }

    /// The shard's place in a list of all shards.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardId({})", self.0)
    }
}

/// A shard's generation. It rises whenever the set of nodes that must see a write changes; writes that carry an older
/// one are refused (promise D9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a shard that was never changed.
    pub const FIRST: Self = Self(1);

    /// The last one that metadata can keep; a stored state with a later one is damaged.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a shard does not change 2^64 times"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({})", self.0)
    }
}

/// A majority of `replication_factor` replicas.
pub fn write_quorum(replication_factor: u32) -> u32 {
    replication_factor / 2 + 1
}

/// A node that is being made a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    /// Which node.
    pub node: NodeId,
    /// The epoch in which this join began. A report of another join of the same node does not count for this one.
    pub since: Epoch,
}

/// A node whose replica is no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaver {
    /// Which node.
    pub node: NodeId,
    /// The epoch in which it stopped being written to.
    pub since: Epoch,
}

/// Who holds a shard.
///
/// A node is in at most one of `members`, `joining` and `leaving`. Writers send to members and joiners. Two quorums
/// make a write durable: [`ShardState::write_quorum`] counts members only, [`ShardState::target_quorum`] members and
/// joiners. Readers ask members, and may try leavers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// Fences writers that work from an older state.
    pub epoch: Epoch,
    /// Whom the applied layout wants.
    pub target: Vec<NodeId>,
    /// Hold the shard, verified. Never empty.
    pub members: Vec<NodeId>,
    /// Receive new writes, copy the rest and verify it.
    #[serde(default)]
    pub joining: Vec<Joiner>,
    /// Serve readers with an older map until the grace is over, then delete.
    #[serde(default)]
    pub leaving: Vec<Leaver>,
}

impl ShardState {
    /// A new, empty shard on `nodes`.
    pub fn founding(nodes: Vec<NodeId>) -> Self {
        Self { epoch: Epoch::FIRST, target: nodes.clone(), members: nodes, joining: Vec::new(), leaving: Vec::new() }
    }

    /// Whether `node` is a member.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    /// Whether `node` is joining.
    pub fn is_joining(&self, node: NodeId) -> bool {
        self.joining.iter().any(|j| j.node == node)
    }

    /// Whether `node` is leaving.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.leaving.iter().any(|l| l.node == node)
    }

    /// Acknowledgements by members that make a write durable: a majority of them. Members that are lost count until
    /// they are replaced; joiners do not, since they lack what was written before.
    pub fn write_quorum(&self) -> u32 {
        write_quorum(self.members.len() as u32)
    }

    /// Acknowledgements by members and joiners together that make a write durable, beside [`Self::write_quorum`]: a
    /// majority of the replicas that the layout wants. A shard whose members lost their disks may have one member left,
    /// which is a majority of itself; what it acknowledged alone would not survive it.
    pub fn target_quorum(&self) -> u32 {
        write_quorum(self.target.len() as u32)
    }

    /// Everyone a write must be sent to: members, then joiners.
    pub fn write_set(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().copied().chain(self.joining.iter().map(|j| j.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContentId;

    /// Data is found by this function: a failure here means that every cluster would lose its data at the next upgrade.
    #[test]
    fn shard_of_chunk_never_changes() {
        let content = ContentId([0x65, 0x53, 0xf1, 0x00, 1, 2, 3, 4, 5, 6, 7, 8]);
        let shards: Vec<u32> = (0..8).map(|i| ShardId::of_chunk(&content.chunk(i), 256).0).collect();
        assert_eq!(shards, SHARDS_OF_ONE_CONTENT);
        assert_eq!(ShardId::of_chunk(&ChunkId([0; 16]), 4096).0, SHARD_OF_ZERO);
    }

    const SHARDS_OF_ONE_CONTENT: [u32; 8] = [154, 130, 153, 247, 164, 187, 92, 126];
    const SHARD_OF_ZERO: u32 = 3695;

    #[test]
    fn chunks_of_one_second_spread_evenly_over_shards() {
        let mut counts = [0_u32; 256];
        for _ in 0..2_560 {
            let content = ContentId::generate(1_700_000_000);
            for index in 0..10 {
                counts[ShardId::of_chunk(&content.chunk(index), 256).index()] += 1;
            }
        }
        // 100 expected a shard, standard deviation 10: six of them.
        assert!(counts.iter().all(|c| (40..=160).contains(c)), "{counts:?}");
    }

    #[test]
    fn stored_form_is_stable() {
        let mut state = ShardState::founding(vec![NodeId::from(1), NodeId::from(2)]);
        state.joining.push(Joiner { node: NodeId::from(3), since: Epoch(1) });
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(
            json,
            r#"{"epoch":1,"target":["0000000000000001","0000000000000002"],"members":["0000000000000001","0000000000000002"],"joining":[{"node":"0000000000000003","since":1}],"leaving":[]}"#
        );
        assert_eq!(serde_json::from_str::<ShardState>(&json).unwrap(), state);
        let change = LayoutChange::Assign { node: NodeId::from(1), zone: "a".into(), weight: 5 };
        assert_eq!(
            serde_json::to_string(&change).unwrap(),
            r#"{"change":"assign","node":"0000000000000001","zone":"a","weight":5}"#
        );
    }
}
