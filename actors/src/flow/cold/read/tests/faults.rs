//! Tiers that are away, break off, or give what was never stored.

use holdfast_protocol::journal::ErrorRecord;

use super::*;
use crate::flow::consume::tests::Memory;
use crate::ports::SystemClock;
use crate::ports::events::{EventBus, InProcessEventBus, InProcessLimits, Position, SubscribeOptions, Topic};
use crate::ports::tiers::ColdTier;

/// Where the requests began.
fn starts(world: &World) -> Vec<u64> {
    world.tier.gets().into_iter().map(|(_, range)| range.start).collect()
}

#[tokio::test(start_paused = true)]
async fn damaged_block_is_asked_for_again_and_never_given_out() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::FlipAt(3 * BLOCK + 17));
    world.tier.fail_get(1, GetFault::FlipAt(0));
    world.assert_reads(0..world.data.len() as u64).await;
    assert_eq!(starts(&world), [0, 3 * BLOCK, 3 * BLOCK]);
    assert_eq!(world.tier.doubts(), 2, "the tier may have another copy");
}

#[tokio::test(start_paused = true)]
async fn data_that_stays_damaged_ends_the_read_before_its_block() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::FlipAt(3 * BLOCK + 17));
    world.tier.fail_all_gets(Some(GetFault::FlipAt(17)));
    let (bytes, error) = read(world.open_all()).await;
    assert!(bytes == world.data[..3 * BLOCK as usize]);
    assert!(matches!(error, Some(ColdReadError::Corrupt { .. })), "{error:?}");
    assert_eq!(starts(&world).len(), 4, "tries have a limit");
}

#[tokio::test(start_paused = true)]
async fn damage_shows_before_an_answer_has_begun() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_all_gets(Some(GetFault::FlipAt(0)));
    let error = world.open_all().prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Corrupt { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn short_data_is_damage() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::EndAt(2 * BLOCK + 1));
    world.assert_reads(0..world.data.len() as u64).await;
    assert_eq!(starts(&world), [0, 2 * BLOCK]);

    world.tier.fail_all_gets(Some(GetFault::EndAt(BLOCK - 1)));
    let other = store(&world.tier, 2, &world.data, BLOCK_BYTES_MIN, 100);
    let error = world.reads.open(other, 0..10).prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Corrupt { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn broken_stream_goes_on_at_the_first_block_that_was_not_given_out() {
    let world = World::of_blocks(9, 6, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::BreakAt(2 * BLOCK + 5));
    world.tier.fail_get(1, GetFault::Unavailable);
    world.tier.fail_get(2, GetFault::StallAt(BLOCK + 5));
    world.assert_reads(0..world.data.len() as u64).await;
    assert_eq!(starts(&world), [0, 2 * BLOCK, 2 * BLOCK, 3 * BLOCK, 0]);
    assert_eq!(world.tier.doubts(), 1, "where nothing came the tier may have another copy");
    assert_eq!(world.tier.bodies_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn tier_that_stays_away_is_asked_a_few_times() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_all_gets(Some(GetFault::Unavailable));
    let error = world.open_all().prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Unavailable { .. }), "{error}");
    assert!((2..10).contains(&starts(&world).len()), "{:?}", starts(&world));

    world.tier.fail_all_gets(None);
    world.assert_reads(0..world.data.len() as u64).await;
}

