use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use holdfast_protocol::EventId;
use holdfast_protocol::events::partition_of;
use tokio::sync::watch;
use tokio::time::Instant;

use super::owner::{Hold, owner_of};
use super::partition::Serving;
use super::*;
use crate::ports::SystemClock;
use crate::ports::coordination::{LiveNode, Membership, NodeAddresses, NodeAnnouncement, NodeState};
use crate::ports::events::{EventError, EventResult, Message, Page, Position, SubscribeOptions, Subscription, Topic};
use crate::ports::metadata::MetadataResult;
use crate::ports::outbox::{Look, OutboxRow, ReplayFilter};
use crate::wait::{eventually, until};

/// Rows in memory, which become visible when a test says so.
#[derive(Default)]
struct TestOutbox {
    rows: Mutex<BTreeMap<(u16, u64), OutboxRow>>,
    written: watch::Sender<u64>,
    looks: AtomicU64,
    rows_read: AtomicU64,
    removals: AtomicU64,
}

impl TestOutbox {
    fn add(&self, sequence: u64, order_key: &str) {
        let id = EventId { sequence, nonce: 0 };
        let message =
            Message { id, order_key: order_key.into(), tag: "t".into(), keys: vec![], body: Bytes::from_static(b"{}") };
        let row = OutboxRow { topic: Topic::Objects, message, queued_ms: 0 };
        self.rows.lock().insert((partition_of(order_key.as_bytes()), sequence), row);
        self.written.send_modify(|written| *written += 1);
    }
}

#[async_trait]
impl Outbox for TestOutbox {
    fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    async fn look(&self, looks: &[Look]) -> MetadataResult<Vec<Vec<OutboxRow>>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let rows = self.rows.lock();
        let found = looks.iter().map(|look| {
            let except: BTreeSet<u64> = look.except.iter().copied().collect();
            let range = rows.range((look.partition, 0)..=(look.partition, u64::MAX));
            let wanted = range.filter(|((_, sequence), _)| !except.contains(sequence));
            wanted.take(look.limit as usize).map(|(_, row)| row.clone()).collect()
        });
        let found: Vec<Vec<OutboxRow>> = found.collect();
        self.rows_read.fetch_add(found.iter().map(Vec::len).sum::<usize>() as u64, Ordering::SeqCst);
        Ok(found)
    }

    async fn finish(&self, finished: &[(u16, u64)], _: Option<u64>) -> MetadataResult<()> {
        self.removals.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut rows = self.rows.lock();
        finished.iter().for_each(|row| drop(rows.remove(row)));
        Ok(())
    }

    async fn backlog(&self, partition: u16) -> MetadataResult<OutboxBacklog> {
        self.waiting(partition).await
    }

    async fn waiting(&self, partition: u16) -> MetadataResult<OutboxBacklog> {
        let rows = self.rows.lock().range((partition, 0)..=(partition, u64::MAX)).count() as u64;
        Ok(OutboxBacklog { rows, ..OutboxBacklog::default() })
    }

    async fn forget_published(&self, _: u16, _: u64, _: u64, _: u32) -> MetadataResult<u64> {
        Ok(0)
    }

    async fn replay(&self, _: u16, _: &ReplayFilter, _: u64, _: u32) -> MetadataResult<(u64, Option<u64>)> {
        unreachable!("the relay does not replay")
    }
}

/// Takes messages down, unless it is broken or slow.
#[derive(Default)]
struct TestBus {
    seen: Mutex<Vec<(String, u64)>>,
    broken: AtomicBool,
    slow_key: Mutex<Option<String>>,
    /// Keys that begin so are refused at once.
    refused: Mutex<Option<&'static str>>,
    /// Takes messages of all keys together.
    together: AtomicBool,
    /// Says each time that a key has another place, and is the slower the older what it is given.
    is_fickle: AtomicBool,
    lanes_told: AtomicU64,
    requests: AtomicU64,
}

