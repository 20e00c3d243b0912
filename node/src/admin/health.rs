//! `/health/…` and `/metrics`: no token, no metadata, no disk; they answer from memory even when all else hangs. Only
//! `/health/maintenance` of a node in a cluster asks metadata for repairs and other nodes for comparisons, with time
//! limits.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_actors::domain::admission::{DiskHealth, Refusal};
use holdfast_actors::service::NodeHealth;
use holdfast_protocol::ShardId;
use holdfast_protocol::admin::{ErrorCode, Maintenance, Readiness, Reason};

use super::cluster::named;
use super::{AdminState, ApiError, ClusterAdmin};
use crate::telemetry::process;
use crate::tiers::TierRegistry;

/// Shards that an answer lists at most.
const SHARDS_SHOWN: usize = 100;

/// Middleware: answers for a node that has not been put together yet.
pub(super) async fn until_ready(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    if state.is_ready() || request.uri().path() == "/health/live" {
        return next.run(request).await;
    }
    if request.uri().path() == "/health/ready" {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(readiness(&NodeHealth::starting()))).into_response();
    }
    ApiError::new(ErrorCode::Unavailable, "the node is starting").into_response()
}

/// The process answers.
#[utoipa::path(
    get, path = "/health/live", tag = "health", security(()),
    responses((status = 200, description = "It lives", body = String, content_type = "text/plain"))
)]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// 200 when requests of all kinds are served, else 503; with the reasons.
///
/// In a cluster also 503 while this node cannot prove its membership, is not registered, or some shard has no write
/// quorum.
#[utoipa::path(
    get, path = "/health/ready", tag = "health", security(()),
    responses(
        (status = 200, description = "Requests of all kinds are served", body = Readiness),
        (status = 503, description = "They are not, and why", body = Readiness),
    )
)]
pub(super) async fn ready(State(state): State<AdminState>) -> impl IntoResponse {
    let readiness = readiness_of(&state);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

/// Readiness with what the cluster adds to it.
pub(super) fn readiness_of(state: &AdminState) -> Readiness {
    let mut readiness = readiness(&state.node.health());
    if let Some(cluster) = &state.cluster {
        readiness.reasons.extend(cluster.reasons());
        readiness.ready = readiness.reasons.is_empty();
    }
    readiness.degraded = tiers_down(&state.tiers);
    readiness.degraded.extend(disks_unresponsive(&state.node.health()));
    readiness
}

/// Disks of this node that do not answer. It serves what it can without them.
pub(super) fn disks_unresponsive(health: &NodeHealth) -> Vec<Reason> {
    let disks = health.disks.iter().filter(|disk| disk.health == DiskHealth::Unresponsive);
    disks
        .map(|disk| {
            let detail = disk.detail.as_deref().unwrap_or("-");
            let message = format!("disk {} of this node does not answer ({detail})", disk.name);
            Reason { code: "disk_unresponsive".into(), message }
        })
        .collect()
}

/// Cold tiers that this node cannot work with. What lies on the cluster's disks is served all the same.
pub(super) fn tiers_down(tiers: &TierRegistry) -> Vec<Reason> {
    let down = tiers.states().into_iter().filter(|state| state.is_up == Some(false));
    down.map(|state| {
        let why = state.problem.unwrap_or_else(|| "unknown".into());
        Reason {
            code: "tier_down".into(),
            message: format!("the cold tier {} cannot be worked with: {why}", state.name),
        }
    })
    .collect()
}

/// Whether this node may be stopped without losing availability.
///
/// Of a node that runs alone nobody takes over the work, so the answer is 412 for as long as it serves requests. In a
/// cluster it is 412 while some shard would have no write quorum without this node, copies and repairs are under way
/// that need it, or the other members of its shards are not proven to hold the same.
#[utoipa::path(
    get, path = "/health/maintenance", tag = "health", security(()),
    responses(
        (status = 200, description = "It may be stopped", body = Maintenance),
        (status = 412, description = "It is needed, and for what", body = Maintenance),
    )
)]
pub(super) async fn maintenance(State(state): State<AdminState>) -> impl IntoResponse {
    let answer = match &state.cluster {
        None => alone(&state.node.health()),
        Some(cluster) => in_cluster(&state, cluster).await,
    };
    (if answer.safe_to_stop { StatusCode::OK } else { StatusCode::PRECONDITION_FAILED }, Json(answer))
}

