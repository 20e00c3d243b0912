//! Races of readers and writers against a store that dawdles at every point where it matters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Notify;

use holdfast_actors::ports::metadata::MetadataError;

use super::*;

#[derive(Debug)]
struct Value(u64);

impl Cacheable for Value {
    fn version(&self) -> (u64, u64) {
        (self.0, 0)
    }

    fn weight_bytes(&self) -> usize {
        100
    }
}

fn cache() -> Arc<Coherent<Value>> {
    Coherent::new("test", 1 << 20, 2)
}

fn load_of(value: u64) -> BoxFuture<'static, MetadataResult<Arc<Value>>> {
    async move { Ok(Arc::new(Value(value))) }.boxed()
}

#[tokio::test]
async fn a_hit_does_not_load() {
    let cache = cache();
    assert_eq!(cache.get_or_load(b"k".to_vec(), || load_of(1)).await.unwrap().0, 1);
    assert_eq!(cache.get_or_load(b"k".to_vec(), || panic!("a load")).await.unwrap().0, 1);
    assert!(cache.get(b"other").is_none());
}

#[tokio::test]
async fn a_load_that_a_write_overtook_does_not_land() {
    let cache = cache();
    let (go, loading) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = tokio::spawn({
        let (cache, go, loading) = (cache.clone(), go.clone(), loading.clone());
        async move {
            let load = move || {
                async move {
                    loading.notify_one();
                    go.notified().await;
                    Ok(Arc::new(Value(1)))
                }
                .boxed()
            };
            cache.get_or_load(b"k".to_vec(), load).await.unwrap().0
        }
    });
    loading.notified().await;
    let mark = cache.mark([b"k".to_vec()]);
    // A reader during the write asks the store itself, and does not join the old load.
    assert_eq!(cache.get_or_load(b"k".to_vec(), || load_of(2)).await.unwrap().0, 2);
    assert!(cache.get(b"k").is_none());
    drop(mark);
    assert_eq!(cache.get_or_load(b"k".to_vec(), || load_of(2)).await.unwrap().0, 2);
    go.notify_one();
    assert_eq!(slow.await.unwrap(), 1);
    assert_eq!(cache.get(b"k").unwrap().0, 2);
}

#[tokio::test]
async fn a_write_that_overlapped_another_leaves_nothing_behind() {
    let cache = cache();
    // The marks tell nothing about which one the store did last, and neither do the ends.
    for second_ends_first in [false, true] {
        let (first, second) = (cache.mark([b"k".to_vec()]), cache.mark([b"k".to_vec()]));
        let ends = if second_ends_first { [second, first] } else { [first, second] };
        for mark in ends {
            mark.finish(&Arc::new(Value(1)));
            assert!(cache.get(b"k").is_none());
        }
    }
    cache.mark([b"k".to_vec()]).finish(&Arc::new(Value(3)));
    assert_eq!(cache.get(b"k").unwrap().0, 3);
}

