//! Deletions and expiries are given out, whatever is lost, late, repeated or broken: the dispatcher and its workers
//! over real metadata, chunks in memory and the bus within the process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod alone;
mod doubles;
mod failures;
mod held_still;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "one question is asked")]
#[path = "../support/admin.rs"]
mod support_admin;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_actors::domain::cleanup::PassEnd;
use holdfast_actors::domain::dispatch::{BY_BUS_MAX, DispatchLimits};
use holdfast_actors::flow::consume::{self, ConsumeParts, ConsumeSettings, Consumer, Handled};
use holdfast_actors::flow::reclaim::{InFlightWrites, Limits, PassStats, Reclaimer};
use holdfast_actors::flow::tasks::{DispatchSettings, Dispatcher, TASKS_GROUP, Tally, TaskWorker, consume_settings};
use holdfast_actors::ports::events::{EventBus, EventError, Message, SubscribeOptions, Topic};
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, ContentSource, MetadataDirect as _, MetadataUpkeep as _, NewObject, NewUpload,
    ObjectAttributes, Part, ReplicaEvidence, samples,
};
use holdfast_actors::ports::{ChunkStore, MetadataError, MetadataStore, SystemClock};
use holdfast_actors::wait::until_ok;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::{ContentId, EventId, Task, UploadId};
use tokio::task::JoinHandle;

use doubles::{HandClock, PickyChunks, TestBus};

/// When everything begins, in milliseconds since 1970.
const T0: u64 = 1_800_000_000_000;
const GRACE_MS: u64 = 10_000;
const UPLOAD_AGE_MS: u64 = 100_000;
/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    store: Arc<SqliteMetadataStore>,
    chunks: Arc<PickyChunks>,
    bus: Arc<TestBus>,
    clock: Arc<HandClock>,
    tally: Arc<Tally>,
    dispatcher: Dispatcher,
    bucket: BucketId,
    workers: Vec<JoinHandle<String>>,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.iter().for_each(JoinHandle::abort);
    }
}

/// Things in a task: few, so that a test need not make many.
const BATCH: usize = 20;

/// Late at once, so that a test need not wait.
fn hasty() -> DispatchSettings {
    let limits = DispatchLimits { batch: BATCH, late_ms: 300, late_max_ms: 300, ..DispatchLimits::default() };
    DispatchSettings { limits, publish: PATIENCE, away: Duration::from_secs(3600), hold: Duration::ZERO }
}

/// Nothing is late before the test ends.
fn patient() -> DispatchSettings {
    let limits = DispatchLimits { batch: BATCH, ..DispatchLimits::default() };
    DispatchSettings { limits, publish: PATIENCE, away: Duration::from_secs(3600), hold: Duration::ZERO }
}

impl World {
    async fn new(settings: DispatchSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.sqlite");
        let store = Arc::new(SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap());
        let bucket = samples::bucket(&*store, "bucket").await.id;
        let (chunks, clock) = (Arc::<PickyChunks>::default(), Arc::new(HandClock(AtomicU64::new(T0))));
        let (bus, tally) = (Arc::new(TestBus::default()), Arc::<Tally>::default());
        let reclaimer = reclaimer_of(&store, &chunks, &clock);
        let dispatcher = Dispatcher::new(reclaimer, bus.clone(), tally.clone(), settings);
        Self { store, chunks, bus, clock, tally, dispatcher, bucket, workers: Vec::new(), _dir: dir }
    }

    fn worker(&self) -> TaskWorker {
        TaskWorker {
            reclaimer: reclaimer_of(&self.store, &self.chunks, &self.clock),
            tally: self.tally.clone(),
            grace: Duration::from_millis(GRACE_MS),
            upload_age: Some(Duration::from_millis(UPLOAD_AGE_MS)),
        }
    }

    /// Starts a node's worker.
    fn employ(&mut self, settings: ConsumeSettings) {
        let parts = ConsumeParts {
            bus: self.bus.clone(),
            journal: self.store.clone(),
            clock: Arc::new(SystemClock),
            reporter: None,
            settings,
        };
        self.workers.push(tokio::spawn(consume::run(parts, Arc::new(self.worker()))));
    }

