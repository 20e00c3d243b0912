//! RocketMQ as operators run it, and as they do not want it: encrypted, and with a disk that is full. Each test has a
//! broker of its own. By their names they begin before all others: one waits for a minute in which its broker does not
//! look at its disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use holdfast_cluster_tests::certificates::Authority;
use holdfast_cluster_tests::disk::SmallDisk;
use holdfast_cluster_tests::eventually;
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::services::rocketmq::{JavaConsumer, RocketMq, SECRET_KEY, Setup};
use holdfast_cluster_tests::told::{BUCKET, PATIENCE, Writers, environment, lag, start_on, wait_until_published};

/// Whether both the bus and a partition say something with `word` in it.
fn is_told(node: &Node, word: &str) -> bool {
    let lag = lag(node);
    let says = |value: &serde_json::Value| value.as_str().is_some_and(|error| error.contains(word));
    says(&lag["bus_error"]) && lag["partitions"].as_array().unwrap().iter().any(|part| says(&part["last_error"]))
}

#[test]
fn events_leave_by_tls_and_wrong_settings_of_it_are_told_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new("ours", None), Authority::new("other", None));
    let ca = ours.pair().certificate;
    let service = RocketMq::start_with(Setup { tls: Some(ours.service("rocketmq")), ..Setup::default() });
    let [right, wrong] = [("right", ca), ("wrong", other.pair().certificate)].map(|(name, pem)| {
        let file = dir.path().join(name);
        std::fs::write(&file, pem).unwrap();
        ("HOLDFAST_EVENTS_TLS_CA", file.display().to_string())
    });
    let data = dir.path().join("data");
    let plain = environment(&service, dir.path(), "tls", SECRET_KEY);
    let with_ca = |ca| [plain.clone(), vec![("HOLDFAST_EVENTS_TLS", "true".into()), ca]].concat();

    let node = start_on(&data, &with_ca(wrong));
    node.client().create_bucket(BUCKET);
    for n in 0..20 {
        assert_eq!(node.client().put(BUCKET, &format!("k{}", n % 3), b"x").unwrap().status, 200);
    }
    eventually("the CA is told to be wrong", PATIENCE, || is_told(&node, "events.tls_ca"));
    assert_eq!(lag(&node)["rows"], 20);
    drop(node);

    let node = start_on(&data, &plain);
    assert_eq!(node.client().put(BUCKET, "plain", b"x").unwrap().status, 200);
    eventually("it is told that TLS may be missing", PATIENCE, || is_told(&node, "events.tls"));
    drop(node);

    let node = start_on(&data, &with_ca(right));
    wait_until_published(&node);
    let tail = node.cli(&["events", "tail", "--oldest", "--count", "21", "--json"]);
    assert_eq!(tail.lines().count(), 21, "{tail}");
    let consumer = JavaConsumer::start(&service, "tls-objects", "encrypted");
    eventually("RocketMQ's own client gets them by TLS", PATIENCE, || {
        // One that the broker took and the node did not hear of comes twice.
        consumer.received().iter().map(|event| &event.id).collect::<HashSet<_>>().len() == 21
    });
}

/// Leaves so many MiB of a disk free.
fn fill(disk: &Path, free_mib: u64) {
    let mut ballast = File::create(disk.join("ballast")).unwrap();
    loop {
        let disk = rustix::fs::statvfs(disk).unwrap();
        if disk.f_bavail * disk.f_frsize <= free_mib << 20 {
            break;
        }
        // The broker may have taken the rest meanwhile.
        if ballast.write_all(&[7; 1 << 20]).and_then(|()| ballast.sync_all()).is_err() {
            break;
        }
    }
}

#[test]
fn full_disk_of_the_broker_holds_events_up_until_there_is_room_and_no_write() {
    const DISK_MIB: u64 = 200;
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let disk = SmallDisk::new(dir.path(), DISK_MIB);
    // Dropped before its disk. It looks at its disk a minute after its start for the first time, and then every second.
    let setup =
        Setup { store: Some(disk.path().join("store")), broker: "cleanResourceInterval=1000", ..Setup::default() };
    let service = RocketMq::start_with(setup);
    let node = start_on(&dir.path().join("data"), &environment(&service, dir.path(), "full", SECRET_KEY));
    node.client().create_bucket(BUCKET);
    let consumer = JavaConsumer::start(&service, "full-objects", "full");
    assert_eq!(node.client().put(BUCKET, "with room", b"x").unwrap().status, 200);
    wait_until_published(&node);
    // From nine tenths on it takes no more.
    fill(disk.path(), DISK_MIB / 20);
    eventually("the disk is told to be full", PATIENCE, || {
        // It takes a minute, in which other tests have work to do.
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(node.client().put(BUCKET, "while it is looked for", b"x").unwrap().status, 200);
        let lag = lag(&node);
        let mut errors = lag["partitions"].as_array().unwrap().iter().filter_map(|part| part["last_error"].as_str());
        errors.any(|error| error.contains("disk is full"))
    });
    let writers = Writers::default();
    writers.run(&[node.client()], || {
        let before = lag(&node)["rows"].as_u64().unwrap();
        writers.make_progress("writes go on", 300);
        let after = lag(&node)["rows"].as_u64().unwrap();
        assert!(after >= before + 200, "{before} rows, and {after} after 300 writes");
    });
    let metric = |name: &str, labels: &[&str]| node.metric(name, labels).unwrap().unwrap_or(0.0);
    assert!(metric("holdfast_events_publish_failures_total", &["full"]) > 0.0);
    eventually("metrics tell what waits", PATIENCE, || {
        metric("holdfast_events_outbox_rows", &[]) > 0.0 && metric("holdfast_events_outbox_oldest_seconds", &[]) > 0.0
    });
    assert!(lag(&node)["rows"].as_u64().unwrap() > 0, "all of it was published on a full disk");
    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    wait_until_published(&node);
    writers.wait_until_all_is_told(&consumer);
    eventually("no error is told any more", PATIENCE, || {
        lag(&node)["partitions"].as_array().unwrap().iter().all(|part| part["last_error"].is_null())
    });
}