#[async_trait]
impl EventBus for TestBus {
    async fn publish(&self, _: Topic, message: &Message, deadline: Instant) -> EventResult<()> {
        tokio::task::yield_now().await;
        let slow = self.slow_key.lock().as_ref() == Some(&message.order_key);
        if slow {
            tokio::time::sleep_until(deadline).await;
            return Err(EventError::TimedOut("slow".into()));
        }
        let refused = self.refused.lock().is_some_and(|prefix| message.order_key.starts_with(prefix));
        if refused || self.broken.load(Ordering::SeqCst) {
            return Err(EventError::Unavailable("broken".into()));
        }
        self.seen.lock().push((message.order_key.clone(), message.id.sequence));
        Ok(())
    }

    async fn publish_all(&self, topic: Topic, messages: &[Message], deadline: Instant) -> Vec<EventResult<()>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let newest = messages.last().map_or(0, |message| message.id.sequence);
        let is_fickle = self.is_fickle.load(Ordering::SeqCst);
        let takes_ms = if is_fickle { 100_u64.saturating_sub(newest) } else { 5 };
        tokio::time::sleep(Duration::from_millis(takes_ms)).await;
        let (mut results, mut failed) = (Vec::new(), BTreeSet::new());
        for message in messages {
            let result = match failed.contains(&message.order_key) {
                true => Err(EventError::Unavailable("after another".into())),
                false => self.publish(topic, message, deadline).await,
            };
            if result.is_err() {
                failed.insert(message.order_key.clone());
            }
            results.push(result);
        }
        results
    }

    fn lane(&self, _: Topic, order_key: &str) -> u64 {
        if self.is_fickle.load(Ordering::SeqCst) {
            return self.lanes_told.fetch_add(1, Ordering::SeqCst);
        }
        let together = self.together.load(Ordering::SeqCst);
        if together { 0 } else { order_key.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte)) }
    }

    async fn subscribe(&self, _: Topic, _: SubscribeOptions) -> EventResult<Box<dyn Subscription>> {
        Err(EventError::Closed)
    }

    async fn read(&self, _: Topic, _: Position, _: usize, _: Duration) -> EventResult<Page> {
        Err(EventError::Closed)
    }

    async fn check(&self, _: Topic) -> EventResult<()> {
        Ok(())
    }

    async fn close(&self) {}
}

struct World {
    outbox: Arc<TestOutbox>,
    bus: Arc<TestBus>,
    status: Arc<RelayStatus>,
    _relay: JoinSet<String>,
}

impl World {
    fn new() -> Self {
        Self::with(RelaySettings { batch: 16, ..RelaySettings::default() })
    }

    fn with(settings: RelaySettings) -> Self {
        let (outbox, bus) = (Arc::<TestOutbox>::default(), Arc::<TestBus>::default());
        let status = Arc::<RelayStatus>::default();
        let parts = RelayParts {
            outbox: outbox.clone(),
            bus: bus.clone(),
            clock: Arc::new(SystemClock),
            owner: RelayOwner::Alone,
            settings,
        };
        let mut relay = JoinSet::new();
        relay.spawn(run(parts, status.clone()));
        Self { outbox, bus, status, _relay: relay }
    }

    async fn empty(&self) {
        let left = async || self.outbox.rows.lock().keys().copied().collect::<Vec<_>>();
        until("nothing is left", left, Vec::is_empty).await;
    }

