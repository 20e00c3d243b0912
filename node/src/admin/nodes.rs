//! `/v1/nodes`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures::{StreamExt, stream};
use holdfast_actors::domain::placement::layout;
use holdfast_actors::ports::coordination::NodeState;
use holdfast_actors::ports::peers::Fence;
use holdfast_protocol::NodeId;
use holdfast_protocol::admin::{DrainStatus, ErrorBody, ErrorCode, NodeInfo};
use holdfast_protocol::cluster::{LayoutChange, LayoutDocument};
use serde::Deserialize;

use super::cluster::{ClusterAdmin, roles};
use super::error::Path;
use super::page::Params;
use super::{AdminState, ApiError};

/// Time for metadata to tell what repairs wait; it is shown without that otherwise.
const BACKLOG_TIMEOUT: Duration = Duration::from_secs(3);

/// Shards that a node is asked about at once: it makes the digests that wait in one walk over its index.
const DIGESTS_AT_ONCE: usize = 32;

/// Repairs that wait, by node; `None` while metadata does not answer.
pub(super) async fn backlog(state: &AdminState) -> Option<BTreeMap<NodeId, u64>> {
    let asked = tokio::time::timeout(BACKLOG_TIMEOUT, state.metadata.repair_backlog()).await;
    asked.ok()?.ok().map(|backlog| backlog.into_iter().collect())
}

/// Whether metadata is known to have lost commits; false while it does not answer.
pub(super) async fn lost_commits(state: &AdminState) -> bool {
    let asked = tokio::time::timeout(BACKLOG_TIMEOUT, state.metadata.lost_commits()).await;
    matches!(asked, Ok(Ok(true)))
}

/// Every node that is alive or in the layout.
pub(super) fn list_of(state: &AdminState, backlog: &Option<BTreeMap<NodeId, u64>>) -> Vec<NodeInfo> {
    let Some(cluster) = &state.cluster else { return vec![] };
    let membership = cluster.view.membership().borrow().clone();
    let document = cluster.coordination.watch_layout().borrow().clone();
    let map = cluster.shards();
    let roles = roles(&map);
    let in_layout = |id: &NodeId| document.as_ref().and_then(|document| document.value.applied.nodes.get(id));
    let mut ids: BTreeSet<NodeId> = membership.nodes.keys().chain(roles.keys()).copied().collect();
    ids.extend(document.iter().flat_map(|document| document.value.applied.nodes.keys()));
    let info = |id: NodeId| {
        let live = membership.nodes.get(&id).map(|live| &live.announcement);
        let wanted = in_layout(&id);
        NodeInfo {
            id: id.to_string(),
            state: live.map_or("absent", |live| state_name(live.state)).into(),
            in_layout: wanted.is_some(),
            draining: wanted.is_some_and(|node| node.draining),
            zone: wanted.map(|node| &node.zone).or(live.map(|live| &live.zone)).cloned().unwrap_or_default(),
            weight: wanted.map_or(0, |node| node.weight),
            peer_addr: live.map(|live| live.addresses.peer.clone()).unwrap_or_default(),
            s3_addr: live.map(|live| live.addresses.s3.clone()).unwrap_or_default(),
            admin_addr: live.map(|live| live.addresses.admin.clone()).unwrap_or_default(),
            capacity_bytes: live.map_or(0, |live| live.capacity_bytes),
            free_bytes: live.map_or(0, |live| live.free_bytes),
            version: live.map(|live| live.version.clone()).unwrap_or_default(),
            shards: roles.get(&id).copied().unwrap_or_default(),
            repairs: backlog.as_ref().map(|backlog| backlog.get(&id).copied().unwrap_or(0)),
        }
    };
    ids.into_iter().map(info).collect()
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Starting => "starting",
        NodeState::Ready => "ready",
        NodeState::Stopping => "stopping",
    }
}

fn parse(text: &str) -> Result<NodeId, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(format!("{error}")))
}

