//! The layout: which nodes the operator wants, and how often data is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{NodeId, write_quorum};

/// What the operator says about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutNode {
    /// What fails together with this node: a rack, a room, a power feed.
    pub zone: String,
    /// Its share of the data relative to the others, commonly its capacity in GiB. Zero: it takes requests, but no
    /// data.
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
