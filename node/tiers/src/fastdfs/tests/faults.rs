//! What a storage or a tracker can do wrong, and what the port says then.

use std::time::Duration;

use holdfast_actors::ports::tiers::TierError;
use holdfast_actors::wait::until;

use super::*;
use crate::fastdfs::wire::command;

#[tokio::test]
async fn put_notices_that_the_storage_has_other_bytes() {
    let (double, tier) = single().await;
    double.storage_faults(0, |faults| faults.corrupt_uploads = true);
    let stored = try_store(&tier, &bytes(100_000, 1)).await;
    assert!(matches!(&stored, Err(TierError::Corrupt { detail, .. }) if detail.contains("CRC32")), "{stored:?}");
    double.storage_faults(0, |faults| *faults = Default::default());
    store(&tier, &bytes(100_000, 1)).await;
}

#[tokio::test]
async fn put_notices_that_the_storage_has_fewer_bytes() {
    let (double, tier) = single().await;
    let name = tier.reserve(&spec(100_000)).await.unwrap();
    double.storage_faults(0, |faults| faults.truncate_uploads = true);
    let put = tier.put(&name, &spec(100_000), body(&bytes(100_000, 1))).await;
    assert!(matches!(&put, Err(TierError::Corrupt { detail, .. }) if detail.contains("99999 bytes")), "{put:?}");
    tier.delete(&name).await.unwrap();
    assert_eq!(double.files(0), []);
}

#[tokio::test]
async fn a_piece_that_was_cut_on_the_disk_is_corrupt() {
    let (double, tier) = single().await;
    for old_ranges in [false, true] {
        let name = store(&tier, &bytes(1000, 1)).await;
        double.storage_faults(0, |faults| faults.old_ranges = old_ranges);
        double.damage(0, |file| file.truncate(600));
        assert_eq!(tier.size_bytes(&name).await.unwrap(), 600);
        for range in [0..1000, 500..601, 700..800] {
            let answer = read(&tier, &name, range.clone()).await;
            assert!(matches!(answer, Err(TierError::Corrupt { .. })), "{range:?}: {answer:?}");
        }
        assert_eq!(read(&tier, &name, 0..600).await.unwrap(), bytes(600, 1));
        tier.delete(&name).await.unwrap();
    }
}

/// The caller checks: this side has nothing to compare with.
#[tokio::test]
async fn a_byte_that_changed_on_the_disk_is_served() {
    let (double, tier) = single().await;
    let name = store(&tier, &bytes(1000, 1)).await;
    double.damage(0, |file| file[500] ^= 1);
    let mut expected = bytes(1000, 1);
    expected[500] ^= 1;
    assert_eq!(read(&tier, &name, 0..1000).await.unwrap(), expected);
}

#[tokio::test]
async fn a_download_that_ends_early_is_an_error_behind_its_last_byte() {
    let (double, tier) = single().await;
    let data = bytes(400_000, 1);
    let name = store(&tier, &data).await;
    double.storage_faults(0, |faults| faults.cut_downloads_at = Some(300_000));
    let body = tier.get(&name, 0..400_000).await.unwrap();
    let parts: Vec<_> = body.collect().await;
    let (end, parts) = parts.split_last().unwrap();
    let got: Vec<u8> = parts.iter().flat_map(|part| part.as_ref().unwrap().to_vec()).collect();
    assert!(data.starts_with(&got));
    assert!(matches!(end, Err(TierError::Unavailable(_))), "{end:?}");
    double.storage_faults(0, |faults| *faults = Default::default());
    assert!(read(&tier, &name, 0..400_000).await.unwrap() == data);
}