#[tokio::test(start_paused = true)]
async fn tier_that_does_not_answer_is_told_to_take_another_copy_and_given_up() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::Silent);
    let reading = world.assert_reads(0..world.data.len() as u64);
    tokio::time::timeout(Duration::from_secs(100), reading).await.expect("another try");
    assert_eq!((starts(&world).len(), world.tier.doubts()), (2, 1));

    world.tier.fail_all_gets(Some(GetFault::Silent));
    let mut reader = world.reads.open(store(&world.tier, 2, &world.data, BLOCK_BYTES_MIN, 100), 0..10);
    let ended = tokio::time::timeout(Duration::from_secs(100), reader.prefetch()).await.expect("an end");
    assert!(matches!(ended, Err(ColdReadError::Unavailable { .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn what_another_try_cannot_help_is_not_tried_again() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    world.tier.fail_get(0, GetFault::Missing);
    let error = world.open_all().prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Missing { .. }), "{error}");
    world.tier.fail_get(1, GetFault::Denied);
    let error = world.open_all().prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Denied { .. }), "{error}");
    assert_eq!(starts(&world).len(), 2);

    let reads = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let error = reads.open(Arc::clone(&world.content), 0..1).prefetch().await.unwrap_err();
    assert!(matches!(error, ColdReadError::Denied { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_node_have_a_limit_and_those_that_stand_still_are_taken() {
    let settings = ColdReadSettings { streams_max: 2, cache_bytes_max: 0, ..ColdReadSettings::default() };
    let world = World::of_blocks(9, 100, settings);
    let (mut first, mut second) = (world.open_all(), world.open_all());
    first.prefetch().await.unwrap();
    second.prefetch().await.unwrap();
    assert_eq!(world.tier.bodies_open(), 2);
    // It waits until the others count as idle, and reads.
    world.assert_reads(0..world.data.len() as u64).await;
    // They go on where they were.
    assert_whole(first, &world.data).await;
    assert_whole(second, &world.data).await;
}

#[tokio::test(start_paused = true)]
async fn tiers_that_stall_leave_streams_to_the_others() {
    for count in [1, 2] {
        let world = World::of_blocks(9, 100, no_cache());
        let name = |n: usize| -> TierName { format!("T{n}").parse().unwrap() };
        let tiers: Vec<_> = (0..=count).map(|_| Arc::new(MemoryTier::new(1 << 30))).collect();
        let contents: Vec<_> = tiers
            .iter()
            .enumerate()
            .map(|(n, tier)| {
                let stored = store(tier, n as u8 + 1, &world.data, BLOCK_BYTES_MIN, 100);
                let place = ColdPlace { tier: name(n), ..ColdPlace::clone(stored.cold().unwrap()) };
                Arc::new(Content { place: ContentPlace::Tier(Arc::new(place)), ..Content::clone(&stored) })
            })
            .collect();
        let set_up = tiers.iter().enumerate().map(|(n, tier)| (name(n), tier.clone() as Arc<dyn ColdTier>));
        let settings = ColdReadSettings { streams_max: 6, ..no_cache() };
        let reads = ColdReads::new(Arc::new(MemoryTiers::of(set_up)), settings);
        let mut stalled = Vec::new();
        for (tier, content) in tiers.iter().zip(&contents).take(count) {
            tier.fail_all_gets(Some(GetFault::Silent));
            for _ in 0..8 {
                let mut reader = reads.open(Arc::clone(content), 0..1);
                stalled.push(tokio::spawn(async move { reader.prefetch().await }));
            }
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let taken: usize = tiers.iter().map(|tier| tier.gets().len()).sum();
        assert_eq!(taken, 5, "all but what is kept for the one that works");
        // Who waits for a stream hears of none long before one of those ends.
        assert_whole(reads.open(Arc::clone(&contents[count]), 0..u64::MAX), &world.data).await;
        for reader in stalled {
            assert!(matches!(reader.await.unwrap(), Err(ColdReadError::Unavailable { .. })));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_read_are_not_taken() {
    let settings = ColdReadSettings { streams_max: 1, cache_bytes_max: 0, ..ColdReadSettings::default() };
    let world = World::of_blocks(9, 100, settings);
    world.tier.set_step_bytes(1 << 20);
    world.tier.be_slow(Duration::from_secs(15));
    let mut busy = world.open_all();
    let (read, error) = tokio::join!(busy.prefetch(), async {
        tokio::task::yield_now().await;
        world.open_all().prefetch().await.unwrap_err()
    });
    read.unwrap();
    assert!(matches!(error, ColdReadError::Unavailable { .. }), "{error}");
    assert_eq!(world.tier.gets().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn damage_and_failures_are_told_to_the_error_log() {
    let world = World::of_blocks(2, 100, ColdReadSettings::default());
    let reporter = Reporter::new("node", Arc::new(SystemClock));
    let tiers = Arc::new(MemoryTiers::of([(tier_name(), world.tier.clone() as _)]));
    let reads = ColdReads::with_reporter(tiers, ColdReadSettings::default(), Some(reporter.clone()));
    world.tier.fail_get(0, GetFault::FlipAt(0));
    reads.open(Arc::clone(&world.content), 0..10).prefetch().await.unwrap();
    world.tier.fail_all_gets(Some(GetFault::Denied));
    reads.open(Arc::clone(&world.content), BLOCK..BLOCK + 1).prefetch().await.unwrap_err();

    let bus = InProcessEventBus::new(InProcessLimits::default());
    let options = SubscribeOptions { group: "test".into(), lease: Duration::from_secs(60) };
    let mut subscription = bus.subscribe(Topic::Errors, options).await.unwrap();
    tokio::spawn(async move {
        while let Ok(deliveries) = subscription.receive(10, Duration::from_secs(1)).await {
            for delivery in deliveries {
                subscription.ack(&delivery).await.unwrap();
            }
        }
    });
    drop(tokio::time::timeout(Duration::from_secs(1), reporter.publish(&bus, &Memory::default())).await);
    let page = bus.read(Topic::Errors, Position::Oldest, 10, Duration::ZERO).await.unwrap();
    let reports: Vec<ErrorRecord> =
        page.messages.iter().map(|message| serde_json::from_slice(&message.body).unwrap()).collect();
    let kinds: Vec<_> = reports.iter().map(|report| report.kind).collect();
    assert_eq!(kinds, [ErrorKind::Corruption, ErrorKind::TierFailed]);
    assert!(reports[0].subject.contains(&world.content.id.to_string()), "{:?}", reports[0]);
    assert_eq!(reports[1].subject, "tier OSS");
}
