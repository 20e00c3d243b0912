//! The vocabulary of a cluster: nodes, shards, epochs, the layout that the operator wants and the state of one shard.
//!
//! These values are stored in the coordination service and shown by the admin API, so their JSON form is a format: a
//! field may be added with a default, none may change its meaning. What is *decided* about them lives in
//! `holdfast_actors::domain::placement`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rand::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::ids::ChunkId;

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

/// Text that is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind} {text:?}: expected {digits} hexadecimal digits")]
pub struct ParseClusterIdError {
    kind: &'static str,
    text: String,
    digits: usize,
}

/// An identifier that is text wherever people or JSON see it.
macro_rules! text_id {
    ($name:ident, $len:literal, $kind:literal) => {
        impl $name {
            /// A fresh identifier.
            pub fn generate() -> Self {
                let mut bytes = [0; $len];
                rand::rng().fill_bytes(&mut bytes);
                Self(bytes)
            }

            /// The identifier as it is stored.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Takes stored bytes back; `None` when their number is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseClusterIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(s, &mut bytes).map_err(|_| ParseClusterIdError {
                    kind: $kind,
                    text: s.chars().take(40).collect(),
                    digits: 2 * $len,
                })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Names one node for its whole life. It is drawn once, when the data directory is made, and lives there: a node that
/// moves to another address keeps it, a node whose data directory is lost gets another. Two live nodes with the same one
/// are refused at registration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 8]);

text_id!(NodeId, 8, "node id");

impl From<u64> for NodeId {
    fn from(value: u64) -> Self {
        Self(value.to_be_bytes())
    }
}

/// Names one cluster. Every node writes it into its data directory when it joins, so that a node pointed at another
/// cluster's coordination service is refused instead of mixing their data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

text_id!(ClusterId, 16, "cluster id");

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

/// The finaliser of SplitMix64: a bijection in which each input bit changes half of the output bits.
pub fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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

/// What the operator says about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutNode {
    /// What fails together with this node: a rack, a room, a power feed.
    pub zone: String,
    /// Its share of the data relative to the others, commonly its capacity in GiB. Zero: it takes requests, but no data.
    pub weight: u32,
    /// Whether everything is to move off it.
    #[serde(default)]
    pub draining: bool,
}

impl LayoutNode {
    /// Whether the node may be given data.
    pub fn takes_data(&self) -> bool {
        self.weight > 0 && !self.draining
    }
}

/// Which nodes there are to be, and how often data is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Replicas of each shard.
    pub replication_factor: u32,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, LayoutNode>,
}

impl Layout {
    /// A layout without nodes.
    pub fn empty(replication_factor: u32) -> Self {
        Self { replication_factor, nodes: BTreeMap::new() }
    }

    /// Acknowledgements that make a write durable: a majority of the replicas.
    pub fn write_quorum(&self) -> u32 {
        write_quorum(self.replication_factor)
    }
}

/// A majority of `replication_factor` replicas.
pub fn write_quorum(replication_factor: u32) -> u32 {
    replication_factor / 2 + 1
}

/// One change that the operator stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum LayoutChange {
    /// Adds a node, or changes its zone and weight.
    Assign {
        /// Which node.
        #[schema(value_type = String)]
        node: NodeId,
        /// Its zone.
        zone: String,
        /// Its weight.
        weight: u32,
    },
    /// Moves everything off a node that stays in the layout.
    Drain {
        /// Which node.
        #[schema(value_type = String)]
        node: NodeId,
    },
    /// Takes a drained node back.
    Undrain {
        /// Which node.
        #[schema(value_type = String)]
        node: NodeId,
    },
    /// Moves everything off a node and forgets it.
    Remove {
        /// Which node.
        #[schema(value_type = String)]
        node: NodeId,
    },
    /// Changes how often data is stored.
    SetReplicationFactor {
        /// Replicas of each shard.
        replicas: u32,
    },
}

/// The layout as it is stored: what is applied, and what is staged on top of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutDocument {
    /// Rises by one with each application, so that an operator applies what was shown and nothing else.
    pub version: u64,
    /// What the controller works towards.
    pub applied: Layout,
    /// What would change, in order.
    #[serde(default)]
    pub staged: Vec<LayoutChange>,
}

impl LayoutDocument {
    /// The document of a new cluster.
    pub fn new(replication_factor: u32) -> Self {
        Self { version: 0, applied: Layout::empty(replication_factor), staged: Vec::new() }
    }
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
/// A node is in at most one of `members`, `joining` and `leaving`. Writers send to members and joiners. Two quorums make a write
/// durable: [`ShardState::write_quorum`] counts members only, [`ShardState::target_quorum`] members and joiners. Readers ask
/// members, and may try leavers.
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

    /// Acknowledgements by members that make a write durable: a majority of them. Members that are lost count until they
    /// are replaced; joiners do not, since they lack what was written before.
    pub fn write_quorum(&self) -> u32 {
        write_quorum(self.members.len() as u32)
    }

    /// Acknowledgements by members and joiners together that make a write durable, beside [`Self::write_quorum`]: a majority of
    /// the replicas that the layout wants. A shard whose members lost their disks may have one member left, which is a majority
    /// of itself; what it acknowledged alone would not survive it.
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

    #[test]
    fn node_id_text_round_trips_and_rejects_other_lengths() {
        let id = NodeId::generate();
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        assert!("".parse::<NodeId>().is_err());
        assert!("0123".parse::<NodeId>().is_err());
        assert!("zz23456789abcdef".parse::<NodeId>().is_err());
        assert_eq!(NodeId::from(0x0123_4567_89ab_cdef).to_string(), "0123456789abcdef");
    }

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
