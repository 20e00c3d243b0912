//! Whether changed settings of a tier still lead to what lies in it.
//!
//! Settings that lead to another store would make every object of the tier unreadable. So some pieces are looked up
//! with the new settings: of contents that are spread over the time in which the tier was filled, as their ids begin
//! with the second in which they were made; of one its first piece, of the next its second, and so on.
//!
//! A piece that the new settings do not find may have been lost before. So it is looked up with the settings that there
//! were, too. The change is refused where those find it, and where most pieces are missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::ports::metadata::Content;
use holdfast_actors::ports::tiers::{ColdTier, PieceName, TierError, Tiers as _};
use holdfast_protocol::admin::{ErrorCode, TierSample};
use holdfast_protocol::{ContentId, TierName};

use super::{AdminState, ApiError};

/// Contents of which a piece is looked up.
const SAMPLE: u32 = 16;
/// Pieces that are looked up at a time.
const AT_ONCE: usize = 4;

/// Looks pieces up in `tier`, which is to become the tier `name`.
///
/// # Errors
/// `Conflict` when it seems to be another store; those of the tier when it cannot be asked.
pub(super) async fn look_up(state: &AdminState, name: &TierName, tier: &dyn ColdTier) -> Result<TierSample, ApiError> {
    let pieces = pieces(state, name).await?;
    let looked_up = pieces.len() as u64;
    let missing: Vec<TierError> = stream::iter(pieces)
        .map(|piece| async move {
            let Err(error) = find(tier, &piece).await? else { return Ok(None) };
            // Who cannot be asked any more says nothing: new credentials are given when the old ones are refused.
            let was_there = match state.tiers.tier(name) {
                Ok(before) => before.size_bytes(&piece).await.is_ok(),
                Err(_) => false,
            };
            if was_there { Err(another_store(name, &error)) } else { Ok(Some(error)) }
        })
        .buffer_unordered(AT_ONCE)
        .try_filter_map(|missing| async move { Ok(missing) })
        .try_collect()
        .await?;
    let sample = TierSample { looked_up, missing: missing.len() as u64 };
    match missing.first() {
        Some(error) if sample.missing * 2 > looked_up => Err(another_store(name, error)),
        _ => Ok(sample),
    }
}

/// Whether a tier has a piece, or why not.
///
/// # Errors
/// When that cannot be found out.
async fn find(tier: &dyn ColdTier, piece: &PieceName) -> Result<Result<(), TierError>, ApiError> {
    match tier.size_bytes(piece).await {
        Ok(_) => Ok(Ok(())),
        // A name of another kind of store.
        Err(error @ (TierError::NotFound(_) | TierError::Invalid(_))) => Ok(Err(error)),
        Err(error) => Err(error.into()),
    }
}

fn another_store(name: &TierName, error: &TierError) -> ApiError {
    let message = format!(
        "these settings lead to another store: what lies in {name} is not there ({error}). Add a tier of another name and move \
         the objects"
    );
    ApiError::new(ErrorCode::Conflict, message)
}

/// One piece each of some contents of a tier.
async fn pieces(state: &AdminState, name: &TierName) -> Result<Vec<PieceName>, ApiError> {
    let contents = contents(state, name).await?;
    let places = contents.values().filter_map(|content| content.cold());
    let names = places.enumerate().filter_map(|(number, place)| place.names.get(number % place.names.len().max(1)));
    names.map(|name| PieceName::new(name.as_str()).map_err(ApiError::from)).collect()
}

/// Contents that were made at times that lie equally far apart, or soon after; where those are few, the oldest beside
/// them.
async fn contents(state: &AdminState, name: &TierName) -> Result<BTreeMap<ContentId, Arc<Content>>, ApiError> {
    let ledger = state.ledger();
    let oldest = ledger.cold_contents(name, None, SAMPLE).await?;
    let Some(first) = oldest.first() else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::from([(first.id, first.clone())]);
    if oldest.len() == SAMPLE as usize {
        let begin = first.id.unix_seconds();
        let span = (state.clock.now_ms() / 1_000).saturating_sub(begin);
        for step in 1..u64::from(SAMPLE) {
            let after = before_all_of(begin + span * step / u64::from(SAMPLE));
            found.extend(ledger.cold_contents(name, Some(after), 1).await?.into_iter().map(|one| (one.id, one)));
        }
    }
    let missing = (SAMPLE as usize).saturating_sub(found.len());
    let others: Vec<_> = oldest.into_iter().filter(|one| !found.contains_key(&one.id)).take(missing).collect();
    found.extend(others.into_iter().map(|one| (one.id, one)));
    Ok(found)
}

/// Less than the ids of all contents that were made in that second or later.
fn before_all_of(seconds: u64) -> ContentId {
    let mut id = [0; 12];
    id[..4].copy_from_slice(&u32::try_from(seconds).unwrap_or(u32::MAX).to_be_bytes());
    ContentId(id)
}
