//! Which blocks of which contents one call reads.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use holdfast_actors::ports::TierLedger;
use holdfast_protocol::admin::VerifyTier;
use holdfast_protocol::hash::{SPLITMIX_STEP, finish64};
use holdfast_protocol::{ColdPlace, ContentId, TierName};

use crate::admin::ApiError;

/// Contents read from metadata at a time: each may bring a quarter of a MiB of checksums.
const ROWS: u32 = 64;
/// Contents that a call passes at most.
const CONTENTS_MAX: u64 = 10_000;
/// Contents that a call reads at most.
const READS_MAX: usize = 1_000;

/// Where a walk goes on: behind a content, or within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Behind(ContentId),
    Within(ContentId, usize),
}

impl Place {
    pub(super) fn text(self) -> String {
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
pub(super) fn before(content: ContentId) -> Option<ContentId> {
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
pub(super) struct Sample {
    /// Of 2^32; 2^32 is all.
    share: u64,
    seed: u32,
}

impl Sample {
    pub(super) fn of(asked: &VerifyTier) -> Result<Self, ApiError> {
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
pub(super) struct Reading {
    pub(super) id: ContentId,
    pub(super) place: Arc<ColdPlace>,
    pub(super) blocks: Range<usize>,
    /// Contents that this call passed before.
    pub(super) passed: u64,
}

impl Reading {
    pub(super) fn is_to_the_end(&self) -> bool {
        self.blocks.end == self.place.sums.len()
    }
}

/// What one call does.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) readings: Vec<Reading>,
    pub(super) contents: u64,
    pub(super) next: Option<Place>,
}

impl Plan {
    pub(super) async fn make(
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

/// The blocks from `first` on that are in so many bytes, at least one. Whoever asks says which the first is: there may
/// be none.
fn fitting(place: &ColdPlace, first: usize, bytes: u64) -> Range<usize> {
    let count = (bytes / u64::from(place.block_bytes)).max(1) as usize;
    first..first.saturating_add(count).min(place.sums.len())
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
