#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::EventId;
use holdfast_protocol::events::partition_of;
use tokio::sync::watch;
use tokio::time::Instant;

use super::owner::owner_of;
use super::*;
use crate::ports::SystemClock;
use crate::ports::coordination::{LiveNode, Membership, NodeAddresses, NodeAnnouncement, NodeState};
use crate::ports::events::{EventError, EventResult, Message, Page, Position, SubscribeOptions, Subscription, Topic};
use crate::ports::metadata::MetadataResult;
use crate::ports::outbox::{OutboxRow, ReplayFilter};

/// Rows in memory, which become visible when a test says so.
#[derive(Default)]
struct TestOutbox {
    rows: Mutex<BTreeMap<(u16, u64), OutboxRow>>,
    written: watch::Sender<u64>,
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

    async fn waiting(&self, partitions: &[u16]) -> MetadataResult<Vec<u16>> {
        let found: BTreeSet<u16> = self.rows.lock().keys().map(|(part, _)| *part).collect();
        Ok(partitions.iter().copied().filter(|part| found.contains(part)).collect())
    }

    async fn lowest(&self, partition: u16, limit: u32) -> MetadataResult<Vec<OutboxRow>> {
        let rows = self.rows.lock();
        let range = rows.range((partition, 0)..=(partition, u64::MAX));
        Ok(range.take(limit as usize).map(|(_, row)| row.clone()).collect())
    }

    async fn finish(&self, partition: u16, sequences: &[u64], _: Option<u64>) -> MetadataResult<()> {
        let mut rows = self.rows.lock();
        sequences.iter().for_each(|sequence| drop(rows.remove(&(partition, *sequence))));
        Ok(())
    }

    async fn backlog(&self, partition: u16) -> MetadataResult<OutboxBacklog> {
        let rows = self.lowest(partition, u32::MAX).await?.len() as u64;
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
        let (outbox, bus) = (Arc::<TestOutbox>::default(), Arc::<TestBus>::default());
        let status = Arc::<RelayStatus>::default();
        let parts = RelayParts {
            outbox: outbox.clone(),
            bus: bus.clone(),
            clock: Arc::new(SystemClock),
            owner: RelayOwner::Alone,
            settings: RelaySettings { batch: 16, ..RelaySettings::default() },
        };
        let mut relay = JoinSet::new();
        relay.spawn(run(parts, status.clone()));
        Self { outbox, bus, status, _relay: relay }
    }

    async fn empty(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.outbox.rows.lock().is_empty() {
            assert!(Instant::now() < deadline, "these are left: {:?}", self.outbox.rows.lock().keys());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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
    while world.bus.seen.lock().len() < 50 {
        assert!(begun.elapsed() < Duration::from_secs(4), "they wait for the slow one");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
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
    while world.bus.seen.lock().len() < 50 {
        assert!(begun.elapsed() < Duration::from_secs(60), "only {} passed", world.bus.seen.lock().len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What was published is taken out a moment later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.outbox.rows.lock().len(), 300);
    *world.bus.refused.lock() = None;
    world.empty().await;
    world.assert_in_order();
    assert_eq!(world.bus.seen.lock().len(), 350);
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
