//! What is read for a backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::metadata::samples::{deletion, object};

use super::{bucket, open, server};

/// A backup holds what was there at one moment, whatever is written while it is read page by page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_is_of_one_moment() {
    use holdfast_node::assemble::cluster_tools::dump;

    let server = server().await;
    let store = open(server.options(&server.database().await)).await;
    let id = bucket(&*store).await;
    // A writer that swaps: `z` is made before `a` is removed, and the other way round. At no moment are both absent.
    // Whoever pages through the keys while that goes on may miss both.
    let moving = object(id, "a");
    store.commit_object(moving).await.unwrap();
    for n in 0..2_500 {
        store.commit_object(object(id, &format!("m{n:05}"))).await.unwrap();
    }
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writer = tokio::spawn({
        let (store, stop, swaps) = (store.clone(), stop.clone(), swaps.clone());
        async move {
            let mut keys = ["a", "z"];
            while !stop.load(Ordering::Relaxed) {
                store.commit_object(object(id, keys[1])).await.unwrap();
                for deleted in store.delete_objects(id, vec![deletion(keys[0])], 2).await.unwrap() {
                    deleted.unwrap();
                }
                keys.swap(0, 1);
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // On a busy machine the writer may stand still for many of them.
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut rounds, mut beside) = (0, 0);
    while rounds < 10 || (beside <= 10 && Instant::now() < deadline) {
        rounds += 1;
        let before = swaps.load(Ordering::Relaxed);
        let snapshot = store.snapshot().await.unwrap();
        let mut file = Vec::new();
        let counts = dump(&snapshot, &snapshot, &mut file).await.unwrap();
        beside += swaps.load(Ordering::Relaxed) - before;
        let refused = snapshot.commit_object(object(id, "x")).await.unwrap_err();
        assert!(refused.to_string().contains("snapshot"), "{refused}");
        snapshot.close().await;
        assert!(snapshot.ping().await.is_err(), "a snapshot that was closed answers");
        let text = String::from_utf8(file).unwrap();
        let has = |key: &str| text.contains(&format!("\"key\":\"{key}\""));
        assert!(has("a") || has("z"), "the backup has neither");
        assert_eq!(counts.versions, 2_500 + u64::from(has("a")) + u64::from(has("z")));
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(beside > 10, "the writer swapped only {beside} times while backups were written");
    store.close().await;
}
