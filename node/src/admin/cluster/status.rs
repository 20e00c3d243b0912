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
    let repairs = waiting(backlog.as_ref());
    let shards = cluster.summary();
    let nodes = nodes::list_of(&state, &backlog);
    let repair_pause = repair::pause_of(cluster);
    let session = *cluster.coordination.session().borrow();

    let is_informed = session == SessionState::Connected && cluster.is_informed();
    let health = overall(&shards, repairs, is_informed);
    let mut verdict = Verdict { health, reasons: cluster.reasons() };
    verdict.hear_controller(cluster, &shards);
    verdict.reasons.extend(cluster.absent(&nodes));
    verdict.reasons.extend(cluster.short());
    verdict.look_at_repairs(repairs, repair_pause.is_some());
    verdict.look_at_coordination(cluster);
    verdict.reasons.extend(movement(&nodes));
    verdict.look_at_disks(cluster);
    verdict.look_at_layout(cluster, layout_version).await;
    verdict.ask_others(cluster).await;
    verdict.look_at_proofs(cluster).await;
    // One that does not answer was waited for already.
    if backlog.is_some() && nodes::lost_commits(&state).await {
        verdict.not_healthy("degraded");
        verdict.add(
            "commits_lost",
            "the metadata database has lost commits that it acknowledged, so orphans are kept: see \"A dump of the database's \
             own\" in docs/operations.md",
        );
    }
    let here = health::disks_unresponsive(&state.node.health());
    for reason in health::tiers_down(&state.tiers).into_iter().chain(here) {
        verdict.not_healthy("degraded");
        verdict.reasons.push(reason);
    }
    let controller = cluster.coordination.leases().borrow().get(CONTROLLER).map(|holder| holder.node.to_string());
    let cache = cluster.cache().await;
    if verdict.is_healthy() {
        // Others were asked meanwhile, each of whom may have taken long.
        let repairs = waiting(nodes::backlog(&state).await.as_ref());
        verdict.look_again(cluster, repairs);
    }
    let Verdict { health, reasons } = verdict;
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

/// How many repairs wait; `None` where metadata did not say it.
fn waiting(backlog: Option<&BTreeMap<NodeId, u64>>) -> Option<u64> {
    backlog.map(|backlog| backlog.values().sum())
}

/// How the cluster is, as far as it has been found out, and why it is not better.
struct Verdict {
    health: &'static str,
    reasons: Vec<Reason>,
}

impl Verdict {
    fn add(&mut self, code: &str, message: impl Into<String>) {
        self.reasons.push(Reason { code: code.into(), message: message.into() });
    }

    fn is_healthy(&self) -> bool {
        self.health == "healthy"
    }

    /// It is `health` instead, unless it is worse already.
    fn not_healthy(&mut self, health: &'static str) {
        if self.is_healthy() {
            self.health = health;
        }
    }

    /// What only the controller knows, where this node has it.
    fn hear_controller(&mut self, cluster: &ClusterAdmin, shards: &ShardSummary) {
        let Some(controller) = cluster.actors.controller() else { return };
        // Of shards that have no place at all it has been told already.
        if let Some(error) = controller.placement_error.filter(|_| shards.unplaced == 0) {
            self.add("no_placement", error);
        }
        let set_back: Vec<ShardId> = controller.set_back.into_iter().collect();
        if !set_back.is_empty() {
            let message = format!(
                "the shard map in ZooKeeper is older than the metadata, so writes to {} shards are refused: {}. ZooKeeper was set \
                 back, or this is an old copy of it. Give it its newest state again; if that is lost, see \"ZooKeeper was set back\" in \
                 docs/operations.md",
                set_back.len(),
                named(&set_back)
            );
            self.add("set_back", message);
        }
        let lost: Vec<ShardId> = controller.overview.last_replica_lost.into_iter().collect();
        if !lost.is_empty() {
            let message =
                format!("the last replica of {} shards says that it lost its data: {}", lost.len(), named(&lost));
            self.add("data_lost", message);
        }
        self.health = by_controller(self.health, !set_back.is_empty(), !lost.is_empty());
    }

