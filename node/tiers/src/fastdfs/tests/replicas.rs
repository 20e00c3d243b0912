//! Groups of several storages: who is asked, and who is believed.

use std::time::Duration;

use holdfast_actors::ports::tiers::TierError;

use super::*;
use crate::fastdfs::names::Piece;
use crate::fastdfs::wire::{Source, command};

const PAIR: DoubleConfig =
    DoubleConfig { trackers: 1, groups: 1, storages_a_group: 2, long_addresses: false, server_ids: false };

/// Which storage took a piece, and another of its group.
fn source(double: &Double, name: &PieceName) -> (usize, usize) {
    let storage = match Piece::of_name(name).unwrap().master.source {
        Source::Ip(ip) => usize::from(ip.octets()[3]) - 1,
        Source::Server(number) => number as usize - 100_001,
    };
    assert!(!double.files(storage).is_empty());
    (storage, storage ^ 1)
}

fn kinds() -> [DoubleConfig; 2] {
    [PAIR, DoubleConfig { server_ids: true, long_addresses: true, ..PAIR }]
}

#[tokio::test]
async fn a_piece_is_read_at_its_source_while_replicas_lag() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        double.set_lag(true);
        for _ in 0..4 {
            let name = store(&tier, b"bytes").await;
            let (_, replica) = source(&double, &name);
            assert!(!double.files(replica).iter().any(|(path, _)| name.as_str().ends_with(path)));
            assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
        }
    }
}

#[tokio::test]
async fn a_replica_is_read_when_the_source_is_dead() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let name = store(&tier, b"bytes").await;
        let (dead, _) = source(&double, &name);
        double.stop_storage(dead).await;
        for noticed in [false, true] {
            if noticed {
                double.set_status(dead, 5);
            }
            assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
            assert_eq!(tier.size_bytes(&name).await.unwrap(), 5);
            let fresh = FastdfsColdTier::new(double.config()).unwrap();
            assert_eq!(read(&fresh, &name, 0..5).await.unwrap(), b"bytes", "noticed: {noticed}");
        }
    }
}

/// It takes requests and begins to answer: its disk does not give the rest.
#[tokio::test]
async fn a_replica_is_read_when_the_source_breaks_off() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let data = bytes(400_000, 1);
        let name = store(&tier, &data).await;
        let (source, _) = source(&double, &name);
        double.storage_faults(source, |faults| faults.cut_downloads_at = Some(300_000));
        assert!(matches!(read(&tier, &name, 0..400_000).await, Err(TierError::Unavailable(_))));
        // It is avoided for a while only, which a slow machine may let go by.
        let mut reads = 0;
        while read(&tier, &name, 0..400_000).await.ok().as_ref() != Some(&data) {
            reads += 1;
            assert!(reads < 10, "the source is asked again and again");
        }
    }
}

#[tokio::test]
async fn what_a_replica_does_not_have_is_unavailable_while_the_source_is_dead() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        double.set_lag(true);
        let name = store(&tier, b"bytes").await;
        let (dead, _) = source(&double, &name);
        double.stop_storage(dead).await;
        for noticed in [false, true] {
            if noticed {
                double.set_status(dead, 5);
            }
            let answer = read(&tier, &name, 0..5).await;
            assert!(matches!(answer, Err(TierError::Unavailable(_))), "{answer:?}");
            assert!(matches!(tier.size_bytes(&name).await, Err(TierError::Unavailable(_))));
            assert!(matches!(tier.delete(&name).await, Err(TierError::Unavailable(_))));
            assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Unavailable(_))));
        }
        double.start_storage(dead).await;
        double.set_status(dead, 7);
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes", "it is back");
    }
}

/// It has a new disk, and the trackers do not let clients read from it before it is filled again.
#[tokio::test]
async fn that_a_source_has_nothing_counts_only_when_the_trackers_name_it() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let name = store(&tier, b"bytes").await;
        let (source, _) = source(&double, &name);
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes", "its address is known now");
        double.wipe(source);
        double.set_status(source, 9);
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
        assert_eq!(tier.size_bytes(&name).await.unwrap(), 5);
        double.set_status(source, 7);
        assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::NotFound(_))));
        tier.doubt(&name);
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes", "who doubts it gets another copy");
    }
}

#[tokio::test]
async fn a_piece_that_was_damaged_is_read_from_another_copy() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let name = store(&tier, &bytes(1000, 1)).await;
        let (source, _) = source(&double, &name);
        double.damage(source, |file| file.iter_mut().take(1).for_each(|byte| *byte ^= 1));
        assert_ne!(read(&tier, &name, 0..1000).await.unwrap(), bytes(1000, 1));
        tier.doubt(&name);
        assert_eq!(read(&tier, &name, 0..1000).await.unwrap(), bytes(1000, 1));
        double.damage(source, |file| file.truncate(10));
        assert_eq!(read(&tier, &name, 0..1000).await.unwrap(), bytes(1000, 1), "nor is it asked for its size");
        tier.doubt(&name);
        assert!(read(&tier, &name, 0..1000).await.is_err(), "the source has its turn again");
    }
}

