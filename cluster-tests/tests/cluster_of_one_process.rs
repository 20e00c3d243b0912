//! One process alone, with one node and with several, under the same clients and the same checker as a cluster: killed
//! and started, it is one register a key.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::workload::{BUCKET, Workload};
use holdfast_cluster_tests::{eventually, seed};

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_node_alone_is_linearizable_through_kill_9() {
    let seed = seed("single history");
    let mut node = Node::start();
    node.client().create_bucket(BUCKET);
    let load = Workload::new(seed, vec![node.s3()]);
    load.run(|| {
        for _ in 0..3 {
            load.make_progress("it runs", 100, PATIENCE);
            node.kill();
            node.restart();
        }
        load.make_progress("it runs again", 100, PATIENCE);
    });
    load.verify();
}

#[test]
fn several_nodes_in_one_process_are_linearizable_through_kill_9() {
    let seed = seed("several in one process");
    let small = [
        ("HOLDFAST_STORAGE_SEGMENT_SIZE", "64MiB"),
        ("HOLDFAST_STORAGE_LARGE_BUFFERS", "24"),
        // Pauses are in proportion to it.
        ("HOLDFAST_CLUSTER_SESSION_TIMEOUT", "2 s"),
    ];
    let mut node = Node::start_several(3, &small);
    node.client().create_bucket(BUCKET);
    assert_eq!(node.s3_of_all().len(), 3);
    let load = Workload::new(seed, node.s3_of_all());
    load.run(|| {
        for _ in 0..2 {
            load.make_progress("it runs", 60, PATIENCE);
            node.kill();
            node.restart();
            // A port that somebody took meanwhile is another one now.
            load.set_nodes(node.s3_of_all());
        }
        load.make_progress("it runs again", 60, PATIENCE);
    });
    eventually("a healthy cluster", PATIENCE, || {
        let status = node.try_cli(&["cluster", "status", "--json"]);
        serde_json::from_slice::<serde_json::Value>(&status.stdout).is_ok_and(|status| status["health"] == "healthy")
    });
    load.verify();
}
