//! What an error of the disk does to the engine, or that there is no answer: it is fenced, or full, or neither. And who
//! is told of damage.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Inner;
use crate::error::{WriteError, is_full, is_out_of_descriptors};
use crate::finding::{Finding, FindingSource};
use crate::segment::Segment;

/// How often it is said again, in the watch's own time, that a disk is spared though it has been silent for long.
const SPARED_INTERVAL: Duration = Duration::from_secs(3600);

/// How often it is said again that there are no descriptors: each write near the end of a segment finds it out.
const NO_DESCRIPTORS_INTERVAL: Duration = Duration::from_secs(10);

/// When that was said last, of whatever disk: they are the process's.
static NO_DESCRIPTORS_TOLD: Mutex<Option<Instant>> = Mutex::new(None);

/// Starts the threads of the watch. They do not keep the engine alive.
pub(super) fn start_watch(inner: &Arc<Inner>) -> io::Result<()> {
    let weak = Arc::downgrade(inner);
    inner.watch.start(Arc::clone(&inner.io), move |age| {
        if let Some(inner) = weak.upgrade() {
            inner.fence_unresponsive(age);
        }
    })
}

impl Inner {
    /// Whether the disk has not failed.
    pub(super) fn check_fence(&self) -> Result<(), WriteError> {
        if self.fenced.load(Ordering::SeqCst) {
            let reason = self.fence.lock().clone();
            return Err(WriteError::Fenced(reason.unwrap_or_else(|| Arc::from("unknown"))));
        }
        Ok(())
    }

    /// Whether writes are taken.
    pub(crate) fn check_writable(&self) -> Result<(), WriteError> {
        self.check_fence()?;
        if self.closing.load(Ordering::SeqCst) {
            return Err(WriteError::Closed);
        }
        Ok(())
    }

    /// Takes no writes from now on: the disk failed one. Unless it is only that there are no descriptors: a flood of
    /// connections would take all disks of a node away, until it is started anew.
    pub(crate) fn fence_off(&self, context: &str, error: &io::Error) {
        if is_out_of_descriptors(error) {
            self.tell_no_descriptors(context, error);
            return;
        }
        self.fence_anyway(context, error);
    }

    /// The same whatever the error says: a sync needs no descriptor of ours, but a file system in user space may answer
    /// so, and what a failed sync has lost no later one writes.
    fn fence_anyway(&self, context: &str, error: &io::Error) {
        {
            let mut fence = self.fence.lock();
            if fence.is_some() {
                return;
            }
            *fence = Some(Arc::from(format!("{context}: {error}")));
            self.fenced.store(true, Ordering::SeqCst);
        }
        // Afterwards, and without the lock: the log may be on the disk that failed.
        metrics::counter!("holdfast_storage_fences_total").increment(1);
        tracing::error!(disk = %self.config.dir.display(), context, %error, "disk fenced: it takes no writes any more");
    }

    /// The disk has not answered for so long that it counts as one that failed, unless it is not silent by itself. What
    /// was asked of it may yet be done, as after any other fence: nothing of that is in the index, nor was it called
    /// durable.
    pub(super) fn fence_unresponsive(&self, age: Duration) {
        if self.fenced.load(Ordering::SeqCst) {
            return;
        }
        if !self.is_silent_by_itself() {
            self.tell_spared(age);
            return;
        }
        let detail = format!("no answer for {} s", age.as_secs());
        self.fence_off("wait for the disk", &io::Error::new(io::ErrorKind::TimedOut, detail));
    }

    /// Whether this disk alone is to blame for its silence: at least as many disks of the node answer as do not. What
    /// disks share (a hypervisor, a file server, the kernel's workers, a thread of this process) may stand still for
    /// long and go on, on all nodes of a cluster at once. So the last disk of a node is never fenced for its silence:
    /// nothing would be won, and it could not come back by itself.
    fn is_silent_by_itself(&self) -> bool {
        let (mut silent, mut answering) = (1, 0);
        for other in self.neighbours.lock().iter().filter_map(Weak::upgrade) {
            if other.fenced.load(Ordering::SeqCst) {
                continue;
            }
            if other.watch.is_unresponsive() {
                silent += 1;
            } else {
                answering += 1;
            }
        }
        silent <= answering
    }

