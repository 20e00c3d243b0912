//! The layout: which nodes there are to be, and how often data is stored. Changes are staged, shown with their cost,
//! applied.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::LayoutChange;

/// `GET /v1/layout`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutView {
    /// Version in force; the staged changes would become the next one.
    pub version: u64,
    /// What is in force.
    pub applied: LayoutState,
    /// What would change, in order.
    pub staged: Vec<LayoutChange>,
    /// What would be in force with them.
    pub preview: LayoutState,
}

/// A layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutState {
    /// Replicas of each shard.
    pub replication_factor: u32,
    /// Its nodes by id.
    pub nodes: BTreeMap<String, crate::cluster::LayoutNode>,
}

/// `POST /v1/layout/changes`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageChange {
    /// The change.
    #[serde(flatten)]
    pub change: LayoutChange,
}

/// `GET /v1/layout/diff`: what it takes to apply what is staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutCost {
    /// The version that the staged changes would become: `POST /v1/layout/apply` must name it.
    pub next_version: u64,
    /// Changes staged.
    pub staged: Vec<LayoutChange>,
    /// Why there would be no placement at all; the rest is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impossible: Option<String>,
    /// Shards whose holders change.
    pub shards_changed: u32,
    /// Replicas to be copied.
    pub replicas_moved: u32,
    /// Bytes to be copied, as far as they are known.
    pub bytes_moved: u64,
    /// Shards whose size no reachable member told: their bytes are not counted.
    pub shards_unmeasured: u32,
    /// By node, those with neither before nor after left out.
    pub nodes: Vec<LayoutNodeCost>,
}

/// What one node gains and loses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayoutNodeCost {
    /// The node.
    pub node: String,
    /// Replicas it holds, or is on the way to.
    pub replicas_before: u32,
    /// Replicas it will hold.
    pub replicas_after: u32,
    /// Bytes that it will copy from others.
    pub incoming_bytes: u64,
    /// Bytes that it may delete when all is done.
    pub outgoing_bytes: u64,
}

/// `POST /v1/layout/apply`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyLayout {
    /// The version that was shown: nobody applies what they have not seen.
    pub version: u64,
}
