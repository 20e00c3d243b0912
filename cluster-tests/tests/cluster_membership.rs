//! Nodes come, leave and are lost while clients write.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use holdfast_cluster_tests::cluster::{Cluster, HEAL, REBUILD_DELAY};
use holdfast_cluster_tests::workload::{BUCKET, Workload};
use holdfast_cluster_tests::{eventually, seed};
use serde_json::Value;

const PROGRESS: u64 = 40;
const PROGRESS_LIMIT: Duration = Duration::from_secs(120);

/// Shards of this health, as a node says it.
fn shards_of(cluster: &Cluster, at: usize, health: &str) -> u64 {
    cluster.status(at).and_then(|status| status["shards"][health].as_u64()).unwrap_or(0)
}

/// Shards of which a node is a member, as another one says it.
fn shards_that_count_on(cluster: &Cluster, at: usize, node: usize) -> usize {
    let id = cluster.members[node].id.as_str();
    let shards = cluster.cli(at, &["shard", "list", "--node", id]);
    let members = shards.as_array().unwrap().iter().flat_map(|shard| shard["replicas"].as_array().unwrap());
    members.filter(|replica| replica["node"] == id && replica["role"] == "member").count()
}

#[test]
fn a_cluster_grows_loses_a_node_rebuilds_and_drains_while_clients_write() {
    let seed = seed("membership");
    let mut cluster = Cluster::start(3);
    cluster.client(0).create_bucket(BUCKET);
    let load = Workload::new(seed, cluster.addresses());
    load.run(|| {
        load.make_progress("three nodes", PROGRESS, PROGRESS_LIMIT);
        let added = cluster.add_node();
        load.add_node(cluster.members[added].node.s3());
        cluster.assign_and_apply();
        load.make_progress("a fourth node takes its share", PROGRESS, PROGRESS_LIMIT);
        cluster.wait_until_healthy("with four nodes", HEAL);

        // Lost for good: its data is rebuilt on the others without anybody asking.
        let lost = 1;
        load.remove_node(cluster.members[lost].node.s3());
        let begin = Instant::now();
        cluster.members[lost].node.kill();
        let observer = 0;
        // Before anything else: it is over when all is rebuilt. That takes seconds, and so may asking on a busy
        // machine.
        eventually("the loss is said, or made good", HEAL, || {
            shards_of(&cluster, observer, "degraded") > 0 || shards_that_count_on(&cluster, observer, lost) == 0
        });
        load.make_progress("a node is lost", PROGRESS, PROGRESS_LIMIT);
        let id = cluster.members[lost].id.clone();
        let is_lost = |node: &Value| node["id"] == id.as_str() && node["state"] == "absent";
        eventually("everything has three replicas again", HEAL, || {
            let Some(status) = cluster.status(observer) else { return false };
            // Before its session is over, the shards that it has are as healthy as they were.
            let is_known = status["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(is_lost));
            let shards = &status["shards"];
            is_known && shards["total"].as_u64().is_some_and(|total| total > 0 && shards["healthy"] == total)
        });
        let left = shards_that_count_on(&cluster, observer, lost);
        println!("rebuilt {:?} after the loss, {left} shards still name the lost node", begin.elapsed());
        assert_eq!(left, 0, "a shard counts a lost node as a member and calls itself healthy");
        assert!(begin.elapsed() >= REBUILD_DELAY, "rebuilt before the delay");
        cluster.remove_node(observer, &id, true);
        load.make_progress("the lost node is forgotten", PROGRESS, PROGRESS_LIMIT);
        cluster.wait_until_healthy("without the lost node", HEAL);

        // A fifth comes, and the first one leaves; it is killed in the middle, and so is the controller.
        let added = cluster.add_node();
        load.add_node(cluster.members[added].node.s3());
        cluster.assign_and_apply();
        let leaver = 0;
        let id = cluster.members[leaver].id.clone();
        cluster.cli(added, &["node", "drain", &id]);
        cluster.members[leaver].node.kill();
        cluster.members[leaver].node.restart();
        let controller = cluster.controller();
        cluster.members[controller].node.kill();
        cluster.members[controller].node.restart();
        load.make_progress("a drain is interrupted", PROGRESS, PROGRESS_LIMIT);
        let drained = cluster.cli(added, &["node", "drain", &id, "--wait"]);
        assert_eq!(drained["done"], true, "{drained}");
        load.remove_node(cluster.members[leaver].node.s3());
        // Stopped first, as an operator would: it cannot be asked any more, and nothing of it is needed.
        cluster.members[leaver].node.stop();
        cluster.remove_node(added, &id, false);
        load.make_progress("the drained node is gone", PROGRESS, PROGRESS_LIMIT);
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
}
