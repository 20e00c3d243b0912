//! What the port promises. Each test runs against the double and against a real cluster.

use holdfast_actors::ports::tiers::TierError;

use super::*;

/// Runs a test against the double and, where there is one, a real cluster.
macro_rules! contract {
    ($($name:ident)*) => {
        mod double {
            $(#[tokio::test]
            async fn $name() {
                let (double, tier) = super::single().await;
                super::$name(&tier).await;
                assert!(!double.saw_pipelining());
            })*
        }
        mod double_with_ids_and_long_addresses {
            $(#[tokio::test]
            async fn $name() {
                let config = crate::fastdfs::double::DoubleConfig {
                    trackers: 2,
                    groups: 2,
                    storages_a_group: 2,
                    long_addresses: true,
                    server_ids: true,
                };
                let (double, tier) = super::cluster(config).await;
                super::$name(&tier).await;
                assert!(!double.saw_pipelining());
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $name() {
                if let Some(tier) = super::real() {
                    super::$name(&tier).await;
                }
            })*
        }
    };
}

contract! {
    a_piece_is_read_back_whole_and_in_ranges
    pieces_of_all_sizes_are_read_back
    names_differ_and_work_in_another_client
    a_reserved_name_has_nothing
    a_second_put_replaces_the_first
    delete_removes_the_piece_and_its_name_and_succeeds_again
    a_reserved_name_is_deleted
    a_range_behind_the_end_is_an_error
    a_range_that_is_none_is_refused
    a_body_of_another_length_leaves_nothing
    a_body_that_fails_leaves_nothing
    a_dropped_put_leaves_nothing_that_delete_does_not_remove
    a_body_that_is_not_read_to_its_end_does_no_harm
    many_at_once_do_not_mix
    check_tells_free_space
}

async fn a_piece_is_read_back_whole_and_in_ranges(tier: &FastdfsColdTier) {
    let data = bytes(1_000_003, 1);
    let name = store(tier, &data).await;
    assert_eq!(tier.size_bytes(&name).await.unwrap(), 1_000_003);
    assert!(read(tier, &name, 0..1_000_003).await.unwrap() == data);
    for range in [0..1, 5..6, 999_999..1_000_003, 300_000..700_001] {
        let expected = &data[range.start as usize..range.end as usize];
        assert!(read(tier, &name, range.clone()).await.unwrap() == expected, "{range:?}");
    }
    tier.delete(&name).await.unwrap();
}

async fn pieces_of_all_sizes_are_read_back(tier: &FastdfsColdTier) {
    // Around the buffers of the server and of this side.
    for count in [1, 2, 9_999, 10_000, 10_001, 262_143, 262_144, 262_145, 5_000_000] {
        let data = bytes(count, count as u32);
        let name = store(tier, &data).await;
        assert!(read(tier, &name, 0..count as u64).await.unwrap() == data, "{count}");
        tier.delete(&name).await.unwrap();
    }
}

async fn names_differ_and_work_in_another_client(tier: &FastdfsColdTier) {
    let first = store(tier, b"first").await;
    let second = store(tier, b"second").await;
    assert_ne!(first, second);
    let kept = first.as_str().to_owned();
    let other = FastdfsColdTier::new(tier.0.config.clone()).unwrap();
    let name = PieceName::new(kept).unwrap();
    assert_eq!(read(&other, &name, 0..5).await.unwrap(), b"first");
    other.put(&name, &spec(6), body(b"change")).await.unwrap();
    assert_eq!(read(tier, &name, 0..6).await.unwrap(), b"change");
    other.delete(&name).await.unwrap();
    other.delete(&second).await.unwrap();
}

async fn a_reserved_name_has_nothing(tier: &FastdfsColdTier) {
    let name = tier.reserve(&spec(10)).await.unwrap();
    assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(of)) if of == name));
    assert!(matches!(tier.get(&name, 0..1).await.map(|_| ()), Err(TierError::NotFound(of)) if of == name));
    tier.delete(&name).await.unwrap();
}

async fn a_second_put_replaces_the_first(tier: &FastdfsColdTier) {
    let name = store(tier, &bytes(50_000, 1)).await;
    let data = bytes(40_000, 2);
    for _ in 0..2 {
        tier.put(&name, &spec(40_000), body(&data)).await.unwrap();
        assert_eq!(tier.size_bytes(&name).await.unwrap(), 40_000);
        assert!(read(tier, &name, 0..40_000).await.unwrap() == data);
    }
    tier.delete(&name).await.unwrap();
}

async fn delete_removes_the_piece_and_its_name_and_succeeds_again(tier: &FastdfsColdTier) {
    let name = store(tier, b"bytes").await;
    tier.delete(&name).await.unwrap();
    assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(_))));
    assert!(matches!(tier.get(&name, 0..5).await.map(|_| ()), Err(TierError::NotFound(_))));
    tier.delete(&name).await.unwrap();
    let late = tier.put(&name, &spec(5), body(b"bytes")).await;
    assert!(matches!(late, Err(TierError::NotFound(_))), "the name is no more: {late:?}");
    let large = bytes(3_000_000, 1);
    let late = tier.put(&name, &spec(3_000_000), body(&large)).await;
    assert!(matches!(late, Err(TierError::NotFound(_))), "it says so while it is still being sent to: {late:?}");
    tier.delete(&name).await.unwrap();
}

