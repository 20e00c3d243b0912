//! The dispatcher: gives what is due to the workers of all nodes, and does it itself where that does not help.
//!
//! | what | then |
//! |---|---|
//! | the bus takes a task, or may have it | what is still there after [`DispatchLimits::late_ms`] is dispatched once more, then tried by hand with growing pauses |
//! | the bus does not take it in time | it is left alone for [`DispatchSettings::away`], and this node does the work |
//! | another node has the duty | what was dispatched is forgotten |
//! | the clock has leapt | nothing is given out or done for [`DispatchSettings::hold`] |
//!
//! A pass ends with [`PassEnd::Pending`] while consumers are at it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use holdfast_protocol::{EventId, ReclaimItem, Task, UploadId};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Tally;
use crate::domain::cleanup::{PassEnd, PassKind};
use crate::domain::dispatch::{DispatchLimits, Plan, UnderWay};
use crate::flow::clocks::{HOLD, LeapGuard};
use crate::flow::reclaim::{PassStats, Progress, ReclaimError, Reclaimer};
use crate::ports::EventBus;
use crate::ports::events::{EventError, Message, Topic};

/// How the dispatcher is paced.
#[derive(Debug, Clone, Copy)]
pub struct DispatchSettings {
    /// Bounds of what is under way.
    pub limits: DispatchLimits,
    /// Time for the bus to take a task.
    pub publish: Duration,
    /// How long the bus is left alone after it did not take one.
    pub away: Duration,
    /// For how long after a leap of the clock nothing is given out, since what is young would be due: uploads under
    /// way, and what readers still have; none: clocks are not compared.
    pub hold: Duration,
}

impl Default for DispatchSettings {
    fn default() -> Self {
        let (publish, away) = (Duration::from_secs(10), Duration::from_secs(60));
        Self { limits: DispatchLimits::default(), publish, away, hold: HOLD }
    }
}

/// Gives work out. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

struct Shared {
    reclaimer: Reclaimer,
    bus: Arc<dyn EventBus>,
    tally: Arc<Tally>,
    settings: DispatchSettings,
    contents: Mutex<UnderWay<ReclaimItem>>,
    uploads: Mutex<UnderWay<UploadId>>,
    away_until: Mutex<Option<Instant>>,
    leaps: LeapGuard,
    started: Instant,
}

/// A kind of thing that is given out.
#[async_trait]
trait Due: Copy + Eq + std::hash::Hash + Send + Sync + 'static {
    const PASS: PassKind;
    /// The kind of its tasks.
    const KIND: &'static str;

    fn under_way(shared: &Shared) -> &Mutex<UnderWay<Self>>;
    fn task(before_ms: u64, things: Vec<Self>) -> Task;
    /// Those that are due, oldest first.
    async fn list(reclaimer: &Reclaimer, before_ms: u64, limit: u32) -> Result<Vec<Self>, ReclaimError>;
    /// Does some of what is due as the holder of the duty, without the bus.
    async fn do_oldest(reclaimer: &Reclaimer, age_ms: u64) -> Result<(Progress, PassEnd), ReclaimError>;
}

#[async_trait]
impl Due for ReclaimItem {
    const PASS: PassKind = PassKind::Reclaims;
    const KIND: &'static str = Task::KINDS[0];

    fn under_way(shared: &Shared) -> &Mutex<UnderWay<Self>> {
        &shared.contents
    }

    fn task(before_ms: u64, contents: Vec<Self>) -> Task {
        Task::Reclaim { before_ms, contents }
    }

    async fn list(reclaimer: &Reclaimer, before_ms: u64, limit: u32) -> Result<Vec<Self>, ReclaimError> {
        reclaimer.due_contents(before_ms, limit).await
    }

    async fn do_oldest(reclaimer: &Reclaimer, age_ms: u64) -> Result<(Progress, PassEnd), ReclaimError> {
        reclaimer.reclaim_oldest(age_ms).await
    }
}

#[async_trait]
impl Due for UploadId {
    const PASS: PassKind = PassKind::Uploads;
    const KIND: &'static str = Task::KINDS[1];

