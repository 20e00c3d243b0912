//! Many readers of one content.

use super::*;

const READERS: usize = 100;

/// Polls once, which takes a block that is there, and otherwise leaves the reader waiting.
fn poll_once(reader: &mut ColdReader) -> Option<Bytes> {
    reader.next().now_or_never().flatten().transpose().unwrap()
}

/// Many read all of it at the same time.
async fn stampede(world: &Arc<World>) {
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let world = Arc::clone(world);
            tokio::spawn(async move { world.assert_reads(0..world.data.len() as u64).await })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn stampede_costs_one_request_a_piece() {
    let world = Arc::new(World::of_blocks(40, 25, ColdReadSettings::default()));
    world.tier.be_slow(Duration::from_millis(3));
    stampede(&world).await;
    assert_eq!(world.tier.gets().len(), 2);
    assert_eq!(world.tier.sent_bytes(), world.data.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stampede_from_several_threads_costs_one_request_a_piece() {
    let world = Arc::new(World::of_blocks(40, 25, ColdReadSettings::default()));
    stampede(&world).await;
    assert_eq!(world.tier.gets().len(), 2);
    assert_eq!(world.tier.bodies_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropped_leader_holds_nobody_up() {
    let world = World::of_blocks(20, 100, ColdReadSettings::default());
    world.tier.be_slow(Duration::from_millis(3));
    let mut leader = world.open_all();
    leader.prefetch().await.unwrap();
    assert!(poll_once(&mut leader).is_some());
    // In the middle of a block that others wait for too.
    assert!(poll_once(&mut leader).is_none());
    let mut follower = world.open_all();
    assert!(poll_once(&mut follower).is_some());
    assert!(poll_once(&mut follower).is_none());
    drop(leader);
    let (bytes, error) = read(follower).await;
    assert_eq!(error, None);
    assert!(bytes == world.data[BLOCK as usize..]);
    assert_eq!(world.tier.gets().len(), 1, "the stream goes on without who began it");
}

#[tokio::test(start_paused = true)]
async fn leader_whose_client_does_not_read_holds_nobody_up() {
    let world = World::of_blocks(20, 100, ColdReadSettings::default());
    world.tier.be_slow(Duration::from_millis(3));
    let mut leader = world.open_all();
    assert!(poll_once(&mut leader).is_none(), "it waits for the first block, and is not polled any more");
    for _ in 0..3 {
        world.assert_reads(0..world.data.len() as u64).await;
    }
    assert_whole(leader, &world.data).await;
    assert_eq!(world.tier.gets().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn stream_in_which_nothing_moves_is_given_up_for_all() {
    let world = Arc::new(World::of_blocks(20, 100, ColdReadSettings::default()));
    world.tier.fail_get(0, GetFault::StallAt(5 * BLOCK + 1));
    stampede(&world).await;
    assert_eq!(world.tier.gets().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn failure_ends_all_who_wait_after_a_bounded_number_of_requests() {
    let world = Arc::new(World::of_blocks(20, 100, ColdReadSettings::default()));
    world.tier.fail_all_gets(Some(GetFault::Unavailable));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.open_all().prefetch().await })
        })
        .collect();
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(ColdReadError::Unavailable { .. })));
    }
    assert!(world.tier.gets().len() < 10, "{}", world.tier.gets().len());
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_block_is_not_one_of_those_behind_it() {
    let world = World::of_blocks(9, 100, ColdReadSettings::default());
    for number in 0..4 {
        world.tier.fail_get(number, GetFault::FlipAt(0));
    }
    let (mut early, mut late) = (world.open_all(), world.open(2 * BLOCK..3 * BLOCK));
    let (early, late) = tokio::join!(early.prefetch(), late.prefetch());
    assert!(matches!(early, Err(ColdReadError::Corrupt { .. })), "{early:?}");
    late.unwrap();
}

#[tokio::test(start_paused = true)]
async fn far_range_does_not_wait_for_a_stream_that_will_come_there() {
    let world = World::of_blocks(40, 100, ColdReadSettings::default());
    let mut reader = world.open_all();
    reader.prefetch().await.unwrap();
    world.assert_reads(30 * BLOCK..31 * BLOCK).await;
    // A near one waits for it.
    world.assert_reads(5 * BLOCK..6 * BLOCK).await;
    let starts: Vec<_> = world.tier.gets().into_iter().map(|(_, range)| range).collect();
    assert_eq!(starts, [0..40 * BLOCK + 777, 30 * BLOCK..31 * BLOCK]);
    assert_whole(reader, &world.data).await;
    assert_eq!(world.tier.gets().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn reader_left_behind_the_cache_goes_on_by_itself() {
    let cache_bytes_max = 4 * BLOCK;
    let world = World::of_blocks(40, 100, ColdReadSettings { cache_bytes_max, ..ColdReadSettings::default() });
    let mut slow = world.open_all();
    slow.prefetch().await.unwrap();
    world.assert_reads(0..world.data.len() as u64).await;
    assert!(world.reads.cached_bytes() <= cache_bytes_max);
    assert_whole(slow, &world.data).await;
    assert!(world.tier.gets().len() <= 3, "{:?}", world.tier.gets());
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_each_reader_has_a_stream_of_its_own() {
    let world = World::of_blocks(9, 100, no_cache());
    let (mut a, mut b) = (world.open_all(), world.open_all());
    let mut bytes = [Vec::new(), Vec::new()];
    while let (Some(from_a), Some(from_b)) = (a.next().await, b.next().await) {
        bytes[0].extend_from_slice(&from_a.unwrap());
        bytes[1].extend_from_slice(&from_b.unwrap());
    }
    assert!(bytes.iter().all(|bytes| *bytes == world.data));
    assert_eq!(world.tier.gets().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn contents_that_nobody_reads_are_forgotten() {
    let world = World::of_blocks(1, 1, ColdReadSettings { cache_bytes_max: 10 * BLOCK, ..ColdReadSettings::default() });
    let place = world.content.place.clone();
    for number in 0..1_000u32 {
        let mut id = [7; 12];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let content = Content { id: ContentId(id), place: place.clone(), ..(*world.content).clone() };
        assert_whole(world.reads.open(Arc::new(content), 0..10), &world.data.slice(..10)).await;
    }
    assert!(world.reads.shared.flights.contents() <= 64);
}
