//! Reads of contents in a tier in memory, on virtual time.

use std::sync::Arc;

use futures::StreamExt as _;
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{Extent, Manifest};

use super::*;
use crate::flow::cold::blocks::BlockSums;
use crate::ports::chunks::conformance::pattern;
use crate::ports::metadata::{ContentPlace, ETag};
use crate::ports::tiers::EmptyTiers;
use crate::ports::tiers::memory::{GetFault, MemoryTier, MemoryTiers};

mod faults;
mod sharing;

const BLOCK: u64 = BLOCK_BYTES_MIN as u64;

fn tier_name() -> TierName {
    "OSS".parse().unwrap()
}

/// A tier with one content in it.
struct World {
    tier: Arc<MemoryTier>,
    reads: ColdReads,
    content: Arc<Content>,
    data: Bytes,
}

impl World {
    /// A content of whole blocks of the smallest size and a bit, in pieces of so many blocks.
    fn of_blocks(blocks: usize, blocks_a_piece: u64, settings: ColdReadSettings) -> Self {
        Self::new(blocks * BLOCK as usize + 777, BLOCK_BYTES_MIN, blocks_a_piece, settings)
    }

    fn new(len: usize, block_bytes: u32, blocks_a_piece: u64, settings: ColdReadSettings) -> Self {
        let tier = Arc::new(MemoryTier::new(1 << 30));
        let reads = ColdReads::new(Arc::new(MemoryTiers::of([(tier_name(), tier.clone() as _)])), settings);
        let data = pattern(len, 0);
        let content = store(&tier, 1, &data, block_bytes, blocks_a_piece);
        Self { tier, reads, content, data }
    }

    fn open(&self, range: Range<u64>) -> ColdReader {
        self.reads.open(Arc::clone(&self.content), range)
    }

    fn open_all(&self) -> ColdReader {
        self.open(0..self.data.len() as u64)
    }

    /// Reads it all, which must succeed.
    async fn assert_reads(&self, range: Range<u64>) {
        let expected = self.data.slice(range.start as usize..(range.end as usize).min(self.data.len()));
        assert_whole(self.open(range), &expected).await;
    }
}

/// Puts a content into a tier.
fn store(tier: &MemoryTier, id: u8, data: &Bytes, block_bytes: u32, blocks_a_piece: u64) -> Arc<Content> {
    let id = ContentId([id; 12]);
    let piece_bytes = u64::from(block_bytes) * blocks_a_piece;
    let mut names = Vec::new();
    for piece in data.chunks(piece_bytes as usize) {
        names.push(format!("{id}/{}", names.len()));
        tier.insert(&names[names.len() - 1], data.slice_ref(piece));
    }
    let mut sums = BlockSums::new(block_bytes);
    sums.update(data);
    let size_bytes = data.len() as u64;
    let sums = sums.finish();
    let place = ColdPlace { tier: tier_name(), size_bytes, piece_bytes, block_bytes, names, sums };
    Arc::new(Content {
        id,
        manifest: Manifest { extents: vec![Extent { content: id, size_bytes }] },
        place: ContentPlace::Tier(Arc::new(place)),
        etag: ETag { md5: [0; 16], parts: None },
        checksum: None,
        parts: vec![],
    })
}

/// What a reader gives, and the error that it ends with.
async fn read(mut reader: ColdReader) -> (Vec<u8>, Option<ColdReadError>) {
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => {
                assert!(reader.next().await.is_none(), "after an error it ends");
                return (bytes, Some(error));
            }
        }
    }
    assert_eq!(reader.remaining_bytes(), 0);
    (bytes, None)
}

async fn assert_whole(reader: ColdReader, expected: &Bytes) {
    let (bytes, error) = read(reader).await;
    assert_eq!(error, None);
    assert!(bytes == *expected, "{} bytes differ from {}", bytes.len(), expected.len());
}

fn no_cache() -> ColdReadSettings {
    ColdReadSettings { cache_bytes_max: 0, ..ColdReadSettings::default() }
}

