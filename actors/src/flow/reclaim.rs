//! Giving space back: uploads that nobody finishes, contents that nothing refers to, chunks that metadata never knew.
//!
//! Each function does one bounded pass over ports and says whether there is more. All are idempotent: chunks are
//! deleted, durably, before their reclaim is forgotten, so a pass that stops anywhere is done again by the next one.
//! Chunks are deleted only after metadata said that nothing refers to them, in that order; see
//! [`crate::domain::cleanup`] for why a content that metadata does not know stays unknown.
//!
//! **In a cluster** ([`ClusterDuty`]) one node, the holder of a lock ([`crate::flow::duty`]), sees to it that uploads
//! and reclaims are dealt with: it gives them out by name ([`crate::flow::tasks`]), or does them itself. Whoever does
//! it deletes all replicas that it reaches; what it does not reach becomes an orphan there. Any number of nodes may
//! reclaim the same content at once: it is claimed for good, and its chunk ids are never used again.
//!
//! Every node sweeps the orphans of its own disks, but not before it has run for so long that no write that was
//! coordinated by another node before it started can still be under way, and never what is as young as the oldest write
//! that any live node says to be coordinating.
//!
//! Whatever the ages say, an orphan is deleted only after metadata has condemned its content: no commit can make it
//! known any more. In a cluster the metadata must be some cluster's: one that is being restored is nobody's until all
//! is in it. And the node must be a member all the time: who puts metadata back takes one that was paused, or is cut
//! off, for stopped.
//!
//! Each call of a port has a time limit ([`Limits::call_timeout`]). A delete that is cut off may have happened.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_protocol::{ChunkId, ContentId};

use super::duty::Duty;
use crate::domain::cleanup::PassEnd;
use crate::ports::chunks::ChunkInfo;
use crate::ports::coordination::{Fence, Ownership};
use crate::ports::{ChunkError, ChunkStore, Clock, MetadataError, MetadataStore};

mod condemned;
mod contents;
mod in_flight;
mod named;

pub(super) use contents::Progress;
pub use in_flight::InFlightWrites;

/// Contents condemned longer ago than this are forgotten: no write takes a month. See [`condemned`] for what if the
/// clock is wrong.
const CONDEMNED_AGE_MS: u64 = 30 * 86_400_000;

/// Why a pass ended early. What it did before stays done.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// Metadata failed.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// Chunks could not be deleted.
    #[error("delete chunks: {0}")]
    Chunks(#[from] ChunkError),
    /// A live node does not say what it is writing; what it writes must not be taken for orphans.
    #[error("orphans are not looked for while a live node does not say what it is writing: {0}")]
    Writers(String),
    /// The metadata is not the cluster's, or not yet: what it does not know it may be about to be told.
    #[error("orphans are not looked for while the metadata belongs to no cluster: is it being restored?")]
    Unclaimed,
    /// This node cannot prove its membership, or could not all the time: the cluster may take it for stopped.
    #[error("nothing is deleted while this node cannot prove its membership")]
    Fenced,
    /// A port did not answer in time.
    #[error("{0} took too long")]
    Timeout(&'static str),
}

/// What bounds a pass.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Uploads or reclaims a pass.
    pub batch: u32,
    /// Chunks a page of the walk for orphans.
    pub page: usize,
    /// Pages a pass.
    pub pages: usize,
    /// Chunks in one delete.
    pub delete_batch: usize,
    /// Time for one call of a port.
    pub call_timeout: Duration,
}

