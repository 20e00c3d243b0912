//! The conformance suite through the cache, and what only the cache can get wrong.

use holdfast_actors::ports::metadata::samples::{self, object};

use super::*;
use crate::metadata::{SqliteMetadataStore, SqliteOptions};

type Cached = CachedMetadataStore<SqliteMetadataStore>;

async fn open() -> (Arc<Cached>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    let inner = Arc::new(SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap());
    (Arc::new(CachedMetadataStore::new(inner, &CacheOptions::default())), directory)
}

async fn empty_store() -> (Arc<dyn MetadataStore>, tempfile::TempDir) {
    let (store, directory) = open().await;
    (store, directory)
}

mod conformance {
    holdfast_actors::metadata_conformance!(super::empty_store);
}

async fn bucket(store: &Cached) -> BucketId {
    samples::bucket(store, "b").await.id
}

#[tokio::test]
async fn a_written_object_is_read_from_memory() {
    let (store, _directory) = open().await;
    let id = bucket(&store).await;
    let committed = store.commit_object(object(id, "k")).await.unwrap();
    // The store is gone; what the cache holds is still served.
    store.inner.close().await;
    assert_eq!(store.object(id, "k", None).await.unwrap(), committed.object);
    assert_eq!(store.bucket("b").await.unwrap().id, id);
    assert!(store.object(id, "other", None).await.is_err());
}

#[tokio::test]
async fn a_write_whose_caller_left_is_finished_and_seen() {
    let (store, _directory) = open().await;
    let id = bucket(&store).await;
    let first = store.commit_object(object(id, "k")).await.unwrap().object;
    let mut abandoned = store.commit_object(object(id, "k"));
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    // The mark is still held, so this asks the store; later writes come after the abandoned one in its queue.
    store.commit_object(object(id, "other")).await.unwrap();
    let read = store.object(id, "k", None).await.unwrap();
    assert!(read.sequence > first.sequence);
}

#[tokio::test]
async fn a_disabled_user_is_seen_through_cached_keys() {
    let (store, _directory) = open().await;
    let user = User { name: "alice".into(), admin: false, enabled: true, created_ms: 1 };
    store.create_user(user.clone()).await.unwrap();
    let key = AccessKey {
        access_key: "A".into(),
        sealed_secret: vec![1],
        user,
        enabled: true,
        description: String::new(),
        created_ms: 1,
    };
    store.create_key(key).await.unwrap();
    assert!(store.key("A").await.unwrap().user.enabled);
    store.set_user_enabled("alice", false).await.unwrap();
    assert!(!store.key("A").await.unwrap().user.enabled);
    store.delete_key("A").await.unwrap();
    assert!(store.key("A").await.is_err());
}

/// What a hit costs. Run with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_a_cache_hit() {
    let (store, _directory) = open().await;
    let id = bucket(&store).await;
    store.commit_object(object(id, "some/usual/key.jpg")).await.unwrap();
    let (count, started) = (1_000_000, std::time::Instant::now());
    for _ in 0..count {
        std::hint::black_box(store.object(id, "some/usual/key.jpg", None).await.unwrap());
    }
    println!("{} ns a hit", started.elapsed().as_nanos() / count);
}
