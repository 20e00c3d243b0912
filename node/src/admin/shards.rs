//! `/v1/shards`

use axum::Json;
use axum::extract::State;
use futures::future::join_all;
use holdfast_actors::domain::placement::ShardHealth;
use holdfast_actors::ports::peers::{Fence, ShardDigest};
use holdfast_protocol::ShardId;
use holdfast_protocol::admin::{ErrorBody, ErrorCode, ShardInfo, ShardReplica};
use holdfast_protocol::cluster::ShardState;

use super::cluster::ClusterAdmin;
use super::error::Path;
use super::{AdminState, ApiError};

fn health_name(health: ShardHealth) -> &'static str {
    match health {
        ShardHealth::Healthy => "healthy",
        ShardHealth::Moving => "moving",
        ShardHealth::Degraded => "degraded",
        ShardHealth::NoQuorum => "no_quorum",
        ShardHealth::Unavailable => "unavailable",
    }
}

fn info(cluster: &ClusterAdmin, shard: ShardId, state: Option<&ShardState>) -> ShardInfo {
    let Some(state) = state else {
        return ShardInfo {
            shard: shard.0,
            health: "unplaced".into(),
            epoch: 0,
            write_quorum: 0,
            target: vec![],
            replicas: vec![],
        };
    };
    let members = state.members.iter().map(|node| (*node, "member"));
    let joining = state.joining.iter().map(|joiner| (joiner.node, "joining"));
    let leaving = state.leaving.iter().map(|leaver| (leaver.node, "leaving"));
    let replicas = members.chain(joining).chain(leaving).map(|(node, role)| ShardReplica {
        node: node.to_string(),
        role: role.into(),
        alive: cluster.view.is_alive(node),
        chunks: None,
        bytes: None,
    });
    ShardInfo {
        shard: shard.0,
        health: health_name(cluster.actors.health(state)).into(),
        epoch: state.epoch.0,
        write_quorum: state.write_quorum(),
        target: state.target.iter().map(ToString::to_string).collect(),
        replicas: replicas.collect(),
    }
}

/// Every shard: its health, and who holds it.
#[utoipa::path(
    get, path = "/v1/shards", tag = "shards", operation_id = "list_shards",
    responses(
        (status = 200, description = "All shards", body = Vec<ShardInfo>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(State(state): State<AdminState>) -> Result<Json<Vec<ShardInfo>>, ApiError> {
    let cluster = state.cluster()?;
    let map = cluster.shards();
    let of = |n: u32| info(cluster, ShardId(n), map.shards.get(&ShardId(n)).map(|state| &state.value));
    Ok(Json((0..cluster.identity.shard_count).map(of).collect()))
}

/// One shard, with what each of its nodes has of it.
#[utoipa::path(
    get, path = "/v1/shards/{shard}", tag = "shards", operation_id = "show_shard", params(("shard" = u32, Path, description = "Its number")),
    responses(
        (status = 200, description = "The shard", body = ShardInfo),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(
    State(state): State<AdminState>,
    Path(shard): Path<String>,
) -> Result<Json<ShardInfo>, ApiError> {
    let cluster = state.cluster()?;
    let number: u32 = shard.parse().map_err(|_| ApiError::invalid("a shard is named by its number"))?;
    let shard = ShardId(number);
    if number >= cluster.identity.shard_count {
        let last = cluster.identity.shard_count - 1;
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no shard {number}: they are 0 to {last}")));
    }
    let map = cluster.shards();
    let state = map.shards.get(&shard).map(|state| &state.value);
    let mut info = info(cluster, shard, state);
    if let Some(state) = state {
        let fence = Fence { shard, epoch: state.epoch };
        let asked = info.replicas.iter_mut().map(|replica| async move {
            if let Some(digest) = digest_on(cluster, replica, fence).await {
                replica.chunks = Some(digest.chunks);
                replica.bytes = Some(digest.bytes);
            }
        });
        join_all(asked).await;
    }
    Ok(Json(info))
}

async fn digest_on(cluster: &ClusterAdmin, replica: &ShardReplica, fence: Fence) -> Option<ShardDigest> {
    let node = replica.node.parse().ok()?;
    if node == cluster.me() {
        return local_digest(cluster, fence.shard).await;
    }
    cluster.peers.digest(node, fence).await.ok()
}

/// What this node holds of a shard: a walk over its index.
pub(super) async fn local_digest(cluster: &ClusterAdmin, shard: ShardId) -> Option<ShardDigest> {
    let (local, count) = (cluster.local.clone(), cluster.identity.shard_count);
    tokio::task::spawn_blocking(move || local.digest(shard, count)).await.ok()
}
