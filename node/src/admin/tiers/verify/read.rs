//! Reading blocks to compare them, and what the errors say.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::flow::cold::run::{Run, RunError};
use holdfast_actors::ports::TierLedger;
use holdfast_actors::ports::metadata::{Content, MetadataResult};
use holdfast_actors::ports::tiers::{ColdTier, PieceName, TierError};
use holdfast_protocol::admin::{DamagedContent, UnreadContent};
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ColdPlace, TierName};
use tokio::time::timeout;

use super::plan::{Reading, before};
use crate::admin::AdminState;

/// How long one content may take.
pub(super) const READ_MAX: Duration = Duration::from_secs(240);

/// Why blocks were not found right.
enum Wrong {
    /// What the tier has is not what was stored.
    Damaged { piece: String, what: &'static str, detail: String },
    /// It was not read.
    Unread(TierError),
}

/// What became of a reading.
pub(super) enum Found {
    Right {
        bytes: u64,
    },
    Damaged(DamagedContent),
    Unread(UnreadContent),
    /// It was moved or deleted meanwhile.
    Gone,
}

/// Reads blocks run by run, as movers and readers do, but does not tell the tier of damage: [`read_well`] does.
async fn read(tier: &Arc<dyn ColdTier>, place: &Arc<ColdPlace>, blocks: &Range<usize>) -> Result<u64, Wrong> {
    let mut left = blocks.clone();
    while !left.is_empty() {
        let mut run = match Run::open_to_verify(Arc::clone(tier), place, left.clone()).await {
            Ok(run) => run,
            Err(error) => return Err(failed(&**tier, place, left.start, error).await),
        };
        while !run.is_over() {
            match run.next_block(READ_MAX).await {
                Ok(_) => left.start += 1,
                Err(RunError::Tier(error)) => return Err(failed(&**tier, place, left.start, error).await),
                Err(RunError::Damaged(mismatch)) => {
                    return Err(damaged(run.name().as_str(), "mismatch", mismatch.to_string()));
                }
                Err(RunError::Short { missing, .. }) => {
                    return Err(damaged(run.name().as_str(), "short", format!("it ended {missing} bytes early")));
                }
                Err(RunError::Stalled) => {
                    let error = format!("no bytes came for {} s", READ_MAX.as_secs());
                    return Err(Wrong::Unread(TierError::Unavailable(error)));
                }
            }
        }
    }
    Ok(place.block(blocks.end - 1).end - place.block(blocks.start).start)
}

/// What an error says about the piece that a block lies in.
async fn failed(tier: &dyn ColdTier, place: &ColdPlace, block: usize, error: TierError) -> Wrong {
    let index = place.locate(place.block(block).start, place.size_bytes).index;
    let name = place.names.get(index as usize).map_or("", String::as_str);
    match PieceName::new(name) {
        Ok(piece) => wrong(tier, place, index, &piece, error).await,
        Err(error) => damaged(name, "missing", error.to_string()),
    }
}

fn damaged(piece: &str, what: &'static str, detail: String) -> Wrong {
    Wrong::Damaged { piece: piece.to_owned(), what, detail }
}

/// What an error says about the piece.
async fn wrong(tier: &dyn ColdTier, place: &ColdPlace, index: u32, piece: &PieceName, error: TierError) -> Wrong {
    let detail = error.to_string();
    match error {
        TierError::NotFound(_) => damaged(piece.as_str(), "missing", detail),
        TierError::Corrupt { .. } | TierError::Invalid(_) => {
            let whole = place.piece(index);
            let wanted = whole.end - whole.start;
            match tier.size_bytes(piece).await {
                Ok(there) if there != wanted => {
                    damaged(piece.as_str(), "short", format!("the piece has {there} bytes, not {wanted}: {detail}"))
                }
                Ok(_) => damaged(piece.as_str(), "mismatch", detail),
                Err(TierError::NotFound(_)) => damaged(piece.as_str(), "missing", detail),
                Err(error) => Wrong::Unread(error),
            }
        }
        TierError::Full(_) | TierError::Denied(_) | TierError::Unavailable(_) => Wrong::Unread(error),
    }
}

/// Reads what seems damaged once more, since it may have been the way; if it is, it looks whether the tier has another
/// copy.
async fn read_well(name: &TierName, tier: &Arc<dyn ColdTier>, reading: &Reading) -> Result<u64, Wrong> {
    let read = || read(tier, &reading.place, &reading.blocks);
    match read().await {
        Err(Wrong::Damaged { piece, what, detail }) => {
            tracing::warn!(tier = %name, content = %reading.id, piece, what, detail, "read once more");
        }
        done => return done,
    }
    let (piece, what, mut detail) = match read().await {
        Err(Wrong::Damaged { piece, what, detail }) => (piece, what, detail),
        done => return done,
    };
    if let Ok(doubted) = PieceName::new(piece.as_str()) {
        tier.doubt(&doubted);
        if read().await.is_ok() {
            detail.push_str("; another copy in the tier is right");
        }
    }
    Err(Wrong::Damaged { piece, what, detail })
}

/// Reads, and reports damage.
pub(super) async fn verify_one(
    state: &AdminState,
    name: &TierName,
    tier: &Arc<dyn ColdTier>,
    reading: &Reading,
) -> Found {
    let unread = |error: String| Found::Unread(UnreadContent { content: reading.id.to_string(), error });
    match timeout(READ_MAX, read_well(name, tier, reading)).await {
        Ok(Ok(bytes)) => Found::Right { bytes },
        Err(_) => unread(format!("not read within {} s", READ_MAX.as_secs())),
        Ok(Err(Wrong::Unread(error))) => unread(error.to_string()),
        Ok(Err(Wrong::Damaged { piece, what, detail })) => {
            match is_still_there(state.ledger(), name, reading).await {
                Ok(true) => {}
                Ok(false) => return Found::Gone,
                Err(error) => {
                    return unread(format!("{what}: {detail}; whether it is still wanted is unknown: {error}"));
                }
            }
            let subject = format!("tier {name} content {}", reading.id);
            state.reporter.report(ErrorKind::Corruption, subject, format!("{piece} is damaged ({what}): {detail}"));
            metrics::counter!("holdfast_tier_verify_damaged_total", "tier" => name.to_string()).increment(1);
            Found::Damaged(DamagedContent {
                content: reading.id.to_string(),
                size_bytes: reading.place.size_bytes,
                piece,
                what: what.into(),
                detail,
            })
        }
    }
}

async fn is_still_there(ledger: &dyn TierLedger, tier: &TierName, reading: &Reading) -> MetadataResult<bool> {
    let found: Vec<Arc<Content>> = ledger.cold_contents(tier, before(reading.id), 1).await?;
    Ok(found.first().is_some_and(|content| content.id == reading.id && content.cold() == Some(&reading.place)))
}
