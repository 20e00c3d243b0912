//! ZooKeeper has lost all that it had, and there is no copy: the way back of docs/operations.md, "Lose ZooKeeper", to
//! its end.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::process::Output;

use holdfast_cluster_tests::client::Client;
use holdfast_cluster_tests::cluster::{Cluster, HEAL, Options};
use holdfast_cluster_tests::{content, eventually};

const BUCKET: &str = "kept";
const OBJECTS: u64 = 24;
const SIZE: usize = 200_000;
/// Two chunks.
const LARGE: usize = 20 << 20;

fn key(n: u64) -> String {
    format!("k{n}")
}

/// What the object has after `version` of it was written.
fn bytes_of(n: u64, version: u64) -> Vec<u8> {
    content::bytes(n + 1_000 * version, if n == 0 { LARGE } else { SIZE })
}

fn put(client: &Client, n: u64, version: u64) {
    let put = client.put_until_served(BUCKET, &key(n), &bytes_of(n, version));
    assert_eq!(put.status, 200, "k{n}: {}", put.text());
}

/// Every object is read through this node, byte by byte.
fn read_all(cluster: &Cluster, at: usize, version: u64) {
    let client = cluster.client(at);
    for n in 0..OBJECTS {
        let got = client.get_until_served(BUCKET, &key(n));
        assert_eq!(got.status, 200, "k{n} through node {at}: {}", got.text());
        assert!(got.body == bytes_of(n, version), "k{n} through node {at} has other bytes");
    }
    assert_eq!(client.get_until_served(BUCKET, "deleted").status, 404);
}

/// The nodes that hold each shard.
fn places(cluster: &Cluster) -> BTreeMap<u64, Vec<String>> {
    let shards = cluster.cli(0, &["shard", "list"]);
    let place = |shard: &serde_json::Value| {
        let replicas = shard["replicas"].as_array().unwrap().iter();
        let mut nodes: Vec<String> = replicas.map(|replica| replica["node"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        (shard["shard"].as_u64().unwrap(), nodes)
    };
    shards.as_array().unwrap().iter().map(place).collect()
}

/// Whether each chunk of an object is on three nodes that are to have it.
fn is_whole(cluster: &Cluster, key: &str) -> bool {
    let output = cluster.members[0].node.try_cli(&["object", "stat", &format!("{BUCKET}/{key}"), "--json"]);
    if !output.status.success() {
        return false;
    }
    let stat: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut chunks = stat["chunks"].as_array().unwrap().iter();
    chunks.all(|chunk| {
        let replicas = chunk["replicas"].as_array().unwrap().iter();
        replicas.filter(|replica| replica["state"] == "present").count() == 3
    })
}

/// Makes the cluster once more. The server may not have noticed yet that nodes which ended are gone.
fn init_again(cluster: &Cluster, shards: &str) -> Output {
    let arguments = ["cluster", "init", "--again", "--shards", shards, "--replicas", "3", "--json"];
    let mut ended = None;
    eventually("nobody is connected to the database any more", HEAL, || {
        let output = cluster.members[0].node.command(&arguments).output().unwrap();
        let is_refused = String::from_utf8_lossy(&output.stderr).contains("there are connections to");
        ended = Some(output);
        !is_refused
    });
    ended.unwrap()
}

/// As the documentation says how that is seen.
fn is_over(cluster: &Cluster) -> bool {
    let mut kept = cluster.members.iter().map(|member| member.node.metric("holdfast_leftovers_kept", &[]).unwrap());
    kept.all(|kept| kept == Some(0.0))
        && cluster.status(0).is_some_and(|status| status["repairs"] == 0 && status["health"] == "healthy")
}

#[test]
fn a_cluster_is_made_again_in_an_empty_zookeeper_and_loses_nothing() {
    let mut cluster = Cluster::start_with(3, Options { cache: true, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    (0..OBJECTS / 2).for_each(|n| put(&cluster.client(n as usize % 3), n, 1));
    // A node that came later: the places of shards come from what was before, which nobody knows afterwards.
    cluster.add_node();
    cluster.assign_and_apply();
    cluster.wait_until_healthy("a fourth node", HEAL);
    (OBJECTS / 2..OBJECTS).for_each(|n| put(&cluster.client(n as usize % 4), n, 1));
    assert_eq!(cluster.client(1).put_until_served(BUCKET, "deleted", b"x").status, 200);
    assert_eq!(cluster.client(2).delete_until_served(BUCKET, "deleted").status, 204);
    cluster.wait_until_cached("before the loss");
    (0..4).for_each(|at| read_all(&cluster, at, 1));
    let before = places(&cluster);

    cluster.ensemble.lose_data();
    eventually("the loss is noticed", HEAL, || {
        cluster.members[0].node.admin_get("/health/ready").is_ok_and(|response| response.status == 503)
    });
    // Each ends well, though nobody is there to whom it could say so.
    cluster.members.iter_mut().for_each(|member| member.node.stop());
    cluster.ensemble.start_all();
    let node = &mut cluster.members[1].node;
    assert!(node.try_restart().is_err(), "it started in a cluster of which it does not know who holds what");
    assert!(node.log().contains("ZooKeeper has lost its data"), "{}", node.log());

    cluster.redis.as_ref().unwrap().command(&["FLUSHALL"]);
    let refused = init_again(&cluster, "16");
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && complaint.contains("give --shards 32"), "{}: {complaint}", refused.status);
    let made = init_again(&cluster, "32");
    assert!(made.status.success(), "{}: {}", made.status, String::from_utf8_lossy(&made.stderr));
    let again = cluster.members[1].node.command(&["cluster", "init", "--again", "--shards", "32"]).output().unwrap();
    assert_eq!(again.status.code(), Some(4), "a cluster is there: {}", String::from_utf8_lossy(&again.stderr));

    cluster.members.iter_mut().for_each(|member| member.node.restart());
    cluster.assign_and_apply();
    cluster.wait_until_healthy("the cluster is there again", HEAL);
    assert_ne!(places(&cluster), before, "each shard is where it was by chance: nothing had to be moved");
    eventually("what lies on nodes that are no members any more is moved", HEAL, || is_over(&cluster));
    for n in 0..OBJECTS {
        eventually("each chunk is where it belongs", HEAL, || is_whole(&cluster, &key(n)));
    }
    (0..4).for_each(|at| read_all(&cluster, at, 1));

    // It takes writes, of what was there before too, and stands the loss of a node.
    for n in 0..OBJECTS {
        put(&cluster.client(n as usize % 4), n, 2);
    }
    (0..4).for_each(|at| read_all(&cluster, at, 2));
    cluster.wait_until_cached("after all of it");
    cluster.members[0].node.kill();
    (1..4).for_each(|at| read_all(&cluster, at, 2));
    cluster.members[0].node.restart();
    cluster.wait_until_healthy("at the end", HEAL);
    read_all(&cluster, 0, 2);
}