impl Default for Limits {
    /// A pass holds at most a few MiB of ids and ends within seconds, so that a stop never waits long.
    fn default() -> Self {
        Self { batch: 256, page: 4_096, pages: 64, delete_batch: 512, call_timeout: Duration::from_secs(30) }
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Uploads aborted, reclaims finished or orphaned chunks deleted.
    pub items: u64,
    /// Chunks looked at.
    pub examined: u64,
    /// Chunks deleted.
    pub chunks: u64,
    /// Payload bytes of those chunks.
    pub bytes: u64,
}

/// The fence that guarded writes carry, where there is one.
struct Guard(Option<Fence>);

/// What is different where several nodes share the metadata.
#[derive(Clone)]
pub struct ClusterDuty {
    /// This node's own chunks, which it sweeps for orphans.
    pub local: Arc<dyn ChunkStore>,
    /// Whose business uploads and reclaims are.
    pub duty: Arc<Duty>,
    /// Up to when this node may act as a member of the cluster.
    pub ownership: Ownership,
    /// Orphans are swept from then on.
    pub sweep_from: Instant,
    /// Who coordinates writes whose chunks may lie here.
    pub writers: Arc<dyn Writers>,
}

/// Asks every live node for the writes that it coordinates.
#[async_trait]
pub trait Writers: Send + Sync + 'static {
    /// When the oldest content was begun that any live node is writing for a client, in seconds since 1970.
    ///
    /// # Errors
    /// When a node that is alive cannot be asked.
    async fn oldest_seconds(&self) -> Result<Option<u64>, String>;
}

/// What passes work on.
#[derive(Clone)]
pub struct Reclaimer {
    /// Metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// Chunks; in a cluster those of all nodes.
    pub chunks: Arc<dyn ChunkStore>,
    /// Of a node in a cluster.
    pub cluster: Option<ClusterDuty>,
    /// Time of day, for what metadata keeps by it (ages of uploads and reclaims).
    pub clock: Arc<dyn Clock>,
    /// Writes that are not over.
    pub in_flight: Arc<InFlightWrites>,
    /// Bounds.
    pub limits: Limits,
}