#[tokio::test]
async fn a_status_says_what_to_do() {
    let (double, tier) = single().await;
    let name = store(&tier, b"bytes").await;
    let refuse = |command: u8, status: u8| {
        double.storage_faults(0, |faults| faults.refuse = vec![(command, status, usize::MAX)]);
    };
    let refuse_nothing = || double.storage_faults(0, |faults| faults.refuse.clear());
    refuse(command::UPLOAD, 28);
    assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Full(_))));
    refuse(command::UPLOAD_SLAVE, 28);
    assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Full(_))));
    refuse(command::UPLOAD_SLAVE, 28);
    let large = bytes(20_000_000, 1);
    assert!(matches!(tier.put(&name, &spec(20_000_000), body(&large)).await, Err(TierError::Full(_))), "in the middle");
    refuse(command::UPLOAD_SLAVE, 16);
    assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Unavailable(_))));
    refuse_nothing();
    tier.put(&name, &spec(5), body(b"bytes")).await.unwrap();
    refuse(command::DOWNLOAD, 5);
    assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::Unavailable(_))));
    refuse(command::FILE_INFO, 13);
    assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Denied(_))));
    refuse(command::DELETE, 30);
    assert!(matches!(tier.delete(&name).await, Err(TierError::Denied(_))));
    refuse_nothing();
    tier.delete(&name).await.unwrap();
    assert_eq!(double.files(0), []);
}

#[tokio::test]
async fn a_server_that_is_silent_or_talks_nonsense_is_unavailable() {
    let (double, patient) = single().await;
    let patience = Duration::from_millis(300);
    let tier = FastdfsColdTier::new(FastdfsConfig { idle_timeout: patience, ..double.config() }).unwrap();
    let name = store(&patient, b"bytes").await;
    let commands = [command::UPLOAD, command::UPLOAD_SLAVE, command::DELETE, command::DOWNLOAD, command::FILE_INFO];
    let faults: [&dyn Fn(); 2] = [&|| double.storage_faults(0, |faults| faults.hang = commands.to_vec()), &|| {
        double.storage_faults(0, |faults| faults.babble = true)
    }];
    for set in faults {
        set();
        assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Unavailable(_))));
        assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Unavailable(_))));
        assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::Unavailable(_))));
        assert!(matches!(tier.size_bytes(&name).await, Err(TierError::Unavailable(_))));
        assert!(matches!(tier.delete(&name).await, Err(TierError::Unavailable(_))));
        double.storage_faults(0, |faults| *faults = Default::default());
    }
    let faults: [&dyn Fn(); 2] =
        [&|| double.tracker_faults(0, |faults| faults.hang = vec![command::STORE, command::LIST_GROUPS]), &|| {
            double.tracker_faults(0, |faults| faults.babble = true)
        }];
    for set in faults {
        set();
        assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Unavailable(_))));
        assert!(matches!(tier.check().await, Err(TierError::Unavailable(_))));
        double.tracker_faults(0, |faults| *faults = Default::default());
    }
    // What was lost is known by nobody: nothing but empty files is left behind.
    patient.delete(&name).await.unwrap();
    assert!(double.files(0).iter().all(|(_, size_bytes)| *size_bytes == 0), "{:?}", double.files(0));
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let (double, tier) = single().await;
    double.storage_faults(0, |faults| faults.delay = Some(Duration::from_millis(50)));
    double.tracker_faults(0, |faults| faults.delay = Some(Duration::from_millis(50)));
    let name = store(&tier, b"bytes").await;
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
    tier.delete(&name).await.unwrap();
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_can_be_repeated_or_deleted() {
    let (double, tier) = single().await;
    let data = bytes(50_000, 1);
    for repeat in [true, false] {
        let name = tier.reserve(&spec(50_000)).await.unwrap();
        double.storage_faults(0, |faults| faults.lose_answers = vec![command::UPLOAD_SLAVE]);
        assert!(matches!(tier.put(&name, &spec(50_000), body(&data)).await, Err(TierError::Unavailable(_))));
        assert_eq!(double.files(0).len(), 2, "it was done");
        double.storage_faults(0, |faults| *faults = Default::default());
        if repeat {
            tier.put(&name, &spec(50_000), body(&data)).await.unwrap();
            assert!(read(&tier, &name, 0..50_000).await.unwrap() == data);
        }
        tier.delete(&name).await.unwrap();
        assert_eq!(double.files(0), []);
    }
}

