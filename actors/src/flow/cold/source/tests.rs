use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use proptest::prelude::*;

use super::super::blocks::BlockSums;
use super::*;
use crate::ports::tiers::{ColdBody, PieceName, PieceSpec, TierHealth, TierResult};

/// Serves pieces that are slices of what it has, in steps, and counts how often it is asked.
struct Slices {
    pieces: Vec<Bytes>,
    step: usize,
    gets: AtomicUsize,
    /// So many requests are answered with a wrong byte, and how often it was told so.
    damages: usize,
    doubts: AtomicUsize,
    /// So many requests find nothing: there are several copies, and those before have lost it.
    missing: usize,
}

impl Slices {
    fn new(pieces: Vec<Bytes>, step: usize) -> Self {
        Self { pieces, step, gets: AtomicUsize::new(0), damages: 0, doubts: AtomicUsize::new(0), missing: 0 }
    }
}

#[async_trait]
impl ColdTier for Slices {
    fn kind(&self) -> &'static str {
        "slices"
    }

    fn piece_bytes_max(&self) -> u64 {
        u64::MAX
    }

    async fn reserve(&self, _: &PieceSpec) -> TierResult<PieceName> {
        unreachable!("it is only read")
    }

    async fn put(&self, _: &PieceName, _: &PieceSpec, _: ColdBody) -> TierResult<()> {
        unreachable!("it is only read")
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        let number = self.gets.fetch_add(1, Ordering::Relaxed);
        if number < self.missing {
            return Err(TierError::NotFound(name.clone()));
        }
        let piece = &self.pieces[name.as_str().parse::<usize>().unwrap()];
        // A short piece ends early without an error.
        let data = piece.slice((range.start as usize).min(piece.len())..(range.end as usize).min(piece.len()));
        let mut steps: Vec<_> = data.chunks(self.step).map(|step| Ok(data.slice_ref(step))).collect();
        if number < self.damages {
            steps[0] = Ok(vec![!data[0]; self.step.min(data.len())].into());
        }
        Ok(stream::iter(steps).boxed())
    }

    async fn size_bytes(&self, _: &PieceName) -> TierResult<u64> {
        unreachable!("it is only read")
    }

    async fn delete(&self, _: &PieceName) -> TierResult<()> {
        unreachable!("it is only read")
    }

    fn keeps_copies(&self) -> bool {
        self.missing > 0
    }

    fn doubt(&self, _: &PieceName) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }

    async fn check(&self) -> TierResult<TierHealth> {
        unreachable!("it is only read")
    }
}

const BLOCK: usize = BLOCK_BYTES_MIN as usize;

fn stored(data: &Bytes, blocks_a_piece: usize, step: usize) -> (Arc<Slices>, Source) {
    let pieces: Vec<Bytes> = data.chunks(blocks_a_piece * BLOCK).map(|piece| data.slice_ref(piece)).collect();
    let mut sums = BlockSums::new(BLOCK_BYTES_MIN);
    sums.update(data);
    let place = ColdPlace {
        tier: "TIER".parse().unwrap(),
        size_bytes: data.len() as u64,
        piece_bytes: (blocks_a_piece * BLOCK) as u64,
        block_bytes: BLOCK_BYTES_MIN,
        names: (0..pieces.len()).map(|index| index.to_string()).collect(),
        sums: sums.finish(),
    };
    let tier = Arc::new(Slices::new(pieces, step));
    (tier.clone(), Source::Tier { tier, place: Arc::new(place), tries: 1 })
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 11) as u8).collect()
}

async fn read(source: &Source, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
    let parts: Vec<Bytes> = source.read(range).try_collect().await?;
    Ok(parts.concat())
}

