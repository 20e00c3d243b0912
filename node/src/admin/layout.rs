//! `/v1/layout`

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures::{StreamExt, stream};
use holdfast_actors::domain::placement::{assign, layout};
use holdfast_actors::ports::peers::Fence;
use holdfast_protocol::admin::{
    ApplyLayout, ErrorBody, LayoutCost, LayoutNodeCost, LayoutState, LayoutView, StageChange,
};
use holdfast_protocol::cluster::{Layout, LayoutDocument, ShardState};
use holdfast_protocol::{NodeId, ShardId};

use super::cluster::ClusterAdmin;
use super::error::Body;
use super::{AdminState, ApiError};

/// Shards that are measured at once, and for how long in all; what is not measured then is said so.
const MEASURED_AT_ONCE: usize = 8;
const MEASURE_TIMEOUT: Duration = Duration::from_secs(15);

fn state_of(layout: &Layout) -> LayoutState {
    LayoutState {
        replication_factor: layout.replication_factor,
        nodes: layout.nodes.iter().map(|(id, node)| (id.to_string(), node.clone())).collect(),
    }
}

fn view(document: &LayoutDocument) -> LayoutView {
    LayoutView {
        version: document.version,
        applied: state_of(&document.applied),
        staged: document.staged.clone(),
        preview: state_of(&layout::preview(document)),
    }
}

