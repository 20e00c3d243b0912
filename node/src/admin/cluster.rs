//! `/v1/cluster`, and what the other routes of a cluster share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use holdfast_actors::domain::placement::ShardHealth;
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheMode, ClusterIdentity, Coordination, CoordinationError, NodeState, SessionState, ShardMap,
};
use holdfast_actors::ports::peers::Peers;
use holdfast_actors::service::cluster::ClusterHandle;
use holdfast_protocol::admin::{
    CacheStatus, CacheWaiting, ClusterStatus, ErrorBody, JoinToken, NewJoinToken, Reason, ShardSummary,
};
use holdfast_protocol::cluster::LayoutDocument;
use holdfast_protocol::{NodeId, ShardId};

use super::error::Body;
use super::{AdminState, ApiError, nodes, repair};

mod others;

use others::movement;
pub use others::{KnownOthers, Settled};

/// How often a change of the layout is tried again when somebody else was faster.
const LAYOUT_TRIES: usize = 8;

/// Bounds of a token's validity.
const TOKEN_SECONDS: std::ops::RangeInclusive<u32> = 60..=86_400;

/// How many shards a message names.
const SHARDS_NAMED: usize = 8;

/// Makes tokens with which machines join.
pub trait Enrolment: Send + Sync + 'static {
    /// A token that is valid for `seconds`, and until when in milliseconds since 1970.
    ///
    /// # Errors
    /// In words for the operator.
    fn issue_token(&self, seconds: u32) -> Result<(String, u64), String>;
}

/// What of a cluster the admin API works on.
pub struct ClusterAdmin {
    /// The cluster.
    pub identity: ClusterIdentity,
    /// What the nodes agree on.
    pub coordination: Arc<dyn Coordination>,
    /// Who holds what.
    pub view: Arc<ClusterView>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// This node's own chunks.
    pub local: Arc<dyn ReplicaStore>,
    /// The actors of shards.
    pub actors: ClusterHandle,
    /// Makes join tokens, where nodes are processes of their own.
    pub enrolment: Option<Arc<dyn Enrolment>>,
    /// The last answer to whether the shard map is what the layout asks for.
    pub settled: Settled,
    /// The last answer to which repairs wait, and when it was asked for.
    pub backlog: KnownBacklog,
    /// What was found out of the other nodes last.
    pub others: KnownOthers,
    /// Whether this node uses a cache that the nodes share.
    pub has_cache: bool,
}

/// Repairs that wait by node, as they were at a moment; `None`: metadata did not answer.
pub type KnownBacklog = tokio::sync::Mutex<Option<(Instant, Option<BTreeMap<NodeId, u64>>)>>;

impl AdminState {
    /// The cluster.
    ///
    /// # Errors
    /// On a node that runs alone, saying what to do about it.
    pub(super) fn cluster(&self) -> Result<&ClusterAdmin, ApiError> {
        self.cluster.as_ref().ok_or_else(|| {
            ApiError::not_possible(
                "this node runs alone: set cluster.zookeeper and metadata.url, and see docs/operations.md for how a cluster \
                 is made",
            )
        })
    }
}

impl ClusterAdmin {
    pub(super) fn me(&self) -> NodeId {
        self.view.me()
    }

    pub(super) fn shards(&self) -> Arc<ShardMap> {
        self.view.shards().borrow().clone()
    }

    /// Whether every shard has a place.
    pub(super) fn all_placed(&self) -> bool {
        self.shards().shards.len() == self.identity.shard_count as usize
    }

    pub(super) fn summary(&self) -> ShardSummary {
        let map = self.shards();
        let mut summary = ShardSummary { total: self.identity.shard_count, ..ShardSummary::default() };
        summary.unplaced = summary.total.saturating_sub(map.shards.len() as u32);
        for state in map.shards.values() {
            *match self.actors.health(&state.value) {
                ShardHealth::Healthy => &mut summary.healthy,
                ShardHealth::Moving => &mut summary.moving,
                ShardHealth::Degraded => &mut summary.degraded,
                ShardHealth::NoQuorum => &mut summary.no_quorum,
                ShardHealth::Unavailable => &mut summary.unavailable,
            } += 1;
        }
        summary
    }

