//! Space comes back, and only what nothing refers to goes: passes over real metadata and chunks in memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_actors::domain::cleanup::PassEnd;
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::reclaim::{ClusterDuty, InFlightWrites, Limits, Reclaimer, Writers};
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkInfo};
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::locks::LockName;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentPlace, ContentSource, NewObject, NewUpload, ObjectAttributes, Part,
    ReplicaEvidence, samples,
};
use holdfast_actors::ports::{ChunkError, ChunkSink, ChunkSpec, ChunkStore, Clock, SystemClock};
use holdfast_actors::wait::{eventually, until_ok};
use holdfast_node::locks::InProcessLocks;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ChunkId, ClusterId, ColdPlace, ContentId, STUB_INDEX, UploadId};
use tokio::time::Instant;

struct World {
    reclaimer: Reclaimer,
    chunks: Arc<MemoryChunkStore>,
    bucket: BucketId,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("metadata.sqlite");
        let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata opens");
        let bucket = samples::bucket(&store, "bucket").await.id;
        let chunks = Arc::new(MemoryChunkStore::new());
        let reclaimer = Reclaimer {
            metadata: Arc::new(store),
            chunks: chunks.clone(),
            cluster: None,
            clock: Arc::new(SystemClock),
            in_flight: InFlightWrites::new(Duration::from_secs(3600)),
            limits,
        };
        Self { reclaimer, chunks, bucket, _dir: dir }
    }

    /// Stores one chunk that belongs to nobody yet.
    fn store(&self, begun_seconds: u64) -> ContentId {
        let content = ContentId::generate(begun_seconds);
        self.chunks.insert(content.chunk(0), Bytes::from_static(b"bytes"));
        content
    }

    fn has(&self, content: ContentId) -> bool {
        self.chunks.stat(content.chunk(0)).is_some()
    }

    async fn commit(&self, key: &str, content: ContentId) {
        self.commit_in(key, content, ContentPlace::Cluster).await;
    }

    async fn commit_in(&self, key: &str, content: ContentId, place: ContentPlace) {
        let content = Content { place, ..samples::content(content, 5) };
        let object = NewObject {
            now_ms: SystemClock.now_ms(),
            class: content.cold().map(|place| place.tier.clone()),
            content: ContentSource::New(content),
            ..samples::object(self.bucket, key)
        };
        self.reclaimer.metadata.commit_object(object).await.expect("a commit");
    }

    async fn delete(&self, keys: &[&str], now_ms: u64) {
        let requests = keys.iter().map(|key| samples::deletion(key)).collect();
        let deleted = self.reclaimer.metadata.delete_objects(self.bucket, requests, now_ms).await.expect("an answer");
        assert!(deleted.iter().all(Result::is_ok), "{keys:?}");
    }

    /// What the node has to do with others, if it were one of a cluster.
    fn in_cluster(&self, duty: Arc<Duty>, ownership: &Ownership, writers: impl Writers) -> ClusterDuty {
        ClusterDuty {
            local: self.chunks.clone(),
            duty,
            ownership: ownership.clone(),
            sweep_from: std::time::Instant::now(),
            writers: Arc::new(writers),
        }
    }

    async fn sweep(&self) -> u64 {
        let (mut cursor, mut items) = (None, 0);
        loop {
            let (stats, end) = self.reclaimer.sweep_orphans(&mut cursor).await.expect("a sweep");
            items += stats.items;
            if end == PassEnd::Done {
                return items;
            }
        }
    }
}

/// A clock that is a year ahead of all others.
struct YearAhead;

impl Clock for YearAhead {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms() + 365 * 86_400_000
    }
}

/// What was condemned a moment ago is a year old by that clock. The write whose chunks were deleted must be refused all
/// the same.
#[tokio::test]
async fn a_node_whose_clock_is_far_ahead_forgets_no_condemnation() {
    let mut world = World::new(Limits::default()).await;
    let content = ContentId::generate(SystemClock.now_ms() / 1_000);
    let condemned = world.reclaimer.metadata.condemn(&[content], SystemClock.now_ms()).await.expect("an answer");
    assert_eq!(condemned, [content]);
    world.reclaimer.clock = Arc::new(YearAhead);
    for _ in 0..2 {
        world.sweep().await;
    }
    let left = world.reclaimer.metadata.condemned(u64::MAX >> 1, 10).await.expect("an answer");
    assert_eq!(left.iter().map(|one| one.content).collect::<Vec<_>>(), [content]);
}

