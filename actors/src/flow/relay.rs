//! The relay: takes messages from the outbox to the bus.
//!
//! # Who
//! Each partition of the outbox has one owner. A node that runs alone owns all. In a cluster the live nodes share them
//! by rendezvous hashing, and a node works on one only while it holds its lease ([`owner`]).
//!
//! # How
//! The owner reads the lowest rows of its partition, publishes them, and removes those that the bus has taken
//! ([`partition`]). Rows that go to one place are sent together, many in a request ([`publish`]); of one key they keep
//! their order, and a key has one request on its way at a time. There is no cursor: a row that becomes visible late,
//! below others that are gone, is read like any other; what is on its way is left out by name. What is refused waits,
//! and lets others pass ([`held`]).
//!
//! # What it costs
//! A look is one query for all partitions of the node, a removal one transaction ([`gather`]). Both have their pace
//! ([`RelaySettings::pace`], [`RelaySettings::remove_after`]), so their number follows the time and not the number of
//! events.
//!
//! # What a crash leaves
//! Rows that were published and not removed. The next owner publishes them again, with the same ids. Before every
//! request the owner looks whether its lease is proven, and it waits for an answer no longer than that. So of two
//! owners after a session's end the old one may, at the worst, repeat messages that were on their way, never such that
//! it had not begun. Where a partition moves without that, its owner waits for the answers first.
//!
//! # Bounds
//! [`RelaySettings::batch`] rows of a partition in memory, and [`WINDOW_MAX`] that the bus is slow to take. Of rows
//! that it refused only the numbers and keys are kept, of so many too; beyond that a partition waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::events::PARTITIONS;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::flow::clocks::{HOLD, LeapGuard};
use crate::ports::outbox::OutboxBacklog;
use crate::ports::{Clock, Coordination, EventBus, Outbox};
use gather::Gather;

mod gather;
mod held;
mod house;
mod owner;
mod partition;
mod publish;
#[cfg(test)]
mod tests;

/// The most rows of a partition that are under way at once.
pub const WINDOW_MAX: usize = 2_048;

/// Pace of the relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Rows read at once.
    pub batch: u32,
    /// Requests of one partition on their way at once.
    pub pipeline: usize,
    /// How long one request may take. The lease may leave less.
    pub publish_timeout: Duration,
    /// How long it waits for more once something was written after a while of silence.
    pub coalesce: Duration,
    /// Time between looks while this node writes: looks cost the database something, and what came meanwhile is sent
    /// together. Events wait for half of it on average. A backlog is read without a pause.
    pub pace: Duration,
    /// How long rows that were published may stay before they are removed, many at once: each removal is a commit.
    pub remove_after: Duration,
    /// Time between looks for rows that other nodes wrote.
    pub poll: Duration,
    /// First and longest pause after a failure; it doubles.
    pub backoff: (Duration, Duration),
    /// Time between counts of the backlog; what was published is counted, and what is too old forgotten, at every
    /// fourth.
    pub housekeeping: Duration,
    /// How long published rows are kept, `None`: not at all.
    pub keep: Option<Duration>,
    /// How many of them are kept in each partition.
    pub keep_rows_max: u64,
    /// For how long after a leap of the clock none of them is forgotten; none: clocks are not compared.
    pub hold: Duration,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            batch: 256,
            pipeline: 64,
            publish_timeout: Duration::from_secs(5),
            coalesce: Duration::from_millis(50),
            pace: Duration::from_millis(200),
            remove_after: Duration::from_millis(500),
            poll: Duration::from_millis(300),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            housekeeping: Duration::from_secs(15),
            keep: Some(Duration::from_secs(3_600)),
            keep_rows_max: 200_000 / u64::from(PARTITIONS),
            hold: HOLD,
        }
    }
}

/// What makes a node an owner.
#[derive(Clone)]
pub enum RelayOwner {
    /// It is the only node.
    Alone,
    /// A lease for each partition.
    Cluster {
        /// Where leases come from.
        coordination: Arc<dyn Coordination>,
        /// This node.
        me: NodeId,
    },
}

/// What the relay is made of.
#[derive(Clone)]
pub struct RelayParts {
    /// From here.
    pub outbox: Arc<dyn Outbox>,
    /// To there.
    pub bus: Arc<dyn EventBus>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Which partitions.
    pub owner: RelayOwner,
    /// Pace.
    pub settings: RelaySettings,
}

/// What this node knows of a partition that it owns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Counted a while ago.
    pub backlog: OutboxBacklog,
    /// Why the last message could not be published, until one can.
    pub last_error: Option<String>,
}