#[tokio::test]
async fn a_short_answer_of_a_replica_says_nothing() {
    let (double, tier) = cluster(PAIR).await;
    let name = store(&tier, &bytes(1000, 1)).await;
    let (dead, replica) = source(&double, &name);
    double.damage(replica, |file| file.truncate(500));
    double.stop_storage(dead).await;
    let answer = read(&tier, &name, 0..1000).await;
    assert!(matches!(answer, Err(TierError::Unavailable(_))), "{answer:?}");
    assert_eq!(read(&tier, &name, 0..400).await.unwrap(), bytes(400, 1));
    double.start_storage(dead).await;
    assert_eq!(read(&tier, &name, 0..1000).await.unwrap(), bytes(1000, 1));
}

#[tokio::test]
async fn a_delete_goes_to_a_replica_only_when_the_trackers_know_that_the_source_is_dead() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let name = store(&tier, b"bytes").await;
        let (dead, replica) = source(&double, &name);
        double.stop_storage(dead).await;
        assert!(matches!(tier.delete(&name).await, Err(TierError::Unavailable(_))));
        double.set_status(dead, 5);
        tier.delete(&name).await.unwrap();
        assert_eq!(double.files(replica), []);
    }
}

#[tokio::test]
async fn a_delete_of_a_deleted_source_needs_only_the_others() {
    for kind in kinds() {
        let (double, tier) = cluster(kind).await;
        let name = store(&tier, b"bytes").await;
        let (gone, replica) = source(&double, &name);
        double.stop_storage(gone).await;
        double.set_status(gone, 4);
        for _ in 0..2 {
            tier.delete(&name).await.unwrap();
            assert_eq!(double.files(replica), []);
        }
    }
}

#[tokio::test]
async fn a_name_is_reserved_at_another_storage_when_one_is_dead() {
    let (double, tier) = cluster(PAIR).await;
    double.stop_storage(0).await;
    for _ in 0..4 {
        let name = store(&tier, b"bytes").await;
        assert_eq!(source(&double, &name).0, 1);
        tier.delete(&name).await.unwrap();
    }
    double.storage_faults(1, |faults| faults.refuse = vec![(crate::fastdfs::wire::command::UPLOAD, 28, 9)]);
    assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Full(_))));
}

#[tokio::test]
async fn a_fixed_group_is_the_only_one_stored_in() {
    let double = Double::start(DoubleConfig { groups: 3, ..PAIR }).await;
    let config = FastdfsConfig { group: Some("group2".into()), ..double.config() };
    let tier = FastdfsColdTier::new(config).unwrap();
    for _ in 0..6 {
        assert!(store(&tier, b"bytes").await.as_str().starts_with("group2/"));
    }
}

#[tokio::test]
async fn what_is_there_is_read_from_a_storage_that_is_known_while_no_tracker_answers() {
    let (double, tier) = single().await;
    let name = store(&tier, b"bytes").await;
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes", "its address is known now");
    double.stop_tracker(0).await;
    for _ in 0..2 {
        tier.0.sources.expire();
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
    }
    assert!(matches!(tier.delete(&name).await, Err(TierError::Unavailable(_))));
    double.wipe(0);
    let answer = read(&tier, &name, 0..5).await;
    assert!(matches!(answer, Err(TierError::Unavailable(_))), "it may be elsewhere by now: {answer:?}");
    double.start_tracker(0).await;
    assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::NotFound(_))));
}

#[tokio::test]
async fn a_tracker_of_which_a_reader_has_had_enough_is_asked_after_the_others() {
    let double = Double::start(DoubleConfig { trackers: 2, ..PAIR }).await;
    let config = FastdfsConfig { idle_timeout: Duration::from_secs(60), ..double.config() };
    let tier = FastdfsColdTier::new(config).unwrap();
    let name = store(&tier, b"bytes").await;
    double.tracker_faults(0, |faults| faults.hang = vec![command::FETCH]);
    tier.0.sources.expire();
    let mut reading = Box::pin(tier.get(&name, 0..5));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut reading).await.is_err(), "it waits");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(25)).await;
    tokio::time::resume();
    drop(reading);
    assert!(tier.0.pool.failed_lately(&tier.0.trackers.addresses()[0]));
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
}

#[tokio::test]
async fn another_tracker_is_asked_when_one_is_dead_silent_or_knows_nothing() {
    let double = Double::start(DoubleConfig { trackers: 3, ..PAIR }).await;
    // It is waited for to its end, and longer than a busy machine stands still.
    let config = FastdfsConfig { idle_timeout: Duration::from_secs(8), ..double.config() };
    let tier = FastdfsColdTier::new(config).unwrap();
    double.stop_tracker(0).await;
    double.tracker_faults(1, |faults| {
        faults.refuse = [101, 102, 103, 104, 105, 107].map(|command| (command, 2, usize::MAX)).to_vec();
    });
    let name = store(&tier, b"bytes").await;
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
    double.tracker_faults(1, |faults| {
        faults.refuse.clear();
        faults.hang = vec![101, 102, 103];
    });
    tier.delete(&name).await.unwrap();
    double.stop_tracker(2).await;
    assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Unavailable(_))));
    double.start_tracker(0).await;
    store(&tier, b"bytes").await;
}
