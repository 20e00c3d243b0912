//! `/v1/errors`, `/v1/audit` and `/v1/events/dead`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::journal::{AuditFilter, ErrorFilter};
use holdfast_protocol::admin::{ErrorBody, Page};
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorKind, ErrorRecord};
use serde::Deserialize;
use tokio::time::Instant;

use super::error::Path;
use super::page::{self, Asked, Params};
use super::{AdminState, ApiError};

/// How long a message may take to be published again.
const PUBLISH_MAX: Duration = Duration::from_secs(10);

/// Entries on a page.
const LIMIT_DEFAULT: u32 = 100;

/// A page of numbered things.
fn asked(after: Option<&str>, limit: Option<u32>) -> Result<Asked<u64>, ApiError> {
    Asked::new(after, page::limit(limit, LIMIT_DEFAULT))
}

/// Which errors are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ErrorQuery {
    since_ms: Option<u64>,
    node: Option<String>,
    kind: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

fn kind(name: &str) -> Result<ErrorKind, ApiError> {
    ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
        let known: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
        ApiError::invalid(format!("there is no kind {name:?}: it can be one of {}", known.join(", ")))
    })
}

/// Errors worth a look, newest first.
#[utoipa::path(
    get, path = "/v1/errors", tag = "journal", operation_id = "list_errors",
    params(
        ("since_ms" = Option<u64>, Query, description = "Only those since then"),
        ("node" = Option<String>, Query, description = "Only those of this node"),
        ("kind" = Option<String>, Query, description = "Only those of this kind"),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 1,000"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Entry<ErrorRecord>>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn errors(
    State(state): State<AdminState>,
    Params(query): Params<ErrorQuery>,
) -> Result<Json<Page<Entry<ErrorRecord>>>, ApiError> {
    let filter = ErrorFilter {
        since_ms: query.since_ms.unwrap_or(0),
        node: query.node,
        kind: query.kind.as_deref().map(kind).transpose()?,
    };
    let asked = asked(query.after.as_deref(), query.limit)?;
    let found = state.journal.errors(&filter, asked.after, asked.fetch()).await?;
    Ok(Json(asked.page(found, |entry| entry.number)))
}

/// Which entries of the audit log are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    since_ms: Option<u64>,
    node: Option<String>,
    action: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

/// What was done through the admin API, newest first.
#[utoipa::path(
    get, path = "/v1/audit", tag = "journal", operation_id = "list_audit",
    params(
        ("since_ms" = Option<u64>, Query, description = "Only entries since then"),
        ("node" = Option<String>, Query, description = "Only those of this node"),
        ("action" = Option<String>, Query, description = "Only those whose action begins so, such as `POST /v1/keys`"),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 1,000"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Entry<AuditRecord>>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn audit(
    State(state): State<AdminState>,
    Params(query): Params<AuditQuery>,
) -> Result<Json<Page<Entry<AuditRecord>>>, ApiError> {
    let filter = AuditFilter { since_ms: query.since_ms.unwrap_or(0), node: query.node, action_prefix: query.action };
    let asked = asked(query.after.as_deref(), query.limit)?;
    let found = state.journal.audit(&filter, asked.after, asked.fetch()).await?;
    Ok(Json(asked.page(found, |entry| entry.number)))
}

/// A page of dead letters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadQuery {
    after: Option<String>,
    limit: Option<u32>,
}

/// Messages that were given up, oldest first, without their bodies.
#[utoipa::path(
    get, path = "/v1/events/dead", tag = "events", operation_id = "list_dead_letters",
    params(
        ("after" = Option<String>, Query, description = "`next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 1,000"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<DeadLetter>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn dead_list(
    State(state): State<AdminState>,
    Params(query): Params<DeadQuery>,
) -> Result<Json<Page<DeadLetter>>, ApiError> {
    let asked = asked(query.after.as_deref(), query.limit)?;
    let found = state.journal.dead_letters(asked.after.unwrap_or(0), asked.fetch()).await?;
    Ok(Json(asked.page(found, |letter| letter.number)))
}

/// One message that was given up, with its body.
#[utoipa::path(
    get, path = "/v1/events/dead/{number}", tag = "events", operation_id = "show_dead_letter",
    params(("number" = u64, Path, description = "Its number")),
    responses(
        (status = 200, description = "The message", body = DeadLetter),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn dead_show(
    State(state): State<AdminState>,
    Path(number): Path<u64>,
) -> Result<Json<DeadLetter>, ApiError> {
    Ok(Json(state.journal.dead_letter(number).await?))
}

/// Publishes a message that was given up again, and forgets it here once that is certain.
#[utoipa::path(
    post, path = "/v1/events/dead/{number}/requeue", tag = "events", operation_id = "requeue_dead_letter",
    params(("number" = u64, Path, description = "Its number")),
    responses(
        (status = 200, description = "The message as it was", body = DeadLetter),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn dead_requeue(
    State(state): State<AdminState>,
    Path(number): Path<u64>,
) -> Result<Json<DeadLetter>, ApiError> {
    let letter = state.journal.dead_letter(number).await?;
    let (topic, message) = state.journal.dead_message(number).await?;
    // Under its own id, so that a message that fails once more is not kept twice. Whoever was not told that it is
    // published keeps it: consumers bear repetitions.
    let published = state.events.bus.publish(topic, &message, Instant::now() + PUBLISH_MAX).await;
    published.map_err(|error| ApiError::unavailable(format!("{error}; the message stays where it is")))?;
    match state.journal.discard(number).await {
        // It failed again meanwhile, and has a new number.
        Ok(()) | Err(MetadataError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    tracing::info!(number, id = letter.id, "dead letter requeued");
    Ok(Json(letter))
}

/// Forgets a message that was given up.
#[utoipa::path(
    delete, path = "/v1/events/dead/{number}", tag = "events", operation_id = "discard_dead_letter",
    params(("number" = u64, Path, description = "Its number")),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn dead_discard(
    State(state): State<AdminState>,
    Path(number): Path<u64>,
) -> Result<StatusCode, ApiError> {
    state.journal.discard(number).await?;
    tracing::info!(number, "dead letter discarded");
    Ok(StatusCode::NO_CONTENT)
}
