//! `/v1/moves` and `/v1/buckets/{name}/moves`: what moves, and what is to.

use std::collections::{HashMap, HashSet};

use axum::Json;
use axum::extract::{Extension, State};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{BucketId, ListAfter, ListQuery, MoveQueued, MoveReason, MoveRequest};
use holdfast_actors::ports::tiering::Move;
use holdfast_protocol::admin::{ErrorBody, MoveView, MovesPage, Page, RequestMoves, RequestedMoves};
use holdfast_protocol::tiers::STANDARD;
use holdfast_protocol::{TierName, VersionId};
use serde::Deserialize;

use super::{AdminState, ApiError, BUCKETS, Body, Path};
use crate::admin::audit::GoesOn;
use crate::admin::page::{self, Asked, Params};

/// Moves on a page.
const LIMIT_DEFAULT: u32 = 100;
/// Objects that one request for moves deals with.
const OBJECTS_DEFAULT: u32 = 200;
/// Transactions of such a request at a time.
const AT_ONCE: usize = 8;
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;
/// The longest restore: a hundred years.
const DAYS_MAX: u32 = 36_500;

/// Which moves are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct Which {
    tier: Option<String>,
    bucket: Option<String>,
    prefix: Option<String>,
    key: Option<String>,
    #[serde(default)]
    failing: bool,
    #[serde(default)]
    unfinished: bool,
    after: Option<String>,
    limit: Option<u32>,
}

fn reason_text(reason: MoveReason) -> &'static str {
    match reason {
        MoveReason::Stored => "stored",
        MoveReason::Lifecycle => "lifecycle",
        MoveReason::Command => "command",
        MoveReason::Restore { .. } => "restore",
        MoveReason::Return => "return",
    }
}

fn to_api(found: Move, buckets: &HashMap<BucketId, String>) -> MoveView {
    let to_cluster = found.to.is_none();
    let bucket = buckets.get(&found.bucket).cloned().unwrap_or_else(|| format!("#{}", found.bucket.0));
    MoveView {
        id: found.id,
        bucket,
        key: found.key,
        version: found.version.to_string(),
        from: to_cluster.then(|| found.lane.to_string()),
        to: found.to.map_or_else(|| STANDARD.to_owned(), |tier| tier.to_string()),
        tier: found.lane.to_string(),
        reason: reason_text(found.reason).into(),
        queued_ms: found.queued_ms,
        due_ms: found.due_ms,
        owner: found.owner.map(|node| node.to_string()),
        failures: found.failures,
        error: found.error,
    }
}