impl Reclaimer {
    /// Aborts uploads begun longer than `age_ms` ago; their parts are then due for reclaiming.
    ///
    /// # Errors
    /// When metadata fails.
    pub async fn abort_stale_uploads(&self, age_ms: u64) -> Result<(PassStats, PassEnd), ReclaimError> {
        if self.on_duty().is_none() {
            return Ok((PassStats::default(), PassEnd::Done));
        }
        let now_ms = self.clock.now_ms();
        let stale = self
            .timed("list stale uploads", self.metadata.stale_uploads(now_ms.saturating_sub(age_ms), self.limits.batch))
            .await?;
        let mut stats = PassStats::default();
        for upload in &stale {
            let new = &upload.new;
            let abort = self.metadata.abort_upload(new.bucket, &new.key, new.id, now_ms);
            match self.timed("abort upload", abort).await {
                Ok(()) => stats.items += 1,
                // Completed or aborted by its owner in between.
                Err(ReclaimError::Metadata(MetadataError::NoSuchUpload)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((stats, self.end(stale.len())))
    }

    /// Deletes the chunks of contents dereferenced longer than `grace_ms` ago, then forgets them.
    ///
    /// # Errors
    /// When metadata or a disk fails; nothing is forgotten whose chunks may be there.
    pub async fn reclaim_due(&self, grace_ms: u64) -> Result<(PassStats, PassEnd), ReclaimError> {
        let (done, end) = self.reclaim_oldest(grace_ms).await?;
        done.error.map_or(Ok((done.stats, end)), Err)
    }

    /// [`Self::reclaim_due`], telling also what was done before an error.
    pub(super) async fn reclaim_oldest(&self, grace_ms: u64) -> Result<(Progress, PassEnd), ReclaimError> {
        let Some(Guard(fence)) = self.on_duty() else { return Ok((Progress::default(), PassEnd::Done)) };
        let term = self.proven_term()?;
        // In whole milliseconds that are over: two dereferences and a pass may happen within one.
        let before_ms = self.clock.now_ms().saturating_sub(grace_ms);
        let due = self.metadata.due_reclaims(before_ms, self.limits.batch, fence.as_ref());
        let due = self.guarded("list due reclaims", due).await?;
        let done = self.delete_contents(&due, fence.as_ref(), term, None).await;
        Ok((done, self.end(due.len())))
    }

    /// Walks the chunks after `cursor` and deletes those that metadata does not know and never will. Moves `cursor`;
    /// `None` at the end.
    ///
    /// # Errors
    /// When metadata or a disk fails, or a live node cannot be asked; `cursor` then stands before the page that failed.
    pub async fn sweep_orphans(&self, cursor: &mut Option<ChunkId>) -> Result<(PassStats, PassEnd), ReclaimError> {
        let mut stats = PassStats::default();
        if self.cluster.as_ref().is_some_and(|cluster| Instant::now() < cluster.sweep_from) {
            return Ok((stats, PassEnd::Done));
        }
        let term = self.proven_term()?;
        let spared_from = self.spared_from().await?;
        for _ in 0..self.limits.pages {
            let page = self.own_chunks().list(*cursor, self.limits.page);
            stats.examined += page.len() as u64;
            self.sweep_page(&page, (spared_from, term), &mut stats).await?;
            if page.len() < self.limits.page {
                *cursor = None;
                self.forget_condemned().await?;
                return Ok((stats, PassEnd::Done));
            }
            *cursor = page.last().map(|info| info.id);
        }
        Ok((stats, PassEnd::More))
    }

    async fn forget_condemned(&self) -> Result<(), ReclaimError> {
        let before_ms = self.clock.now_ms().saturating_sub(CONDEMNED_AGE_MS);
        let old = self.metadata.condemned(before_ms, condemned::SEEN_MAX);
        let old = self.timed("list condemned contents", old).await?;
        for batch in self.in_flight.needless(&old).chunks(1_000) {
            self.timed("forget condemned contents", self.metadata.forget_condemned(batch)).await?;
        }
        Ok(())
    }

    /// Contents begun at this time or later belong, perhaps, to a write that another node coordinates: it may put its
    /// next chunk here only after a long time. While that cannot be told nothing is swept. Writes that begin after this
    /// look are in this node's own window when their first chunk comes.
    async fn spared_from(&self) -> Result<u64, ReclaimError> {
        let Some(cluster) = &self.cluster else { return Ok(u64::MAX) };
        let asked = tokio::time::timeout(self.limits.call_timeout, cluster.writers.oldest_seconds()).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(oldest) => Ok(oldest.unwrap_or(u64::MAX)),
            Err(error) => {
                metrics::counter!("holdfast_orphan_sweeps_deferred_total").increment(1);
                Err(ReclaimError::Writers(error))
            }
        }
    }

    async fn sweep_page(
        &self,
        page: &[ChunkInfo],
        (spared_from, term): (u64, Option<u64>),
        stats: &mut PassStats,
    ) -> Result<(), ReclaimError> {
        let mut candidates: Vec<ContentId> = page
            .iter()
            .map(|info| info.id.content())
            .filter(|content| content.unix_seconds() < spared_from && !self.in_flight.may_be_in_flight(*content))
            .collect();
        candidates.sort_unstable();
        candidates.dedup();
        // At most 1,000 ids a question keep a metadata transaction short.
        for asked in candidates.chunks(1_000) {
            let mut known = self.timed("ask for known contents", self.metadata.known_contents(asked)).await?;
            known.sort_unstable();
            let unknown: Vec<ContentId> =
                asked.iter().copied().filter(|content| known.binary_search(content).is_err()).collect();
            if unknown.is_empty() {
                continue;
            }
            self.require_claim().await?;
            self.require_term(term)?;
            let condemn = self.metadata.condemn(&unknown, self.clock.now_ms());
            let mut condemned = self.timed("condemn contents", condemn).await?;
            condemned.sort_unstable();
            // What is condemned stays so: the next walk deletes it.
            self.require_term(term)?;
            let mut batch = Vec::new();
            for info in page.iter().filter(|info| condemned.binary_search(&info.id.content()).is_ok()) {
                tracing::debug!(chunk = %info.id, "orphaned chunk found");
                stats.items += 1;
                stats.chunks += 1;
                stats.bytes += u64::from(info.size_bytes);
                batch.push(info.id);
                if batch.len() >= self.limits.delete_batch {
                    self.delete_from(self.own_chunks(), &mut batch).await?;
                }
            }
            self.delete_from(self.own_chunks(), &mut batch).await?;
        }
        Ok(())
    }

    /// A database that was lost and made anew knows nothing until a backup is in it, and becomes the cluster's then.
    /// Asked after what is known: what became known meanwhile is not condemned.
    async fn require_claim(&self) -> Result<(), ReclaimError> {
        if self.cluster.is_none() {
            return Ok(());
        }
        let claimant = self.timed("ask whose the metadata is", self.metadata.claim(None)).await?;
        claimant.map(drop).ok_or(ReclaimError::Unclaimed)
    }

    /// The session in which this node is a member; `None`: it is alone.
    fn proven_term(&self) -> Result<Option<u64>, ReclaimError> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        // In this order: if another session is proven, the next look finds another term.
        let term = cluster.ownership.term();
        if cluster.ownership.is_proven() { Ok(Some(term)) } else { Err(ReclaimError::Fenced) }
    }

    fn require_term(&self, term: Option<u64>) -> Result<(), ReclaimError> {
        if self.proven_term()? == term { Ok(()) } else { Err(ReclaimError::Fenced) }
    }

    /// Whether what is left undone by this node is its business.
    pub(super) fn is_on_duty(&self) -> bool {
        self.on_duty().is_some()
    }

    /// Whether this node may act as a member of its cluster. Contents that were claimed stay claimed, so this keeps
    /// work with nodes that reach the others. It keeps data only where metadata was put back while this process stood
    /// still.
    pub(super) fn may_work(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.ownership.is_proven())
    }