#[tokio::test]
async fn readers_of_one_key_share_a_load_and_survive_the_first_ones_leaving() {
    let cache = cache();
    let (go, loads) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let reader = || {
        let (cache, go, loads) = (cache.clone(), go.clone(), loads.clone());
        async move {
            let load = move || {
                loads.fetch_add(1, Ordering::Relaxed);
                async move {
                    go.notified().await;
                    Ok(Arc::new(Value(1)))
                }
                .boxed()
            };
            cache.get_or_load(b"k".to_vec(), load).await.unwrap().0
        }
    };
    let mut readers: Vec<_> = (0..8).map(|_| Box::pin(reader())).collect();
    for reader in &mut readers {
        assert!(futures::poll!(reader).is_pending());
    }
    drop(readers.remove(0));
    go.notify_one();
    for reader in readers {
        assert_eq!(reader.await, 1);
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_load_that_everybody_gave_up_is_begun_anew() {
    let cache = cache();
    let mut gone = Box::pin(cache.get_or_load(b"k".to_vec(), || futures::future::pending().boxed()));
    assert!(futures::poll!(&mut gone).is_pending());
    drop(gone);
    assert_eq!(cache.get_or_load(b"k".to_vec(), || load_of(1)).await.unwrap().0, 1);
}

#[tokio::test]
async fn errors_are_told_and_not_kept() {
    let cache = cache();
    let fails = || async { Err(MetadataError::NoSuchKey) }.boxed();
    assert!(matches!(cache.get_or_load(b"k".to_vec(), fails).await, Err(MetadataError::NoSuchKey)));
    assert_eq!(cache.get_or_load(b"k".to_vec(), || load_of(1)).await.unwrap().0, 1);
}

#[tokio::test]
async fn marking_all_empties_the_cache_and_keeps_loads_out() {
    let cache = cache();
    for i in 0..20u8 {
        cache.get_or_load(vec![i], || load_of(1)).await.unwrap();
    }
    let mark = cache.mark_all();
    for i in 0..20u8 {
        assert!(cache.get(&[i]).is_none());
        cache.get_or_load(vec![i], || load_of(2)).await.unwrap();
        assert!(cache.get(&[i]).is_none());
    }
    drop(mark);
    cache.get_or_load(vec![0], || load_of(2)).await.unwrap();
    assert_eq!(cache.get(&[0]).unwrap().0, 2);
}

#[tokio::test]
async fn weight_is_bounded() {
    let cache: Arc<Coherent<Value>> = Coherent::new("test", 10_000, 4);
    for i in 0..10_000u32 {
        cache.mark([i.to_be_bytes().to_vec()]).finish(&Arc::new(Value(1)));
    }
    assert!(cache.entries.weight() <= 10_000, "{}", cache.entries.weight());
}

async fn dawdle(rng: &mut StdRng) {
    for _ in 0..rng.random_range(0..4) {
        tokio::task::yield_now().await;
    }
}

const KEYS: usize = 3;

/// Counters as the store; `acknowledged` holds what callers were told.
#[derive(Default)]
struct World {
    stored: [AtomicU64; KEYS],
    acknowledged: [AtomicU64; KEYS],
}

async fn write(cache: &Arc<Coherent<Value>>, world: &World, key: usize, rng: &mut StdRng) {
    let mark = cache.mark([vec![key as u8]]);
    dawdle(rng).await;
    let version = world.stored[key].fetch_add(1, Ordering::SeqCst) + 1;
    dawdle(rng).await;
    // Some outcomes are not known to the writer: no value goes in, nothing is acknowledged.
    if rng.random_bool(0.8) {
        mark.finish(&Arc::new(Value(version)));
        world.acknowledged[key].fetch_max(version, Ordering::SeqCst);
    }
}

async fn read(cache: &Arc<Coherent<Value>>, world: &Arc<World>, key: usize, rng: &mut StdRng) {
    let floor = world.acknowledged[key].load(Ordering::SeqCst);
    let (loading, mut load_rng) = (world.clone(), StdRng::seed_from_u64(rng.random()));
    let load = move || {
        async move {
            dawdle(&mut load_rng).await;
            let version = loading.stored[key].load(Ordering::SeqCst);
            dawdle(&mut load_rng).await;
            Ok(Arc::new(Value(version)))
        }
        .boxed()
    };
    let reading = cache.get_or_load(vec![key as u8], load);
    if rng.random_bool(0.1) {
        // A reader that goes away halfway.
        let mut reading = Box::pin(reading);
        let _ = futures::poll!(&mut reading);
        return;
    }
    let found = reading.await.unwrap().0;
    assert!(found >= floor, "read {found} of key {key} after {floor} was acknowledged");
}

async fn race(seed: u64, tasks: usize, steps: usize) {
    let (cache, world) = (cache(), Arc::new(World::default()));
    let racers = (0..tasks).map(|task| {
        let (cache, world) = (cache.clone(), world.clone());
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(task as u64));
        tokio::spawn(async move {
            for _ in 0..steps {
                let key = rng.random_range(0..KEYS);
                if rng.random_bool(0.3) {
                    write(&cache, &world, key, &mut rng).await;
                } else {
                    read(&cache, &world, key, &mut rng).await;
                }
            }
        })
    });
    for racer in futures::future::join_all(racers).await {
        racer.unwrap();
    }
    for key in 0..KEYS {
        if let Some(cached) = cache.get(&[key as u8]) {
            assert_eq!(cached.0, world.stored[key].load(Ordering::SeqCst), "what stays is what is stored");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_is_older_than_an_acknowledged_write() {
    let seed: u64 = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("HOLDFAST_TEST_SEED={seed}");
    for round in 0..20 {
        race(seed ^ round, 8, 2_000).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// On one thread, where a seed is one schedule: short races, so that a failing one is small.
    #[test]
    fn every_schedule_is_coherent(seed in any::<u64>(), tasks in 2usize..6, steps in 1usize..20) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(race(seed, tasks, steps));
    }
}
