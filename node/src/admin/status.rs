//! `/v1/status`, `/v1/cleanup`, `/v1/scrub`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use holdfast_actors::domain::admission::JobKind;
use holdfast_protocol::admin::{AdmissionStatus, CleanupStatus, DiskStatus, ErrorBody, ScrubStatus, Status};

use super::{AdminState, ApiError};

/// Longest time that a cleanup on command may take before the answer is "try again".
const CLEANUP_DEADLINE: Duration = Duration::from_secs(300);

/// How this node is.
#[utoipa::path(
    get, path = "/v1/status", tag = "node", operation_id = "node_status",
    responses(
        (status = 200, description = "How it is", body = Status),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn status(State(state): State<AdminState>) -> Json<Status> {
    Json(Status {
        node_id: state.node_id.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        s3_addr: state.s3_addr.to_string(),
        uptime_seconds: state.started.elapsed().as_secs(),
        readiness: super::health::readiness_of(&state),
        disks: disks(&state),
        admission: JobKind::ALL.map(|kind| admission(&state, kind)).into(),
        cleanup: cleanup(&state),
    })
}

/// Runs every pass now and answers with the totals when they are through.
#[utoipa::path(
    post, path = "/v1/cleanup", tag = "node", operation_id = "run_cleanup",
    responses(
        (status = 200, description = "Totals since the start of the process", body = Vec<CleanupStatus>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn run_cleanup(State(state): State<AdminState>) -> Result<Json<Vec<CleanupStatus>>, ApiError> {
    state.node.run_cleanup(CLEANUP_DEADLINE).await?;
    Ok(Json(cleanup(&state)))
}

/// Starts a scrub of everything at full pace; its progress is in the status.
#[utoipa::path(
    post, path = "/v1/scrub", tag = "node", operation_id = "start_scrub",
    responses(
        (status = 202, description = "The disks; progress is in the status", body = Vec<DiskStatus>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn start_scrub(
    State(state): State<AdminState>,
) -> Result<(StatusCode, Json<Vec<DiskStatus>>), ApiError> {
    state.node.start_scrub().await?;
    Ok((StatusCode::ACCEPTED, Json(disks(&state))))
}

fn disks(state: &AdminState) -> Vec<DiskStatus> {
    let scrubs = state.node.scrub_report();
    state
        .disks
        .iter()
        .zip(scrubs)
        .map(|(disk, scrub)| {
            let status = disk.status();
            DiskStatus {
                path: disk.name().to_owned(),
                health: status.health.as_str().into(),
                detail: status.detail,
                total_bytes: status.total_bytes,
                free_bytes: status.free_bytes,
                live_bytes: status.live_bytes,
                chunks: status.chunks,
                segments: status.segments,
                scrub: ScrubStatus {
                    bytes: scrub.bytes,
                    chunks: scrub.chunks,
                    corrupt: scrub.corrupt,
                    passes: scrub.passes,
                    running: scrub.running,
                },
            }
        })
        .collect()
}

fn admission(state: &AdminState, kind: JobKind) -> AdmissionStatus {
    let limits = state.node.admission().limits();
    let (jobs, bytes, queued) = state.node.admission().usage(kind);
    AdmissionStatus {
        class: kind.as_str().into(),
        jobs,
        jobs_max: limits.of(kind).jobs_max,
        bytes,
        bytes_max: limits.of(kind).bytes_max,
        queued: queued as u64,
    }
}

fn cleanup(state: &AdminState) -> Vec<CleanupStatus> {
    let reports = state.node.cleanup_report();
    reports
        .into_iter()
        .map(|(kind, report)| CleanupStatus {
            pass: kind.as_str().into(),
            passes: report.passes,
            failures: report.failures,
            items: report.total.items,
            chunks: report.total.chunks,
            bytes: report.total.bytes,
            last_error: report.last_error,
        })
        .collect()
}
