//! Space comes back on a cluster with a real Apache RocketMQ: deletions are given out and done by all nodes, and go on
//! by themselves while the broker is gone.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use holdfast_cluster_tests::client::Client;
use holdfast_cluster_tests::cluster::{Cluster, Options};
use holdfast_cluster_tests::eventually;
use holdfast_cluster_tests::services::rocketmq::{ACCESS_KEY, RocketMq, SECRET_KEY};

const BUCKET: &str = "short-lived";
/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the workers of all nodes did, or the dispatchers by hand.
fn items(cluster: &Cluster, way: &str) -> Vec<f64> {
    let way = format!("way=\"{way}\"");
    let labels = ["kind=\"reclaim\"", way.as_str()];
    let of = |node: &holdfast_cluster_tests::node::Node| node.metric("holdfast_task_items_total", &labels);
    cluster.members.iter().map(|member| of(&member.node).unwrap().unwrap_or(0.0)).collect()
}

fn chunks(cluster: &Cluster, at: usize) -> u64 {
    let status = cluster.cli(at, &["status"]);
    status["disks"].as_array().unwrap().iter().map(|disk| disk["chunks"].as_u64().unwrap()).sum()
}

fn put(client: &Client, keys: std::ops::Range<u32>) {
    for key in keys {
        assert_eq!(client.put_until_served(BUCKET, &format!("k{key}"), b"some bytes").status, 200);
    }
}

fn delete(client: &Client, keys: std::ops::Range<u32>) {
    for key in keys {
        assert_eq!(client.delete_until_served(BUCKET, &format!("k{key}")).status, 204);
    }
}

fn wait_until_reclaimed(cluster: &Cluster, name: &str) {
    eventually(name, PATIENCE, || (0..cluster.members.len()).all(|at| chunks(cluster, at) == 0));
}

#[test]
fn deleted_objects_go_from_every_node_by_the_work_of_several_also_without_the_broker() {
    let mut service = RocketMq::start();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET_KEY).unwrap();
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let environment: Vec<(&'static str, String)> = vec![
        ("HOLDFAST_EVENTS_ROCKETMQ", service.name_servers()),
        ("HOLDFAST_EVENTS_ACCESS_KEY", ACCESS_KEY.into()),
        ("HOLDFAST_EVENTS_SECRET_KEY_FILE", secret.display().to_string()),
        ("HOLDFAST_EVENTS_TOPIC_PREFIX", "work".into()),
        ("HOLDFAST_EVENTS_TOPIC_QUEUES", "4".into()),
        ("HOLDFAST_CLEANUP_GRACE", "1 s".into()),
    ];
    // For as long as the process lives.
    let environment = environment.into_iter().map(|(name, value)| (name, &*String::leak(value))).collect();
    let cluster = Cluster::start_with(3, Options { environment, direct: true, ..Options::default() });
    let client = cluster.client(0);
    client.create_bucket(BUCKET);

    // A task a second or so, which any node may take.
    let mut rounds = 0..;
    eventually("several nodes work", PATIENCE, || {
        let first = rounds.next().unwrap() * 10;
        put(&client, first..first + 10);
        delete(&client, first..first + 10);
        items(&cluster, "bus").iter().filter(|items| **items > 0.0).count() > 1
    });
    wait_until_reclaimed(&cluster, "the chunks are gone from every node");
    let tail =
        cluster.members[1].node.cli(&["events", "tail", "--topic", "tasks", "--oldest", "--count", "1", "--json"]);
    let task: serde_json::Value = serde_json::from_str(&tail).unwrap();
    assert_eq!((task["tag"].as_str(), task["body"]["version"].as_u64()), (Some("reclaim"), Some(1)), "{tail}");

    // In the middle of it.
    put(&client, 100_000..100_060);
    delete(&client, 100_000..100_030);
    service.kill_broker();
    delete(&client, 100_030..100_060);
    wait_until_reclaimed(&cluster, "the chunks go without the broker");
    // Counted when it is done, a moment after the chunks are gone.
    eventually("the work was done by hand", PATIENCE, || items(&cluster, "hand").iter().sum::<f64>() > 0.0);

    service.restart_broker();
    let before: f64 = items(&cluster, "bus").iter().sum();
    let mut rounds = 20_000..;
    eventually("the work is given out again", PATIENCE, || {
        // Who asks has the broker tried at once.
        for member in &cluster.members {
            drop(member.node.try_cli(&["cleanup", "run"]));
        }
        let first = rounds.next().unwrap() * 10;
        put(&client, first..first + 10);
        delete(&client, first..first + 10);
        items(&cluster, "bus").iter().sum::<f64>() > before
    });
    wait_until_reclaimed(&cluster, "nothing is left behind");
}