/// The answer to a put is under way while its caller is gone: a delete that did not wait would leave the data.
#[tokio::test]
async fn delete_waits_for_the_end_of_a_dropped_put() {
    let (double, tier) = single().await;
    let spec = spec(5);
    let name = tier.reserve(&spec).await.unwrap();
    double.storage_faults(0, |faults| faults.hold_uploads = true);
    let mut put = tier.put(&name, &spec, body(b"bytes"));
    let send = async || {
        assert!(futures::poll!(&mut put).is_pending());
        double.storage_requests(command::UPLOAD_SLAVE)
    };
    until("the upload has begun", send, |requests| *requests > 0).await;
    drop(put);
    let mut delete = tier.delete(&name);
    // Nothing happens for a while.
    for _ in 0..20 {
        assert!(futures::poll!(&mut delete).is_pending(), "it waits");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    double.storage_faults(0, |faults| faults.hold_uploads = false);
    delete.await.unwrap();
    assert_eq!(double.files(0), []);
}

#[tokio::test]
async fn a_group_that_vanished_is_denied_everywhere() {
    for group in [None, Some("group1".to_owned())] {
        let double = Double::start(DoubleConfig { trackers: 2, ..DoubleConfig::default() }).await;
        let config = FastdfsConfig { group: group.clone(), ..double.config() };
        let name = store(&FastdfsColdTier::new(config.clone()).unwrap(), b"bytes").await;
        double.set_groups_vanished(true);
        let tier = FastdfsColdTier::new(config).unwrap();
        assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::Denied(_))));
        assert!(matches!(tier.size_bytes(&name).await, Err(TierError::Denied(_))));
        assert!(matches!(tier.put(&name, &spec(5), body(b"bytes")).await, Err(TierError::Denied(_))));
        assert!(matches!(tier.delete(&name).await, Err(TierError::Denied(_))));
        let reserved = tier.reserve(&spec(5)).await;
        let checked = tier.check().await;
        match group {
            Some(_) => {
                assert!(matches!(reserved, Err(TierError::Denied(_))), "{reserved:?}");
                assert!(matches!(checked, Err(TierError::Denied(_))), "{checked:?}");
            }
            None => {
                assert!(matches!(reserved, Err(TierError::Unavailable(_))), "{reserved:?}");
                assert!(matches!(checked, Err(TierError::Unavailable(_))), "{checked:?}");
            }
        }
        // A tracker that is gone may know more than the one that is there.
        double.stop_tracker(1).await;
        assert!(matches!(tier.delete(&name).await, Err(TierError::Unavailable(_))));
    }
}

#[tokio::test]
async fn a_full_cluster_is_full() {
    let (double, tier) = cluster(DoubleConfig { trackers: 2, ..DoubleConfig::default() }).await;
    double.set_free_mib(0);
    assert!(matches!(tier.reserve(&spec(5)).await, Err(TierError::Full(_))));
    assert_eq!(tier.check().await.unwrap().free_bytes, Some(0));
}

#[tokio::test]
async fn check_names_what_does_not_work() {
    let config = DoubleConfig { trackers: 2, groups: 2, storages_a_group: 2, ..DoubleConfig::default() };
    let (double, tier) = cluster(config).await;
    let both = tier.check().await.unwrap();
    assert_eq!(both.notes, Vec::<String>::new());
    double.stop_tracker(0).await;
    double.stop_storage(1).await;
    double.set_status(2, 5);
    let health = tier.check().await.unwrap();
    assert_eq!(health.free_bytes, both.free_bytes, "each group has one that works");
    let notes = health.notes.join("\n");
    assert_eq!(health.notes.len(), 3, "{notes}");
    assert!(notes.contains(&tier.0.config.trackers[0]), "{notes}");
    assert!(notes.contains("storage 10.77.1.2 of group1"), "{notes}");
    assert!(notes.contains("storage 10.77.2.3 of group2 is OFFLINE"), "{notes}");
    double.stop_storage(3).await;
    let half = tier.check().await.unwrap();
    assert_eq!(half.free_bytes.map(|free| free * 2), both.free_bytes, "a dead group has no space");
    double.stop_storage(0).await;
    assert!(matches!(tier.check().await, Err(TierError::Unavailable(_))));
    double.stop_tracker(1).await;
    assert!(matches!(tier.check().await, Err(TierError::Unavailable(_))));
}