/// The layout in force, and what is staged.
#[utoipa::path(
    get, path = "/v1/layout", tag = "layout", operation_id = "show_layout",
    responses(
        (status = 200, description = "The layout", body = LayoutView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(State(state): State<AdminState>) -> Result<Json<LayoutView>, ApiError> {
    Ok(Json(view(&state.cluster()?.coordination.layout().await?.value)))
}

/// Stages a change.
#[utoipa::path(
    post, path = "/v1/layout/changes", tag = "layout", operation_id = "stage_layout_change", request_body = StageChange,
    responses(
        (status = 200, description = "The layout with the change staged", body = LayoutView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn stage(
    State(state): State<AdminState>,
    Body(StageChange { change }): Body<StageChange>,
) -> Result<Json<LayoutView>, ApiError> {
    let document = state.cluster()?.change_layout(|document| Ok(layout::stage(document, change.clone())?)).await?;
    Ok(Json(view(&document)))
}

/// What it takes to apply what is staged.
#[utoipa::path(
    get, path = "/v1/layout/diff", tag = "layout", operation_id = "diff_layout",
    responses(
        (status = 200, description = "Shards and bytes to be moved", body = LayoutCost),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn diff(State(state): State<AdminState>) -> Result<Json<LayoutCost>, ApiError> {
    let cluster = state.cluster()?;
    let document = cluster.coordination.layout().await?.value;
    let next_version = document.version.saturating_add(1);
    let mut cost = LayoutCost {
        next_version,
        staged: document.staged.clone(),
        impossible: None,
        shards_changed: 0,
        replicas_moved: 0,
        bytes_moved: 0,
        shards_unmeasured: 0,
        nodes: vec![],
    };
    let map = cluster.shards();
    let state_of = |shard: u32| map.shards.get(&ShardId(shard)).map(|state| &state.value);
    let before: Vec<Vec<NodeId>> =
        (0..cluster.identity.shard_count).map(|n| state_of(n).map(|s| s.target.clone()).unwrap_or_default()).collect();
    let preview = layout::preview(&document);
    let held = before.clone();
    // A flow over all shards: some tens of milliseconds for the largest cluster.
    let planned = tokio::task::spawn_blocking(move || assign(&preview, &BTreeSet::new(), &held)).await;
    let after = match planned.map_err(|_| ApiError::unavailable("the node is stopping"))? {
        Ok(after) => after,
        Err(error) => {
            cost.impossible = Some(error.to_string());
            return Ok(Json(cost));
        }
    };
    // The map shows what is stored, also of a shard that there is not.
    let nodes_of = |all: &[Vec<NodeId>], shard: &ShardId| all.get(shard.index()).map(|nodes| set(nodes));
    let changed: Vec<(ShardId, ShardState)> = map
        .shards
        .iter()
        .filter(|(shard, _)| nodes_of(&before, shard) != nodes_of(&after, shard))
        .map(|(shard, state)| (*shard, state.value.clone()))
        .collect();
    let mut bytes = vec![0; before.len()];
    let wanted = changed.len();
    let measured = measure(cluster, changed).await;
    cost.shards_unmeasured = wanted.saturating_sub(measured.len()) as u32;
    for (shard, size) in measured {
        bytes[shard.index()] = size;
    }
    let diff = layout::diff(&before, &after, &bytes);
    cost.shards_changed = diff.shards_changed;
    cost.replicas_moved = diff.replicas_moved;
    cost.bytes_moved = diff.bytes_moved;
    cost.nodes = diff
        .nodes
        .into_iter()
        .map(|(node, diff)| LayoutNodeCost {
            node: node.to_string(),
            replicas_before: diff.replicas_before,
            replicas_after: diff.replicas_after,
            incoming_bytes: diff.incoming_bytes,
            outgoing_bytes: diff.outgoing_bytes,
        })
        .collect();
    Ok(Json(cost))
}

fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}

/// Bytes of one replica of each shard, asked of a member; those that nobody told are left out.
async fn measure(cluster: &ClusterAdmin, shards: Vec<(ShardId, ShardState)>) -> Vec<(ShardId, u64)> {
    let one = |(shard, state): (ShardId, ShardState)| async move {
        Some((shard, size_on_a_member(cluster, shard, &state).await?))
    };
    let mut sizes = stream::iter(shards).map(one).buffer_unordered(MEASURED_AT_ONCE);
    let mut measured = Vec::new();
    let all = async {
        while let Some(size) = sizes.next().await {
            measured.extend(size);
        }
    };
    // What was measured by then counts.
    drop(tokio::time::timeout(MEASURE_TIMEOUT, all).await);
    drop(sizes);
    measured
}

async fn size_on_a_member(cluster: &ClusterAdmin, shard: ShardId, state: &ShardState) -> Option<u64> {
    if state.is_member(cluster.me()) {
        return super::shards::local_digest(cluster, shard).await.map(|digest| digest.bytes);
    }
    for node in state.members.iter().filter(|node| cluster.view.is_alive(**node)) {
        if let Ok(digest) = cluster.peers.digest(*node, Fence { shard, epoch: state.epoch }).await {
            return Some(digest.bytes);
        }
    }
    None
}

/// Puts what is staged in force.
#[utoipa::path(
    post, path = "/v1/layout/apply", tag = "layout", operation_id = "apply_layout", request_body = ApplyLayout,
    responses(
        (status = 200, description = "The layout in force", body = LayoutView),
        (status = "default", description = "An error; 409 conflict when the version is not the next one", body = ErrorBody),
    )
)]
pub(super) async fn apply(
    State(state): State<AdminState>,
    Body(ApplyLayout { version }): Body<ApplyLayout>,
) -> Result<Json<LayoutView>, ApiError> {
    let cluster = state.cluster()?;
    let document = cluster
        .change_layout(|document| {
            let preview = layout::preview(document);
            let usable = preview.nodes.values().filter(|node| node.takes_data()).count();
            layout::apply(document, version)?;
            if usable < preview.replication_factor as usize {
                return Err(ApiError::not_possible(format!(
                    "{usable} nodes take data, but {} replicas are wanted: stage more nodes, or fewer replicas \
                     (`holdfast layout set-replicas`)",
                    preview.replication_factor
                )));
            }
            Ok(())
        })
        .await?;
    tracing::info!(version = document.version, "layout applied");
    Ok(Json(view(&document)))
}

/// Forgets what is staged.
#[utoipa::path(
    post, path = "/v1/layout/revert", tag = "layout", operation_id = "revert_layout",
    responses(
        (status = 200, description = "The layout", body = LayoutView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn revert(State(state): State<AdminState>) -> Result<Json<LayoutView>, ApiError> {
    let document = state
        .cluster()?
        .change_layout(|document| {
            layout::revert(document);
            Ok(())
        })
        .await?;
    Ok(Json(view(&document)))
}
