//! Everything at once, at random, while what was acknowledged is held against what is read.

use std::sync::atomic::{AtomicBool, AtomicU64};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;

use super::*;

const KEYS: usize = 4;

/// Counters as the database; `acknowledged` holds what callers were told.
#[derive(Default)]
struct World {
    stored: [AtomicU64; KEYS],
    acknowledged: [AtomicU64; KEYS],
    hits: AtomicU64,
    writes: AtomicU64,
}

async fn dawdle(rng: &mut StdRng) {
    match rng.random_range(0..10) {
        0 => tokio::time::sleep(Duration::from_millis(rng.random_range(0..5))).await,
        1..5 => tokio::task::yield_now().await,
        _ => {}
    }
}

async fn write_once(node: &Node, world: &World, key: usize, rng: &mut StdRng) {
    let Ok(write) = node.core.begin(vec![Name::of::<Value>(key.to_string())]).await else { return };
    dawdle(rng).await;
    if rng.random_bool(0.1) {
        return write.abandon();
    }
    let version = world.stored[key].fetch_add(1, Ordering::SeqCst) + 1;
    dawdle(rng).await;
    if rng.random_bool(0.02) {
        // The process dies between the commit and the cache.
        return drop(write);
    }
    if write.finish(codec::encode(&Value(version))).await.is_ok() {
        world.acknowledged[key].fetch_max(version, Ordering::SeqCst);
        world.writes.fetch_add(1, Ordering::Relaxed);
    }
}

async fn read_once(node: &Node, world: &Arc<World>, key: usize, rng: &mut StdRng) {
    let floor = world.acknowledged[key].load(Ordering::SeqCst);
    let (loading, mut load_rng) = (world.clone(), StdRng::seed_from_u64(rng.random()));
    let asked = Arc::new(AtomicBool::new(false));
    let load = {
        let asked = asked.clone();
        async move {
            asked.store(true, Ordering::Relaxed);
            dawdle(&mut load_rng).await;
            let version = loading.stored[key].load(Ordering::SeqCst);
            dawdle(&mut load_rng).await;
            if version == 0 { Err(MetadataError::NoSuchKey) } else { Ok(Arc::new(Value(version))) }
        }
    };
    let found = node.read(&key.to_string(), load).await.unwrap_or(0);
    assert!(found >= floor, "read {found} of key {key} after {floor} was acknowledged");
    if !asked.load(Ordering::Relaxed) {
        world.hits.fetch_add(1, Ordering::Relaxed);
    }
}

/// Readers and writers on three nodes while Redis is killed, emptied, brought back with old data, stopped and cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_on_any_node_is_older_than_an_acknowledged_write_whatever_becomes_of_redis() {
    let seed: u64 = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("HOLDFAST_TEST_SEED={seed}");
    let mut nodes = Nodes::start().await;
    let mut members = Vec::new();
    for number in 1..=3 {
        // Redis is silent again and again, and more is seen when nobody waits for it for long.
        let impatient = |options: &mut RedisCacheOptions| {
            options.read_timeout = Duration::from_millis(500);
            options.write_timeout = Duration::from_millis(200);
            options.connect_timeout = Duration::from_secs(2);
        };
        members.push(Arc::new(nodes.node_with(number, impatient).await));
    }
    let (world, stop) = (Arc::<World>::default(), Arc::new(AtomicBool::new(false)));
    let racers: Vec<_> = (0..9_u64)
        .map(|racer| {
            let (node, world, stop) = (members[racer as usize % 3].clone(), world.clone(), stop.clone());
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(racer));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let key = rng.random_range(0..KEYS);
                    if rng.random_bool(0.15) {
                        write_once(&node, &world, key, &mut rng).await;
                    } else {
                        read_once(&node, &world, key, &mut rng).await;
                    }
                    dawdle(&mut rng).await;
                }
            })
        })
        .collect();
    let mut rng = StdRng::seed_from_u64(!seed);
    let mut on = 0;
    for round in 0..14 {
        let mut states = nodes.founder.watch_cache_state();
        let is_on = states.wait_for(|state| state.mode == CacheMode::On);
        if tokio::time::timeout(PATIENCE, is_on).await.is_ok_and(|found| found.is_ok()) {
            on += 1;
        }
        // Faults come at any moment and last for any time: nothing is waited for here.
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..250))).await;
        let pause = Duration::from_millis(rng.random_range(10..500));
        match round % 7 {
            0 => {
                for _ in 0..20 {
                    nodes.redis.command(&["FLUSHALL"]);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            1 => {
                nodes.redis.save();
                tokio::time::sleep(pause).await;
                nodes.redis.kill();
                nodes.redis.run();
                nodes.redis.forget_saved();
            }
            2 => {
                nodes.redis.kill();
                tokio::time::sleep(pause).await;
                nodes.redis.run();
            }
            3 => {
                let node = &members[rng.random_range(0..3)];
                node.proxy.set(Flow::Stalled);
                tokio::time::sleep(pause).await;
                node.proxy.set(Flow::Open);
            }
            4 => {
                nodes.redis.signal(Signal::STOP);
                tokio::time::sleep(pause).await;
                nodes.redis.signal(Signal::CONT);
            }
            5 => {
                let node = &members[rng.random_range(0..3)];
                node.coordination.cut();
                tokio::time::sleep(pause * 6).await;
                node.coordination.restore();
            }
            _ => {
                let node = &members[rng.random_range(0..3)];
                node.proxy.set(Flow::AnswersHeld);
                tokio::time::sleep(pause).await;
                node.proxy.sever();
                node.proxy.set(Flow::Open);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for racer in racers {
        racer.await.unwrap();
    }
    let (hits, writes) = (world.hits.load(Ordering::Relaxed), world.writes.load(Ordering::Relaxed));
    println!("{hits} hits, {writes} writes, on before {on} of 14 faults");
    // How many there are is for the machine to say.
    assert!(hits > 0 && writes > 0 && on > 0, "{hits} hits, {writes} writes, {on} times on");
}
