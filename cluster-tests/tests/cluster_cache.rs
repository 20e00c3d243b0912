//! A cluster with a cache in Redis, whose Redis is killed, emptied, brought back with old data, cut off from one node,
//! stopped, filled and flushed, and whose nodes are killed between a commit and the cache.
//!
//! Under each fault writes go on, and at the end one register a key has to explain every answer that any client got on
//! any node. `HOLDFAST_TEST_SEED` replays the clients' choices.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use holdfast_cluster_tests::cluster::{Cluster, HEAL, Options};
use holdfast_cluster_tests::content::Random;
use holdfast_cluster_tests::workload::{BUCKET, Workload};
use holdfast_cluster_tests::{eventually, seed};
use rustix::process::Signal;

/// Changes that must be acknowledged while a fault lasts.
const PROGRESS: u64 = 25;
const PROGRESS_LIMIT: Duration = Duration::from_secs(120);
const NODES: usize = 3;
/// What the server may hold beyond what it does, when memory is short: some hundred entries.
const SCARCE_BYTES: u64 = 200 << 10;

/// The sum of a metric over all nodes.
fn sum(cluster: &Cluster, name: &str, labels: &[&str]) -> f64 {
    let of =
        |member: &holdfast_cluster_tests::cluster::Member| member.node.metric(name, labels).unwrap().unwrap_or(0.0);
    cluster.members.iter().map(of).sum()
}

fn hits(cluster: &Cluster) -> f64 {
    sum(cluster, "holdfast_metadata_cache_hits_total", &["cache=\"objects\""])
}

/// With the cache on, reads are answered by it.
fn is_used(cluster: &Cluster, load: &Workload, name: &str) {
    cluster.wait_until_cached(name);
    let (before, begin) = (hits(cluster), Instant::now());
    load.make_progress(name, PROGRESS, PROGRESS_LIMIT);
    eventually("reads are answered by the cache", PROGRESS_LIMIT, || hits(cluster) > before + 20.0);
    println!("{name}: {:.0} hits in {:?}", hits(cluster) - before, begin.elapsed());
}

fn state(cluster: &Cluster, at: usize) -> String {
    cluster.status(at).map(|status| status["cache"].to_string()).unwrap_or_default()
}

fn used_bytes(cluster: &Cluster) -> u64 {
    let info = cluster.redis.as_ref().unwrap().command(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    used.trim().parse().unwrap()
}

#[test]
fn a_cluster_with_a_cache_is_one_register_a_key_whatever_becomes_of_redis() {
    let seed = seed("cache");
    let options = Options { cache: true, ..Options::default() };
    let mut cluster = Cluster::start_with(NODES, options);
    cluster.client(0).create_bucket(BUCKET);
    let load = Workload::new(seed, cluster.addresses());
    let mut random = Random::new(seed);
    load.run(|| {
        is_used(&cluster, &load, "with the cache");
        cluster.redis.as_ref().unwrap().save();
        load.make_progress("after a snapshot", PROGRESS, PROGRESS_LIMIT);

        cluster.redis.as_mut().unwrap().kill();
        load.make_progress("Redis is killed", PROGRESS, PROGRESS_LIMIT);
        cluster.redis.as_mut().unwrap().run();
        is_used(&cluster, &load, "Redis came back with old data");

        cluster.redis.as_ref().unwrap().forget_saved();
        cluster.redis.as_mut().unwrap().kill();
        cluster.redis.as_mut().unwrap().run();
        is_used(&cluster, &load, "Redis came back at once and empty");

        let turned_off = sum(&cluster, "holdfast_metadata_cache_turned_off_total", &[]);
        for _ in 0..40 {
            cluster.redis.as_ref().unwrap().command(&["FLUSHALL"]);
            // Over a second, so that writes are in the middle of theirs.
            std::thread::sleep(Duration::from_millis(25));
        }
        load.make_progress("Redis was flushed again and again", PROGRESS, PROGRESS_LIMIT);
        let lost = sum(&cluster, "holdfast_metadata_cache_writes_total", &["outcome=\"mark_lost\""]);
        println!("{lost} marks were lost, switched off {} times", {
            sum(&cluster, "holdfast_metadata_cache_turned_off_total", &[]) - turned_off
        });

        let victim = random.below(NODES as u64) as usize;
        let observer = (victim + 1) % NODES;
        cluster.cut_redis(victim, true);
        load.make_progress("one node is cut off from Redis", PROGRESS, PROGRESS_LIMIT);
        let id = cluster.members[victim].id.clone();
        eventually("the status names the node that is cut off", PROGRESS_LIMIT, || {
            state(&cluster, observer).contains("\"off\"") && state(&cluster, observer).contains(&id)
        });
        cluster.cut_redis(victim, false);
        is_used(&cluster, &load, "the node reaches Redis again");

        cluster.redis.as_ref().unwrap().signal(Signal::STOP);
        load.make_progress("Redis stands still", PROGRESS, PROGRESS_LIMIT);
        cluster.redis.as_ref().unwrap().signal(Signal::CONT);
        is_used(&cluster, &load, "Redis goes on");

        // Full, and it throws nothing out: no write can be marked.
        let redis = cluster.redis.as_ref().unwrap();
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        load.make_progress("Redis is full", PROGRESS, PROGRESS_LIMIT);
        eventually("the status says why", PROGRESS_LIMIT, || state(&cluster, 0).contains("maxmemory"));
        // Full, and it throws out what was not used for the longest time.
        redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
        redis.command(&["CONFIG", "SET", "maxmemory", &(used_bytes(&cluster) + SCARCE_BYTES).to_string()]);
        cluster.wait_until_cached("Redis evicts");
        let (filler, mut fillers) = ("x".repeat(1_000), 0..);
        eventually("Redis throws entries out", PROGRESS_LIMIT, || {
            for at in fillers.by_ref().take(200) {
                redis.command(&["SET", &format!("filler-{at}"), &filler]);
            }
            let stats = redis.command(&["INFO", "stats"]);
            let evicted = stats.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap().trim();
            evicted.parse::<u64>().unwrap() > 500
        });
        is_used(&cluster, &load, "Redis evicts");
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);

        // Killed at any point of a write: before the commit, and between it and the cache.
        for _ in 0..3 {
            let victim = random.below(NODES as u64) as usize;
            cluster.members[victim].node.kill();
            load.make_progress("a node is killed", PROGRESS / 2, PROGRESS_LIMIT);
            cluster.members[victim].node.restart();
            load.make_progress("the node is back", PROGRESS / 2, PROGRESS_LIMIT);
        }
        is_used(&cluster, &load, "all nodes are here");
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
}
