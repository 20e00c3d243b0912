//! Connections: used again, given up, counted; addresses; and the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use holdfast_actors::ports::tiers::TierError;
use holdfast_actors::wait::eventually;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::fastdfs::names::Piece;
use crate::fastdfs::wire::{Address, command};

#[tokio::test]
async fn a_connection_is_used_again_also_after_a_refusal() {
    let (double, tier) = single().await;
    for _ in 0..5 {
        let name = store(&tier, b"bytes").await;
        assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
        tier.delete(&name).await.unwrap();
        assert!(matches!(tier.size_bytes(&name).await, Err(TierError::NotFound(_))));
    }
    assert_eq!(double.storage_connections(0), 1);
    assert!(!double.saw_pipelining());
}

/// The double does what the real one does, so that a test would notice.
#[tokio::test]
async fn a_storage_that_gets_two_requests_at_once_is_lost() {
    let double = Double::start(DoubleConfig::default()).await;
    let address = double.config().address_map.into_values().next().unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let one = crate::fastdfs::wire::request(command::ACTIVE_TEST, 0, &[]);
    assert!(!double.saw_pipelining());
    stream.write_all(&one.repeat(2)).await.unwrap();
    eventually("it is noticed", || double.saw_pipelining()).await;
}

#[tokio::test]
async fn a_connection_is_given_up_after_status_22() {
    let (double, tier) = single().await;
    let name = store(&tier, &bytes(1000, 1)).await;
    for _ in 0..3 {
        let before = double.storage_connections(0);
        assert!(matches!(read(&tier, &name, 2000..2001).await, Err(TierError::Corrupt { .. })));
        assert!(double.storage_connections(0) > before);
        assert_eq!(read(&tier, &name, 0..1000).await.unwrap(), bytes(1000, 1));
    }
}

#[tokio::test]
async fn connections_that_the_servers_closed_are_noticed() {
    let (double, tier) = single().await;
    let name = store(&tier, b"bytes").await;
    for round in 0..6 {
        double.close_idle_connections();
        match round % 3 {
            0 => assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes"),
            1 => tier.put(&name, &spec(5), body(b"bytes")).await.unwrap(),
            _ => {
                store(&tier, b"others").await;
            }
        }
    }
    double.stop_storage(0).await;
    double.start_storage(0).await;
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
    tier.delete(&name).await.unwrap();
}

/// The server closes the connection with the request on it: it was sent once, and is sent again once.
#[tokio::test]
async fn a_request_is_sent_again_only_once() {
    let (double, tier) = single().await;
    let name = store(&tier, b"bytes").await;
    double.storage_faults(0, |faults| faults.lose_answers = vec![command::DOWNLOAD]);
    let before = double.storage_requests(command::DOWNLOAD);
    assert!(matches!(read(&tier, &name, 0..5).await, Err(TierError::Unavailable(_))));
    assert_eq!(double.storage_requests(command::DOWNLOAD) - before, 2);
}

#[tokio::test]
async fn there_are_no_more_connections_than_allowed_and_waiting_for_one_ends() {
    let double = Double::start(DoubleConfig::default()).await;
    // It is waited for to its end, and longer than a busy machine stands still.
    let config = FastdfsConfig { connections_max: 2, idle_timeout: Duration::from_secs(10), ..double.config() };
    let tier = FastdfsColdTier::new(config).unwrap();
    let data = bytes(3_000_000, 1);
    let name = store(&tier, &data).await;
    let first = tier.get(&name, 0..3_000_000).await.unwrap();
    let second = tier.get(&name, 0..3_000_000).await.unwrap();
    assert!(matches!(tier.size_bytes(&name).await, Err(TierError::Unavailable(_))), "both are busy");
    let mut waiting = Box::pin(tier.size_bytes(&name));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(first);
    assert_eq!(waiting.await.unwrap(), 3_000_000);
    assert!(collect(second).await.unwrap() == data);
    assert!(double.storage_connections(0) <= 4);
    eventually("what was read to its end is used again", || tier.0.pool.idle_count() >= 2).await;
}

#[tokio::test]
async fn a_connection_that_lay_for_long_is_not_used_again() {
    let (double, tier) = single().await;
    let name = store(&tier, b"bytes").await;
    assert_eq!(double.storage_connections(0), 1);
    tokio::time::pause();
    tokio::time::advance(crate::fastdfs::pool::IDLE + Duration::from_secs(1)).await;
    // Or every wait for a server would end at once.
    tokio::time::resume();
    assert_eq!(read(&tier, &name, 0..5).await.unwrap(), b"bytes");
    assert_eq!(double.storage_connections(0), 2);
}