    /// What keeps this node from serving requests of all kinds, beside itself.
    pub(super) fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code: &str, message: String| reasons.push(Reason { code: code.into(), message });
        let membership = self.actors.membership();
        // A session without a registration proves nothing either, and is told of below.
        let lacks_session = membership.registered || !self.coordination.ownership().is_session_proven();
        if !self.view.is_owner() && lacks_session {
            let session = session_name(*self.coordination.session().borrow());
            add(
                "fenced",
                format!(
                    "this node cannot prove its membership (session {session}): is the coordination service there?"
                ),
            );
        }
        if !membership.registered {
            let error = membership.last_error.unwrap_or_else(|| "not yet".into());
            add("not_registered", format!("this node is not registered in the cluster: {error}"));
        }
        let map = self.shards();
        let unplaced = (self.identity.shard_count as usize).saturating_sub(map.shards.len());
        if unplaced > 0 {
            let why = self.actors.controller().and_then(|controller| controller.placement_error);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            add(
                "not_placed",
                format!(
                    "{unplaced} shards have no place yet{why}. `holdfast layout assign --all-new` and `holdfast layout apply` \
                     give them nodes"
                ),
            );
        }
        let poor: Vec<ShardId> = map
            .shards
            .iter()
            .filter(|(_, state)| self.actors.health(&state.value) >= ShardHealth::NoQuorum)
            .map(|(shard, _)| *shard)
            .collect();
        if !poor.is_empty() {
            add("no_quorum", format!("{} shards have no write quorum: {}", poor.len(), named(&poor)));
        }
        reasons
    }

    /// Shards that would have no write quorum, or lose the copy of a joiner, without this node, and without those that are
    /// `silent` or about to stop.
    pub(super) fn depend_on_me(&self, silent: &BTreeSet<NodeId>) -> Vec<ShardId> {
        let me = self.me();
        let map = self.shards();
        let membership = self.view.membership().borrow().clone();
        let stays = |node: &NodeId| {
            membership.nodes.get(node).is_some_and(|live| live.announcement.state != NodeState::Stopping)
        };
        let other = |node: &NodeId| *node != me && stays(node) && !silent.contains(node);
        let depends = |state: &holdfast_protocol::cluster::ShardState| {
            let members = state.members.iter().filter(|node| other(node)).count();
            let all = state.write_set().filter(other).count();
            let no_quorum = members < state.write_quorum() as usize || all < state.target_quorum() as usize;
            state.is_member(me) && (no_quorum || !state.joining.is_empty()) || state.is_joining(me)
        };
        map.shards.iter().filter(|(_, state)| depends(&state.value)).map(|(shard, _)| *shard).collect()
    }

    /// Changes the layout document; `change` is done again on what somebody else stored in between.
    pub(super) async fn change_layout(
        &self,
        change: impl Fn(&mut LayoutDocument) -> Result<(), ApiError>,
    ) -> Result<LayoutDocument, ApiError> {
        for _ in 0..LAYOUT_TRIES {
            let found = self.coordination.layout().await?;
            let mut document = found.value;
            change(&mut document)?;
            match self.coordination.store_layout(found.version, &document).await {
                Ok(_) => return Ok(document),
                Err(CoordinationError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::unavailable("the layout is being changed by others all the time: try again"))
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

/// The first few shards, for a message.
pub(super) fn named(shards: &[ShardId]) -> String {
    let names: Vec<String> = shards.iter().take(SHARDS_NAMED).map(ToString::to_string).collect();
    let more = if shards.len() > SHARDS_NAMED { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}

fn session_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Connected => "connected",
        SessionState::Suspended => "suspended",
        SessionState::Fenced => "fenced",
        SessionState::Expired => "expired",
    }
}

/// How the cluster is, as far as this node knows.
#[utoipa::path(
    get, path = "/v1/cluster", tag = "cluster", operation_id = "cluster_status",
    responses(
        (status = 200, description = "How the cluster is", body = ClusterStatus),
        (status = "default", description = "An error; 409 not_possible on a node that runs alone", body = ErrorBody),
    )
)]
pub(super) async fn status(State(state): State<AdminState>) -> Result<Json<ClusterStatus>, ApiError> {
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
    let here = super::health::disks_unresponsive(&state.node.health());
    for reason in super::health::tiers_down(&state.tiers).into_iter().chain(here) {
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

/// Makes a token with which machines can join. Whoever has it is given the cluster's keys.
#[utoipa::path(
    post, path = "/v1/cluster/join-tokens", tag = "cluster", operation_id = "create_join_token", request_body = NewJoinToken,
    responses(
        (status = 201, description = "The token, which is told this once", body = JoinToken),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn join_token(
    State(state): State<AdminState>,
    Body(new): Body<NewJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), ApiError> {
    let cluster = state.cluster()?;
    if !TOKEN_SECONDS.contains(&new.valid_seconds) {
        return Err(ApiError::invalid("a token is valid for 60 to 86,400 seconds"));
    }
    let Some(enrolment) = &cluster.enrolment else {
        return Err(ApiError::not_possible(
            "the nodes of this cluster live in one process: start it with more of them (`holdfast dev --nodes`)",
        ));
    };
    let issued = enrolment.issue_token(new.valid_seconds);
    let (token, expires_ms) = issued.map_err(|error| ApiError::unavailable(format!("make a token: {error}")))?;
    tracing::info!(expires_ms, "join token made");
    Ok((StatusCode::CREATED, Json(JoinToken { token, expires_ms })))
}

/// Nodes in the layout in force with their roles, for lists.
pub(super) fn roles(map: &ShardMap) -> BTreeMap<NodeId, holdfast_protocol::admin::NodeShards> {
    let mut roles: BTreeMap<NodeId, holdfast_protocol::admin::NodeShards> = BTreeMap::new();
    for state in map.shards.values() {
        let state = &state.value;
        for node in &state.members {
            roles.entry(*node).or_default().member += 1;
        }
        for joiner in &state.joining {
            roles.entry(joiner.node).or_default().joining += 1;
        }
        for leaver in &state.leaving {
            roles.entry(leaver.node).or_default().leaving += 1;
        }
        for node in state.target.iter().collect::<BTreeSet<_>>() {
            roles.entry(*node).or_default().wanted += 1;
        }
    }
    roles
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

    #[test]
    fn a_message_names_a_few_shards() {
        let shards: Vec<ShardId> = (0..20).map(ShardId).collect();
        assert_eq!(named(&shards), "0, 1, 2, 3, 4, 5, 6, 7, …");
        assert_eq!(named(&shards[..2]), "0, 1");
    }
}