    /// Under what guard uploads and reclaims are this node's business; `None`: they are not, now.
    fn on_duty(&self) -> Option<Guard> {
        let Some(cluster) = &self.cluster else { return Some(Guard(None)) };
        let fence = cluster.duty.fence().filter(|_| cluster.ownership.is_proven())?;
        Some(Guard(Some(fence)))
    }

    /// A write that carries the duty's fence.
    async fn guarded<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MetadataError>>,
    ) -> Result<T, ReclaimError> {
        let result = self.timed(what, call).await;
        if let (Err(ReclaimError::Metadata(MetadataError::Fenced { current, .. })), Some(cluster)) =
            (&result, &self.cluster)
        {
            cluster.duty.on_fenced(*current);
        }
        result
    }

    fn own_chunks(&self) -> &dyn ChunkStore {
        self.cluster.as_ref().map_or(&*self.chunks, |cluster| &*cluster.local)
    }

    async fn delete(&self, batch: &mut Vec<ChunkId>, term: Option<u64>) -> Result<(), ReclaimError> {
        if !batch.is_empty() {
            self.require_term(term)?;
        }
        self.delete_from(&*self.chunks, batch).await
    }

    async fn delete_from(&self, store: &dyn ChunkStore, batch: &mut Vec<ChunkId>) -> Result<(), ReclaimError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.timed("delete chunks", store.delete(batch)).await?;
        batch.clear();
        Ok(())
    }

    async fn timed<T, E>(&self, what: &'static str, call: impl Future<Output = Result<T, E>>) -> Result<T, ReclaimError>
    where
        ReclaimError: From<E>,
    {
        match tokio::time::timeout(self.limits.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ReclaimError::Timeout(what)),
        }
    }

    fn end(&self, found: usize) -> PassEnd {
        if found >= self.limits.batch as usize { PassEnd::More } else { PassEnd::Done }
    }
}
