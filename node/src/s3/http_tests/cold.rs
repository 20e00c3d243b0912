//! Reading objects that lie in a cold tier, through the real front end.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_actors::flow::cold::blocks::BlockSums;
use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::ContentPlace;
use holdfast_actors::ports::tiers::memory::{GetFault, MemoryTier, MemoryTiers};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ColdPlace, ContentId, TierName};
use http_body_util::BodyExt as _;

use super::support::{Fixture, HOST};

const BLOCK: usize = BLOCK_BYTES_MIN as usize;

/// A front end over a tier, with the object `cold` in it, and `hot` on the cluster's disks.
struct World {
    fixture: Fixture,
    tier: Arc<MemoryTier>,
    data: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let name: TierName = "OSS".parse().unwrap();
        let tier = Arc::new(MemoryTier::new(1 << 30));
        let tiers = MemoryTiers::of([(name.clone(), tier.clone() as _)]);
        let chunks = Arc::new(MemoryChunkStore::new());
        // Letters, since an answer is shown as text.
        let data: Vec<u8> = (0..5 * BLOCK + 99).map(|i| b'a' + ((i >> 9) + i) as u8 % 26).collect();
        let mut sums = BlockSums::new(BLOCK_BYTES_MIN);
        sums.update(&data);
        let place = ColdPlace {
            tier: name,
            size_bytes: data.len() as u64,
            piece_bytes: 3 * BLOCK as u64,
            block_bytes: BLOCK_BYTES_MIN,
            names: vec!["first".into(), "second".into()],
            sums: sums.finish(),
        };
        tier.insert("first", Bytes::copy_from_slice(&data[..3 * BLOCK]));
        tier.insert("second", Bytes::copy_from_slice(&data[3 * BLOCK..]));
        let hot = ContentId([1; 12]);
        chunks.insert(hot.chunk(0), Bytes::from_static(b"warm"));
        let cold = ColdReads::new(Arc::new(tiers), ColdReadSettings::default());
        let fixture = Fixture::of_front(chunks, cold);
        fixture.store.add_photo("cold", ContentId([2; 12]), place.size_bytes, ContentPlace::Tier(Arc::new(place)));
        fixture.store.add_photo("hot", hot, 4, ContentPlace::Cluster);
        fixture.store.add_photo("unknown", hot, 4, ContentPlace::NotLoaded);
        Self { fixture, tier, data }
    }
}

#[tokio::test(start_paused = true)]
async fn cold_objects_are_read_like_others() {
    let world = World::new();
    let whole = world.fixture.call("ann", "GET", "/photos/cold", &[], b"").await;
    assert_eq!(whole.status, 200, "{:?}", whole.headers);
    assert!(whole.body.as_bytes() == world.data);
    assert_eq!(whole.header("content-length"), world.data.len().to_string());

    let (first, last) = (BLOCK - 3, 4 * BLOCK + 1);
    let range = format!("bytes={first}-{last}");
    let part = world.fixture.call("ann", "GET", "/photos/cold", &[("range", &range)], b"").await;
    assert_eq!(part.status, 206);
    assert!(part.body.as_bytes() == &world.data[first..=last]);
}

#[tokio::test(start_paused = true)]
async fn tier_that_is_away_is_told_of_and_does_not_concern_hot_objects() {
    let world = World::new();
    for fault in [GetFault::Unavailable, GetFault::Denied] {
        world.tier.fail_all_gets(Some(fault));
        let away = world.fixture.call("ann", "GET", "/photos/cold", &[], b"").await;
        assert_eq!((away.status.as_u16(), away.code()), (503, "ServiceUnavailable"), "{away:?}");
        assert!(away.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
        assert!(away.body.contains("storage tier OSS"), "{away:?}");
        let hot = world.fixture.call("ann", "GET", "/photos/hot", &[], b"").await;
        assert_eq!((hot.status.as_u16(), hot.body.as_str()), (200, "warm"));
        let head = world.fixture.call("ann", "HEAD", "/photos/cold", &[], b"").await;
        assert_eq!(head.status, 200, "metadata are not in the tier");
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_and_lost_objects_are_errors_without_a_byte() {
    for fault in [GetFault::FlipAt(7), GetFault::EndAt(7), GetFault::Missing] {
        let world = World::new();
        world.tier.fail_all_gets(Some(fault));
        let answer = world.fixture.call("ann", "GET", "/photos/cold", &[], b"").await;
        assert_eq!((answer.status.as_u16(), answer.code()), (500, "InternalError"), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn object_whose_place_is_not_known_is_not_read() {
    let world = World::new();
    let answer = world.fixture.call("ann", "GET", "/photos/unknown", &[], b"").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (500, "InternalError"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn failure_after_the_head_cuts_the_body_short() {
    let world = World::new();
    world.tier.fail_get(0, GetFault::FlipAt(2 * BLOCK as u64 + 5));
    for number in 1..10 {
        world.tier.fail_get(number, GetFault::FlipAt(5));
    }
    let request = world.fixture.signer("ann").request("GET", HOST, "/photos/cold", &[], &[], b"");
    let mut answer = world.fixture.begin(request).await;
    assert_eq!(answer.status(), 200);
    let (mut bytes, mut failed) = (Vec::new(), false);
    while let Some(frame) = answer.body_mut().frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
            Err(_) => {
                failed = true;
                break;
            }
        }
    }
    assert!(failed && bytes == world.data[..2 * BLOCK], "{failed} {}", bytes.len());
}
