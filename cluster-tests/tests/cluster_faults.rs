//! Faults under load: nodes killed and paused, cut off from each other or from what they depend on,
//! and the services themselves killed.
//!
//! Under each fault the others go on (where the promise is that they do), and at the end one register a key has to
//! explain every answer that any client got on any node. `HOLDFAST_TEST_SEED` replays the clients' choices.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use holdfast_cluster_tests::cluster::{Cluster, HEAL, REBUILD_DELAY, SESSION};
use holdfast_cluster_tests::content::Random;
use holdfast_cluster_tests::seed;
use holdfast_cluster_tests::workload::{BUCKET, Workload};
use rustix::process::Signal;

/// Changes that must be acknowledged while a fault lasts, to call the cluster available.
const PROGRESS: u64 = 40;
/// Time for them, from the fault on: sessions end, connections time out, clients find other nodes.
const PROGRESS_LIMIT: Duration = Duration::from_secs(120);
/// Longer than what a paused writer left is kept for: sessions end, its shards move elsewhere, its orphans are
/// condemned.
const LONGER: Duration = Duration::from_secs(24);
/// A fault that everybody is to notice.
const LONG: Duration = Duration::from_secs(8);

fn cluster(name: &str, nodes: usize) -> (Cluster, Workload, u64) {
    let seed = seed(name);
    let cluster = Cluster::start(nodes);
    cluster.client(0).create_bucket(BUCKET);
    let load = Workload::new(seed, cluster.addresses());
    (cluster, load, seed)
}

/// Lets a fault last, at least for `least` and until so much was done.
fn endure(load: &Workload, name: &str, least: Duration) {
    let begin = std::time::Instant::now();
    load.make_progress(name, PROGRESS, PROGRESS_LIMIT);
    // The rest of the time that the fault is to last.
    std::thread::sleep(least.saturating_sub(begin.elapsed()));
    println!("{name}: {PROGRESS} changes and more in {:?}", begin.elapsed());
}

#[test]
fn nodes_killed_and_paused_in_the_middle_of_writes_lose_nothing() {
    let (mut cluster, load, seed) = cluster("killed and paused nodes", 4);
    let mut random = Random::new(seed);
    load.run(|| {
        load.make_progress("before any fault", PROGRESS, PROGRESS_LIMIT);
        for round in 0..2 {
            // The controller, then any, each in the middle of what its clients asked of it.
            let victim = if round == 0 { cluster.controller() } else { random.below(4) as usize };
            cluster.members[victim].node.kill();
            load.make_progress("one node killed", PROGRESS, PROGRESS_LIMIT);
            cluster.members[victim].node.restart();
            load.make_progress("the node is back", PROGRESS / 2, PROGRESS_LIMIT);
            cluster.wait_until_healthy("after a kill", HEAL);
        }
        let paused = random.below(4) as usize;
        cluster.members[paused].node.signal(Signal::STOP);
        endure(&load, "one node paused for longer than its session", LONGER);
        cluster.members[paused].node.signal(Signal::CONT);
        load.make_progress("the node goes on", PROGRESS, PROGRESS_LIMIT);
        cluster.wait_until_healthy("after a pause", HEAL);

        // All of them at once, as in a power cut.
        cluster.members.iter_mut().for_each(|member| member.node.kill());
        std::thread::scope(|scope| {
            for member in &mut cluster.members {
                scope.spawn(|| member.node.restart());
            }
        });
        load.make_progress("all nodes killed and started", PROGRESS, PROGRESS_LIMIT);
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
}

#[test]
fn nodes_cut_off_from_peers_zookeeper_or_the_database_change_nothing_wrongly() {
    let (cluster, load, seed) = cluster("partitions", 4);
    let mut random = Random::new(seed);
    load.run(|| {
        load.make_progress("before any fault", PROGRESS, PROGRESS_LIMIT);
        let victim = random.below(4) as usize;
        cluster.cut_peers(victim);
        endure(&load, "one node cut off from its peers, not from ZooKeeper", LONG);
        cluster.network.heal();
        cluster.wait_until_healthy("after a partition between peers", HEAL);

        let victim = cluster.controller();
        cluster.cut_zookeeper(victim, true);
        // Everybody notices, and what it held is rebuilt.
        std::thread::sleep(SESSION + REBUILD_DELAY);
        endure(&load, "the controller cut off from ZooKeeper, not from its peers", LONG / 2);
        cluster.cut_zookeeper(victim, false);
        cluster.wait_until_healthy("after a partition from ZooKeeper", HEAL);

        let victim = random.below(4) as usize;
        cluster.cut_database(victim, true);
        endure(&load, "one node cut off from the database", LONG);
        cluster.cut_database(victim, false);
        cluster.wait_until_healthy("after a partition from the database", HEAL);

        // What is sent arrives, the answers do not.
        let victim = random.below(4) as usize;
        (0..4).filter(|other| *other != victim).for_each(|other| cluster.network.cut(victim, other));
        endure(&load, "one node is not heard by its peers", LONG);
        cluster.network.heal();
        let victim = random.below(4) as usize;
        cluster.members[victim].database.sever();
        cluster.members[victim].zookeeper.iter().for_each(|proxy| proxy.sever());
        load.make_progress("connections broken, not cut", PROGRESS, PROGRESS_LIMIT);
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
}

#[test]
fn zookeeper_and_the_database_killed_in_the_middle_of_commits_lose_nothing() {
    let (mut cluster, load, _) = cluster("services", 3);
    load.run(|| {
        load.make_progress("before any fault", PROGRESS, PROGRESS_LIMIT);
        for _ in 0..2 {
            cluster.mariadb.kill();
            // So long that nodes try to connect in vain.
            std::thread::sleep(Duration::from_millis(500));
            cluster.mariadb.restart();
            load.make_progress("the database was killed and started", PROGRESS, PROGRESS_LIMIT);
        }
        cluster.mariadb.signal(Signal::STOP);
        // Nothing can be acknowledged meanwhile, so that there is no progress to wait for.
        std::thread::sleep(LONG);
        cluster.mariadb.signal(Signal::CONT);
        load.make_progress("the database was paused", PROGRESS, PROGRESS_LIMIT);

        let leader = cluster.ensemble.leader();
        cluster.ensemble.servers[leader].kill();
        load.make_progress("ZooKeeper's leader is killed", PROGRESS, PROGRESS_LIMIT);
        cluster.ensemble.start_all();
        load.make_progress("ZooKeeper is whole again", PROGRESS, PROGRESS_LIMIT);

        // Longer than a session: every node loses its own.
        cluster.ensemble.kill_all();
        std::thread::sleep(SESSION * 2);
        cluster.ensemble.start_all();
        load.make_progress("the whole ensemble was killed and started", PROGRESS, PROGRESS_LIMIT);
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
}
