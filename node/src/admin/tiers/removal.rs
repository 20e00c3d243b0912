//! Removing a tier: what is in the way.
//!
//! What lies in a tier, waits for it or is to be deleted there is never left behind: the ledger refuses. What only
//! *names* it, a bucket's default class or a lifecycle rule, is refused too, unless that is forced: then writes that
//! rely on the default get 503, and the rules wait, until there is a tier of that name again.

use axum::extract::State;
use axum::http::StatusCode;
use holdfast_actors::domain::lifecycle::{LifecycleRule, LifecycleRules};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::BucketConfigKind;
use holdfast_protocol::TierName;
use holdfast_protocol::admin::{ErrorBody, ErrorCode};
use serde::Deserialize;

use super::super::page::Params;
use super::{AdminState, ApiError, BUCKETS, Path, backlog_of, take_over, use_of};

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct Removal {
    #[serde(default)]
    force: bool,
}

/// Removes a tier that nothing lies in. What is in the way is named.
#[utoipa::path(
    delete, path = "/v1/tiers/{tier}", tag = "tiers", operation_id = "remove_tier",
    params(
        ("tier" = String, Path, description = "Its name"),
        ("force" = Option<bool>, Query, description = "Also if buckets or lifecycle rules name it"),
    ),
    responses(
        (status = 204, description = "The tier is gone"),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn remove(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
    Params(Removal { force }): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    let name = state.tier_record(&tier).await?.name;
    if !force {
        let named = named(&state, &name).await?;
        if !named.is_empty() {
            let message = format!("{name} is in use: {}; or give --force", named.join("; "));
            return Err(ApiError::new(ErrorCode::InUse, message));
        }
    }
    match state.ledger().remove_tier(&name).await {
        Ok(()) => {}
        Err(MetadataError::TierInUse) => return Err(ApiError::new(ErrorCode::InUse, in_the_way(&state, &name).await)),
        Err(error) => return Err(error.into()),
    }
    take_over(&state).await;
    tracing::info!(tier = %name, force, "tier removed");
    Ok(StatusCode::NO_CONTENT)
}

/// The first few of some names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// What sends objects to a tier from now on, for people: default classes and lifecycle rules, also those that are
/// switched off, which could not be switched on again.
async fn named(state: &AdminState, name: &TierName) -> Result<Vec<String>, ApiError> {
    let (mut defaults, mut rules) = (Vec::new(), Vec::new());
    let mut after: Option<String> = None;
    loop {
        let page = state.metadata.list_buckets(None, after.as_deref(), BUCKETS).await?;
        for bucket in &page {
            if bucket.config(BucketConfigKind::StorageClass) == Some(name.as_str()) {
                defaults.push(bucket.name.clone());
            }
            let Some(stored) = bucket.config(BucketConfigKind::Lifecycle) else { continue };
            // What a later version wrote is for its nodes to understand; its rules wait where a tier is missing.
            let Ok(stored) = serde_json::from_str::<LifecycleRules>(stored) else { continue };
            let naming = stored.rules.iter().filter(|rule| names(rule, name));
            rules.extend(naming.map(|rule| format!("{} (rule {:?})", bucket.name, rule.id)));
        }
        match page.last() {
            Some(last) if page.len() == BUCKETS as usize => after = Some(last.name.clone()),
            _ => break,
        }
    }
    let mut named = Vec::new();
    if !defaults.is_empty() {
        let set = "set another with `holdfast bucket storage-class`";
        named.push(format!("it is the storage class of new objects in {}: {set}", some(&defaults)));
    }
    if !rules.is_empty() {
        named.push(format!("lifecycle rules move objects there in {}: change them", some(&rules)));
    }
    Ok(named)
}

fn names(rule: &LifecycleRule, tier: &TierName) -> bool {
    let current = rule.transitions.iter().map(|transition| &transition.to);
    let mut all = current.chain(rule.noncurrent_transitions.iter().map(|transition| &transition.to));
    all.any(|to| to.as_ref() == Some(tier))
}

/// What keeps a tier from being removed, for people.
async fn in_the_way(state: &AdminState, name: &TierName) -> String {
    let ledger = state.ledger();
    let (usage, lanes) = tokio::join!(ledger.tier_usage(), ledger.move_backlog(state.clock.now_ms()));
    let mut there = Vec::new();
    if let Ok(usage) = usage {
        let usage = use_of(name, &usage);
        if usage.contents > 0 {
            there.push(format!(
                "{} contents of {} bytes lie in it: recall or move their objects",
                usage.contents, usage.bytes
            ));
        }
        if usage.pieces_to_delete > 0 {
            there.push(format!("{} pieces in it are yet to be deleted: wait", usage.pieces_to_delete));
        }
    }
    if let Ok(lanes) = lanes {
        let waiting = backlog_of(name, &lanes, 0).waiting;
        if waiting > 0 {
            there.push(format!("{waiting} moves wait, see `holdfast tier moves {name}`"));
        }
    }
    if there.is_empty() {
        there.push("there are versions of its class".into());
    }
    format!("{name} is in use: {}", there.join("; "))
}