    /// Says that something was not done for want of a descriptor.
    fn tell_no_descriptors(&self, context: &str, error: &io::Error) {
        {
            let mut told = NO_DESCRIPTORS_TOLD.lock();
            if told.is_some_and(|told| told.elapsed() < NO_DESCRIPTORS_INTERVAL) {
                return;
            }
            *told = Some(Instant::now());
        }
        let disk = self.config.dir.display();
        tracing::warn!(%disk, context, %error, "no descriptors left: see process_open_fds and process_max_fds");
    }

    /// Says that the disk is not fenced, and why.
    fn tell_spared(&self, age: Duration) {
        let now = self.watch.flights().now();
        {
            let mut told = self.spared_told.lock();
            if told.is_some_and(|told| now.saturating_sub(told) < SPARED_INTERVAL) {
                return;
            }
            *told = Some(now);
        }
        tracing::error!(
            disk = %self.config.dir.display(), seconds = age.as_secs(),
            "the disk does not answer, and is not fenced for it: no other disk of the node is left, or most do not answer either, so it \
             may be something that they share"
        );
    }

    /// Bytes in all and bytes free on the file system, zeros if it does not say. Does not wait for a disk that has a
    /// watch.
    pub(super) fn known_space(&self) -> (u64, u64) {
        if self.config.background {
            return self.watch.space();
        }
        self.io.space(&self.config.dir).unwrap_or_default()
    }

    /// Turns the failure of a write into what the caller gets, and fences the disk unless it is only full, or there are
    /// no descriptors.
    pub(crate) fn write_failed(&self, context: &'static str, error: io::Error) -> WriteError {
        if is_full(&error) {
            self.set_full(true);
            return WriteError::NoSpace;
        }
        self.fence_off(context, &error);
        WriteError::Io { context, source: Arc::new(error) }
    }

    pub(crate) fn set_full(&self, full: bool) {
        if self.full.swap(full, Ordering::SeqCst) != full {
            let disk = self.config.dir.display();
            if full {
                tracing::warn!(%disk, "disk full: new chunks are refused");
            } else {
                tracing::info!(%disk, "disk has space again");
            }
        }
    }

    /// Makes the completed writes of a segment durable together with those of others that wait.
    pub(crate) async fn sync_segment(self: &Arc<Self>, segment: &Segment) -> Result<(), WriteError> {
        let file = segment.direct().unwrap_or_else(|| Arc::clone(&segment.file));
        self.sync_waiters.fetch_add(1, Ordering::Relaxed);
        self.write_meters.sync_waiters.increment(1);
        // Not the engine itself: a batch that everybody left would keep it alive.
        let (syncs, meter) = (Arc::clone(&self.syncs), self.write_meters.syncs.clone());
        let on_sync = move || {
            syncs.fetch_add(1, Ordering::Relaxed);
            meter.increment(1);
        };
        segment.commit.sync(&file, on_sync).await.map_err(|error| {
            self.fence_anyway("sync segment", &error);
            WriteError::Io { context: "sync segment", source: error }
        })?;
        // A sync that failed meanwhile, of whatever file, may have lost what this one had nothing left to do for.
        self.check_fence()
    }

    /// Reports damage: metric, log, callback.
    pub(crate) fn found(&self, finding: Finding) {
        let source = match finding.source {
            FindingSource::Read => "read",
            FindingSource::Scrub => "scrub",
            FindingSource::Recovery => "recovery",
            FindingSource::Compaction => "compaction",
            FindingSource::Verify => "verify",
        };
        metrics::counter!("holdfast_storage_corruption_total", "source" => source).increment(1);
        tracing::error!(
            disk = %self.config.dir.display(), chunk = finding.chunk.map(tracing::field::display),
            segment = finding.segment, offset = finding.offset, detail = finding.detail, source,
            "damaged bytes found on the disk"
        );
        if let Some(sink) = &self.config.on_finding
            && finding.source != FindingSource::Verify
        {
            sink(finding);
        }
    }
}
