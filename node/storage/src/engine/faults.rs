//! What an error of the disk does to the engine: it is fenced, or full, or neither.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use crate::error::{WriteError, is_full};
use crate::segment::Segment;

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

    /// Takes no writes from now on: the disk failed one.
    pub(crate) fn fence_off(&self, context: &str, error: &std::io::Error) {
        let mut fence = self.fence.lock();
        if fence.is_none() {
            tracing::error!(disk = %self.config.dir.display(), context, %error, "disk fenced: it takes no writes any more");
            metrics::counter!("holdfast_storage_fences_total").increment(1);
            *fence = Some(Arc::from(format!("{context}: {error}")));
            self.fenced.store(true, Ordering::SeqCst);
        }
    }

    /// Turns the failure of a write into what the caller gets, and fences the disk unless it is only full.
    pub(crate) fn write_failed(&self, context: &'static str, error: std::io::Error) -> WriteError {
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
        metrics::counter!("holdfast_storage_sync_waiters_total").increment(1);
        // Not the engine itself: a batch that everybody left would keep it alive.
        let syncs = Arc::clone(&self.syncs);
        let on_sync = move || {
            syncs.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("holdfast_storage_syncs_total").increment(1);
        };
        segment.commit.sync(&file, on_sync).await.map_err(|error| {
            self.fence_off("sync segment", &error);
            WriteError::Io { context: "sync segment", source: error }
        })?;
        // A sync that failed meanwhile, of whatever file, may have lost what this one had nothing left to do for.
        self.check_fence()
    }
}