#[tokio::test(start_paused = true)]
async fn piece_is_one_request_cut_to_the_blocks_that_are_wanted() {
    let world = World::of_blocks(9, 4, no_cache());
    world.assert_reads(0..world.data.len() as u64).await;
    let ranges: Vec<_> = world.tier.gets().into_iter().map(|(_, range)| range).collect();
    assert_eq!(ranges, [0..4 * BLOCK, 0..4 * BLOCK, 0..BLOCK + 777]);

    world.assert_reads(BLOCK + 5..6 * BLOCK + 1).await;
    let ranges: Vec<_> = world.tier.gets()[3..].iter().map(|(_, range)| range.clone()).collect();
    assert_eq!(ranges, [BLOCK..4 * BLOCK, 0..3 * BLOCK]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_of_the_tier_before_it_is_wanted() {
    let world = World::of_blocks(3, 4, no_cache());
    let mut reader = world.open_all();
    assert_eq!(reader.remaining_bytes(), world.data.len() as u64);
    assert_eq!(world.tier.gets().len(), 0);
    reader.prefetch().await.unwrap();
    reader.prefetch().await.unwrap();
    assert_eq!(reader.remaining_bytes(), world.data.len() as u64, "nothing was handed out");
    assert_whole(reader, &world.data).await;
    assert_eq!(world.tier.gets().len(), 1);
    world.assert_reads(5..5).await;
    world.assert_reads(world.data.len() as u64 - 3..world.data.len() as u64 + 100).await;
}

#[tokio::test(start_paused = true)]
async fn blocks_that_were_read_come_from_memory() {
    let world = World::of_blocks(9, 4, ColdReadSettings::default());
    for _ in 0..3 {
        world.assert_reads(0..world.data.len() as u64).await;
        world.assert_reads(BLOCK - 1..5 * BLOCK).await;
    }
    assert_eq!(world.tier.gets().len(), 3, "one a piece");
}

#[tokio::test(start_paused = true)]
async fn memory_stays_within_its_bound_however_the_tier_cuts() {
    const READERS: usize = 16;
    const BOUND: u64 = 64 << 20;
    let data = pattern(6 << 20, 0);
    for (step_bytes, cache_bytes_max) in
        [(1 << 20, 16 << 20), (1 << 20, 0), (BLOCK as usize, 16 << 20), (9_999, 1 << 20)]
    {
        let world = World::of_blocks(1, 1, ColdReadSettings { cache_bytes_max, ..ColdReadSettings::default() });
        world.tier.set_step_bytes(step_bytes);
        let mut readers: Vec<_> = (0..READERS)
            .map(|n| store(&world.tier, n as u8 + 2, &data, BLOCK_BYTES_MIN, 1 << 10))
            .map(|content| world.reads.open(content, 0..data.len() as u64))
            .collect();
        let mut most = 0;
        loop {
            // What a connection would hold while its client takes it.
            let mut given = Vec::new();
            for reader in &mut readers {
                given.extend(reader.next().await.transpose().unwrap());
                assert!(world.reads.cached_bytes() <= cache_bytes_max);
                // A block each in the reader and in what checks it, buffers of the tier, and the cache.
                let blocks = 2 * READERS as u64 * BLOCK;
                most = most.max(world.tier.held_bytes() + world.reads.cached_bytes() + blocks);
            }
            if given.is_empty() {
                break;
            }
        }
        assert!(most <= BOUND, "{most} bytes held with steps of {step_bytes}");
        assert_eq!(world.tier.held_bytes(), 0, "the cache holds no buffer of the tier");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_reader_lets_go_of_the_tier() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    let mut reader = world.open_all();
    reader.prefetch().await.unwrap();
    assert_eq!(world.tier.bodies_open(), 1);
    drop(reader);
    assert_eq!(world.tier.bodies_open(), 0);

    // In the middle of a block that does not come.
    world.tier.fail_all_gets(Some(GetFault::StallAt(BLOCK / 2)));
    let mut reader = world.open(5 * BLOCK..9 * BLOCK);
    assert!(reader.next().now_or_never().is_none());
    assert_eq!(world.tier.bodies_open(), 1);
    drop(reader);
    assert_eq!(world.tier.bodies_open(), 0);
    world.tier.fail_all_gets(None);

    let mut reader = world.open_all();
    while reader.next().await.is_some() {}
    assert_eq!(world.tier.bodies_open(), 0, "one that has all holds nothing");
}

#[tokio::test(start_paused = true)]
async fn place_that_does_not_add_up_is_no_read() {
    let world = World::of_blocks(2, 4, ColdReadSettings::default());
    let mut hot = (*world.content).clone();
    hot.place = ContentPlace::Cluster;
    let mut longer = (*world.content).clone();
    longer.manifest.extents[0].size_bytes += 1;
    let mut nameless = (*world.content).clone();
    let mut place = (**world.content.cold().unwrap()).clone();
    place.names.clear();
    nameless.place = ContentPlace::Tier(Arc::new(place));
    for content in [hot, longer, nameless] {
        let error = world.reads.open(Arc::new(content), 0..10).prefetch().await.unwrap_err();
        assert!(matches!(error, ColdReadError::Invalid(_)), "{error}");
    }
    assert_eq!(world.tier.gets().len(), 0);
}

mod ranges {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_range_is_that_of_the_plain_bytes(
            len in 1usize..40_000,
            blocks_a_piece in 1u64..8,
            step_bytes in 1usize..9_000,
            cache_bytes_max in prop_oneof![Just(0u64), 1_000u64..50_000],
            ranges in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..8),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let settings = ColdReadSettings { cache_bytes_max, ..ColdReadSettings::default() };
                let world = World::new(len, 1_000, blocks_a_piece, settings);
                world.tier.set_step_bytes(step_bytes);
                for (a, b) in &ranges {
                    let (a, b) = (a.index(len + 1) as u64, b.index(len + 1) as u64);
                    world.assert_reads(a.min(b)..a.max(b)).await;
                }
                assert!(world.reads.cached_bytes() <= cache_bytes_max);
                assert_eq!(world.tier.bodies_open(), 0);
            });
        }

        #[test]
        fn faults_at_any_place_never_give_a_wrong_byte(
            len in 1usize..20_000,
            faults in proptest::collection::vec((0usize..12, 0usize..7, 0u64..20_000), 0..8),
            start in any::<prop::sample::Index>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let world = World::new(len, 1_000, 5, ColdReadSettings::default());
                for (number, kind, at) in &faults {
                    let fault = [
                        GetFault::Unavailable,
                        GetFault::Denied,
                        GetFault::Missing,
                        GetFault::BreakAt(*at),
                        GetFault::EndAt(*at),
                        GetFault::FlipAt(*at),
                        GetFault::StallAt(*at),
                    ][*kind];
                    world.tier.fail_get(*number, fault);
                }
                let start = start.index(len);
                let expected = &world.data[start..];
                let (bytes, error) = read(world.open(start as u64..len as u64)).await;
                assert!(expected.starts_with(&bytes));
                assert_eq!(error.is_none(), bytes.len() == expected.len());
                assert_eq!(world.tier.bodies_open(), 0);
            });
        }
    }
}
