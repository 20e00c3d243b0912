//! Starts a cluster with its services, says how to use it, and ends it when standard input closes: for measurements.
//!
//! ```sh
//! cargo build --release -p holdfast-node
//! HOLDFAST_BIN=$PWD/target/release/holdfast cargo run -p holdfast-cluster-tests --example cluster -- 3 [--cache]
//! ```
//!
//! Further arguments are settings of all nodes, such as `HOLDFAST_CLUSTER_REBUILD_DELAY=5s`.
//! `--events` among them: the nodes publish to a RocketMQ of its own.

#![allow(clippy::unwrap_used, reason = "as in tests")]

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;

use holdfast_cluster_tests::cluster::{Cluster, Options};
use holdfast_cluster_tests::node::{ACCESS_KEY, SECRET_KEY};
use holdfast_cluster_tests::services::rocketmq::{self, RocketMq};

fn main() {
    let count = std::env::args().nth(1).map_or(3, |count| count.parse().expect("how many nodes"));
    // What a node has without any configuration: the tests' own settings are for small machines and short waits.
    let mut environment = vec![
        ("HOLDFAST_STORAGE_LARGE_BUFFERS", "80"),
        ("HOLDFAST_STORAGE_SMALL_BUFFERS", "256"),
        ("HOLDFAST_STORAGE_SEGMENT_SIZE", "1GiB"),
        ("HOLDFAST_LIMITS_CHUNK_TIMEOUT", "15min"),
        ("HOLDFAST_CLEANUP_GRACE", "10min"),
        ("HOLDFAST_CLEANUP_INTERVAL", "30s"),
        ("HOLDFAST_CLEANUP_ORPHAN_AGE", "1h"),
        ("HOLDFAST_CLEANUP_ORPHAN_INTERVAL", "1h"),
        ("HOLDFAST_CLUSTER_SESSION_TIMEOUT", "10s"),
        ("HOLDFAST_CLUSTER_REBUILD_DELAY", "10min"),
        ("HOLDFAST_CLUSTER_LEAVE_GRACE", "10min"),
        ("HOLDFAST_CLUSTER_REPAIR_BANDWIDTH", "64MiB"),
        ("HOLDFAST_METADATA_CONNECTIONS", "32"),
    ];
    let (mut with_cache, mut with_events) = (false, false);
    for setting in std::env::args().skip(2) {
        match setting.as_str() {
            "--cache" => with_cache = true,
            "--events" => with_events = true,
            _ => environment.push(setting.leak().split_once('=').expect("settings are NAME=VALUE")),
        }
    }
    let rocketmq = with_events.then(RocketMq::start);
    let scratch = tempfile::tempdir().unwrap();
    if let Some(rocketmq) = &rocketmq {
        let secret = scratch.path().join("secret");
        std::fs::write(&secret, rocketmq::SECRET_KEY).unwrap();
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        // For as long as the process lives.
        environment.push(("HOLDFAST_EVENTS_ROCKETMQ", String::leak(rocketmq.name_servers())));
        environment.push(("HOLDFAST_EVENTS_ACCESS_KEY", rocketmq::ACCESS_KEY));
        environment.push(("HOLDFAST_EVENTS_SECRET_KEY_FILE", String::leak(secret.display().to_string())));
        println!("RocketMQ at {}", rocketmq.name_servers());
    }
    let options = Options { environment, direct: true, cache: with_cache, ..Options::default() };
    let cluster = Cluster::start_with(count, options);
    if let Some(redis) = &cluster.redis {
        // As operators are told to set it up.
        redis.command(&["CONFIG", "SET", "maxmemory", "512mb"]);
        redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
        cluster.wait_until_cached("at the start");
    }
    println!("export HOLDFAST_ACCESS_KEY={ACCESS_KEY} HOLDFAST_SECRET_KEY={SECRET_KEY}");
    for member in &cluster.members {
        let (node, config) = (&member.node, member.node.scratch().join("holdfast.toml"));
        println!(
            "{} --endpoint {} --pid {} --config {} --metrics http://{}/metrics",
            member.id,
            node.endpoint(),
            node.pid(),
            config.display(),
            node.admin()
        );
    }
    println!("ready");
    // Whatever comes; its end is what is waited for.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