async fn a_reserved_name_is_deleted(tier: &FastdfsColdTier) {
    let name = tier.reserve(&spec(5)).await.unwrap();
    tier.delete(&name).await.unwrap();
    assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::NotFound(_))));
}

async fn a_range_behind_the_end_is_an_error(tier: &FastdfsColdTier) {
    let name = store(tier, &bytes(1000, 1)).await;
    for range in [0..1001, 999..1001, 1000..1001, 5000..6000, 0..u64::MAX >> 1] {
        let answer = read(tier, &name, range.clone()).await;
        assert!(matches!(answer, Err(TierError::Corrupt { .. })), "{range:?}: {answer:?}");
    }
    assert!(read(tier, &name, 0..1000).await.is_ok(), "and the connections are good");
    tier.delete(&name).await.unwrap();
}

async fn a_range_that_is_none_is_refused(tier: &FastdfsColdTier) {
    let name = store(tier, b"bytes").await;
    for range in [0..0, 3..3, Range { start: 4, end: 2 }, 0..u64::MAX] {
        assert!(matches!(tier.get(&name, range).await.map(|_| ()), Err(TierError::Invalid(_))));
    }
    for size_bytes in [0, tier.piece_bytes_max() + 1] {
        assert!(matches!(tier.reserve(&spec(size_bytes)).await, Err(TierError::Invalid(_))));
        assert!(matches!(tier.put(&name, &spec(size_bytes), body(b"")).await, Err(TierError::Invalid(_))));
    }
    let other = PieceName::new("not/of/this/tier").unwrap();
    assert!(matches!(tier.size_bytes(&other).await, Err(TierError::Invalid(_))));
    tier.delete(&name).await.unwrap();
}

async fn a_body_of_another_length_leaves_nothing(tier: &FastdfsColdTier) {
    for announced in [99_999, 100_001, 1, 5_000_000] {
        let name = tier.reserve(&spec(announced)).await.unwrap();
        let put = tier.put(&name, &spec(announced), body(&bytes(100_000, 1))).await;
        assert!(matches!(put, Err(TierError::Invalid(_))), "{announced}: {put:?}");
        assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(_))), "{announced}");
        tier.delete(&name).await.unwrap();
    }
}

async fn a_body_that_fails_leaves_nothing(tier: &FastdfsColdTier) {
    let name = tier.reserve(&spec(100_000)).await.unwrap();
    let broken = stream::iter([Err(TierError::Corrupt { piece: name.clone(), detail: "of the source".into() })]);
    let put = tier.put(&name, &spec(100_000), Box::pin(body(&bytes(90_000, 1)).chain(broken))).await;
    assert!(matches!(put, Err(TierError::Invalid(text)) if text.contains("of the source")));
    assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(_))));
    tier.delete(&name).await.unwrap();
}

async fn a_dropped_put_leaves_nothing_that_delete_does_not_remove(tier: &FastdfsColdTier) {
    let data = bytes(300_000, 1);
    // Dropped after so many steps: in each phase of it.
    for polls in [1, 2, 3, 5, 8, 13, 21, 34] {
        let name = tier.reserve(&spec(300_000)).await.unwrap();
        let spec = spec(300_000);
        let mut put = tier.put(&name, &spec, body(&data));
        for _ in 0..polls {
            if futures::poll!(&mut put).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(put);
        tier.delete(&name).await.unwrap();
        assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(_))), "after {polls} steps");
    }
}

async fn a_body_that_is_not_read_to_its_end_does_no_harm(tier: &FastdfsColdTier) {
    let data = bytes(2_000_000, 1);
    let name = store(tier, &data).await;
    for _ in 0..3 {
        let mut begun = tier.get(&name, 0..2_000_000).await.unwrap();
        begun.next().await.unwrap().unwrap();
        drop(begun);
        drop(tier.get(&name, 0..2_000_000).await.unwrap());
        assert!(read(tier, &name, 1_000_000..1_000_010).await.unwrap() == data[1_000_000..1_000_010]);
    }
    tier.delete(&name).await.unwrap();
}

async fn many_at_once_do_not_mix(tier: &FastdfsColdTier) {
    let work = (0..24_u32).map(|n| async move {
        let data = bytes(100_000 + n as usize, n);
        let name = store(tier, &data).await;
        assert!(read(tier, &name, 0..data.len() as u64).await.unwrap() == data, "{n}");
        tier.delete(&name).await.unwrap();
    });
    futures::future::join_all(work).await;
}

async fn check_tells_free_space(tier: &FastdfsColdTier) {
    let health = tier.check().await.unwrap();
    assert!(health.free_bytes.unwrap() > 0);
    assert_eq!(health.notes, Vec::<String>::new());
}