/// The source with one piece exchanged.
fn with_piece(tier: &Slices, source: &Source, index: usize, piece: Bytes) -> Source {
    let Source::Tier { place, .. } = source else { unreachable!("it is in a tier") };
    let mut pieces = tier.pieces.clone();
    pieces[index] = piece;
    Source::Tier { tier: Arc::new(Slices::new(pieces, tier.step)), place: place.clone(), tries: 1 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_range_comes_back_however_it_is_cut(
        len in 1usize..700_000,
        blocks_a_piece in 1usize..4,
        step in 1_000usize..400_000,
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
    ) {
        let data = pattern(len);
        let (_, source) = stored(&data, blocks_a_piece, step);
        let (from, to) = (from.index(len), to.index(len) + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let got = runtime.block_on(read(&source, from as u64..to as u64)).unwrap();
        prop_assert!(got == data[from.min(to)..to]);
    }
}

#[tokio::test]
async fn each_piece_is_asked_for_once() {
    let data = pattern(5 * BLOCK + 17);
    let (tier, source) = stored(&data, 2, 50_000);
    assert!(read(&source, 0..data.len() as u64).await.unwrap() == data);
    assert_eq!(tier.gets.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn damaged_block_is_never_given_out_and_what_was_before_it_is() {
    let data = pattern(4 * BLOCK);
    let (tier, source) = stored(&data, 2, 50_000);
    let mut damaged = tier.pieces[1].to_vec();
    damaged[BLOCK + 5] ^= 1;
    let source = with_piece(&tier, &source, 1, damaged.into());
    let mut body = source.read(0..data.len() as u64);
    let mut got = Vec::new();
    let error = loop {
        match body.next().await.expect("an error before the end") {
            Ok(bytes) => got.extend_from_slice(&bytes),
            Err(error) => break error,
        }
    };
    assert!(got == data[..3 * BLOCK]);
    assert!(matches!(&error, SourceError::Damaged { mismatch, .. } if mismatch.block == 3), "{error}");
    assert!(error.is_damage());
    assert!(body.next().await.is_none(), "nothing comes after an error");
}

#[tokio::test]
async fn piece_that_ends_early_is_damage() {
    let data = pattern(2 * BLOCK);
    let (tier, source) = stored(&data, 2, 50_000);
    let source = with_piece(&tier, &source, 0, data.slice(..2 * BLOCK - 1));
    let error = read(&source, 0..data.len() as u64).await.unwrap_err();
    assert!(matches!(error, SourceError::Short { missing: 1, .. }), "{error}");
    assert!(error.is_damage());
}

#[tokio::test(start_paused = true)]
async fn block_that_came_damaged_is_asked_for_again_as_often_as_is_allowed() {
    let data = pattern(3 * BLOCK);
    let (slices, source) = stored(&data, 3, 50_000);
    let Source::Tier { place, .. } = source else { unreachable!("it is in a tier") };
    for (damages, is_read) in [(0, true), (3, true), (4, false)] {
        let tier = Arc::new(Slices { damages, ..Slices::new(slices.pieces.clone(), slices.step) });
        let source = Source::Tier { tier: tier.clone(), place: place.clone(), tries: 4 };
        let got = read(&source, 0..data.len() as u64).await;
        assert_eq!(got.is_ok_and(|got| got == data), is_read, "{damages}");
        assert_eq!(tier.doubts.load(Ordering::Relaxed), damages, "the tier is told, so that it takes another copy");
    }
}

#[tokio::test]
async fn what_one_copy_lost_is_read_from_another() {
    let data = pattern(3 * BLOCK);
    let (slices, source) = stored(&data, 3, 50_000);
    let Source::Tier { place, .. } = source else { unreachable!("it is in a tier") };
    // What was just stored is wanted where it was stored: that is tried once.
    for (missing, tries, is_read, expected) in [(1, 4, true, (2, 1)), (2, 4, false, (2, 1)), (1, 1, false, (1, 0))] {
        let tier = Arc::new(Slices { missing, ..Slices::new(slices.pieces.clone(), slices.step) });
        let source = Source::Tier { tier: tier.clone(), place: place.clone(), tries };
        let got = read(&source, 0..data.len() as u64).await;
        assert_eq!(got.is_ok_and(|got| got == data), is_read, "{missing} {tries}");
        let asked = (tier.gets.load(Ordering::Relaxed), tier.doubts.load(Ordering::Relaxed));
        assert_eq!(asked, expected, "{missing} {tries}");
    }
}

/// A second copy would hide from whoever verifies that the first one is damaged.
#[tokio::test]
async fn a_tier_is_told_of_damage_at_once_but_not_by_who_verifies() {
    let data = pattern(2 * BLOCK);
    let (slices, source) = stored(&data, 2, 50_000);
    let Source::Tier { place, .. } = source else { unreachable!("it is in a tier") };
    let short = vec![data.slice(..BLOCK - 1)];
    for (pieces, damages) in [(slices.pieces.clone(), 2), (short, 0)] {
        let slices = Arc::new(Slices { damages, ..Slices::new(pieces, slices.step) });
        let tier: Arc<dyn ColdTier> = slices.clone();
        let mut run = Run::open_to_verify(tier.clone(), &place, 0..2).await.expect("a run");
        assert!(run.next_block(STEP_MAX).await.is_err());
        assert_eq!(slices.doubts.load(Ordering::Relaxed), 0);
        let mut run = Run::open(tier, &place, 0..2, Counter::noop()).await.expect("a run");
        assert!(run.next_block(STEP_MAX).await.is_err());
        assert_eq!(slices.doubts.load(Ordering::Relaxed), 1);
    }
}