    /// `None`: metadata did not say how many repairs wait.
    fn look_at_repairs(&mut self, repairs: Option<u64>, is_paused: bool) {
        match repairs {
            Some(0) | None => {}
            Some(1) => self.add("repairs", "1 repair waits"),
            Some(waiting) => self.add("repairs", format!("{waiting} repairs wait")),
        }
        if is_paused {
            self.add("repairs_paused", "repairs are paused on all nodes: `holdfast repair resume` ends that");
        }
        if repairs.is_none() {
            self.add("no_metadata", "metadata does not answer: look at the server of metadata.url, and the way to it");
        }
    }

    fn look_at_coordination(&mut self, cluster: &ClusterAdmin) {
        let why = match *cluster.coordination.session().borrow() {
            SessionState::Suspended => "this node has no connection to ZooKeeper (cluster.zookeeper)",
            SessionState::Connected if !cluster.coordination.is_current() => {
                "this node has yet to read from ZooKeeper what changed while it had no connection"
            }
            _ => return,
        };
        self.add("coordination_lost", format!("{why}: what follows is as it was last seen"));
    }

    /// Whether what was found at first is still so, now that all else is known to be well.
    fn look_again(&mut self, cluster: &ClusterAdmin, repairs: Option<u64>) {
        self.health = overall(&cluster.summary(), repairs, cluster.is_informed());
        if !self.is_healthy() {
            self.reasons.extend(cluster.reasons());
            self.look_at_repairs(repairs, false);
            self.look_at_coordination(cluster);
            self.add("changed", "something changed while others were asked: ask again");
        }
    }

    /// The reasons are those of [`ClusterAdmin::short`].
    fn look_at_disks(&mut self, cluster: &ClusterAdmin) {
        let membership = cluster.view.membership().borrow().clone();
        if membership.nodes.keys().any(|node| membership.holds(*node) && membership.is_short(*node)) {
            self.not_healthy("degraded");
        }
    }

    async fn look_at_layout(&mut self, cluster: &ClusterAdmin, layout_version: u64) {
        if self.is_healthy() && !cluster.is_taken_up().await {
            self.health = "moving";
            self.add("layout_pending", format!("the shards are not placed by layout version {layout_version} yet"));
        }
    }

    /// Which nodes answer this one.
    async fn ask_others(&mut self, cluster: &ClusterAdmin) {
        // Asked before the refusals are looked at, since those that were noticed may be over.
        let silent = cluster.silent().await;
        let refused: BTreeMap<NodeId, String> =
            cluster.peers.refusals().into_iter().filter(|(node, _)| cluster.view.is_alive(*node)).collect();
        if !(silent.is_empty() && refused.is_empty()) {
            self.not_healthy("degraded");
        }
        for (node, why) in silent.into_iter().filter(|(node, _)| !refused.contains_key(node)) {
            self.add("no_answer", format!("node {node} is registered, but does not answer this node: {why}"));
        }
        for (node, why) in refused {
            self.add("peer_refused", format!("node {node} and this node do not accept each other: {why}"));
        }
    }

    /// Asked last, and only if all else is well, since others are asked for it: the comparison of a shard is known to
    /// one node.
    async fn look_at_proofs(&mut self, cluster: &ClusterAdmin) {
        if !self.is_healthy() {
            return;
        }
        let unproven: Vec<(ShardId, String)> = cluster.unproven().await;
        if let Some((_, why)) = unproven.first() {
            self.health = "unverified";
            let shards: Vec<ShardId> = unproven.iter().map(|(shard, _)| *shard).collect();
            let message = format!(
                "{} shards are not proven to hold the same on all members: {}; of the first: {why}",
                shards.len(),
                named(&shards)
            );
            self.add("unverified", message);
        }
    }
}

/// The word for it by what every node knows. A node that cannot prove its membership, or hears nothing from the
/// coordination service, knows nothing for certain.
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

/// The word for it by what the controller knows and the shard map does not show: members that are all here take no
/// writes of an epoch that is over, and a replica that says that it lost its data holds nothing.
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