/// What outlives the relay's actor.
#[derive(Default)]
pub struct RelayStatus {
    partitions: Mutex<BTreeMap<u16, PartitionStatus>>,
    /// How many they are.
    owned: watch::Sender<usize>,
}

impl RelayStatus {
    /// The partitions that this node owns.
    pub fn partitions(&self) -> BTreeMap<u16, PartitionStatus> {
        self.partitions.lock().clone()
    }

    /// Waits until this node owns none of them.
    pub async fn left(&self) {
        let mut owned = self.owned.subscribe();
        // The sender is in `self`.
        drop(owned.wait_for(|owned| *owned == 0).await);
    }

    fn change(&self, partition: u16, change: impl FnOnce(&mut PartitionStatus)) {
        let mut partitions = self.partitions.lock();
        if let Some(status) = partitions.get_mut(&partition) {
            change(status);
        }
    }

    /// Forgets what a relay that broke off left: nothing of it is owned any more.
    fn forget(&self, now_ms: u64) {
        {
            let mut partitions = self.partitions.lock();
            partitions.clear();
            self.owned.send_replace(0);
        }
        self.tell(now_ms);
    }

    fn enter(&self, partition: u16) {
        // What it holds is counted in a moment.
        let mut partitions = self.partitions.lock();
        partitions.insert(partition, PartitionStatus::default());
        self.owned.send_replace(partitions.len());
    }

    fn leave(&self, partition: u16, now_ms: u64) {
        {
            let mut partitions = self.partitions.lock();
            partitions.remove(&partition);
            self.owned.send_replace(partitions.len());
        }
        self.tell(now_ms);
    }

    /// Tells metrics. With the sum over all nodes nothing is counted twice.
    fn tell(&self, now_ms: u64) {
        let partitions = self.partitions.lock();
        let backlogs = || partitions.values().map(|status| &status.backlog);
        let rows: u64 = backlogs().map(|backlog| backlog.rows).sum();
        let oldest = backlogs().filter_map(|backlog| backlog.oldest_ms).min();
        let age_s = oldest.map_or(0.0, |oldest| now_ms.saturating_sub(oldest) as f64 / 1_000.0);
        metrics::gauge!("holdfast_events_outbox_rows").set(rows as f64);
        metrics::gauge!("holdfast_events_outbox_oldest_seconds").set(age_s);
        metrics::gauge!("holdfast_events_published_kept_rows").set(backlogs().map(|b| b.published).sum::<u64>() as f64);
        metrics::gauge!("holdfast_events_partitions").set(partitions.len() as f64);
    }
}

/// What the tasks of the relay share.
struct Context {
    parts: RelayParts,
    status: Arc<RelayStatus>,
    /// Wakes the owner of a partition that may have something.
    wake: Vec<Notify>,
    gather: Arc<Gather>,
    /// Held while a backlog is counted: one partition at a time.
    counting: tokio::sync::Mutex<()>,
    leaps: LeapGuard,
}

impl Context {
    fn new(parts: RelayParts, status: Arc<RelayStatus>) -> Self {
        let wake = (0..PARTITIONS).map(|_| Notify::new()).collect();
        let (gather, counting) = (Arc::new(Gather::new()), tokio::sync::Mutex::default());
        let leaps = LeapGuard::new(&*parts.clock, parts.settings.hold);
        Self { parts, status, wake, gather, counting, leaps }
    }
}

/// Runs until something in it panics.
pub async fn run(parts: RelayParts, status: Arc<RelayStatus>) -> String {
    status.forget(parts.clock.now_ms());
    let context = Arc::new(Context::new(parts, status));
    let mut tasks = JoinSet::new();
    for partition in 0..PARTITIONS {
        tasks.spawn(partition::run(context.clone(), partition));
    }
    let gathering = context.clone();
    tasks.spawn(async move { gathering.gather.run(&gathering.parts).await });
    tasks.spawn(wake_all(context));
    match tasks.join_next().await {
        Some(Err(error)) => format!("a task of the relay ended: {error}"),
        _ => "a task of the relay ended".into(),
    }
}

/// Wakes the partitions of this node, all at once: soon when this node wrote something, and now and then for what
/// others wrote.
async fn wake_all(context: Arc<Context>) {
    let RelaySettings { coalesce, pace, poll, .. } = context.parts.settings;
    let mut written = context.parts.outbox.written();
    let mut last = Instant::now();
    loop {
        tokio::select! {
            Ok(()) = written.changed() => {
                tokio::time::sleep(coalesce.max(pace.saturating_sub(last.elapsed()))).await;
            }
            () = tokio::time::sleep(poll) => {}
        }
        written.borrow_and_update();
        last = Instant::now();
        for partition in context.status.partitions.lock().keys() {
            context.wake[usize::from(*partition)].notify_one();
        }
    }
}