    /// An object with one chunk.
    async fn put(&self, key: &str) -> ContentId {
        let content = ContentId::generate(T0 / 1000);
        self.chunks.inner.insert(content.chunk(0), Bytes::from_static(b"bytes"));
        self.commit(key, ContentSource::New(samples::content(content, 5))).await.unwrap();
        content
    }

    async fn commit(&self, key: &str, content: ContentSource) -> Result<(), MetadataError> {
        let object = NewObject { now_ms: self.now_ms(), content, ..samples::object(self.bucket, key) };
        self.store.commit_object(object).await.map(drop)
    }

    async fn delete(&self, key: &str) {
        self.store
            .delete_objects(self.bucket, vec![samples::deletion(key)], self.now_ms())
            .await
            .unwrap()
            .remove(0)
            .unwrap();
    }

    /// Objects that are deleted, and whose grace is over.
    async fn due(&self, count: usize) -> Vec<ContentId> {
        let mut contents = Vec::new();
        for number in 0..count {
            let key = format!("due {number}");
            contents.push(self.put(&key).await);
            self.delete(&key).await;
        }
        self.go_on(GRACE_MS + 1);
        contents
    }

    /// An upload with one part.
    async fn upload(&self, key: &str) -> (UploadId, ContentId) {
        let id = UploadId::generate();
        let new = NewUpload {
            id,
            bucket: self.bucket,
            key: key.into(),
            owner: "root".into(),
            now_ms: self.now_ms(),
            attributes: ObjectAttributes::default(),
            tags: vec![],
            acl: CannedAcl::Private,
            checksum: None,
            class: None,
        };
        self.store.create_upload(new).await.unwrap();
        let content = ContentId::generate(T0 / 1000);
        self.chunks.inner.insert(content.chunk(0), Bytes::from_static(b"bytes"));
        let last_modified_ms = self.now_ms();
        let part = Part { number: 1, content, size_bytes: 5, md5: [0; 16], checksum: None, last_modified_ms };
        self.store.put_part(self.bucket, key, id, part, ReplicaEvidence::default()).await.unwrap();
        (id, content)
    }

    fn now_ms(&self) -> u64 {
        self.clock.0.load(Ordering::Relaxed)
    }

    fn go_on(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }

    fn has(&self, content: &ContentId) -> bool {
        self.chunks.inner.stat(content.chunk(0)).is_some()
    }

    async fn waiting(&self) -> usize {
        self.store.waiting_reclaims(u64::MAX >> 1, 10_000).await.unwrap().len()
    }

    /// Passes until nothing is left to be done; what they did.
    async fn settle(&self) -> PassStats {
        let mut all = PassStats::default();
        let pass = async || {
            let (stats, end) = self.dispatcher.reclaim(GRACE_MS).await.unwrap();
            all.add(stats);
            let left = self.waiting().await;
            if end == PassEnd::Done && left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
        };
        until_ok("nothing is left", pass).await;
        all
    }

    /// The task that the dispatcher gives out for what is due, which nobody gets.
    async fn lost_task(&self) -> Message {
        self.bus.lose(1);
        self.dispatcher.reclaim(GRACE_MS).await.unwrap();
        self.bus.published().pop().unwrap()
    }
}

fn reclaimer_of(store: &Arc<SqliteMetadataStore>, chunks: &Arc<PickyChunks>, clock: &Arc<HandClock>) -> Reclaimer {
    Reclaimer {
        metadata: store.clone(),
        chunks: chunks.clone(),
        cluster: None,
        clock: clock.clone(),
        in_flight: InFlightWrites::new(Duration::ZERO),
        limits: Limits { delete_batch: 4, ..Limits::default() },
    }
}