/// A node that only takes no writes, as one whose disks are full, is read.
fn alone(health: &NodeHealth) -> Maintenance {
    if health.reads_refused.is_none() || health.writes_refused.is_none() {
        return needed("this node runs alone: while it is stopped, nothing it stores is available", &[]);
    }
    let message = "this node serves no requests now: stopping it loses no availability".into();
    Maintenance { safe_to_stop: true, message, shards: vec![] }
}

async fn in_cluster(state: &AdminState, cluster: &ClusterAdmin) -> Maintenance {
    if !cluster.is_informed() {
        return uninformed();
    }
    let others = cluster.others_of_late().await;
    let shards = cluster.depend_on_me(&others.silent);
    if !shards.is_empty() {
        let message =
            format!("{} shards would lose their write quorum or a copy under way: {}", shards.len(), named(&shards));
        return needed(&message, &shards);
    }
    match cluster.repairs_that_need_me(&*state.metadata).await {
        None => needed("metadata does not answer, so it is not known whether repairs wait that need this node", &[]),
        // Others were asked meanwhile, and metadata.
        Some(0) if !cluster.is_informed() => uninformed(),
        Some(0) => proven(&others.unproven),
        Some(waiting) => {
            needed(&format!("{waiting} repairs of other nodes wait, for which this node may be needed"), &[])
        }
    }
}

/// What was proven before a member came back is taken for proven by a node that has yet to hear of it.
fn uninformed() -> Maintenance {
    needed(
        "this node does not know who could take over: it cannot prove its membership, or has no connection to ZooKeeper \
         (cluster.zookeeper), or has yet to read there what changed while it had none",
        &[],
    )
}

/// Whether the other members are known to have what this node has. A disk that was replaced takes part in quorums at
/// once, and what was on it is on fewer disks than the map says until a comparison has found no difference.
fn proven(unproven: &[ShardId]) -> Maintenance {
    if unproven.is_empty() {
        let message = "every shard keeps its write quorum without this node".into();
        return Maintenance { safe_to_stop: true, message, shards: vec![] };
    }
    let message = format!(
        "{} shards of this node are not proven to hold the same on their other members yet: {}; `holdfast cluster status \
         --wait` waits for that",
        unproven.len(),
        named(unproven)
    );
    needed(&message, unproven)
}

fn needed(message: &str, shards: &[ShardId]) -> Maintenance {
    Maintenance {
        safe_to_stop: false,
        message: message.to_owned(),
        shards: shards.iter().take(SHARDS_SHOWN).map(|shard| shard.0).collect(),
    }
}

/// Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    process::measure();
    metrics::gauge!("holdfast_uptime_seconds").set(state.started.elapsed().as_secs_f64());
    let text = state.metrics.render() + &process::cpu_text();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

pub(super) fn readiness(health: &NodeHealth) -> Readiness {
    let mut reasons = Vec::new();
    let mut refusals: Vec<Refusal> = [health.reads_refused, health.writes_refused].into_iter().flatten().collect();
    refusals.dedup();
    for refusal in refusals {
        let message = match refusal {
            Refusal::Starting => "the node is starting".to_owned(),
            Refusal::Draining => "the node is stopping".to_owned(),
            Refusal::NoSpace => no_space(health),
            Refusal::NoDisk => format!("no disk works: {}", unwell(health)),
            Refusal::NoMetadata => {
                let what = if health.reads_refused.is_some() { "does not answer" } else { "takes no writes" };
                format!("the metadata store {what}: {}", health.metadata_error.as_deref().unwrap_or("unknown"))
            }
        };
        reasons.push(Reason { code: refusal.as_str().to_owned(), message });
    }
    Readiness { ready: health.is_ready(), reasons, degraded: vec![] }
}

