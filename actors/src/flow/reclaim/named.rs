//! Work on what a task names, by any node: whether it is still due is asked in the transaction that does it, or claims
//! it.

use std::time::Instant;

use holdfast_protocol::{ReclaimItem, Task, UploadId};

use super::{Progress, ReclaimError, Reclaimer};
use crate::ports::MetadataError;
use crate::ports::metadata::Reclaim;

impl Reclaimer {
    /// Names contents that are due, oldest first.
    ///
    /// # Errors
    /// When metadata fails.
    pub(in crate::flow) async fn due_contents(
        &self,
        before_ms: u64,
        limit: u32,
    ) -> Result<Vec<ReclaimItem>, ReclaimError> {
        self.timed("list waiting reclaims", self.metadata.waiting_reclaims(before_ms, limit)).await
    }

    /// Names uploads that are stale, oldest first.
    ///
    /// # Errors
    /// When metadata fails.
    pub(in crate::flow) async fn stale_uploads(
        &self,
        before_ms: u64,
        limit: u32,
    ) -> Result<Vec<UploadId>, ReclaimError> {
        let stale = self.timed("list stale uploads", self.metadata.stale_uploads(before_ms, limit)).await?;
        Ok(stale.iter().map(|upload| upload.new.id).collect())
    }

    /// Does what of a task is still due. After `until` nothing more is begun. Idempotent, and it may be dropped at any
    /// point: chunks are deleted before their content is forgotten.
    pub(in crate::flow) async fn carry_out(&self, task: &Task, until: Option<Instant>) -> Progress {
        match task {
            Task::Reclaim { before_ms, contents } => self.reclaim_named(contents, *before_ms, until).await,
            Task::ExpireUploads { before_ms, uploads } => self.expire_named(uploads, *before_ms, until).await,
        }
    }

    async fn reclaim_named(&self, items: &[ReclaimItem], before_ms: u64, until: Option<Instant>) -> Progress {
        let mut unreadable = Progress::default();
        let term = self.proven_term();
        let claimed = match self.claim(items, before_ms).await {
            // A damaged row must not hold up the others.
            Err(ReclaimError::Metadata(MetadataError::Corrupt(_))) if items.len() > 1 => {
                let mut claimed = Vec::new();
                for item in items {
                    match self.claim(&[*item], before_ms).await {
                        Ok(one) => claimed.extend(one),
                        Err(error) => unreadable.fail(1, error),
                    }
                }
                Ok(claimed)
            }
            claimed => claimed,
        };
        let mut done = match (claimed, term) {
            (Ok(claimed), Ok(term)) => self.delete_contents(&claimed, None, term, until).await,
            (Err(error), _) | (_, Err(error)) => {
                let mut none = Progress::default();
                none.fail(items.len(), error);
                none
            }
        };
        done.failed += unreadable.failed;
        done.error = unreadable.error.or(done.error);
        done
    }

    async fn claim(&self, items: &[ReclaimItem], before_ms: u64) -> Result<Vec<Reclaim>, ReclaimError> {
        self.timed("claim reclaims", self.metadata.claim_reclaims(items, before_ms)).await
    }

    async fn expire_named(&self, uploads: &[UploadId], before_ms: u64, until: Option<Instant>) -> Progress {
        let mut done = Progress::default();
        for (at, upload) in uploads.iter().enumerate() {
            if until.is_some_and(|until| Instant::now() >= until) {
                done.left = (uploads.len() - at) as u64;
                break;
            }
            let expire = self.metadata.expire_upload(*upload, before_ms, self.clock.now_ms());
            match self.timed("expire upload", expire).await {
                Ok(ended) => {
                    done.stats.examined += 1;
                    done.stats.items += u64::from(ended);
                }
                Err(error @ ReclaimError::Metadata(MetadataError::Corrupt(_))) => done.fail(1, error),
                Err(error) => {
                    done.fail(uploads.len() - at, error);
                    break;
                }
            }
        }
        done
    }
}