/// A stub is a chunk of a content that metadata knows, for as long as it knows it, and goes with it.
#[tokio::test]
async fn a_stub_stays_while_its_content_is_known_and_is_reclaimed_with_it() {
    let world = World::new(Limits::default()).await;
    let begun = SystemClock.now_seconds() - 1;
    let (cold, orphan) = (ContentId::generate(begun), ContentId::generate(begun));
    for content in [cold, orphan] {
        world.chunks.insert(content.chunk(STUB_INDEX), Bytes::from_static(b"a stub"));
    }
    let place = ColdPlace {
        tier: "OSS".parse().expect("a tier"),
        size_bytes: 5,
        piece_bytes: u64::from(BLOCK_BYTES_MIN),
        block_bytes: BLOCK_BYTES_MIN,
        names: vec!["piece".into()],
        sums: vec![1],
    };
    world.commit_in("key", cold, ContentPlace::Tier(Arc::new(place))).await;
    let has = |content: ContentId| world.chunks.stat(content.chunk(STUB_INDEX)).is_some();
    assert_eq!(world.sweep().await, 1);
    assert!(has(cold) && !has(orphan));

    world.delete(&["key"], 1).await;
    let (stats, end) = world.reclaimer.reclaim_due(0).await.expect("a pass");
    assert_eq!((stats.items, stats.chunks, stats.examined, end), (1, 1, 1, PassEnd::Done));
    assert!(!has(cold));
}

#[tokio::test]
async fn orphans_of_an_earlier_process_go_and_known_contents_and_writes_in_flight_stay() {
    let world = World::new(Limits { page: 2, pages: 1, ..Limits::default() }).await;
    let now = SystemClock.now_seconds();
    let mut orphans = Vec::new();
    let mut known = Vec::new();
    for number in 0..5 {
        orphans.push(world.store(now - 1));
        let content = world.store(now - 1);
        world.commit(&format!("key-{number}"), content).await;
        known.push(content);
    }
    let writing = ContentId::generate(now);
    world.reclaimer.in_flight.on_create(writing);
    world.chunks.insert(writing.chunk(0), Bytes::from_static(b"half an object"));

    assert_eq!(world.sweep().await, 5);
    assert!(orphans.iter().all(|content| !world.has(*content)));
    assert!(known.iter().all(|content| world.has(*content)));
    assert!(world.has(writing));
}

/// What other nodes say that they are writing.
struct Told(Result<Option<u64>, String>);

#[async_trait::async_trait]
impl Writers for Told {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        self.0.clone()
    }
}

/// Ownership that is proven for an hour.
fn proven() -> Ownership {
    let ownership = Ownership::default();
    ownership.extend(Instant::now(), Duration::from_secs(3600));
    ownership
}

/// The duty of cleaning up, which nobody else wants.
fn cleanup_duty() -> Arc<Duty> {
    Duty::new(Arc::new(InProcessLocks::new()), LockName::new("cleanup").expect("a name"))
}

/// The node stands still while it asks, and goes on in another session.
struct Paused(Ownership);

#[async_trait::async_trait]
impl Writers for Paused {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        self.0.revoke();
        self.0.extend(Instant::now(), Duration::from_secs(3600));
        Ok(None)
    }
}

/// Whoever puts metadata back waits until the sessions of all nodes are over, and not for nodes that are cut off.
#[tokio::test]
async fn a_node_that_was_taken_for_stopped_deletes_no_orphans() {
    let mut world = World::new(Limits::default()).await;
    let orphan = world.store(999);
    world.reclaimer.metadata.claim(Some(ClusterId::generate())).await.expect("a claim");
    let ownership = proven();
    let paused = world.in_cluster(cleanup_duty(), &ownership, Paused(ownership.clone()));
    let told = world.in_cluster(cleanup_duty(), &ownership, Told(Ok(None)));
    world.reclaimer.cluster = Some(paused);
    let refused = world.reclaimer.sweep_orphans(&mut None).await.unwrap_err();
    assert!(refused.to_string().contains("prove its membership"), "{refused}");
    world.reclaimer.cluster = Some(told);
    ownership.revoke();
    let refused = world.reclaimer.sweep_orphans(&mut None).await.unwrap_err();
    assert!(refused.to_string().contains("prove its membership"), "{refused}");
    assert!(world.has(orphan));
    ownership.extend(Instant::now(), Duration::from_secs(3600));
    assert_eq!(world.sweep().await, 1);
    assert!(!world.has(orphan));
}

/// A slow upload that another node coordinates put a chunk here hours ago, and puts the next one here in hours.
#[tokio::test]
async fn what_another_node_may_be_writing_is_no_orphan_however_long_it_takes() {
    let mut world = World::new(Limits::default()).await;
    let writing = world.store(1_000);
    let younger = world.store(1_500);
    let older = world.store(999);
    let duty = |told| world.in_cluster(cleanup_duty(), &proven(), Told(told));
    let unknown = duty(Err("node 2 cannot be asked".into()));
    let (some, none) = (duty(Ok(Some(1_000))), duty(Ok(None)));
    world.reclaimer.cluster = Some(unknown);
    let refused = world.reclaimer.sweep_orphans(&mut None).await.unwrap_err();
    assert!(refused.to_string().contains("node 2 cannot be asked"), "{refused}");
    assert!(world.has(writing) && world.has(younger) && world.has(older), "nobody knows");
    world.reclaimer.cluster = Some(some);
    // A backup is being put back, say, while this node was left running: the database is nobody's until all is in it.
    let refused = world.reclaimer.sweep_orphans(&mut None).await.unwrap_err();
    assert!(refused.to_string().contains("belongs to no cluster"), "{refused}");
    assert!(world.has(older), "deleted on the word of metadata that are not complete");
    world.reclaimer.metadata.claim(Some(ClusterId::generate())).await.expect("a claim");
    assert_eq!(world.sweep().await, 1);
    assert!(!world.has(older) && world.has(writing) && world.has(younger));
    world.commit("slow", writing).await;
    world.reclaimer.cluster = Some(none);
    assert_eq!(world.sweep().await, 1);
    assert!(world.has(writing) && !world.has(younger));
}