/// The server sends as fast as this side reads, and no faster: what is in between is in the kernel.
#[tokio::test]
async fn a_body_comes_in_small_parts() {
    let (_double, tier) = single().await;
    let data = bytes(20_000_000, 1);
    let name = store(&tier, &data).await;
    let parts: Vec<_> = tier.get(&name, 0..20_000_000).await.unwrap().try_collect().await.unwrap();
    assert!(parts.iter().all(|part| part.len() <= 256 << 10));
    assert!(parts.concat() == data);
}

#[test]
fn storages_are_dialled_where_the_map_says() {
    let map = [
        ("10.0.0.1", "storage-1.example"),
        ("10.0.0.2", "203.0.113.7:999"),
        ("10.0.0.3:23000", "a:1"),
        ("10.0.0.3", "b"),
        ("10.0.0.4", "2001:db8::9"),
    ];
    let address_map: BTreeMap<_, _> = map.map(|(from, to)| (from.to_owned(), to.to_owned())).into();
    let config = FastdfsConfig { trackers: vec!["t:22122".into()], address_map, ..FastdfsConfig::default() };
    let tier = FastdfsColdTier::new(config).unwrap();
    let dial = |ip: &str, port| tier.0.dial(Address { ip: ip.parse().unwrap(), port });
    assert_eq!(dial("10.0.0.1", 23000), "storage-1.example:23000");
    assert_eq!(dial("10.0.0.2", 23000), "203.0.113.7:999");
    assert_eq!(dial("10.0.0.3", 23000), "a:1");
    assert_eq!(dial("10.0.0.3", 23001), "b:23001");
    assert_eq!(dial("10.0.0.4", 23000), "[2001:db8::9]:23000");
    assert_eq!(dial("10.0.0.5", 23000), "10.0.0.5:23000");
    assert_eq!(dial("2001:db8::1", 23000), "[2001:db8::1]:23000");
}

#[test]
fn a_wrong_configuration_is_told_with_its_field() {
    let good = || FastdfsConfig { trackers: vec!["tracker.example:22122".into()], ..FastdfsConfig::default() };
    good().validate().unwrap();
    let map = |from: &str, to: &str| [(from.to_owned(), to.to_owned())].into();
    let wrong: [(&str, FastdfsConfig); 14] = [
        ("trackers", FastdfsConfig::default()),
        ("trackers", FastdfsConfig { trackers: vec!["a:1".into(); 17], ..good() }),
        ("trackers", FastdfsConfig { trackers: vec!["tracker".into()], ..good() }),
        ("trackers", FastdfsConfig { trackers: vec!["tracker:0".into()], ..good() }),
        ("trackers", FastdfsConfig { trackers: vec!["::1:22122".into()], ..good() }),
        ("group", FastdfsConfig { group: Some("group-1".into()), ..good() }),
        ("group", FastdfsConfig { group: Some(String::new()), ..good() }),
        ("address_map", FastdfsConfig { address_map: map("storage", "b"), ..good() }),
        ("address_map", FastdfsConfig { address_map: map("10.0.0.1", ""), ..good() }),
        ("piece_bytes_max", FastdfsConfig { piece_bytes_max: 0, ..good() }),
        ("piece_bytes_max", FastdfsConfig { piece_bytes_max: 1 << 60, ..good() }),
        ("connect_timeout", FastdfsConfig { connect_timeout: Duration::ZERO, ..good() }),
        ("overall_timeout", FastdfsConfig { overall_timeout: Duration::ZERO, ..good() }),
        ("connections_max", FastdfsConfig { connections_max: 0, ..good() }),
    ];
    for (field, config) in wrong {
        let error = FastdfsColdTier::new(config).map(|_| ()).unwrap_err();
        assert!(matches!(&error, TierError::Invalid(text) if text.contains(field)), "{field}: {error}");
    }
}

#[test]
fn only_names_of_empty_files_with_the_suffix_are_names() {
    let name = |text: &str| Piece::of_name(&PieceName::new(text).unwrap());
    let good = "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991-cold";
    assert_eq!(name(good).unwrap().name().unwrap().as_str(), good);
    // In a trunk file: 16 characters more, and the mark in the size.
    let facts = crate::fastdfs::wire::FileId::facts(
        crate::fastdfs::wire::Source::Server(100_001),
        1,
        crate::fastdfs::wire::FileSize(1 << 59 | 1 << 63),
        0,
    );
    let trunk = format!("group1/M00/00/00/{facts}0123456789abcdef7990991-cold");
    assert_eq!(name(&trunk).unwrap().name().unwrap().as_str(), trunk);
    for bad in [
        "x",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA799099-cold",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991-cold-cold",
        // A file with bytes.
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAABQAAAAA7990991-cold",
    ] {
        assert!(matches!(name(bad), Err(TierError::Invalid(_))), "{bad}");
    }
}
