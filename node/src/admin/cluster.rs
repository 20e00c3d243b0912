//! What the routes of a cluster share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_actors::domain::placement::ShardHealth;
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{
    ClusterIdentity, Coordination, CoordinationError, NodeState, SessionState, ShardMap,
};
use holdfast_actors::ports::peers::Peers;
use holdfast_actors::service::cluster::ClusterHandle;
use holdfast_protocol::admin::{Reason, ShardSummary};
use holdfast_protocol::cluster::LayoutDocument;
use holdfast_protocol::{NodeId, ShardId};

use super::{AdminState, ApiError};

pub(super) mod join;
mod others;
pub(super) mod status;
mod waiting;

pub use join::Enrolment;
pub use others::{KnownOthers, Settled};
pub use waiting::KnownWaiting;

/// How often a change of the layout is tried again when somebody else was faster.
const LAYOUT_TRIES: usize = 8;

/// How many shards a message names.
const SHARDS_NAMED: usize = 8;

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
    /// The last answer to which repairs wait that may need this node.
    pub waiting: KnownWaiting,
    /// What was found out of the other nodes last.
    pub others: KnownOthers,
    /// Whether this node uses a cache that the nodes share.
    pub has_cache: bool,
}

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

    /// Whether this node knows what it sees of the cluster: it can prove its membership, and hears of changes.
    pub(super) fn is_informed(&self) -> bool {
        let session = *self.coordination.session().borrow();
        self.view.is_owner() && session == SessionState::Connected && self.coordination.is_current()
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
                    "this node cannot prove its membership (session {session}): does it reach ZooKeeper (cluster.zookeeper)?"
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

    /// Shards that would have no write quorum, or lose the copy of a joiner, without this node, and without those that
    /// are `silent` or about to stop.
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
    fn a_message_names_a_few_shards() {
        let shards: Vec<ShardId> = (0..20).map(ShardId).collect();
        assert_eq!(named(&shards), "0, 1, 2, 3, 4, 5, 6, 7, …");
        assert_eq!(named(&shards[..2]), "0, 1");
    }
}