/// Moves that wait or are under way, by number.
#[utoipa::path(
    get, path = "/v1/moves", tag = "tiers", operation_id = "list_moves",
    params(
        ("tier" = Option<String>, Query, description = "Only those of this tier"),
        ("bucket" = Option<String>, Query, description = "Only those of this bucket"),
        ("prefix" = Option<String>, Query, description = "With bucket: only of keys that begin so"),
        ("key" = Option<String>, Query, description = "With bucket: only of this key"),
        ("failing" = Option<bool>, Query, description = "Only those that failed the last time"),
        ("unfinished" = Option<bool>, Query, description = "Without those that only wait for the end of a restore"),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
        ("limit" = Option<u32>, Query, description = "Moves looked at, 1 to 1,000"),
    ),
    responses(
        (status = 200, description = "A page, which may be empty without being the last", body = MovesPage),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn list(
    State(state): State<AdminState>,
    Params(which): Params<Which>,
) -> Result<Json<MovesPage>, ApiError> {
    let lane = match &which.tier {
        Some(tier) => Some(state.tier_record(tier).await?.name),
        None => None,
    };
    if which.bucket.is_none() && (which.prefix.is_some() || which.key.is_some()) {
        return Err(ApiError::invalid("a key or a prefix needs a bucket"));
    }
    let bucket = match &which.bucket {
        Some(name) => Some(state.metadata.bucket(name).await?.id),
        None => None,
    };
    let asked = Asked::<u64>::new(which.after.as_deref(), page::limit(which.limit, LIMIT_DEFAULT))?;
    let found = state.ledger().moves(lane.as_ref(), asked.after.unwrap_or(0), asked.fetch()).await?;
    let Page { items: mut found, next } = asked.page(found, |found| found.id);
    found.retain(|found| {
        bucket.is_none_or(|bucket| found.bucket == bucket)
            && which.key.as_ref().is_none_or(|key| found.key == *key)
            && which.prefix.as_ref().is_none_or(|prefix| found.key.starts_with(prefix))
            && (!which.failing || found.failures > 0)
            && !(which.unfinished && found.reason == MoveReason::Return && !has_begun(found, state.clock.now_ms()))
    });
    let names = match (bucket, &which.bucket) {
        (Some(bucket), Some(name)) => HashMap::from([(bucket, name.clone())]),
        _ => bucket_names(&state, &found).await?,
    };
    let items = found.into_iter().map(|found| to_api(found, &names)).collect();
    Ok(Json(MovesPage { items, next }))
}

/// Whether it is worked on, or would be if it had not failed.
fn has_begun(found: &Move, now_ms: u64) -> bool {
    found.owner.is_some() || found.failures > 0 || found.due_ms <= now_ms
}

/// Metadata finds buckets by name: they are read until all that are wanted are known.
async fn bucket_names(state: &AdminState, moves: &[Move]) -> Result<HashMap<BucketId, String>, ApiError> {
    let mut wanted: HashSet<BucketId> = moves.iter().map(|found| found.bucket).collect();
    let mut names = HashMap::new();
    let mut after: Option<String> = None;
    while !wanted.is_empty() {
        let page = state.metadata.list_buckets(None, after.as_deref(), BUCKETS).await?;
        for bucket in &page {
            if wanted.remove(&bucket.id) {
                names.insert(bucket.id, bucket.name.clone());
            }
        }
        match page.last() {
            Some(last) if page.len() == BUCKETS as usize => after = Some(last.name.clone()),
            _ => break,
        }
    }
    Ok(names)
}

/// What a request wants of each object.
struct Wanted {
    bucket: BucketId,
    to: Option<TierName>,
    reason: MoveReason,
}

/// Asks for objects of a bucket to lie elsewhere: one, or a page of those below a prefix. Nodes move them in the
/// background. Asking again changes nothing.
#[utoipa::path(
    post, path = "/v1/buckets/{name}/moves", tag = "tiers", operation_id = "request_moves", request_body = RequestMoves,
    params(("name" = String, Path, description = "The bucket")),
    responses(
        (status = 200, description = "What was done with the page's objects", body = RequestedMoves),
        (status = "default", description = "An error", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn request(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Body(asked): Body<RequestMoves>,
) -> Result<(Option<Extension<GoesOn>>, Json<RequestedMoves>), ApiError> {
    let to = state.class(&asked.to).await?;
    let reason = match asked.days {
        None => MoveReason::Command,
        Some(days) if to.is_none() && (1..=DAYS_MAX).contains(&days) => {
            MoveReason::Restore { keep_ms: u64::from(days) * DAY_MS }
        }
        Some(_) if to.is_some() => return Err(ApiError::invalid("days go with STANDARD only")),
        Some(_) => return Err(ApiError::invalid(format!("days are 1 to {DAYS_MAX}"))),
    };
    let wanted = Wanted { bucket: state.metadata.bucket(&name).await?.id, to, reason };
    let done = match &asked.key {
        Some(key) => one(&state, &wanted, key, &asked).await?,
        None => listed(&state, &wanted, &asked).await?,
    };
    if asked.after.is_none() {
        let (key, prefix) = (asked.key.as_deref(), asked.prefix.as_deref());
        tracing::info!(bucket = name, key, prefix, to = asked.to, days = asked.days, "objects are to be moved");
    }
    Ok((GoesOn::after(asked.after.as_ref()), Json(done)))
}

async fn one(state: &AdminState, wanted: &Wanted, key: &str, asked: &RequestMoves) -> Result<RequestedMoves, ApiError> {
    if asked.prefix.is_some() || asked.after.is_some() {
        return Err(ApiError::invalid("a key goes without prefix and after"));
    }
    let version = asked.version.as_deref().map(str::parse::<VersionId>).transpose();
    let version = version.map_err(|_| ApiError::invalid("that is no version id"))?;
    let object = state.metadata.object(wanted.bucket, key, version).await?;
    let size_bytes = object.content.as_ref().map_or(0, |content| content.size_bytes());
    let done = ask(state, wanted, key, version).await?;
    Ok(counted(Some(done), size_bytes))
}

async fn listed(state: &AdminState, wanted: &Wanted, asked: &RequestMoves) -> Result<RequestedMoves, ApiError> {
    if asked.version.is_some() {
        return Err(ApiError::invalid("a version needs its key"));
    }
    let query = ListQuery {
        prefix: asked.prefix.clone().unwrap_or_default(),
        delimiter: None,
        after: asked.after.clone().map_or(ListAfter::Start, ListAfter::Key),
        limit: page::limit(asked.limit, OBJECTS_DEFAULT),
    };
    let listed = state.metadata.list_objects(wanted.bucket, query).await?;
    let entries = &listed.entries;
    let asking = stream::iter(0..entries.len()).map(|at| async move {
        let entry = &entries[at];
        let done = match ask(state, wanted, &entry.key, None).await {
            Ok(done) => Some(done),
            // It was deleted since it was listed, or is none that can be restored.
            Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion | MetadataError::NotCold) => None,
            Err(error) => return Err(error),
        };
        Ok(counted(done, entry.size_bytes))
    });
    let mut all = asking
        .buffer_unordered(AT_ONCE)
        .try_fold(RequestedMoves::default(), |mut all, one| async move {
            all.add(one);
            Ok(all)
        })
        .await?;
    all.next = listed.next.and_then(|next| match next {
        ListAfter::Key(key) => Some(key),
        ListAfter::Start | ListAfter::Prefix(_) => None,
    });
    Ok(all)
}

async fn ask(
    state: &AdminState,
    wanted: &Wanted,
    key: &str,
    version: Option<VersionId>,
) -> Result<MoveQueued, MetadataError> {
    let request = MoveRequest {
        bucket: wanted.bucket,
        key: key.to_owned(),
        version,
        to: wanted.to.clone(),
        reason: wanted.reason,
        only_if: None,
        event: None,
        now_ms: state.clock.now_ms(),
    };
    state.metadata.request_move(request).await
}

/// One object; `None`: it was passed over.
fn counted(done: Option<MoveQueued>, size_bytes: u64) -> RequestedMoves {
    let mut one = RequestedMoves { objects: 1, bytes: size_bytes, ..Default::default() };
    match done {
        None => one.passed_over = 1,
        Some(MoveQueued::Queued | MoveQueued::Waiting | MoveQueued::Ongoing) => {
            (one.queued, one.queued_bytes) = (1, size_bytes)
        }
        Some(MoveQueued::InPlace | MoveQueued::Extended) => one.in_place = 1,
    }
    one
}