fn message(task: &Task) -> Message {
    let id = EventId::generate(1);
    let (order_key, tag) = (id.to_string(), task.kind().to_owned());
    Message { id, order_key, tag, keys: vec![], body: task.encode().into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_is_given_out_in_tasks_and_done_once() {
    let mut world = World::new(patient()).await;
    world.employ(consume_settings());
    world.employ(consume_settings());
    let kept = world.put("kept").await;
    let contents = world.due(2 * BATCH + 10).await;
    let young = world.put("young").await;
    world.delete("young").await;

    let begun = Instant::now();
    let mut done = PassStats::default();
    while done.items < contents.len() as u64 {
        assert!(begun.elapsed() < PATIENCE, "{done:?}");
        done.add(world.dispatcher.reclaim(GRACE_MS).await.unwrap().0);
    }
    assert_eq!((done.items, done.chunks), (contents.len() as u64, contents.len() as u64));
    assert!(contents.iter().all(|content| !world.has(content)));
    assert!(world.has(&kept) && world.has(&young));
    assert_eq!(world.waiting().await, 1);
    let published = world.bus.published();
    let sizes: Vec<usize> = published.iter().map(|message| Task::decode(&message.body).unwrap().len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), contents.len(), "{sizes:?}");
    assert!(published.iter().all(|message| message.tag == "reclaim"));
    assert_eq!(world.dispatcher.reclaim(GRACE_MS).await.unwrap(), (PassStats::default(), PassEnd::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_message_is_sent_once_more() {
    let mut world = World::new(hasty()).await;
    world.employ(consume_settings());
    let contents = world.due(3).await;
    world.bus.lose(1);
    let done = world.settle().await;
    assert_eq!(done.items, 3);
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_loses_everything_keeps_nothing_from_being_deleted() {
    let world = World::new(hasty()).await;
    let contents = world.due(3).await;
    world.bus.lose(u64::MAX);
    assert_eq!(world.settle().await.items, 3);
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), BY_BUS_MAX as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_is_gone_is_left_alone_and_the_dispatcher_does_the_work() {
    // Waited out once, where nobody is subscribed; enough for a worker that was just employed, on a busy machine too.
    let mut world = World::new(DispatchSettings { publish: Duration::from_secs(6), ..patient() }).await;
    let contents = world.due(3).await;
    assert_eq!(world.settle().await.items, 3);
    assert!(contents.iter().all(|content| !world.has(content)));

    world.dispatcher.forget_failures();
    world.employ(consume_settings());
    world.bus.refuse(EventError::Unavailable("no broker".into()));
    for _ in 0..3 {
        world.due(3).await;
        assert_eq!(world.settle().await.items, 3);
    }
    assert_eq!(world.bus.tries(), 2, "it is left alone for a while");
    // An operator who asks has it tried again.
    world.bus.accept();
    world.dispatcher.forget_failures();
    world.due(3).await;
    assert_eq!(world.settle().await.items, 3);
    assert_eq!(world.bus.published().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_later_version_wait_for_a_node_that_knows_them() {
    let world = World::new(patient()).await;
    let with = |body: &'static [u8]| Message {
        body: Bytes::from_static(body),
        ..message(&Task::Reclaim { before_ms: 0, contents: vec![] })
    };
    let later = world.worker().handle(&with(br#"{"version":2,"kind":"reclaim"}"#)).await;
    assert!(matches!(&later, Handled::Failed(error) if error.contains("does not know")), "{later:?}");
    let wrong = world.worker().handle(&with(b"{}")).await;
    assert!(matches!(&wrong, Handled::Hopeless(error) if error.contains("not a task")), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_wait_while_no_worker_runs() {
    let mut world = World::new(DispatchSettings { publish: Duration::from_millis(200), ..patient() }).await;
    // The group was there before, and its worker is gone.
    let options = SubscribeOptions { group: TASKS_GROUP.into(), lease: Duration::from_secs(60) };
    drop(world.bus.subscribe(Topic::Tasks, options).await.unwrap());
    let contents = world.due(2).await;
    let (_, end) = world.dispatcher.reclaim(GRACE_MS).await.unwrap();
    assert_eq!(end, PassEnd::More, "the bus has the task");
    assert_eq!(world.dispatcher.reclaim(GRACE_MS).await.unwrap().1, PassEnd::Pending);
    assert!(contents.iter().all(|content| world.has(content)));
    world.employ(consume_settings());
    world.settle().await;
    assert!(contents.iter().all(|content| !world.has(content)));
    assert!(world.bus.check(Topic::Tasks).await.is_ok());
}
