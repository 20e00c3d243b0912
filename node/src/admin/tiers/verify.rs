//! `/v1/tiers/{tier}/verify`: reads what lies in a tier and compares it with the checksums of what was stored.
//!
//! Contents are walked by id. One call plans up to so many bytes, reads them, a few contents at a time, and says where
//! the next call goes on, which may be within a content. Memory: a few blocks a content that is being read. A content
//! that seems damaged is looked up once more: it may have been moved or deleted meanwhile.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use futures::{StreamExt as _, stream};
use holdfast_actors::ports::tiers::{ColdTier, Tiers as _};
use holdfast_protocol::admin::{ErrorBody, VerifiedTier, VerifyTier};
use tokio::time::{Instant, timeout};

use super::{AdminState, ApiError, Body, Path};
use crate::admin::audit::GoesOn;

mod plan;
mod read;

use plan::{Place, Plan, Sample};
use read::{Found, verify_one};

/// Contents read at a time.
const AT_ONCE: usize = 8;
/// Bytes of a call: least, what is taken if nothing is said, most.
const BYTES: [u64; 3] = [1 << 20, 128 << 20, 1 << 30];
/// No further content is begun after this time. What was begun has [`read::READ_MAX`]: both together end before the
/// client gives up.
const BEGIN_MAX: Duration = Duration::from_secs(60);
/// How long the tier may take to say whether it works.
const CHECK_MAX: Duration = Duration::from_secs(20);

/// Reads a part of what lies in a tier, and compares it with the checksums of what was stored.
#[utoipa::path(
    post, path = "/v1/tiers/{tier}/verify", tag = "tiers", operation_id = "verify_tier", request_body = VerifyTier,
    params(("tier" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "What was found, and where to go on", body = VerifiedTier),
        (status = "default", description = "An error; 503 if nothing at all could be read", body = ErrorBody),
    )
)]
pub(in crate::admin) async fn verify(
    State(state): State<AdminState>,
    Path(tier): Path<String>,
    Body(asked): Body<VerifyTier>,
) -> Result<(Option<Extension<GoesOn>>, Json<VerifiedTier>), ApiError> {
    let sample = Sample::of(&asked)?;
    let from = asked.after.as_deref().map(str::parse::<Place>).transpose()?;
    let bytes_max = asked.bytes_max.unwrap_or(BYTES[1]).clamp(BYTES[0], BYTES[2]);
    let name = state.tier_record(&tier).await?.name;
    let tier = state.tiers.tier(&name)?;
    let plan = Plan::make(state.ledger(), &name, from, sample, bytes_max).await?;
    let until = Instant::now() + BEGIN_MAX;
    let mut readings = stream::iter(0..plan.readings.len())
        .map(|at| {
            // In order: once one is too late, all behind it are.
            let is_late = Instant::now() >= until;
            let (state, name, tier, reading) = (&state, &name, &tier, &plan.readings[at]);
            async move { if is_late { None } else { Some(verify_one(state, name, tier, reading).await) } }
        })
        .buffered(AT_ONCE);
    let mut found = VerifiedTier { contents: plan.contents, next: plan.next.map(Place::text), ..Default::default() };
    for reading in &plan.readings {
        match readings.next().await.flatten() {
            Some(Found::Right { bytes }) => {
                found.bytes += bytes;
                found.checked += u64::from(reading.is_to_the_end());
            }
            Some(Found::Damaged(damaged)) => found.damaged.push(damaged),
            Some(Found::Unread(unread)) => found.unread.push(unread),
            Some(Found::Gone) => {}
            None => {
                found.next = Some(Place::Within(reading.id, reading.blocks.start).text());
                found.contents = reading.passed;
                break;
            }
        }
    }
    drop(readings);
    // Nothing is known of anything: the caller may try again from where it was. Where the tier works, these contents
    // alone cannot be read, and what is behind them can be.
    if let Some(unread) = found.unread.first()
        && found.bytes == 0
        && found.damaged.is_empty()
        && !works(&*tier).await
    {
        return Err(ApiError::unavailable(format!("nothing could be read from {name}: {}", unread.error)));
    }
    Ok((GoesOn::after(asked.after.as_ref()), Json(found)))
}

async fn works(tier: &dyn ColdTier) -> bool {
    matches!(timeout(CHECK_MAX, tier.check()).await, Ok(Ok(_)))
}
