//! `/v1/tiers/{tier}/verify`: reads what lies in a tier and compares it with the checksums of what was stored.
//!
//! Contents are walked by id. One call plans up to so many bytes, reads them, a few contents at a time, and says where the next
//! call goes on, which may be within a content. Memory: a few blocks a content that is being read. A content that seems damaged is
//! looked up once more: it may have been moved or deleted meanwhile.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, State};
use futures::{StreamExt as _, stream};
use holdfast_actors::flow::cold::run::{Run, RunError};
use holdfast_actors::ports::TierLedger;
use holdfast_actors::ports::metadata::Content;
use holdfast_actors::ports::tiers::{ColdTier, PieceName, TierError, Tiers as _};
use holdfast_protocol::admin::{DamagedContent, ErrorBody, UnreadContent, VerifiedTier, VerifyTier};
use holdfast_protocol::hash::{SPLITMIX_STEP, finish64};
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ColdPlace, ContentId, TierName};
use tokio::time::{Instant, timeout};

use super::{AdminState, ApiError, Body};
use crate::admin::audit::GoesOn;

/// Contents read from metadata at a time: each may bring a quarter of a MiB of checksums.
const ROWS: u32 = 64;
/// Contents that a call passes at most.
const CONTENTS_MAX: u64 = 10_000;
/// Contents that a call reads at most.
const READS_MAX: usize = 1_000;
/// Contents read at a time.
const AT_ONCE: usize = 8;
/// Bytes of a call: least, what is taken if nothing is said, most.
const BYTES: [u64; 3] = [1 << 20, 128 << 20, 1 << 30];
/// No further content is begun after this time.
const BEGIN_MAX: Duration = Duration::from_secs(60);
/// How long one content may take. Both together end before the client gives up.
const READ_MAX: Duration = Duration::from_secs(240);
/// How long the tier may take to say whether it works.
const CHECK_MAX: Duration = Duration::from_secs(20);

/// Where a walk goes on: behind a content, or within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Behind(ContentId),
    Within(ContentId, usize),
}

impl Place {
    fn text(self) -> String {
        match self {
            Self::Behind(content) => content.to_string(),
            Self::Within(content, block) => format!("{content}.{block}"),
        }
    }
}

impl FromStr for Place {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let wrong = || ApiError::invalid("`after` is the `next` of the call before");
        match text.split_once('.') {
            None => text.parse().map(Self::Behind).map_err(|_| wrong()),
            Some((content, block)) => {
                let content = content.parse().map_err(|_| wrong())?;
                Ok(Self::Within(content, block.parse().map_err(|_| wrong())?))
            }
        }
    }
}

/// The last id before `content`; `None`: there is none.
fn before(content: ContentId) -> Option<ContentId> {
    let mut bytes = content.0;
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return Some(ContentId(bytes));
        }
    }
    None
}

/// Which contents are read.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Of 2^32; 2^32 is all.
    share: u64,
    seed: u32,
}

impl Sample {
    fn of(asked: &VerifyTier) -> Result<Self, ApiError> {
        let share = asked.sample.unwrap_or(1.0);
        if !(share > 0.0 && share <= 1.0) {
            return Err(ApiError::invalid("a sample is above 0 and at most 1"));
        }
        Ok(Self { share: ((share * (1u64 << 32) as f64) as u64).max(1), seed: asked.seed })
    }

    fn has(self, content: ContentId) -> bool {
        let [.., a, b, c, d, e, f, g, h] = content.0;
        // Mixed: ids of one second may be alike, and another seed must choose others.
        let id = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        finish64(id ^ u64::from(self.seed).wrapping_mul(SPLITMIX_STEP)) >> 32 < self.share
    }
}

/// Blocks of one content to be read.
struct Reading {
    id: ContentId,
    place: Arc<ColdPlace>,
    blocks: Range<usize>,
    /// Contents that this call passed before.
    passed: u64,
}

impl Reading {
    fn is_to_the_end(&self) -> bool {
        self.blocks.end == self.place.sums.len()
    }
}

/// What one call does.
#[derive(Default)]
struct Plan {
    readings: Vec<Reading>,
    contents: u64,
    next: Option<Place>,
}