/// Every node that is alive or in the layout.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", operation_id = "list_nodes",
    responses(
        (status = 200, description = "The nodes", body = Vec<NodeInfo>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(State(state): State<AdminState>) -> Result<Json<Vec<NodeInfo>>, ApiError> {
    state.cluster()?;
    let backlog = backlog(&state).await;
    Ok(Json(list_of(&state, &backlog)))
}

/// Puts one change in force and leaves what else is staged as it is.
fn apply_alone(document: &mut LayoutDocument, change: LayoutChange) -> Result<(), ApiError> {
    let staged = std::mem::take(&mut document.staged);
    layout::stage(document, change)?;
    let next = document.version.saturating_add(1);
    layout::apply(document, next)?;
    for change in staged {
        if let Err(error) = layout::stage(document, change) {
            tracing::warn!(%error, "a staged change of the layout no longer applies and is dropped");
        }
    }
    Ok(())
}

/// Moves everything off a node, which stays in the layout. In force at once.
#[utoipa::path(
    post, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "drain_node", params(("node" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "How far it is", body = DrainStatus),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn drain(
    State(state): State<AdminState>,
    Path(node): Path<String>,
) -> Result<Json<DrainStatus>, ApiError> {
    set_draining(&state, &node, true).await
}

/// Lets a drained node take data again. In force at once.
#[utoipa::path(
    post, path = "/v1/nodes/{node}/undrain", tag = "nodes", operation_id = "undrain_node", params(("node" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "How it is", body = DrainStatus),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn undrain(
    State(state): State<AdminState>,
    Path(node): Path<String>,
) -> Result<Json<DrainStatus>, ApiError> {
    set_draining(&state, &node, false).await
}

async fn set_draining(state: &AdminState, node: &str, draining: bool) -> Result<Json<DrainStatus>, ApiError> {
    let cluster = state.cluster()?;
    let node = parse(node)?;
    let document = cluster
        .change_layout(|document| {
            if document.applied.nodes.get(&node).is_some_and(|n| n.draining == draining) {
                return Ok(());
            }
            let change = if draining { LayoutChange::Drain { node } } else { LayoutChange::Undrain { node } };
            let mut after = document.clone();
            apply_alone(&mut after, change)?;
            if draining {
                possible(&after)?;
            }
            *document = after;
            Ok(())
        })
        .await?;
    tracing::info!(%node, draining, version = document.version, "layout changed");
    Ok(Json(drain_of(state, cluster, node, draining).await))
}

/// A drain that could never end is refused.
fn possible(document: &LayoutDocument) -> Result<(), ApiError> {
    let usable = document.applied.nodes.values().filter(|node| node.takes_data()).count();
    let replicas = document.applied.replication_factor;
    if usable >= replicas as usize {
        return Ok(());
    }
    Err(ApiError::not_possible(format!(
        "{usable} nodes would be left for {replicas} replicas: add a node first, or ask for fewer replicas \
         (`holdfast layout set-replicas`)"
    )))
}

/// How far the drain of a node is.
#[utoipa::path(
    get, path = "/v1/nodes/{node}/drain", tag = "nodes", operation_id = "drain_status", params(("node" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "How far it is", body = DrainStatus),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn drain_status(
    State(state): State<AdminState>,
    Path(node): Path<String>,
) -> Result<Json<DrainStatus>, ApiError> {
    let cluster = state.cluster()?;
    let node = parse(&node)?;
    let document = cluster.coordination.layout().await?.value;
    let wanted = document.applied.nodes.get(&node);
    let draining = wanted.is_none_or(|n| n.draining);
    Ok(Json(drain_of(&state, cluster, node, draining).await))
}

async fn drain_of(state: &AdminState, cluster: &ClusterAdmin, node: NodeId, draining: bool) -> DrainStatus {
    let map = cluster.shards();
    let mine =
        |s: &holdfast_protocol::cluster::ShardState| s.is_member(node) || s.is_joining(node) || s.is_leaving(node);
    let left: Vec<_> = map.shards.values().filter(|s| mine(&s.value) || s.value.target.contains(&node)).collect();
    let to_copy = left.iter().filter(|s| !s.value.is_leaving(node)).count();
    let held = if left.is_empty() && cluster.all_placed() { held_by(state, cluster, node).await } else { None };
    let waiting_for = match held {
        _ if !draining => "nothing: the node takes data".to_owned(),
        _ if to_copy > 0 => format!("{to_copy} shards are being copied to other nodes"),
        _ if !left.is_empty() => "the grace to end, and what was moved to be deleted".to_owned(),
        Some((0, _)) => "nothing".to_owned(),
        Some((chunks, _)) => format!("{chunks} chunks to be deleted"),
        None => "the node, which cannot be asked what it still holds".to_owned(),
    };
    DrainStatus {
        node: node.to_string(),
        draining,
        shards_left: left.len() as u32,
        shards_to_copy: to_copy as u32,
        chunks_left: held.map(|(chunks, _)| chunks),
        bytes_left: held.map(|(_, bytes)| bytes),
        done: draining && held == Some((0, 0)),
        waiting_for,
    }
}

/// Chunks and bytes that a node has, by its own count; `None` if it cannot be asked.
async fn held_by(state: &AdminState, cluster: &ClusterAdmin, node: NodeId) -> Option<(u64, u64)> {
    if node == cluster.me() {
        let disks = state.disks.iter().map(|disk| disk.status());
        return Some(disks.fold((0, 0), |sum, disk| (sum.0 + disk.chunks, sum.1 + disk.live_bytes)))
            .map(|(chunks, bytes)| if chunks == 0 { (0, 0) } else { (chunks, bytes) });
    }
    let map = cluster.shards();
    let asked: Vec<Fence> = map.shards.iter().map(|(shard, s)| Fence { shard: *shard, epoch: s.value.epoch }).collect();
    let digests = stream::iter(asked).map(|fence| cluster.peers.digest(node, fence)).buffer_unordered(DIGESTS_AT_ONCE);
    let digests: Vec<_> = digests.collect().await;
    let mut held = (0, 0);
    for digest in digests {
        let digest = digest.ok()?;
        held = (held.0 + digest.chunks, held.1 + digest.bytes);
    }
    Some(held)
}

/// Parameters of a removal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    #[serde(default)]
    force: bool,
}

/// Takes a node out of the layout. In force at once.
#[utoipa::path(
    delete, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "remove_node",
    params(
        ("node" = String, Path, description = "Its id"),
        ("force" = Option<bool>, Query, description = "Also if it still holds data or cannot be asked"),
    ),
    responses(
        (status = 204, description = "It is out of the layout"),
        (status = "default", description = "An error; 409 in_use while it holds data", body = ErrorBody),
    )
)]
pub(super) async fn remove(
    State(state): State<AdminState>,
    Path(node): Path<String>,
    Params(Removal { force }): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    let cluster = state.cluster()?;
    let node = parse(&node)?;
    let document = cluster.coordination.layout().await?.value;
    let wanted = document.applied.nodes.get(&node);
    let wanted =
        wanted.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("node {node} is not in the layout")))?;
    let status = drain_of(&state, cluster, node, wanted.draining).await;
    // What a node that is not here still has on its disks nobody needs, once no shard names it: each shard left it only
    // after others had verified their copies. But for what writes missed elsewhere: that waits as repairs of other
    // nodes.
    let is_gone = status.draining && status.shards_left == 0 && !cluster.view.is_alive(node) && cluster.all_placed();
    let waits = |backlog: BTreeMap<NodeId, u64>| backlog.iter().any(|(other, count)| *other != node && *count > 0);
    let is_needed = is_gone && backlog(&state).await.is_none_or(waits);
    let is_free = status.done || (is_gone && !is_needed);
    if !force && !is_free {
        let why = match status.shards_left {
            _ if !status.draining => format!("it takes data: run `holdfast node drain {node} --wait` first"),
            _ if is_needed => "repairs of other nodes wait, which may need what is on its disks".to_owned(),
            0 => format!("it waits for {}: see `holdfast node drain {node} --wait`", status.waiting_for),
            left => format!("{left} shards still name it: see `holdfast node drain {node} --wait`"),
        };
        return Err(ApiError::new(
            ErrorCode::InUse,
            format!("node {node} is not drained, {why}; or give --force if it will never come back"),
        ));
    }
    let document = cluster
        .change_layout(|document| {
            let mut after = document.clone();
            apply_alone(&mut after, LayoutChange::Remove { node })?;
            possible(&after)?;
            *document = after;
            Ok(())
        })
        .await?;
    tracing::info!(%node, force, version = document.version, "node removed from the layout");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_leaves_what_is_staged_alone() {
        let mut document = LayoutDocument::new(1);
        for n in 1..=2 {
            let change = LayoutChange::Assign { node: NodeId::from(n), zone: "z".into(), weight: 1 };
            layout::stage(&mut document, change).unwrap();
        }
        layout::apply(&mut document, 1).unwrap();
        layout::stage(&mut document, LayoutChange::SetReplicationFactor { replicas: 2 }).unwrap();
        apply_alone(&mut document, LayoutChange::Drain { node: NodeId::from(1) }).unwrap();
        assert_eq!((document.version, document.applied.replication_factor, document.staged.len()), (2, 1, 1));
        assert!(document.applied.nodes[&NodeId::from(1)].draining);
        assert!(possible(&document).is_ok());
        apply_alone(&mut document, LayoutChange::Drain { node: NodeId::from(2) }).unwrap();
        assert_eq!(possible(&document).unwrap_err().code(), ErrorCode::NotPossible);
    }
}
