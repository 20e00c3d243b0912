//! The cluster as a whole.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{NodeInfo, PauseInfo, Reason};

/// `GET /v1/cluster`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// The cluster's identity, 32 hexadecimal digits.
    pub cluster_id: String,
    /// When it was made.
    pub created_ms: u64,
    /// The node that answers: what follows is what it knows.
    pub node_id: String,
    /// Its session with the coordination service: `connected`, `suspended`, `fenced` or `expired`.
    pub session: String,
    /// The node that moves shards; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Replicas of each shard.
    pub replication_factor: u32,
    /// Version of the layout in force.
    pub layout_version: u64,
    /// Changes that are staged and not applied.
    pub staged_changes: u32,
    /// `healthy`: every shard has its replicas, all here and compared since they changed, nothing moves and no repair
    /// waits. `unverified`: the same, but for a comparison that is not through or found a difference. `moving`: as many
    /// replicas as wanted, and data moves. `degraded`: some shard has fewer, repairs wait, or this node cannot work
    /// with a cold tier. `no_quorum`: some shard takes no writes. `unavailable`: some shard can be neither read nor
    /// written. `unknown`: this node cannot tell now.
    pub health: String,
    /// What keeps it from being healthy.
    pub reasons: Vec<Reason>,
    /// Every node that is alive or in the layout.
    pub nodes: Vec<NodeInfo>,
    /// Shards by health.
    pub shards: ShardSummary,
    /// Repairs that wait, on all nodes; absent while metadata does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<u64>,
    /// Since when repairs are paused, and by whom; absent while they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_pause: Option<PauseInfo>,
    /// The cache that the nodes share; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
}

/// The cache that the nodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheStatus {
    /// `on`: it is read. `warming`: writes are marked in it, so that it can be on soon. `off`: it is not used.
    pub state: String,
    /// Rises with every change of the state.
    pub generation: u64,
    /// Why it was last switched off; absent while it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The nodes that keep it from being on.
    pub waiting_for: Vec<CacheWaiting>,
}

/// A node that keeps the cache from being on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheWaiting {
    /// Which node.
    pub node_id: String,
    /// What keeps it.
    pub problem: String,
}

/// Shards by health, with every node that is not alive counted as absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardSummary {
    /// All shards.
    pub total: u32,
    /// Not placed yet: the layout was not applied, or has too few nodes.
    pub unplaced: u32,
    /// The wanted members, all here, nothing under way.
    pub healthy: u32,
    /// As many replicas as wanted, some of which are to move.
    pub moving: u32,
    /// Fewer replicas than wanted; reads and writes work.
    pub degraded: u32,
    /// Reads work, writes find no quorum.
    pub no_quorum: u32,
    /// No replica is here.
    pub unavailable: u32,
}

/// `POST /v1/cluster/join-tokens`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// How long it is valid: 60 to 86,400 seconds.
    pub valid_seconds: u32,
}

/// A secret that lets one machine join the cluster: whoever has it is given the cluster's keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// The token, one line of text.
    pub token: String,
    /// Until when it is valid.
    pub expires_ms: u64,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_does_not_reach_debug_output() {
        let token = JoinToken { token: "very-secret".into(), expires_ms: 1 };
        assert!(!format!("{token:?}").contains("very-secret"));
    }
}