impl Plan {
    async fn make(
        ledger: &dyn TierLedger,
        tier: &TierName,
        from: Option<Place>,
        sample: Sample,
        mut bytes_left: u64,
    ) -> Result<Self, ApiError> {
        let mut plan = Self::default();
        let (mut after, mut within) = match from {
            None => (None, None),
            Some(Place::Behind(content)) => (Some(content), None),
            Some(Place::Within(content, block)) => (before(content), Some((content, block))),
        };
        loop {
            let rows = ledger.cold_contents(tier, after, ROWS).await?;
            let is_last = rows.len() < ROWS as usize;
            for row in &rows {
                after = Some(row.id);
                // A content that is gone meanwhile is not missed.
                let first = within.take().filter(|(content, _)| *content == row.id).map_or(0, |(_, block)| block);
                if let Some(place) = row.cold().filter(|_| sample.has(row.id)) {
                    let blocks = fitting(place, first, bytes_left);
                    if !blocks.is_empty() {
                        let bytes = place.block(blocks.end - 1).end - place.block(blocks.start).start;
                        bytes_left = bytes_left.saturating_sub(bytes);
                        let end = blocks.end;
                        let passed = plan.contents;
                        plan.readings.push(Reading { id: row.id, place: place.clone(), blocks, passed });
                        if end < place.sums.len() {
                            plan.next = Some(Place::Within(row.id, end));
                            return Ok(plan);
                        }
                    }
                }
                plan.contents += 1;
                if bytes_left == 0 || plan.readings.len() >= READS_MAX || plan.contents >= CONTENTS_MAX {
                    plan.next = Some(Place::Behind(row.id));
                    return Ok(plan);
                }
            }
            if is_last {
                return Ok(plan);
            }
        }
    }
}

/// The blocks from `first` on that are in so many bytes, at least one. Whoever asks says which the first is: there may be none.
fn fitting(place: &ColdPlace, first: usize, bytes: u64) -> Range<usize> {
    let count = (bytes / u64::from(place.block_bytes)).max(1) as usize;
    first..first.saturating_add(count).min(place.sums.len())
}

/// Why blocks were not found right.
enum Wrong {
    /// What the tier has is not what was stored.
    Damaged { piece: String, what: &'static str, detail: String },
    /// It was not read.
    Unread(TierError),
}

/// What became of a reading.
enum Found {
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

/// Reads what seems damaged once more, since it may have been the way; if it is, it looks whether the tier has another copy.
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

async fn verify_one(state: &AdminState, name: &TierName, tier: &Arc<dyn ColdTier>, reading: &Reading) -> Found {
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

async fn is_still_there(
    ledger: &dyn TierLedger,
    tier: &TierName,
    reading: &Reading,
) -> holdfast_actors::ports::metadata::MetadataResult<bool> {
    let found: Vec<Arc<Content>> = ledger.cold_contents(tier, before(reading.id), 1).await?;
    Ok(found.first().is_some_and(|content| content.id == reading.id && content.cold() == Some(&reading.place)))
}

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
    // Nothing is known of anything: the caller may try again from where it was. Where the tier works, these contents alone
    // cannot be read, and what is behind them can be.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        let id = ContentId([7; 12]);
        for place in [Place::Behind(id), Place::Within(id, 9)] {
            assert_eq!(place.text().parse::<Place>().ok(), Some(place));
        }
        assert!("nonsense".parse::<Place>().is_err());
        assert!(format!("{id}.x").parse::<Place>().is_err());
    }

    #[test]
    fn a_call_that_goes_on_behind_the_last_block_reads_none() {
        let (size_bytes, block_bytes) = (10 << 20, 4 << 20);
        let tier = "COLD".parse().unwrap();
        let place = ColdPlace {
            tier,
            size_bytes,
            piece_bytes: size_bytes,
            block_bytes,
            names: vec!["a".into()],
            sums: vec![0; 3],
        };
        assert_eq!(fitting(&place, 0, 0), 0..1);
        assert_eq!(fitting(&place, 1, u64::MAX), 1..3);
        for first in [3, 4, usize::MAX] {
            assert!(fitting(&place, first, u64::from(block_bytes)).is_empty(), "{first}");
        }
    }

    #[test]
    fn id_before_another_is_the_next_lower_one() {
        assert_eq!(before(ContentId([0; 12])), None);
        let mut one = [0; 12];
        one[10] = 1;
        let mut below = [0; 12];
        below[11] = 0xff;
        assert_eq!(before(ContentId(one)), Some(ContentId(below)));
    }

    #[test]
    fn sample_takes_about_its_share_and_another_seed_takes_others() {
        let ids: Vec<ContentId> = (0..20_000).map(|_| ContentId::generate(1_700_000_000)).collect();
        let sample = |seed| Sample { share: (1 << 32) / 10, seed };
        let first: Vec<bool> = ids.iter().map(|id| sample(1).has(*id)).collect();
        let taken = first.iter().filter(|has| **has).count();
        assert!((1_600..2_400).contains(&taken), "{taken}");
        let second: Vec<bool> = ids.iter().map(|id| sample(2).has(*id)).collect();
        let both = first.iter().zip(&second).filter(|(a, b)| **a && **b).count();
        assert!(both < taken / 2, "{both} of {taken}");
        assert!(ids.iter().all(|id| Sample { share: 1 << 32, seed: 3 }.has(*id)));
    }
}
