//! Metadata on SQLite with a bucket, at times that the test chooses.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, ChangeRequest, DeleteRequest, NewBucket, User, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{AccessLog, Clock, MetadataStore, Outbox, TierLedger};
use holdfast_node::metadata::{CacheOptions, CachedMetadataStore, SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::VersionId;
use holdfast_protocol::events::PARTITIONS;

pub const HOUR: u64 = 3_600_000;
/// 1 January 2024, 12:00.
pub const NOON: u64 = 1_704_110_400_000;

/// Stands still unless it is set, and counts how often it was looked at.
pub struct HandClock {
    now_ms: AtomicU64,
    looks: AtomicU64,
}

impl HandClock {
    pub fn new(now_ms: u64) -> Arc<Self> {
        Arc::new(Self { now_ms: AtomicU64::new(now_ms), looks: AtomicU64::new(0) })
    }

    pub fn set(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }
}

impl Clock for HandClock {
    fn now_ms(&self) -> u64 {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.now_ms.load(Ordering::Relaxed)
    }
}

/// One database behind its ports, with `bucket`.
pub struct Metadata {
    /// Through the cache.
    pub store: Arc<dyn MetadataStore>,
    pub outbox: Arc<dyn Outbox>,
    pub ledger: Arc<dyn TierLedger>,
    pub reads: Arc<dyn AccessLog>,
    pub bucket: BucketId,
}

impl Metadata {
    /// Of [`NOON`].
    pub async fn new(dir: &Path, versioning: Versioning) -> Self {
        let path = dir.join("metadata.sqlite");
        let sqlite = Arc::new(SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap());
        let store: Arc<dyn MetadataStore> =
            Arc::new(CachedMetadataStore::new(sqlite.clone(), &CacheOptions::default()));
        let alice = User { name: "alice".into(), admin: false, enabled: true, created_ms: NOON };
        store.create_user(alice).await.unwrap();
        let new = NewBucket { name: "bucket".into(), owner: "alice".into(), acl: CannedAcl::Private, now_ms: NOON };
        let bucket = store.create_bucket(new).await.unwrap().id;
        if versioning != Versioning::Unversioned {
            store.set_versioning("bucket", bucket, versioning).await.unwrap();
        }
        Self { store, outbox: sqlite.clone(), ledger: sqlite.clone(), reads: sqlite, bucket }
    }
}

/// As DeleteObject does.
pub async fn delete(store: &dyn MetadataStore, bucket: BucketId, key: &str, version: Option<VersionId>, now_ms: u64) {
    let request = DeleteRequest {
        key: key.into(),
        version,
        marker_version: VersionId::generate(1),
        owner: "alice".into(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    };
    for deleted in store.delete_objects(bucket, vec![request], now_ms).await.unwrap() {
        deleted.unwrap();
    }
}

/// A change of a version, whatever it is by now, that nobody is told of.
pub fn change_request(bucket: BucketId, key: &str, version: Option<VersionId>, now_ms: u64) -> ChangeRequest {
    ChangeRequest { bucket, key: key.into(), version, only_if: None, event: None, now_ms }
}

/// Events told, in the order of their ids: name and key.
pub async fn events(outbox: &dyn Outbox) -> Vec<String> {
    let mut rows = Vec::new();
    for part in 0..PARTITIONS {
        rows.extend(outbox.lowest(part, 1_000).await.unwrap());
    }
    rows.sort_by_key(|row| row.message.id.sequence);
    rows.iter().map(|row| format!("{} {}", row.message.tag, row.message.order_key)).collect()
}
