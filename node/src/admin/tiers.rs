//! `/v1/tiers`: cold tiers are added, changed and removed, and show how they are.
//!
//! What moves is in [`moves`], reading all of a tier in [`verify`], removing one in [`removal`], whether changed
//! settings lead to the same store in [`spread`], and whether they lead to another tier's in [`overlap`].

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use holdfast_actors::ports::metadata::MoveReason;
use holdfast_actors::ports::tiering::{LaneBacklog, TierRecord, TierUsage};
use holdfast_actors::ports::tiers::{TierError, TierHealth};
use holdfast_actors::ports::{MetadataError, TierLedger};
use holdfast_protocol::TierName;
use holdfast_protocol::admin::{
    ChangeTier, ErrorBody, ErrorCode, MoveError, NewTier, RetriedMoves, TierBacklog, TierCheck, TierSample,
    TierSettings, TierStatus, TierUse, TierView,
};
use holdfast_protocol::tiers::STANDARD;
use tokio::time::Instant;

use super::audit::Made;
use super::buckets::BUCKETS;
use super::error::{Body, Path};
use super::{AdminState, ApiError};
use crate::tiers::TierState;

pub(super) mod moves;
mod overlap;
pub(super) mod removal;
mod spread;
pub(super) mod verify;

/// Moves that a status looks at, in pages.
const SEEN_MAX: u64 = 5_000;
/// Moves read at a time.
const PAGE: u32 = 1_000;
/// Reasons of failures that a status tells.
const ERRORS_SHOWN: usize = 8;

impl From<TierError> for ApiError {
    fn from(error: TierError) -> Self {
        let code = match &error {
            TierError::Invalid(_) => ErrorCode::InvalidRequest,
            TierError::Unavailable(_) => ErrorCode::Unavailable,
            TierError::Denied(_) | TierError::Full(_) => ErrorCode::NotPossible,
            TierError::NotFound(_) | TierError::Corrupt { .. } => ErrorCode::Conflict,
        };
        Self::new(code, error.to_string())
    }
}

impl AdminState {
    fn ledger(&self) -> &dyn TierLedger {
        &**self.tiers.ledger()
    }

    async fn tier_record(&self, name: &str) -> Result<TierRecord, ApiError> {
        let records = self.ledger().tiers().await?;
        records.into_iter().find(|record| record.name.as_str() == name).ok_or_else(|| no_such_tier(name))
    }

    /// The tier of a storage class that somebody names; `None` is the cluster itself.
    pub(super) async fn class(&self, class: &str) -> Result<Option<TierName>, ApiError> {
        if class == STANDARD {
            return Ok(None);
        }
        let name = tier_name(class)?;
        self.tier_record(class).await.map(|_| Some(name))
    }
}

fn no_such_tier(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no tier {name}: `holdfast tier list` shows those there are"))
}

/// What to say when a tier was found to get on with the others, and they changed before it was written.
fn not_as_judged(error: MetadataError) -> ApiError {
    match error {
        MetadataError::PreconditionFailed => {
            let message =
                "a tier was added, changed or removed at the same moment: look at `holdfast tier list`, and try again";
            ApiError::new(ErrorCode::Conflict, message)
        }
        error => error.into(),
    }
}

fn tier_name(name: &str) -> Result<TierName, ApiError> {
    name.parse().map_err(|error: holdfast_protocol::tiers::TierNameError| ApiError::invalid(error.to_string()))
}

/// The settings as they may be told; `None`: a node of a later version wrote them.
fn told(record: &TierRecord) -> Option<TierSettings> {
    serde_json::from_str::<TierSettings>(&record.settings).ok().map(TierSettings::without_secrets)
}

fn backlog_of(tier: &TierName, lanes: &[LaneBacklog], now_ms: u64) -> TierBacklog {
    lanes.iter().find(|lane| lane.lane == *tier).map_or_else(TierBacklog::default, |lane| TierBacklog {
        due: lane.due,
        failing: lane.failing,
        waiting: lane.waiting,
        lag_ms: lane.oldest_due_ms.map(|due_ms| now_ms.saturating_sub(due_ms)),
    })
}

fn use_of(tier: &TierName, usage: &[TierUsage]) -> TierUse {
    usage.iter().find(|usage| usage.tier == *tier).map_or_else(TierUse::default, |usage| TierUse {
        contents: usage.contents,
        bytes: usage.size_bytes,
        pieces_to_delete: usage.pieces_to_delete,
    })
}