    fn assert_in_order(&self) {
        let mut last = BTreeMap::new();
        for (key, sequence) in self.bus.seen.lock().iter() {
            let before = last.insert(key.clone(), *sequence);
            assert!(before.is_none_or(|before| before < *sequence), "{key}: {sequence} after {before:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_published_once_and_in_order_of_its_key() {
    let world = World::new();
    for sequence in 0..2_000 {
        world.outbox.add(sequence, &format!("bucket/{}", sequence % 37));
        if sequence % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    world.empty().await;
    assert_eq!(world.bus.seen.lock().len(), 2_000);
    world.assert_in_order();
}

#[tokio::test(start_paused = true)]
async fn row_that_becomes_visible_below_others_that_are_gone_is_published() {
    let world = World::new();
    let (early, late) = ("bucket/a", (0..).map(|n| format!("bucket/{n}")));
    let late = late.into_iter().find(|key| partition_of(key.as_bytes()) == partition_of(early.as_bytes())).unwrap();
    world.outbox.add(100, early);
    world.empty().await;
    world.outbox.add(5, &late);
    world.empty().await;
    assert_eq!(*world.bus.seen.lock(), [(early.to_owned(), 100), (late, 5)]);
}

#[tokio::test(start_paused = true)]
async fn broken_bus_loses_nothing_and_shows() {
    let world = World::new();
    world.bus.broken.store(true, Ordering::SeqCst);
    for sequence in 0..100 {
        world.outbox.add(sequence, &format!("bucket/{}", sequence % 5));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.outbox.rows.lock().len(), 100);
    assert!(world.status.partitions().values().any(|status| status.last_error.is_some()));
    world.bus.broken.store(false, Ordering::SeqCst);
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len(), 100);
    assert!(world.status.partitions().values().all(|status| status.last_error.is_none()));
}

#[tokio::test(start_paused = true)]
async fn key_that_the_bus_is_slow_with_holds_up_no_other() {
    let world = World::new();
    let slow = "bucket/slow";
    *world.bus.slow_key.lock() = Some(slow.to_owned());
    world.outbox.add(0, slow);
    // More of the same partition than is read at once.
    let same = (0..).map(|n| format!("bucket/{n}"));
    let same = same.filter(|key| partition_of(key.as_bytes()) == partition_of(slow.as_bytes())).take(50);
    for (n, key) in same.enumerate() {
        world.outbox.add(n as u64 + 1, &key);
    }
    let begun = Instant::now();
    eventually("the others pass", || world.bus.seen.lock().len() >= 50).await;
    // Of virtual time.
    assert!(begun.elapsed() < Duration::from_secs(4), "they wait for the slow one");
    *world.bus.slow_key.lock() = None;
    world.empty().await;
}

/// As when one of several brokers is gone: more rows than are read at once wait, and those of other keys pass by them.
#[tokio::test(start_paused = true)]
async fn keys_that_are_refused_hold_up_no_others() {
    let world = World::new();
    *world.bus.refused.lock() = Some("bucket/dead");
    let of_one_partition = |prefix: &'static str| {
        (0..).map(move |n| format!("{prefix}{n}")).filter(|key| partition_of(key.as_bytes()) == 3)
    };
    for (sequence, key) in of_one_partition("bucket/dead").take(300).enumerate() {
        world.outbox.add(sequence as u64, &key);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let begun = Instant::now();
    for (sequence, key) in of_one_partition("bucket/alive").take(50).enumerate() {
        world.outbox.add(1_000 + sequence as u64, &key);
    }
    eventually("those of other keys pass", || world.bus.seen.lock().len() >= 50).await;
    // Of virtual time.
    assert!(begun.elapsed() < Duration::from_secs(60), "they wait for those that are refused");
    eventually("what was published is taken out", || world.outbox.rows.lock().len() == 300).await;
    *world.bus.refused.lock() = None;
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len(), 350);
}

/// What is counted here is what PUTs pay for: see docs/performance.md.
#[tokio::test(start_paused = true)]
async fn cost_of_an_event_is_a_fraction_of_a_query_and_of_a_request() {
    const EVENTS: u64 = 5_000;
    let world = World::with(RelaySettings::default());
    world.bus.together.store(true, Ordering::SeqCst);
    // Five hundred a second, for ten seconds.
    for sequence in 0..EVENTS {
        world.outbox.add(sequence, &format!("bucket/{}", sequence % 1_000));
        if sequence % 5 == 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    world.empty().await;
    world.assert_in_order();
    let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (outbox, bus) = (&world.outbox, &world.bus);
    let counts = [of(&outbox.looks), of(&outbox.rows_read), of(&outbox.removals), of(&bus.requests)];
    let [looks, read, removals, requests] = counts;
    println!("{EVENTS} events: {looks} looks, {read} rows read, {removals} removals, {requests} requests to the bus");
    assert_eq!(bus.seen.lock().len() as u64, EVENTS);
    assert!(looks <= 100 && removals <= 40, "{counts:?}");
    assert_eq!(read, EVENTS, "each row is read once");
    assert!(requests <= EVENTS / 4, "{counts:?}");
}

/// A broker that is gone must not make the database read what waits again and again.
#[tokio::test(start_paused = true)]
async fn rows_that_are_refused_are_not_read_at_every_look() {
    const EVENTS: u64 = 10_000;
    let world = World::with(RelaySettings::default());
    world.bus.together.store(true, Ordering::SeqCst);
    world.bus.broken.store(true, Ordering::SeqCst);
    for sequence in 0..EVENTS {
        world.outbox.add(sequence, &format!("bucket/{}", sequence % 1_000));
        if sequence % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(50)).await;
    let read = world.outbox.rows_read.load(Ordering::SeqCst);
    println!("{EVENTS} events without a bus: {read} rows read in a minute");
    assert!(read <= EVENTS * 3, "{read} rows were read");
    world.bus.broken.store(false, Ordering::SeqCst);
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len() as u64, EVENTS);
}

/// A bus that is away for long knows no places: all rows are held together, as many as may be. What it says of the first
/// ones, once it is back and knows more, is said of other lanes.
#[tokio::test(start_paused = true)]
async fn more_rows_than_are_kept_are_published_once_the_bus_knows_its_places() {
    let events = WINDOW_MAX as u64 + 1_000;
    let world = World::with(RelaySettings::default());
    world.bus.together.store(true, Ordering::SeqCst);
    world.bus.broken.store(true, Ordering::SeqCst);
    let keys: Vec<String> =
        (0..).map(|n| format!("bucket/{n}")).filter(|key| partition_of(key.as_bytes()) == 3).take(500).collect();
    for (sequence, key) in (0..events).zip(keys.iter().cycle()) {
        world.outbox.add(sequence, key);
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.bus.together.store(false, Ordering::SeqCst);
    world.bus.broken.store(false, Ordering::SeqCst);
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len() as u64, events);
}

/// One message of a request is refused for good: its key waits, in front of it nothing was lost, and the others pass.
#[tokio::test(start_paused = true)]
async fn message_that_is_refused_among_others_holds_up_its_key_only() {
    let world = World::with(RelaySettings::default());
    world.bus.together.store(true, Ordering::SeqCst);
    *world.bus.refused.lock() = Some("bucket/dead");
    let keys: Vec<String> =
        (0..).map(|n| format!("bucket/{n}")).filter(|k| partition_of(k.as_bytes()) == 3).take(20).collect();
    let dead = (0..).map(|n| format!("bucket/dead{n}")).find(|key| partition_of(key.as_bytes()) == 3).unwrap();
    for sequence in 0..100 {
        let key = if sequence % 10 == 5 { &dead } else { &keys[sequence as usize % 20] };
        world.outbox.add(sequence, key);
    }
    eventually("the others passed", || world.outbox.rows.lock().len() == 10).await;
    *world.bus.refused.lock() = None;
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len(), 100);
}

/// A node that has just started learns where the queues are from its first request, while it sorts what it has found.
#[tokio::test(start_paused = true)]
async fn key_whose_place_changes_while_its_rows_are_sorted_keeps_its_order() {
    let world = World::new();
    world.bus.is_fickle.store(true, Ordering::SeqCst);
    for sequence in 1..=10 {
        world.outbox.add(sequence, "bucket/key");
    }
    world.empty().await;
    world.assert_in_order();
}

/// Whoever follows would publish it once more, and this request might come behind what follows it.
#[tokio::test(start_paused = true)]
async fn partition_that_moves_waits_for_the_answers_to_what_is_on_its_way() {
    let (outbox, bus) = (Arc::<TestOutbox>::default(), Arc::<TestBus>::default());
    // A request takes a tenth of a second.
    bus.is_fickle.store(true, Ordering::SeqCst);
    let parts = RelayParts {
        outbox: outbox.clone(),
        bus: bus.clone(),
        clock: Arc::new(SystemClock),
        owner: RelayOwner::Alone,
        settings: RelaySettings::default(),
    };
    let context = Arc::new(Context::new(parts, Arc::default()));
    let (mut tasks, gathering) = (JoinSet::new(), context.clone());
    tasks.spawn(async move { gathering.gather.run(&gathering.parts).await });
    for sequence in 1..=3 {
        outbox.add(sequence, "bucket/key");
    }
    let mut serving = Serving::new(&context, partition_of(b"bucket/key"), Arc::new(Hold::Alone));
    tokio::select! {
        () = serving.serve() => {}
        () = eventually("it is on its way", || bus.requests.load(Ordering::SeqCst) > 0) => {}
    }
    assert!(bus.seen.lock().is_empty(), "this test shows nothing");
    serving.hand_over().await;
    assert_eq!(bus.seen.lock().len(), 3);
    assert!(outbox.rows.lock().is_empty(), "what arrived is left to whoever follows");
}

#[tokio::test]
async fn whoever_waits_for_the_last_partition_to_be_left_is_told() {
    let status = RelayStatus::default();
    status.left().await;
    [3, 4].into_iter().for_each(|partition| status.enter(partition));
    status.leave(3, 0);
    assert!(status.left().now_or_never().is_none());
    status.leave(4, 0);
    status.left().await;
}

/// Or the node would wait for them when it stops, and count what another node counts.
#[tokio::test(start_paused = true)]
async fn relay_that_starts_anew_owns_nothing_that_the_one_before_had() {
    let status = Arc::<RelayStatus>::default();
    status.enter(PARTITIONS);
    let parts = RelayParts {
        outbox: Arc::<TestOutbox>::default(),
        bus: Arc::<TestBus>::default(),
        clock: Arc::new(SystemClock),
        owner: RelayOwner::Alone,
        settings: RelaySettings::default(),
    };
    let mut relay = JoinSet::new();
    relay.spawn(run(parts, status.clone()));
    let owned = || status.partitions().into_keys().collect::<Vec<_>>();
    eventually("it owns its own", || owned() == (0..PARTITIONS).collect::<Vec<_>>()).await;
}

#[test]
fn partitions_spread_over_the_nodes_that_are_ready_and_few_move() {
    let node = |n: u8, state| {
        let id = NodeId::from_slice(&[n; 8]).unwrap();
        let announcement = NodeAnnouncement {
            id,
            addresses: NodeAddresses { peer: String::new(), s3: String::new(), admin: String::new() },
            zone: String::new(),
            capacity_bytes: 0,
            free_bytes: 0,
            version: String::new(),
            state,
            publishes: n != 5,
            disks_working: None,
            disks_unrebuilt: 0,
        };
        (id, LiveNode { announcement, incarnation: 1 })
    };
    let mut members = Membership { nodes: (1..=3).map(|n| node(n, NodeState::Ready)).collect() };
    let owners = |members: &Membership| (0..PARTITIONS).map(|p| owner_of(members, p)).collect::<Vec<_>>();
    let before = owners(&members);
    let distinct: BTreeSet<_> = before.iter().collect();
    assert_eq!(distinct.len(), 3, "{before:?}");
    // One that starts or stops owns nothing, nor does one that publishes to nobody.
    members.nodes.extend([node(4, NodeState::Starting), node(5, NodeState::Ready)]);
    assert_eq!(owners(&members), before);
    let gone = NodeId::from_slice(&[2; 8]).unwrap();
    members.nodes.remove(&gone);
    let after = owners(&members);
    let moved = before.iter().zip(&after).filter(|(b, a)| b != a);
    assert!(moved.into_iter().all(|(before, _)| *before == Some(gone)), "only its partitions move");
    assert_eq!(owner_of(&Membership::default(), 0), None);
}