#[tokio::test]
async fn a_deleted_object_is_reclaimed_after_the_grace_and_not_before() {
    let world = World::new(Limits::default()).await;
    let content = world.store(1);
    world.commit("key", content).await;
    let deleted_ms = SystemClock.now_ms() - 1_000;
    world.delete(&["key"], deleted_ms).await;

    world.reclaimer.reclaim_due(3_600_000).await.expect("a pass");
    assert!(world.has(content), "within the grace");
    assert_eq!(world.sweep().await, 0, "what is queued for reclaiming is no orphan");

    let (stats, end) = world.reclaimer.reclaim_due(0).await.expect("a pass");
    assert_eq!((stats.items, stats.chunks, stats.bytes, end), (1, 1, 5, PassEnd::Done));
    assert!(!world.has(content));
    assert_eq!(world.reclaimer.reclaim_due(0).await.expect("a pass").0.items, 0, "forgotten once deleted");
}

/// Chunks of a node that stands still while it deletes some, and goes on in another session.
struct Leaving(Arc<MemoryChunkStore>, Ownership);

#[async_trait::async_trait]
impl ChunkStore for Leaving {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        self.0.create(spec).await
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        self.0.read(id, range)
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.0.stat(id)
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.1.revoke();
        self.1.extend(Instant::now(), Duration::from_secs(3600));
        self.0.delete(ids).await
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.0.list(after, limit)
    }
}

/// While it stood still metadata may have been put back in which the rest is an object's again.
#[tokio::test]
async fn a_node_that_was_taken_for_stopped_reclaims_no_further_chunks() {
    let mut world = World::new(Limits { delete_batch: 1, ..Limits::default() }).await;
    let contents = [world.store(1), world.store(1)];
    for (key, content) in ["a", "b"].into_iter().zip(contents) {
        world.commit(key, content).await;
    }
    world.delete(&["a", "b"], SystemClock.now_ms() - 1_000).await;
    let ownership = proven();
    let duty = cleanup_duty();
    let standing = duty.clone();
    let standing = tokio::spawn(async move { standing.stand().await });
    eventually("the duty is this node's", || duty.fence().is_some()).await;
    world.reclaimer.chunks = Arc::new(Leaving(world.chunks.clone(), ownership.clone()));
    world.reclaimer.cluster = Some(world.in_cluster(duty, &ownership, Told(Ok(None))));
    let chunks = world.chunks.clone();
    let left = || contents.iter().filter(|content| chunks.stat(content.chunk(0)).is_some()).count();
    let refused = world.reclaimer.reclaim_due(0).await.unwrap_err();
    assert!(refused.to_string().contains("prove its membership"), "{refused}");
    assert_eq!(left(), 1);
    world.reclaimer.chunks = world.chunks.clone();
    world.reclaimer.reclaim_due(0).await.expect("a pass");
    assert_eq!(left(), 0);
    standing.abort();
}

#[tokio::test]
async fn an_upload_that_nobody_finishes_gives_its_parts_back() {
    let world = World::new(Limits::default()).await;
    let begun_ms = SystemClock.now_ms() - 10_000;
    let id = UploadId::generate();
    let new = NewUpload {
        id,
        bucket: world.bucket,
        key: "key".into(),
        owner: "root".into(),
        now_ms: begun_ms,
        attributes: ObjectAttributes::default(),
        tags: vec![],
        acl: CannedAcl::Private,
        checksum: None,
        class: None,
    };
    world.reclaimer.metadata.create_upload(new).await.expect("an upload");
    let content = world.store(1);
    let part = Part { number: 1, content, size_bytes: 5, md5: [0; 16], checksum: None, last_modified_ms: begun_ms };
    world.reclaimer.metadata.put_part(world.bucket, "key", id, part, ReplicaEvidence::default()).await.expect("a part");

    assert_eq!(world.reclaimer.abort_stale_uploads(60_000).await.expect("a pass").0.items, 0, "still young");
    assert_eq!(world.sweep().await, 0, "a part of an upload is no orphan");
    assert_eq!(world.reclaimer.abort_stale_uploads(5_000).await.expect("a pass").0.items, 1);
    // The abort happened in this very millisecond: it is due in the next one.
    until_ok("the part is reclaimed", async || {
        world.reclaimer.reclaim_due(0).await.expect("a pass");
        if world.has(content) { Err("it is still there") } else { Ok(()) }
    })
    .await;
}
