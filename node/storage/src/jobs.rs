//! Work that follows from what clients do and that nobody waits for: holes, index files, removals.
//!
//! Jobs go into a queue that holds no more than the events that made them: one entry a dead record, sealed segment or
//! abandoned writer. A background thread of the engine runs them; where there is none (simulation, tests), whoever owns
//! the engine calls [`crate::Engine::run_jobs`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::io::IoFuture;
use crate::segment::Segment;

/// Writes that were submitted and not yet awaited.
pub(crate) type Writes = FuturesUnordered<IoFuture<io::Result<()>>>;

/// One piece of work.
pub(crate) enum Job {
    /// Give the space of a dead record back.
    Punch { segment: Arc<Segment>, block: u32, len: u64 },
    /// Give the space of a record back that was never finished, once its writes have ended.
    Abandon(Abandoned),
    /// Write the index file of a sealed segment and give its unused end back.
    Seal(Arc<Segment>),
    /// Let a segment be removed again.
    EndCompaction(Arc<Segment>),
    /// Make the next segment before it is needed.
    Prepare,
}

/// A reservation whose writer left.
pub(crate) struct Abandoned {
    pub(crate) segment: Arc<Segment>,
    pub(crate) block: u32,
    pub(crate) len: u64,
    pub(crate) sequence: u64,
    pub(crate) writes: Writes,
    /// The header may be on the disk: the hole must be durable before the sequence number counts as settled.
    pub(crate) head_written: bool,
}

/// The queue.
#[derive(Default)]
pub(crate) struct JobQueue {
    jobs: Mutex<VecDeque<Job>>,
    wake: Notify,
    closed: AtomicBool,
}

impl JobQueue {
    /// Queues a job. After the engine's end it is forgotten: the next start does what is missing.
    pub(crate) fn push(&self, job: Job) {
        {
            let mut jobs = self.jobs.lock();
            // Looked at under the lock, which the end takes too: behind it nobody would ever take the job out.
            if self.is_closed() {
                drop(jobs);
                drop(job);
                return;
            }
            jobs.push_back(job);
        }
        self.wake.notify_one();
    }

    pub(crate) fn pop(&self) -> Option<Job> {
        self.jobs.lock().pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.lock().len()
    }

    /// Waits until there may be a job, or the queue is closed. Cancel safe.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Ends the queue. Jobs hold segments, which hold the queue: what is left is dropped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let left = std::mem::take(&mut *self.jobs.lock());
        drop(left);
        self.wake.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}
