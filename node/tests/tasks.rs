//! Deletions and expiries are given out, whatever is lost, late, repeated or broken: the dispatcher and its workers over real
//! metadata, chunks in memory and the bus within the process.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_actors::domain::admission::{ClassLimits, Limits as AdmissionLimits};
use holdfast_actors::domain::cleanup::{PassEnd, PassKind};
use holdfast_actors::domain::dispatch::{BY_BUS_MAX, DispatchLimits};
use holdfast_actors::flow::consume::{self, ConsumeParts, ConsumeSettings, Consumer, Handled};
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::reclaim::{ClusterDuty, InFlightWrites, Limits, PassStats, Reclaimer, Writers};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::tasks::{DispatchSettings, Dispatcher, TASKS_GROUP, Tally, TaskWorker, consume_settings};
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::events::{
    EventBus, EventError, InProcessEventBus, InProcessLimits, Message, SubscribeOptions, Topic,
};
use holdfast_actors::ports::locks::LockName;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag, MetadataUpkeep as _, NewBucket,
    NewObject, NewUpload, ObjectAttributes, Part, ReplicaEvidence, WritePrecondition,
};
use holdfast_actors::ports::{ChunkStore, Journal, MetadataError, MetadataStore, SystemClock};
use holdfast_actors::service::cleanup::CleanupSettings;
use holdfast_actors::service::disk::DiskSettings;
use holdfast_actors::service::{self, NodeParts};
use holdfast_node::locks::InProcessLocks;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::{ContentId, EventId, Manifest, Task, UploadId, VersionId};
use http::{Method, StatusCode};
use tokio::task::JoinHandle;

#[path = "tasks/doubles.rs"]
mod doubles;
mod support;
#[allow(dead_code, reason = "one question is asked")]
#[path = "support/admin.rs"]
mod support_admin;

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
        let new = NewBucket { name: "bucket".into(), owner: "root".into(), acl: CannedAcl::Private, now_ms: T0 };
        let bucket = store.create_bucket(new).await.unwrap().id;
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
        let new = Content {
            id: content,
            manifest: Manifest::single(content, 5),
            etag: ETag { md5: [0; 16], parts: None },
            checksum: None,
            parts: vec![],
            place: ContentPlace::Cluster,
        };
        self.commit(key, ContentSource::New(new)).await.unwrap();
        content
    }

    async fn commit(&self, key: &str, content: ContentSource) -> Result<(), MetadataError> {
        let object = NewObject {
            bucket: self.bucket,
            key: key.into(),
            version: VersionId::generate(1),
            now_ms: self.now_ms(),
            owner: "root".into(),
            content,
            attributes: ObjectAttributes::default(),
            tags: vec![],
            acl: CannedAcl::Private,
            precondition: WritePrecondition::default(),
            event: None,
            evidence: ReplicaEvidence::default(),
            class: None,
        };
        self.store.commit_object(object).await.map(drop)
    }

    async fn delete(&self, key: &str) {
        let request = DeleteRequest {
            key: key.into(),
            version: None,
            marker_version: VersionId::generate(1),
            owner: "root".into(),
            precondition: WritePrecondition::default(),
            only_if: None,
            event: None,
        };
        self.store.delete_objects(self.bucket, vec![request], self.now_ms()).await.unwrap().remove(0).unwrap();
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
        let (begun, mut all) = (Instant::now(), PassStats::default());
        loop {
            let (stats, end) = self.dispatcher.reclaim(GRACE_MS).await.unwrap();
            all.add(stats);
            if end == PassEnd::Done && self.waiting().await == 0 {
                return all;
            }
            assert!(begun.elapsed() < PATIENCE, "{} are left", self.waiting().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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

/// Of a worker that dies with a task the bus knows nothing: the task comes to another when its lease is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_worker_had_is_done_by_another_and_is_sent_once() {
    let mut world = World::new(patient()).await;
    let contents = world.due(3).await;
    let options = SubscribeOptions { group: TASKS_GROUP.into(), lease: Duration::from_millis(500) };
    let mut killed = world.bus.subscribe(Topic::Tasks, options).await.unwrap();
    let dispatcher = world.dispatcher.clone();
    let sending = tokio::spawn(async move { dispatcher.reclaim(GRACE_MS).await });
    let had = killed.receive(1, PATIENCE).await.unwrap();
    assert_eq!((had.len(), had[0].attempt), (1, 1));
    drop(killed);

    world.employ(consume_settings());
    tokio::time::timeout(PATIENCE, sending).await.expect("the task is done in time").unwrap().unwrap();
    world.settle().await;
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), 1, "the holder of the duty gave nothing out again");
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
    let mut world = World::new(DispatchSettings { publish: Duration::from_millis(100), ..patient() }).await;
    // Nobody is subscribed.
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
async fn repeated_tasks_and_several_workers_at_once_do_it_once() {
    let world = World::new(patient()).await;
    let contents = world.due(15).await;
    let task = world.lost_task().await;
    let workers: Vec<TaskWorker> = (0..4).map(|_| world.worker()).collect();
    let handled = futures::future::join_all(workers.iter().map(|worker| worker.handle(&task))).await;
    assert!(handled.iter().all(|handled| *handled == Handled::Done), "{handled:?}");
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.waiting().await, 0);

    // Long after, when the rows are gone and there is something new.
    let kept = world.put("kept").await;
    let deleted = world.put("deleted").await;
    world.delete("deleted").await;
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&kept) && world.has(&deleted));
    assert_eq!(world.waiting().await, 1);
}

