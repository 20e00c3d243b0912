//! A write in progress, and its marks in the cache.

use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::coordination::CacheState;
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use tokio::time::{Instant, sleep};

use super::Core;
use crate::metadata::caching::UNKNOWN_QUARANTINE;
use crate::metadata::redis::entry::Nonce;
use crate::metadata::redis::gate::Ticket;

/// How often a writer that is not done renews its marks.
const RENEW_EVERY: Duration = Duration::from_secs(30);

/// The marks of a write.
pub(super) struct Marks {
    pub(super) state: Arc<CacheState>,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) token: Nonce,
    /// The marks may have been away in between, and what was written may no longer be the last.
    pub(super) renewed: bool,
}

/// A write in progress. It has to be ended by one of the methods that take it; a process that dies leaves its marks,
/// which keep readers away from the entries until they no longer count.
pub(in crate::metadata::redis) struct Write {
    pub(super) core: Arc<Core>,
    pub(super) ticket: Ticket,
    pub(super) marks: Option<Marks>,
}

impl Write {
    /// Does the work, and renews the marks meanwhile.
    pub(in crate::metadata::redis) async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(RENEW_EVERY) => self.renew().await,
            }
        }
    }

    async fn renew(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.renewed = true;
            // Without success the end of the write will show that the marks are gone.
            if let Err(error) = self.core.mark(marks).await {
                tracing::debug!(%error, "renew a mark in the cache");
            }
        }
    }

    /// The write is done, `value` is what its entry's form is now. On return everybody finds it, or nothing.
    ///
    /// # Errors
    /// `Unknown`: it happened, but must not be acknowledged, since something older may still be found.
    pub(in crate::metadata::redis) async fn finish(mut self, value: Option<Vec<u8>>) -> MetadataResult<()> {
        let unknown = |why: String| MetadataError::Unknown(format!("written, but the cache may not know: {why}"));
        let core = self.core.clone();
        if let Some(marks) = self.marks.take()
            && !core.gate.has_left(marks.state.keyspace)
            && let Err(error) = core.unmark(&marks, value).await
        {
            let deadline = Instant::now() + core.options.off_patience;
            core.leave(marks.state.keyspace, &error, deadline).await.map_err(unknown)?;
        }
        if !self.ticket.was_watched() {
            core.invalidate().await.map_err(|error| unknown(error.to_string()))?;
        }
        Ok(())
    }

    /// Nothing was written.
    pub(in crate::metadata::redis) fn abandon(mut self) {
        if let Some(marks) = self.marks.take() {
            tokio::spawn(async move {
                if let Err(error) = self.core.unmark(&marks, None).await {
                    tracing::debug!(%error, "take a mark back");
                }
                drop(self);
            });
        }
    }

    /// It may have been written, or may be yet: keeps the marks until that is over.
    pub(in crate::metadata::redis) fn quarantine(mut self) {
        tokio::spawn(async move {
            self.drive(sleep(UNKNOWN_QUARANTINE)).await;
            // Nobody is told anything, so there is nothing to be refused.
            if let Err(error) = self.finish(None).await {
                tracing::warn!(%error, "end a write of unknown outcome");
            }
        });
    }
}