/// Metadata or disks, or both: whoever makes room has to know of all.
fn no_space(health: &NodeHealth) -> String {
    match (&health.metadata_full, unwell(health)) {
        (None, disks) => format!("no disk takes writes: {disks}"),
        (Some(why), disks) if disks.is_empty() => format!("the metadata store has no room: {why}"),
        (Some(why), disks) => format!("the metadata store has no room: {why}; {disks}"),
    }
}

fn unwell(health: &NodeHealth) -> String {
    let disks = health.disks.iter().filter(|disk| disk.health != DiskHealth::Healthy);
    let lines: Vec<String> = disks
        .map(|disk| format!("{} is {} ({})", disk.name, disk.health.as_str(), disk.detail.as_deref().unwrap_or("-")))
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use holdfast_actors::service::node::DiskReport;

    use super::*;

    #[test]
    fn a_node_whose_disks_are_full_is_not_ready_and_says_which() {
        let mut health = NodeHealth::starting();
        health.reads_refused = None;
        health.writes_refused = Some(Refusal::NoSpace);
        health.disks =
            vec![DiskReport { name: "/d".into(), health: DiskHealth::Full, detail: Some("0 bytes free".into()) }];
        let readiness = readiness(&health);
        assert!(!readiness.ready);
        assert_eq!(readiness.reasons.len(), 1);
        assert_eq!(readiness.reasons[0].code, "no_space");
        assert!(readiness.reasons[0].message.contains("/d is full (0 bytes free)"));
    }

    #[test]
    fn metadata_without_room_are_told_of_beside_the_disks() {
        let mut health = NodeHealth::starting();
        (health.reads_refused, health.writes_refused) = (None, Some(Refusal::NoSpace));
        health.metadata_full = Some("disk is full: make room on the file system of /m".into());
        let told = |health: &NodeHealth| {
            let readiness = readiness(health);
            assert_eq!((readiness.ready, readiness.reasons.len(), &*readiness.reasons[0].code), (false, 1, "no_space"));
            readiness.reasons[0].message.clone()
        };
        let of_metadata = "the metadata store has no room: disk is full: make room on the file system of /m";
        assert_eq!(told(&health), of_metadata);
        health.disks =
            vec![DiskReport { name: "/d".into(), health: DiskHealth::Full, detail: Some("0 bytes free".into()) }];
        assert_eq!(told(&health), format!("{of_metadata}; /d is full (0 bytes free)"));
    }

    #[test]
    fn a_disk_that_does_not_answer_is_named() {
        let mut health = NodeHealth::starting();
        (health.reads_refused, health.writes_refused) = (None, Some(Refusal::NoDisk));
        let detail = Some("no answer for 31 s".into());
        health.disks = vec![DiskReport { name: "/d".into(), health: DiskHealth::Unresponsive, detail }];
        let readiness = readiness(&health);
        assert_eq!((readiness.ready, &*readiness.reasons[0].code), (false, "no_disk"));
        assert!(readiness.reasons[0].message.contains("/d is unresponsive (no answer for 31 s)"));
        let told = disks_unresponsive(&health);
        assert_eq!((told.len(), &*told[0].code), (1, "disk_unresponsive"));
        assert!(told[0].message.contains("/d"));
    }

    #[test]
    fn a_node_that_runs_alone_is_needed_while_it_is_read() {
        let mut health = NodeHealth::starting();
        assert!(alone(&health).safe_to_stop, "it serves nothing");
        (health.reads_refused, health.writes_refused) = (None, Some(Refusal::NoSpace));
        assert!(!alone(&health).safe_to_stop);
    }

    #[test]
    fn metadata_that_take_no_writes_are_told_of() {
        let mut health = NodeHealth::starting();
        (health.reads_refused, health.writes_refused) = (None, Some(Refusal::NoMetadata));
        health.metadata_error = Some("a commit failed".into());
        let readiness = readiness(&health);
        assert_eq!((readiness.ready, &*readiness.reasons[0].code), (false, "no_metadata"));
        assert_eq!(readiness.reasons[0].message, "the metadata store takes no writes: a commit failed");
    }

    #[test]
    fn one_cause_is_told_once() {
        assert_eq!(readiness(&NodeHealth::starting()).reasons.len(), 1);
    }
}