/// Polls a future until it has waited `left` times, and drops it then.
struct DropAfter<F> {
    future: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => {
                self.left -= 1;
                Poll::Pending
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_dropped_at_any_await_leaves_work_that_the_next_one_ends() {
    let world = World::new(patient()).await;
    for left in 0.. {
        let contents = world.due(6).await;
        let task = world.lost_task().await;
        let worker = world.worker();
        let handled = DropAfter { future: Box::pin(worker.handle(&task)), left }.await;
        let named: HashSet<ContentId> =
            world.store.waiting_reclaims(u64::MAX >> 1, 100).await.unwrap().iter().map(|item| item.content).collect();
        for content in &contents {
            assert!(named.contains(content) || !world.has(content), "forgotten with its chunk there, after {left}");
        }
        assert_eq!(world.worker().handle(&task).await, Handled::Done);
        assert!(contents.iter().all(|content| !world.has(content)));
        // A transaction of the worker that was dropped may be under way.
        let begun = Instant::now();
        while world.waiting().await > 0 {
            assert!(begun.elapsed() < PATIENCE, "{} are left", world.waiting().await);
            world.worker().handle(&task).await;
        }
        if handled.is_some() {
            assert!(left > 3, "it was dropped in the middle before");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_up_again_before_the_task_is_handled_stays() {
    let world = World::new(patient()).await;
    let contents = world.due(3).await;
    let task = world.lost_task().await;
    world.commit("copy", ContentSource::Shared(contents[0])).await.unwrap();
    world.commit("short", ContentSource::Shared(contents[1])).await.unwrap();
    world.delete("short").await;
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&contents[0]), "an object has it");
    assert!(world.has(&contents[1]), "its grace began anew");
    assert!(!world.has(&contents[2]));
    let refused = world.commit("late", ContentSource::Shared(contents[2])).await;
    assert!(matches!(refused, Err(MetadataError::NoSuchContent)), "{refused:?}");
    world.go_on(GRACE_MS + 1);
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&contents[1]), "this task was of before");
    let again = world.lost_task().await;
    assert_eq!(world.worker().handle(&again).await, Handled::Done);
    assert!(world.has(&contents[0]) && !world.has(&contents[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_always_fails_becomes_a_dead_letter_and_others_pass() {
    let mut world = World::new(patient()).await;
    world.employ(ConsumeSettings { attempts_max: 2, ..consume_settings() });
    let contents = world.due(BATCH + 10).await;
    let sick = contents[7];
    world.chunks.refuse(sick);
    let begun = Instant::now();
    let journal: &dyn Journal = &*world.store;
    let dead = loop {
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
        let dead = journal.dead_letters(0, 10).await.unwrap();
        if let (1, [dead]) = (world.waiting().await, &dead[..]) {
            break dead.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "{} are left, {} are dead", world.waiting().await, dead.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(contents.iter().all(|content| world.has(content) == (*content == sick)), "the others of its task too");
    assert_eq!((dead.topic.as_str(), dead.group.as_str(), dead.attempts), ("tasks", "tasks", 2));
    assert!(dead.error.starts_with(&format!("1 of {BATCH} could not be done")), "{}", dead.error);
    // It is not sent again and again, and what is new passes.
    let more = world.due(5).await;
    for _ in 0..20 {
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
    }
    assert!(more.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), 3);
    assert_eq!(journal.dead_letters(0, 10).await.unwrap().len(), 1);

    // What made it fail is put right, and an operator has it tried again.
    world.chunks.accept();
    let (topic, message) = journal.dead_message(dead.number).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    world.bus.publish(topic, &message, deadline).await.unwrap();
    assert!(!world.has(&sick));
    assert_eq!(world.waiting().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_everywhere_is_tried_by_hand_at_last_and_new_things_pass() {
    let mut world = World::new(hasty()).await;
    world.employ(ConsumeSettings { attempts_max: 1, ..consume_settings() });
    let sick = world.due(1).await[0];
    world.chunks.refuse(sick);
    let begun = Instant::now();
    let error = loop {
        match world.dispatcher.reclaim(GRACE_MS).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => break error.to_string(),
        }
        assert!(begun.elapsed() < PATIENCE, "it is never tried by hand");
    };
    assert!(error.contains("delete chunks"), "{error}");
    assert_eq!(world.bus.published().len(), BY_BUS_MAX as usize);
    let more = world.due(5).await;
    while more.iter().any(|content| world.has(content)) {
        drop(world.dispatcher.reclaim(GRACE_MS).await);
        assert!(begun.elapsed() < PATIENCE, "the others do not pass");
    }
    assert!(world.has(&sick));
    world.chunks.accept();
    world.settle().await;
    assert!(!world.has(&sick));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_uploads_expire_by_tasks_and_give_their_parts_back() {
    let mut world = World::new(patient()).await;
    world.employ(consume_settings());
    let (stale, part) = world.upload("stale").await;
    world.go_on(UPLOAD_AGE_MS + 1);
    let (young, _) = world.upload("young").await;
    let (stats, _) = world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
    assert_eq!(stats.items, 1);
    assert!(matches!(world.store.upload(world.bucket, "stale", stale).await, Err(MetadataError::NoSuchUpload)));
    assert!(world.store.upload(world.bucket, "young", young).await.is_ok());
    assert_eq!(world.bus.published()[0].tag, "expire-uploads");
    world.go_on(GRACE_MS + 1);
    assert_eq!(world.settle().await.items, 1);
    assert!(!world.has(&part));
    // A task that comes late, or was made by a node that is wrong about the age, ends nothing that is young.
    let task = message(&Task::ExpireUploads { before_ms: u64::MAX >> 1, uploads: vec![stale, young] });
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.store.upload(world.bucket, "young", young).await.is_ok());
    let (stats, end) = world.dispatcher.expire_uploads(None).await.unwrap();
    assert_eq!((stats.items, end), (0, PassEnd::Done));
}

/// By a clock that has leapt, uploads that clients are at are old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_out_until_a_leap_of_the_clock_is_waited_out() {
    let hold = Duration::from_secs(2);
    let mut world = World::new(DispatchSettings { hold, ..patient() }).await;
    world.employ(consume_settings());
    world.put("key").await;
    world.delete("key").await;
    let (id, _) = world.upload("upload").await;
    world.go_on(UPLOAD_AGE_MS + 1);
    let uploads = world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
    let contents = world.dispatcher.reclaim(GRACE_MS).await.unwrap();
    assert_eq!([uploads, contents], [(PassStats::default(), PassEnd::Done); 2]);
    assert!(world.bus.published().is_empty());

    // Nobody has set it right.
    let begun = Instant::now();
    while world.store.upload(world.bucket, "upload", id).await.is_ok() || world.waiting().await > 0 {
        assert!(begun.elapsed() < PATIENCE, "it holds still for ever");
        world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        // The part of the upload is dereferenced by now.
        world.go_on(100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_bounded_by_the_workers_own_clock_and_grace() {
    let world = World::new(patient()).await;
    let contents = world.due(1).await;
    let task = world.lost_task().await;
    // The worker's clock is behind that of the dispatcher.
    world.clock.0.fetch_sub(20_000, Ordering::Relaxed);
    assert_eq!(world.worker().handle(&task).await, Handled::Later(Duration::from_secs(20)));
    world.clock.0.fetch_sub(3_600_000, Ordering::Relaxed);
    assert_eq!(world.worker().handle(&task).await, Handled::Done, "that is no matter of clocks");
    assert!(world.has(&contents[0]));
    world.go_on(3_620_000);
    let worker = TaskWorker { grace: Duration::from_secs(3600), ..world.worker() };
    assert_eq!(worker.handle(&task).await, Handled::Done);
    assert!(world.has(&contents[0]), "its grace is longer");
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(!world.has(&contents[0]));
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

/// What one pass panics at is done by the next one. The actor is not even started again: that would end the node at
/// last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_panics_is_made_again() {
    let world = World::new(patient()).await;
    world.bus.refuse(EventError::Unavailable("no broker".into()));
    let content = world.due(1).await[0];
    world.chunks.panic_once();
    let (quick, hour) = (Duration::from_millis(10), Duration::from_secs(3_600));
    let class = ClassLimits { jobs_max: 1, bytes_max: 1, queue_max: 1, refused: None };
    let parts = NodeParts {
        disks: vec![],
        dispatcher: world.dispatcher.clone(),
        limits: AdmissionLimits { read: class, write: class, queue_wait_ms: 1 },
        disk: DiskSettings {
            scrub_period: None,
            scrub_interval: hour,
            compact_interval: hour,
            compact_step_bytes: 1,
            checkpoint_interval: hour,
            step_timeout: hour,
        },
        cleanup: CleanupSettings {
            tick: quick,
            stale_upload_age: None,
            grace: Duration::from_millis(GRACE_MS),
            upload_interval: hour,
            reclaim_interval: quick,
            orphan_interval: hour,
            pass_timeout: hour,
        },
        reporter: Reporter::new("node", Arc::new(SystemClock)),
        health_interval: quick,
        restarts_max: 0,
        restart_window: hour,
    };
    let actors = service::start(parts).await.unwrap();
    let begun = Instant::now();
    while world.has(&content) {
        assert!(begun.elapsed() < PATIENCE, "no other pass is made");
        tokio::time::sleep(quick).await;
    }
    let failures: u64 = actors.cleanup_report().iter().map(|(_, report)| report.failures).sum();
    assert_eq!(failures, 1);
    actors.stop(PATIENCE).await;
}

/// Asks nobody.
struct NoWriters;

#[async_trait::async_trait]
impl Writers for NoWriters {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_fails_again_and_again_lets_another_node_have_the_duty() {
    let world = World::new(patient()).await;
    let (locks, name) = (Arc::new(InProcessLocks::new()), LockName::new("cleanup").unwrap());
    let (mine, other) = (Duty::new(locks.clone(), name.clone()), Duty::new(locks, name));
    let ownership = Ownership::default();
    ownership.extend(tokio::time::Instant::now(), Duration::from_secs(3_600));
    let duty = ClusterDuty {
        local: world.chunks.clone(),
        duty: mine.clone(),
        ownership,
        sweep_from: Instant::now(),
        writers: Arc::new(NoWriters),
    };
    let reclaimer = Reclaimer { cluster: Some(duty), ..reclaimer_of(&world.store, &world.chunks, &world.clock) };
    let dispatcher = Dispatcher::new(reclaimer, world.bus.clone(), world.tally.clone(), patient());
    world.bus.refuse(EventError::Unavailable("no broker".into()));
    world.chunks.refuse(world.due(1).await[0]);
    let (begun, mut standing) = (Instant::now(), Vec::new());
    for duty in [mine.clone(), other.clone()] {
        standing.push(tokio::spawn(async move { duty.stand().await }));
        while mine.fence().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the duty is not had");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut failures = 0;
    while other.fence().is_none() {
        // What could not be done has its turn again a moment later.
        world.go_on(1);
        failures += u32::from(dispatcher.reclaim(GRACE_MS).await.is_err());
        assert!(begun.elapsed() < PATIENCE, "it keeps the duty after {failures} failures");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(failures > 0);
    standing.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_gives_work_to_itself_and_starts_its_worker_again_when_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config(dir.path());
    config.cleanup.grace = "0 s".parse().unwrap();
    config.cleanup.interval = "1 h".parse().unwrap();
    let node = support::start(&config).await;
    let s3 = support::S3::of(&node);
    s3.put("/bucket", Bytes::new()).await.unwrap();
    let begun = Instant::now();
    for round in 1..=2 {
        for number in 0..10 {
            let path = format!("/bucket/{number}");
            assert_eq!(s3.put(&path, Bytes::from_static(b"bytes")).await.unwrap().0, StatusCode::OK);
            assert_eq!(s3.get(&path).await.unwrap().0, StatusCode::OK);
            let deleted = s3.send(Method::DELETE, &path, Bytes::new()).await.unwrap();
            assert_eq!(deleted.0, StatusCode::NO_CONTENT);
        }
        assert!(node.kill_task_worker(), "it is there to be killed");
        loop {
            node.actors().run_cleanup(support::REQUEST_MAX).await.unwrap();
            // What was deleted in this very millisecond is due in the next one.
            if node.actors().cleanup_report()[PassKind::Reclaims as usize].1.total.items == 10 * round {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{:?}", node.actors().cleanup_report());
        }
    }
    let admin = support_admin::Admin::of(&node, &config);
    let tail: serde_json::Value = admin.get("/v1/events/tail?topic=tasks&oldest=true").await;
    assert_eq!((&tail["events"][0]["tag"], &tail["events"][0]["body"]["version"]), (&"reclaim".into(), &1.into()));
    node.shutdown().await;
}
