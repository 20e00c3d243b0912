//! `/v1/repair`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use holdfast_actors::ports::coordination::{Pause, set_repair_pause};
use holdfast_protocol::admin::{ComparisonInfo, CopyInfo, ErrorBody, PauseInfo, RepairInfo};

use super::cluster::ClusterAdmin;
use super::{AdminState, ApiError, audit, nodes};

/// Shards that are not proven to be the same everywhere, shown at most.
const UNVERIFIED_SHOWN: usize = 16;

/// How long an answer waits until this node knows itself what it has stored for all.
const FOLLOW_MAX: Duration = Duration::from_secs(5);

/// Since when and by whom the repairs of all nodes are paused, as this node sees it.
pub(super) fn pause_of(cluster: &ClusterAdmin) -> Option<PauseInfo> {
    let pause = cluster.coordination.watch_pauses().borrow().repairs.clone()?;
    Some(PauseInfo { since_ms: pause.since_ms, by: pause.by, node: pause.node.to_string() })
}

async fn info(state: &AdminState, cluster: &ClusterAdmin) -> RepairInfo {
    let repairs = cluster.actors.repairs();
    let copies = cluster.actors.rebuild().copies;
    let verified = cluster.actors.verified();
    let mut comparison = cluster.actors.comparison();
    // Once every shard was compared well again, what went wrong before is of no use to anybody.
    comparison.last_error.take_if(|_| verified.values().all(Result::is_ok));
    let backlog = nodes::backlog(state).await;
    RepairInfo {
        node: cluster.me().to_string(),
        paused: repairs.paused,
        pause: pause_of(cluster),
        backlog: backlog.map(|backlog| backlog.into_iter().map(|(node, n)| (node.to_string(), n)).collect()),
        done: repairs.done,
        failures: repairs.failures,
        bytes: repairs.bytes,
        rate_bytes: repairs.rate_bytes,
        bandwidth_bytes: cluster.actors.budget().rate_bytes(),
        last_errors: repairs.last_errors,
        copies: copies
            .into_iter()
            .map(|(shard, copy)| CopyInfo {
                shard: shard.0,
                phase: copy.phase.as_str().into(),
                chunks_expected: copy.chunks_expected,
                chunks_done: copy.chunks_done,
                bytes_expected: copy.bytes_expected,
                bytes_done: copy.bytes_done,
                last_error: copy.last_error,
            })
            .collect(),
        comparison: ComparisonInfo {
            running: comparison.running,
            shards: verified.len() as u32,
            verified: verified.values().filter(|verdict| verdict.is_ok()).count() as u32,
            unverified: verified
                .into_iter()
                .filter_map(|(shard, verdict)| Some((shard.0, verdict.err()?)))
                .take(UNVERIFIED_SHOWN)
                .collect(),
            repairs_queued: comparison.repairs_queued,
            last_error: comparison.last_error,
        },
    }
}

/// Repairs that wait, and what this node copies and compares.
#[utoipa::path(
    get, path = "/v1/repair", tag = "repair", operation_id = "repair_status",
    responses(
        (status = 200, description = "How it stands", body = RepairInfo),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn status(State(state): State<AdminState>) -> Result<Json<RepairInfo>, ApiError> {
    Ok(Json(info(&state, state.cluster()?).await))
}

/// Compares the replicas of the shards of which this node is the first live member, now, and repairs what differs.
#[utoipa::path(
    post, path = "/v1/repair/start", tag = "repair", operation_id = "start_repair",
    responses(
        (status = 200, description = "How it stands", body = RepairInfo),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn start(State(state): State<AdminState>) -> Result<Json<RepairInfo>, ApiError> {
    let cluster = state.cluster()?;
    cluster.actors.start_comparison();
    cluster.actors.wake_repairs();
    Ok(Json(info(&state, cluster).await))
}

/// Pauses the repairs of all nodes, after those at hand, until they are told to go on.
#[utoipa::path(
    post, path = "/v1/repair/pause", tag = "repair", operation_id = "pause_repair",
    responses(
        (status = 200, description = "How it stands", body = RepairInfo),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn pause(State(state): State<AdminState>, headers: HeaderMap) -> Result<Json<RepairInfo>, ApiError> {
    let cluster = state.cluster()?;
    let pause = Pause { since_ms: state.clock.now_ms(), by: audit::actor(&headers), node: cluster.me() };
    change(cluster, Some(pause)).await?;
    tracing::info!("the repairs of all nodes are paused");
    Ok(Json(info(&state, cluster).await))
}

/// Lets the repairs of all nodes go on.
#[utoipa::path(
    post, path = "/v1/repair/resume", tag = "repair", operation_id = "resume_repair",
    responses(
        (status = 200, description = "How it stands", body = RepairInfo),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn resume(State(state): State<AdminState>) -> Result<Json<RepairInfo>, ApiError> {
    let cluster = state.cluster()?;
    change(cluster, None).await?;
    tracing::info!("the repairs of all nodes go on");
    Ok(Json(info(&state, cluster).await))
}

async fn change(cluster: &ClusterAdmin, wanted: Option<Pause>) -> Result<(), ApiError> {
    let paused = set_repair_pause(&*cluster.coordination, wanted).await?.is_some();
    // So that who asks this node next is told so. It is stored in any case.
    let mut seen = cluster.coordination.watch_pauses();
    let follows = seen.wait_for(|pauses| pauses.repairs.is_some() == paused);
    drop(tokio::time::timeout(FOLLOW_MAX, follows).await);
    Ok(())
}