fn view(state: &AdminState, record: &TierRecord, lanes: &[LaneBacklog]) -> TierView {
    let seen = state.tiers.states().into_iter().find(|seen| seen.name == record.name);
    let settings = told(record);
    let up = match seen.as_ref().and_then(|seen| seen.is_up) {
        Some(true) => "up",
        Some(false) => "down",
        None => "unknown",
    };
    let notes = |seen: &TierState| seen.health.as_ref().map(|health| health.notes.join("; "));
    let remarks = seen.as_ref().and_then(|seen| seen.problem.clone().or_else(|| notes(seen)));
    TierView {
        name: record.name.to_string(),
        kind: settings.as_ref().map_or("unknown", TierSettings::kind).into(),
        settings,
        created_ms: record.created_ms,
        revision: record.revision,
        state: up.into(),
        reason: remarks.filter(|remarks| !remarks.is_empty()),
        backlog: backlog_of(&record.name, lanes, state.clock.now_ms()),
        usage: None,
        sample: None,
    }
}

/// All cold tiers, as the node that answers reaches them.
#[utoipa::path(
    get, path = "/v1/tiers", tag = "tiers", operation_id = "list_tiers",
    responses(
        (status = 200, description = "The tiers, by name, without their use", body = Vec<TierView>),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn list(State(state): State<AdminState>) -> Result<Json<Vec<TierView>>, ApiError> {
    let records = state.ledger().tiers().await?;
    let lanes = state.ledger().move_backlog(state.clock.now_ms()).await?;
    Ok(Json(records.iter().map(|record| view(&state, record, &lanes)).collect()))
}

/// One tier.
#[utoipa::path(
    get, path = "/v1/tiers/{tier}", tag = "tiers", operation_id = "show_tier",
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The tier, without its use", body = TierView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn show(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
) -> Result<Json<TierView>, ApiError> {
    let record = state.tier_record(&tier).await?;
    let lanes = state.ledger().move_backlog(state.clock.now_ms()).await?;
    Ok(Json(view(&state, &record, &lanes)))
}

/// What this node changed it need not wait for. If it cannot be read now, the registry's loop will.
async fn take_over(state: &AdminState) {
    if let Err(error) = state.tiers.refresh_now().await {
        tracing::warn!(%error, "cold tiers are taken over later");
    }
}

