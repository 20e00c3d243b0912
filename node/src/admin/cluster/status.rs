//! `/v1/cluster`: how the cluster is.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use holdfast_actors::ports::coordination::{CONTROLLER, CacheMode, SessionState};
use holdfast_protocol::admin::{CacheStatus, CacheWaiting, ClusterStatus, ErrorBody, Reason, ShardSummary};
use holdfast_protocol::{NodeId, ShardId};

use super::others::movement;
use super::{ClusterAdmin, named, session_name};
use crate::admin::{AdminState, ApiError, health, nodes, repair};

/// How the cluster is, as far as this node knows.
#[utoipa::path(
    get, path = "/v1/cluster", tag = "cluster", operation_id = "cluster_status",
    responses(
        (status = 200, description = "How the cluster is", body = ClusterStatus),
        (status = "default", description = "An error; 409 not_possible on a node that runs alone", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn status(State(state): State<AdminState>) -> Result<Json<ClusterStatus>, ApiError> {
    let cluster = state.cluster()?;
    let document = cluster.coordination.watch_layout().borrow().clone();
    let (layout_version, staged, replication_factor) = document.map_or((0, 0, 0), |document| {
        (document.value.version, document.value.staged.len(), document.value.applied.replication_factor)
    });
    let backlog = nodes::backlog(&state).await;
    let repairs = backlog.as_ref().map(|backlog| backlog.values().sum());
    let shards = cluster.summary();
    let mut reasons = cluster.reasons();
    let (mut is_set_back, mut has_lost) = (false, false);
    if let Some(controller) = cluster.actors.controller() {
        // Of shards that have no place at all it has been told above.
        let error = controller.placement_error.filter(|_| shards.unplaced == 0);
        reasons.extend(error.map(|error| Reason { code: "no_placement".into(), message: error }));
        let set_back: Vec<ShardId> = controller.set_back.into_iter().collect();
        is_set_back = !set_back.is_empty();
        if !set_back.is_empty() {
            let message = format!(
                "the shard map in ZooKeeper is older than the metadata, so writes to {} shards are refused: {}. ZooKeeper was set \
                 back, or this is an old copy of it. Give it its newest state again; if that is lost, see \"ZooKeeper was set back\" in \
                 docs/operations.md",
                set_back.len(),
                named(&set_back)
            );
            reasons.push(Reason { code: "set_back".into(), message });
        }
        let lost: Vec<ShardId> = controller.last_replica_lost.into_iter().collect();
        has_lost = !lost.is_empty();
        if !lost.is_empty() {
            let message =
                format!("the last replica of {} shards says that it lost its data: {}", lost.len(), named(&lost));
            reasons.push(Reason { code: "data_lost".into(), message });
        }
    }
    let nodes = nodes::list_of(&state, &backlog);
    reasons.extend(cluster.absent(&nodes));
    reasons.extend(cluster.short());
    if let Some(waiting) = repairs.filter(|waiting| *waiting > 0) {
        let message = if waiting == 1 { "1 repair waits".to_owned() } else { format!("{waiting} repairs wait") };
        reasons.push(Reason { code: "repairs".into(), message });
    }
    let repair_pause = repair::pause_of(cluster);
    if repair_pause.is_some() {
        let message = "repairs are paused on all nodes: `holdfast repair resume` ends that".into();
        reasons.push(Reason { code: "repairs_paused".into(), message });
    }
    if repairs.is_none() {
        let message = "metadata does not answer: look at the server of metadata.url, and the way to it".into();
        reasons.push(Reason { code: "no_metadata".into(), message });
    }
    let session = *cluster.coordination.session().borrow();
    if session == SessionState::Suspended {
        let message =
            "this node has no connection to ZooKeeper (cluster.zookeeper): what follows is as it was last seen";
        reasons.push(Reason { code: "coordination_lost".into(), message: message.into() });
    }
    let health = overall(&shards, repairs, cluster.view.is_owner() && session == SessionState::Connected);
    let mut health = by_controller(health, is_set_back, has_lost);
    reasons.extend(movement(&nodes));
    let membership = cluster.view.membership().borrow().clone();
    if health == "healthy" && membership.nodes.keys().any(|node| membership.holds(*node) && membership.is_short(*node))
    {
        health = "degraded";
    }
    if health == "healthy" && !cluster.is_taken_up().await {
        health = "moving";
        let message = format!("the shards are not placed by layout version {layout_version} yet");
        reasons.push(Reason { code: "layout_pending".into(), message });
    }
    // Asked before the refusals are looked at, since those that were noticed may be over.
    let silent = cluster.silent().await;
    let refused: BTreeMap<NodeId, String> =
        cluster.peers.refusals().into_iter().filter(|(node, _)| cluster.view.is_alive(*node)).collect();
    if health == "healthy" && !(silent.is_empty() && refused.is_empty()) {
        health = "degraded";
    }
    for (node, why) in silent.into_iter().filter(|(node, _)| !refused.contains_key(node)) {
        let message = format!("node {node} is registered, but does not answer this node: {why}");
        reasons.push(Reason { code: "no_answer".into(), message });
    }
    for (node, why) in refused {
        let message = format!("node {node} and this node do not accept each other: {why}");
        reasons.push(Reason { code: "peer_refused".into(), message });
    }
    if health == "healthy" {
        // Asked last, since others are asked for it: the comparison of a shard is known to one node.
        let unproven: Vec<(ShardId, String)> = cluster.unproven().await;
        if let Some((_, why)) = unproven.first() {
            health = "unverified";
            let shards: Vec<ShardId> = unproven.iter().map(|(shard, _)| *shard).collect();
            let message = format!(
                "{} shards are not proven to hold the same on all members: {}; of the first: {why}",
                shards.len(),
                named(&shards)
            );
            reasons.push(Reason { code: "unverified".into(), message });
        }
    }
    for reason in health::tiers_down(&state.tiers) {
        if health == "healthy" {
            health = "degraded";
        }
        reasons.push(reason);
    }
    let controller = cluster.coordination.leases().borrow().get(CONTROLLER).map(|holder| holder.node.to_string());
    let cache = cluster.cache().await;
    Ok(Json(ClusterStatus {
        cluster_id: cluster.identity.id.to_string(),
        created_ms: cluster.identity.created_ms,
        node_id: cluster.me().to_string(),
        session: session_name(session).into(),
        controller,
        replication_factor,
        layout_version,
        staged_changes: staged as u32,
        health: health.into(),
        reasons,
        nodes,
        shards,
        repairs,
        repair_pause,
        cache,
    }))
}

/// The word for it. A node that cannot prove its membership, or hears nothing from the coordination service, knows nothing for
/// certain.
fn overall(shards: &ShardSummary, repairs: Option<u64>, is_informed: bool) -> &'static str {
    match (shards, repairs) {
        _ if !is_informed => "unknown",
        (shards, _) if shards.unavailable > 0 => "unavailable",
        (shards, _) if shards.no_quorum > 0 || shards.unplaced > 0 => "no_quorum",
        (_, None) => "unknown",
        (shards, Some(repairs)) if shards.degraded > 0 || repairs > 0 => "degraded",
        (shards, _) if shards.moving > 0 => "moving",
        _ => "healthy",
    }
}

/// The word for it by what the controller knows and the shard map does not show: members that are all here take no writes of an epoch
/// that is over, and a replica that says that it lost its data holds nothing.
fn by_controller(health: &'static str, is_set_back: bool, has_lost: bool) -> &'static str {
    match health {
        "healthy" | "moving" | "degraded" if is_set_back => "no_quorum",
        "healthy" | "moving" if has_lost => "degraded",
        health => health,
    }
}

impl ClusterAdmin {
    /// The cache that the nodes share; `None` where there is none.
    async fn cache(&self) -> Option<CacheStatus> {
        if !self.has_cache {
            return None;
        }
        let state = self.coordination.watch_cache_state().borrow().clone();
        let said = self.coordination.cache_seen().await.unwrap_or_default();
        let waits = said.into_iter().filter(|(_, seen)| match state.mode {
            CacheMode::On => false,
            CacheMode::Off => seen.server.is_none(),
            CacheMode::Warming => seen.generation < state.generation,
        });
        let waiting = waits.map(|(node, seen)| CacheWaiting {
            node_id: node.to_string(),
            problem: seen.problem.unwrap_or_else(|| "it has yet to follow".into()),
        });
        Some(CacheStatus {
            state: state.mode.as_str().into(),
            generation: state.generation,
            reason: Some(state.reason).filter(|reason| !reason.is_empty()),
            waiting_for: waiting.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_is_said_only_when_nothing_moves_and_no_repair_waits() {
        let good = ShardSummary { total: 2, healthy: 2, ..ShardSummary::default() };
        assert_eq!(overall(&good, Some(0), true), "healthy");
        assert_eq!(overall(&good, Some(1), true), "degraded");
        assert_eq!(overall(&good, None, true), "unknown");
        assert_eq!(overall(&good, Some(0), false), "unknown");
        let unplaced = ShardSummary { total: 2, unplaced: 2, ..ShardSummary::default() };
        assert_eq!(overall(&unplaced, Some(0), true), "no_quorum");
        let moving = ShardSummary { total: 2, healthy: 1, moving: 1, ..ShardSummary::default() };
        assert_eq!(overall(&moving, Some(0), true), "moving");
    }

    #[test]
    fn a_shard_map_that_was_set_back_and_a_last_replica_that_is_lost_are_not_healthy() {
        assert_eq!(by_controller("healthy", false, false), "healthy");
        for health in ["healthy", "moving", "degraded"] {
            assert_eq!(by_controller(health, true, false), "no_quorum", "writes are refused");
            assert_eq!(by_controller(health, true, true), "no_quorum");
            assert_ne!(by_controller(health, false, true), "healthy");
        }
        for worse in ["unavailable", "unknown"] {
            assert_eq!(by_controller(worse, true, true), worse);
        }
    }
}