    fn under_way(shared: &Shared) -> &Mutex<UnderWay<Self>> {
        &shared.uploads
    }

    fn task(before_ms: u64, uploads: Vec<Self>) -> Task {
        Task::ExpireUploads { before_ms, uploads }
    }

    async fn list(reclaimer: &Reclaimer, before_ms: u64, limit: u32) -> Result<Vec<Self>, ReclaimError> {
        reclaimer.stale_uploads(before_ms, limit).await
    }

    async fn do_oldest(reclaimer: &Reclaimer, age_ms: u64) -> Result<(Progress, PassEnd), ReclaimError> {
        let (stats, end) = reclaimer.abort_stale_uploads(age_ms).await?;
        Ok((Progress { stats, ..Progress::default() }, end))
    }
}

impl Dispatcher {
    /// Nothing is under way yet.
    pub fn new(reclaimer: Reclaimer, bus: Arc<dyn EventBus>, tally: Arc<Tally>, settings: DispatchSettings) -> Self {
        let limits = settings.limits;
        let leaps = LeapGuard::new(&*reclaimer.clock, settings.hold);
        let shared = Shared {
            reclaimer,
            bus,
            tally,
            settings,
            contents: Mutex::new(UnderWay::new(limits)),
            uploads: Mutex::new(UnderWay::new(limits)),
            away_until: Mutex::default(),
            leaps,
            started: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What it works on.
    pub fn reclaimer(&self) -> &Reclaimer {
        &self.shared.reclaimer
    }

    /// An operator asks: what failed and the bus are tried at once.
    pub fn forget_failures(&self) {
        let (shared, now_ms) = (&*self.shared, self.shared.now_ms());
        shared.contents.lock().forget_late(now_ms);
        shared.uploads.lock().forget_late(now_ms);
        *shared.away_until.lock() = None;
    }

    /// One pass over contents dereferenced longer than `grace_ms` ago. Tells what this node did since the last one,
    /// also as a worker.
    ///
    /// # Errors
    /// When metadata or a disk fails; what was done stays done, and is told by the next pass.
    pub async fn reclaim(&self, grace_ms: u64) -> Result<(PassStats, PassEnd), ReclaimError> {
        let done = self.pass::<ReclaimItem>(grace_ms).await;
        // A node that fails again and again lets another one try.
        if let Some(cluster) = &self.shared.reclaimer.cluster {
            cluster.duty.on_turn(done.is_ok());
        }
        done
    }

    /// One pass over uploads begun longer than `age_ms` ago; `None`: none is too old. As [`Self::reclaim`].
    ///
    /// # Errors
    /// As [`Self::reclaim`].
    pub async fn expire_uploads(&self, age_ms: Option<u64>) -> Result<(PassStats, PassEnd), ReclaimError> {
        match age_ms {
            Some(age_ms) => self.pass::<UploadId>(age_ms).await,
            None => Ok((self.shared.tally.take(PassKind::Uploads), PassEnd::Done)),
        }
    }

    async fn pass<T: Due>(&self, age_ms: u64) -> Result<(PassStats, PassEnd), ReclaimError> {
        let shared = &*self.shared;
        let end = if !shared.reclaimer.is_on_duty() {
            T::under_way(shared).lock().clear();
            metrics::gauge!("holdfast_tasks_in_flight", "kind" => T::KIND).set(0.0);
            PassEnd::Done
        } else if shared.leaps.holds(&*shared.reclaimer.clock, "deletions and expiries") {
            PassEnd::Done
        } else if shared.is_bus_away() {
            shared.do_oldest::<T>(age_ms).await?
        } else {
            shared.dispatch::<T>(age_ms).await?
        };
        Ok((shared.tally.take(T::PASS), end))
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn dispatch<T: Due>(&self, age_ms: u64) -> Result<PassEnd, ReclaimError> {
        let under_way = T::under_way(self);
        // In whole milliseconds that are over: two dereferences and a pass may happen within one.
        let before_ms = self.reclaimer.clock.now_ms().saturating_sub(age_ms);
        let window = under_way.lock().window(self.now_ms());
        let due = T::list(&self.reclaimer, before_ms, u32::try_from(window).unwrap_or(u32::MAX)).await?;
        let Plan { batches, by_hand } = under_way.lock().plan(&due, self.now_ms());
        let sent = join_all(batches.iter().map(|batch| self.send::<T>(before_ms, batch))).await;
        if let Some(error) = sent.into_iter().find_map(Result::err) {
            let before = self.away_until.lock().replace(Instant::now() + self.settings.away);
            if before.is_none() && error != EventError::Closed {
                tracing::warn!(kind = T::KIND, %error, "tasks cannot be published, this node does the work");
            }
            return self.do_oldest::<T>(age_ms).await;
        }
        if !by_hand.is_empty() {
            let tried = self.try_by_hand::<T>(before_ms, &by_hand).await;
            // Nothing else waits for it.
            if batches.is_empty() {
                tried?;
            }
        }
        let in_flight = under_way.lock().in_flight(self.now_ms());
        metrics::gauge!("holdfast_tasks_in_flight", "kind" => T::KIND).set(in_flight as f64);
        Ok(match (batches.is_empty(), in_flight) {
            // A bus within the process tells that a task is done; then there is room for more.
            (false, _) => PassEnd::More,
            (true, 0) => PassEnd::Done,
            (true, _) => PassEnd::Pending,
        })
    }

    /// Publishes one task: consumers have it, or may have it. Dropped before, it is as if nothing had been sent: the
    /// same is dispatched again.
    async fn send<T: Due>(&self, before_ms: u64, batch: &[T]) -> Result<(), EventError> {
        let task = T::task(before_ms, batch.to_vec());
        let id = EventId::generate(self.reclaimer.clock.now_ms());
        let message = Message {
            id,
            // Tasks are in no order: each may go to another queue.
            order_key: id.to_string(),
            tag: T::KIND.to_owned(),
            keys: vec![id.to_string()],
            body: task.encode().into(),
        };
        let limit = self.settings.publish;
        let sent = match self.bus.publish(Topic::Tasks, &message, Instant::now() + limit).await {
            // A bus that answers may have it: within the process it waits for consumers.
            Err(error @ EventError::TimedOut(_)) => {
                let check = tokio::time::timeout(limit, self.bus.check(Topic::Tasks)).await;
                if matches!(check, Ok(Ok(()))) { Ok(()) } else { Err(error) }
            }
            sent => sent,
        };
        let outcome = if sent.is_ok() { "sent" } else { "refused" };
        metrics::counter!("holdfast_tasks_dispatched_total", "kind" => T::KIND, "outcome" => outcome).increment(1);
        if sent.is_ok() {
            *self.away_until.lock() = None;
            T::under_way(self).lock().on_sent(batch, self.now_ms());
        }
        sent
    }

    /// Whether the bus is left alone.
    fn is_bus_away(&self) -> bool {
        self.away_until.lock().is_some_and(|until| Instant::now() < until)
    }

    async fn do_oldest<T: Due>(&self, age_ms: u64) -> Result<PassEnd, ReclaimError> {
        let (done, end) = T::do_oldest(&self.reclaimer, age_ms).await?;
        self.count::<T>(&done);
        done.error.map_or(Ok(end), Err)
    }

    /// What consumers did not do.
    async fn try_by_hand<T: Due>(&self, before_ms: u64, things: &[T]) -> Result<(), ReclaimError> {
        let task = T::task(before_ms, things.to_vec());
        T::under_way(self).lock().on_tried(things, self.now_ms());
        let done = self.reclaimer.carry_out(&task, None).await;
        self.count::<T>(&done);
        match done.error {
            None => Ok(()),
            Some(error) => {
                let (kind, failed) = (T::KIND, done.failed);
                tracing::warn!(kind, failed, %error, "what consumers did not do could not be done here either");
                Err(error)
            }
        }
    }

    fn count<T: Due>(&self, done: &Progress) {
        self.tally.add(T::PASS, done.stats);
        metrics::counter!("holdfast_task_items_total", "kind" => T::KIND, "way" => "hand").increment(done.stats.items);
    }
}