/// Adds a tier, if the node that answers can work with it. Nothing moves there until objects are given its class.
#[utoipa::path(
    post, path = "/v1/tiers", tag = "tiers", operation_id = "add_tier", request_body = NewTier,
    responses(
        (status = 201, description = "The tier", body = TierView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn add(
    State(state): State<AdminState>,
    Body(new): Body<NewTier>,
) -> Result<(StatusCode, Extension<Made>, Json<TierView>), ApiError> {
    let name = tier_name(&new.name)?;
    // Before anything is made in the store.
    let records = state.ledger().tiers().await?;
    if records.iter().any(|record| record.name == name) {
        return Err(MetadataError::Exists("tier").into());
    }
    overlap::check_settings(&name, &new.settings, None, &records)?;
    let prepared = state.tiers.build_for_add(&name, new.settings).await?;
    // Another node may have added some of them: their stores have to be known here to be compared.
    take_over(&state).await;
    overlap::check_store(&state, &name, &*prepared.tier)?;
    let added = state.ledger().add_tier(name, prepared.stored, state.clock.now_ms(), Some(&records)).await;
    let record = added.map_err(not_as_judged)?;
    take_over(&state).await;
    tracing::info!(tier = %record.name, "tier added");
    Ok((StatusCode::CREATED, Made::named(record.name.to_string()), Json(view(&state, &record, &[]))))
}

/// Changes the settings of a tier, if the node that answers can work with them and finds there what lies in the tier.
#[utoipa::path(
    put, path = "/v1/tiers/{tier}", tag = "tiers", operation_id = "change_tier", request_body = ChangeTier,
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The tier", body = TierView),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn change(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
    Body(change): Body<ChangeTier>,
) -> Result<Json<TierView>, ApiError> {
    let records = state.ledger().tiers().await?;
    let stored = records.iter().find(|record| record.name.as_str() == tier).ok_or_else(|| no_such_tier(&tier))?;
    if change.revision.is_some_and(|revision| revision != stored.revision) {
        let message = format!("the tier is at revision {}: somebody else changed it", stored.revision);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    overlap::check_settings(&stored.name, &change.settings, told(stored).as_ref(), &records)?;
    let prepared = state.tiers.build_for_change(&stored.name, change.settings).await?;
    // As when one is added.
    take_over(&state).await;
    overlap::check_store(&state, &stored.name, &*prepared.tier)?;
    let sample = spread::look_up(&state, &stored.name, &*prepared.tier).await?;
    // Where nothing lies any settings will do, for as long as nothing comes there by those before.
    let record = if sample.looked_up == 0 {
        let changed = state.ledger().change_empty_tier(&stored.name, prepared.stored, Some(&records)).await;
        changed.map_err(|error| match error {
            MetadataError::TierInUse => ApiError::new(
                ErrorCode::Conflict,
                format!("something has just come to lie in {}: try again, it is looked for then", stored.name),
            ),
            error => not_as_judged(error),
        })?
    } else {
        let changed = state.ledger().change_tier(&stored.name, prepared.stored, Some(&records)).await;
        changed.map_err(not_as_judged)?
    };
    take_over(&state).await;
    let TierSample { looked_up, missing } = sample;
    tracing::info!(tier = %record.name, revision = record.revision, looked_up, missing, "tier changed");
    let lanes = state.ledger().move_backlog(state.clock.now_ms()).await?;
    Ok(Json(TierView { sample: Some(sample), ..view(&state, &record, &lanes) }))
}

/// Looks whether the node that answers reaches a tier now. That it does not is an answer too.
#[utoipa::path(
    post, path = "/v1/tiers/{tier}/check", tag = "tiers", operation_id = "check_tier",
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What was found", body = TierCheck),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn check(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
) -> Result<Json<TierCheck>, ApiError> {
    let name = state.tier_record(&tier).await?.name;
    let begun = Instant::now();
    let found = state.tiers.check(&name).await;
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    let (up, error, health) = match found {
        Ok(health) => (true, None, health),
        Err(error) => (false, Some(error.to_string()), TierHealth::default()),
    };
    let TierHealth { free_bytes, notes } = health;
    Ok(Json(TierCheck { tier, node: state.node_id.clone(), up, error, free_bytes, notes, elapsed_ms }))
}

/// What lies in a tier, what moves, and why moves fail. Counting takes longer the more there is.
#[utoipa::path(
    get, path = "/v1/tiers/{tier}/status", tag = "tiers", operation_id = "tier_status",
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "How it stands", body = TierStatus),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn status(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
) -> Result<Json<TierStatus>, ApiError> {
    let record = state.tier_record(&tier).await?;
    let ledger = state.ledger();
    let (usage, lanes) = tokio::try_join!(ledger.tier_usage(), ledger.move_backlog(state.clock.now_ms()))?;
    let view = view(&state, &record, &lanes);
    let tier = TierView { usage: Some(use_of(&record.name, &usage)), ..view };
    let mut status = TierStatus {
        tier,
        moves_seen: 0,
        moves_left_out: false,
        claimed: 0,
        restoring: 0,
        restored: 0,
        errors: Vec::new(),
    };
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = ledger.moves(Some(&record.name), after, PAGE).await?;
        for found in &page {
            after = found.id;
            status.moves_seen += 1;
            status.claimed += u64::from(found.owner.is_some());
            status.restoring += u64::from(matches!(found.reason, MoveReason::Restore { .. }));
            status.restored += u64::from(found.reason == MoveReason::Return);
            if let Some(error) = found.error.as_ref().filter(|_| found.failures > 0) {
                *errors.entry(error.clone()).or_default() += 1;
            }
        }
        if page.len() < PAGE as usize {
            break;
        }
        if status.moves_seen >= SEEN_MAX {
            status.moves_left_out = true;
            break;
        }
    }
    status.errors = errors.into_iter().map(|(error, moves)| MoveError { error, moves }).collect();
    status.errors.sort_by(|a, b| b.moves.cmp(&a.moves).then_with(|| a.error.cmp(&b.error)));
    status.errors.truncate(ERRORS_SHOWN);
    Ok(Json(status))
}

/// Makes all moves of a tier due that failed and wait for their next try: for when what was wrong is put right.
#[utoipa::path(
    post, path = "/v1/tiers/{tier}/retry", tag = "tiers", operation_id = "retry_moves",
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "They are due", body = RetriedMoves),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(super) async fn retry(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
) -> Result<Json<RetriedMoves>, ApiError> {
    let name = state.tier_record(&tier).await?.name;
    let moves = state.ledger().retry_moves(&name, state.clock.now_ms()).await?;
    tracing::info!(tier = %name, moves, "moves that failed are due");
    Ok(Json(RetriedMoves { moves }))
}
