//! Slow work that any node may do: deleting the chunks of contents that nothing refers to, and ending unfinished
//! uploads.
//!
//! ```text
//!  tables ──▶ Dispatcher (holder of the duty) ──▶ topic of tasks ──▶ TaskWorker (every node) ──▶ chunks, tables
//!                  └── by hand, when the bus is away or a task is late
//! ```
//!
//! The tables stay the truth. The [`Dispatcher`] names what is due in tasks ([`Task`]); a [`TaskWorker`] asks the
//! metadata about each thing again, in the transaction that claims it, and does what is still due. So a task may be
//! lost, late, repeated or carried out by several nodes at once:
//!
//! * A content is **claimed** under its row's lock: only while it is dereferenced and its grace is over. From then on
//!   no copy can take it, for good.
//! * Its chunks are deleted before it is forgotten. Both may happen any number of times: ids of chunks are never used
//!   again, and a row is named by its number **and** its content.
//! * An upload is ended in one transaction, if it is there and old enough.
//!
//! No fence is needed for that: the claim takes its place, and what a node does that was paused meanwhile was due when
//! it was claimed, and stays so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_protocol::Task;
use holdfast_protocol::tasks::TaskError;
use parking_lot::Mutex;

use super::consume::{ConsumeSettings, Consumer, Handled};
use super::reclaim::{PassStats, ReclaimError, Reclaimer};
use crate::domain::cleanup::PassKind;
use crate::ports::events::{Message, Topic};

mod dispatch;

pub use dispatch::{DispatchSettings, Dispatcher};

/// The group of all nodes' workers.
pub const TASKS_GROUP: &str = "tasks";

/// Longer than one call of a port, so that a task is rarely cut off in the middle.
const LEASE: Duration = Duration::from_secs(120);
/// How long a worker begins new things of one delivery. With the longest call this is less than what a lease leaves.
const BUDGET: Duration = Duration::from_secs(60);
/// Clocks of nodes are apart by no more than this; a task that is further ahead was made under another configuration.
const CLOCKS_APART_MS: u64 = 60_000;
/// Pause of a worker that may not work now.
const NOT_NOW: Duration = Duration::from_secs(1);

/// How workers are paced.
pub fn consume_settings() -> ConsumeSettings {
    ConsumeSettings {
        // Each of a few hundred things; more at once would only compete with requests.
        batch: 2,
        lease: LEASE,
        // About ten minutes of tries: the dispatcher then does it itself, sooner or later.
        attempts_max: 10,
        ..ConsumeSettings::default()
    }
}

/// What a node's workers did, until its cleanup actor counts it.
#[derive(Debug, Default)]
pub struct Tally(Mutex<[PassStats; 2]>);

impl Tally {
    fn add(&self, kind: PassKind, stats: PassStats) {
        if let Some(slot) = self.0.lock().get_mut(kind as usize) {
            slot.add(stats);
        }
    }

    fn take(&self, kind: PassKind) -> PassStats {
        self.0.lock().get_mut(kind as usize).map(std::mem::take).unwrap_or_default()
    }
}

/// Which pass a task is of.
fn pass_of(task: &Task) -> PassKind {
    match task {
        Task::Reclaim { .. } => PassKind::Reclaims,
        Task::ExpireUploads { .. } => PassKind::Uploads,
    }
}

/// Carries tasks out. Idempotent, and may be dropped at any point.
pub struct TaskWorker {
    /// What it works on.
    pub reclaimer: Reclaimer,
    /// Where it counts.
    pub tally: Arc<Tally>,
    /// Time between a content's last dereference and the deletion of its chunks.
    pub grace: Duration,
    /// Age at which an unfinished upload is ended; `None`: this node ends none.
    pub upload_age: Option<Duration>,
}

impl TaskWorker {
    /// The task with this node's own bound on what is due, or how long to wait for it: a grace must be over by the
    /// clock and the configuration of the node that deletes, too.
    fn bounded(&self, mut task: Task) -> Result<Task, Duration> {
        let (before_ms, age) = match &mut task {
            Task::Reclaim { before_ms, .. } => (before_ms, Some(self.grace)),
            Task::ExpireUploads { before_ms, .. } => (before_ms, self.upload_age),
        };
        let age_ms = age.map_or(u64::MAX, |age| age.as_millis() as u64);
        let own_ms = self.reclaimer.clock.now_ms().saturating_sub(age_ms);
        let ahead_ms = before_ms.saturating_sub(own_ms);
        if (1..=CLOCKS_APART_MS).contains(&ahead_ms) {
            return Err(Duration::from_millis(ahead_ms));
        }
        *before_ms = (*before_ms).min(own_ms);
        Ok(task)
    }
}

#[async_trait]
impl Consumer for TaskWorker {
    fn topic(&self) -> Topic {
        Topic::Tasks
    }

    fn group(&self) -> &'static str {
        TASKS_GROUP
    }

    /// A node that is cut off from its cluster leaves tasks to the others.
    async fn ready(&self) {
        while !self.reclaimer.may_work() {
            tokio::time::sleep(NOT_NOW).await;
        }
    }

    async fn handle(&self, message: &Message) -> Handled {
        let task = match Task::decode(&message.body) {
            Ok(task) => task,
            // A node of a later version may come by.
            Err(error @ TaskError::Unknown { .. }) => return Handled::Failed(error.to_string()),
            Err(error @ TaskError::Malformed(_)) => return Handled::Hopeless(error.to_string()),
        };
        if !self.reclaimer.may_work() {
            return Handled::Later(NOT_NOW);
        }
        let task = match self.bounded(task) {
            Ok(task) => task,
            Err(pause) => return Handled::Later(pause),
        };
        let done = self.reclaimer.carry_out(&task, Some(Instant::now() + BUDGET)).await;
        self.tally.add(pass_of(&task), done.stats);
        metrics::counter!("holdfast_task_items_total", "kind" => task.kind(), "way" => "bus")
            .increment(done.stats.items);
        match done.error {
            Some(ReclaimError::Fenced) => Handled::Later(NOT_NOW),
            Some(error) => Handled::Failed(format!("{} of {} could not be done: {error}", done.failed, task.len())),
            None if done.left > 0 => Handled::Later(NOT_NOW),
            None => Handled::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::dispatch::DispatchLimits;

    /// Or the dispatcher would give out again what consumers still have, and count it twice against its bound.
    #[test]
    fn what_a_killed_worker_leaves_comes_back_and_is_tried_to_its_end_before_the_dispatcher_takes_it_for_late() {
        let settings = consume_settings();
        let pauses: Duration = (1..settings.attempts_max).map(|attempt| settings.pause_after(attempt)).sum();
        let late = Duration::from_millis(DispatchLimits::default().late_ms);
        assert!(settings.lease * 2 + pauses < late, "{pauses:?} of pauses, late after {late:?}");
        assert!(BUDGET < settings.lease.mul_f64(0.8), "a task that takes long is put back, not cut off");
    }
}
