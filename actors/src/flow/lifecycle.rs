//! Lifecycle rules carried out: versions and uploads that are due by the rules of their bucket are deleted, or asked to
//! be moved.
//!
//! A pass goes over the buckets that have rules. In each it does two things, both in bounded batches:
//!
//! * **Streams**: for every age that rules name, a walk in order of age goes on from where it stood to what is old
//!   enough now ([`LifecycleRules::streams`]). Its place is saved after each batch, so that a restart goes on there.
//!   What a walk has passed is not looked at again: the cost follows what becomes due, not what is stored.
//! * **Rechecks**: keys of which something changed that a walk may have passed (see
//!   [`MetadataUpkeep::rechecks`](crate::ports::metadata::MetadataUpkeep::rechecks)) are judged by all rules.
//!
//! What is due to be moved to another storage class is put on the queue of moves ([`MetadataStore::request_move`]);
//! movers do the rest, and tell of it. Rules that name a tier which is not set up wait for it, as do their walks.
//!
//! Nothing is deleted or moved but the very version that was judged, under the very rules: each deletion names its
//! sequence number and the bucket's revision, and where those do not say all, tags and the number of newer versions;
//! the transaction compares ([`OnlyIf`](crate::ports::metadata::OnlyIf)). When it is refused, the walk stops before
//! that version and judges what is there now.
//!
//! **In a cluster** this is the business of one node, the holder of a lock ([`crate::flow::duty`]), whose token the
//! database checks where places are saved. A former holder that does not know yet deletes at most what is due anyway.
//!
//! A pass that fails is repeated after a pause that grows; what it did stays done. Each call of the store has a time
//! limit.

use std::collections::HashSet;
use std::sync::Arc;

use holdfast_protocol::TierName;

use super::clocks::Clocks;
use super::duty::Duty;
use crate::domain::cleanup::PassEnd;
use crate::domain::events::EventDraft;
use crate::domain::lifecycle::{LifecycleRules, Stream, StreamKind};
use crate::ports::coordination::{Fence, Ownership};
use crate::ports::metadata::{AgePosition, AgedKind, AgedVersion, Bucket, BucketConfigKind};
use crate::ports::tiers::Tiers;
use crate::ports::{AccessLog, Clock, MetadataError, MetadataStore};

mod act;
mod reads;
mod run;
mod settings;
mod stats;
mod transit;

pub(super) use act::draft;
pub use run::run;
pub use settings::LifecycleSettings;
pub use stats::LifecycleStats;
use stats::tell;

/// Why a pass ended early. What it did before stays done.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// Metadata failed.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// The store did not answer in time.
    #[error("{0} took too long")]
    Timeout(&'static str),
}

/// What is different where several nodes share the metadata.
#[derive(Clone)]
pub struct LifecycleDuty {
    /// Whose business it is.
    pub duty: Arc<Duty>,
    /// Up to when this node may act as a member of the cluster.
    pub ownership: Ownership,
}

/// What events tell of who did it.
#[derive(Debug, Clone)]
pub struct LifecycleTeller {
    /// The node.
    pub node: Arc<str>,
    /// Region of its front end.
    pub region: Arc<str>,
}

/// What it works on. Cheap to clone.
#[derive(Clone)]
pub struct LifecycleParts {
    /// Metadata, through whatever caches it.
    pub metadata: Arc<dyn MetadataStore>,
    /// Which tiers there are; `None`: whichever rules name.
    pub tiers: Option<Arc<dyn Tiers>>,
    /// When objects were last read; `None`: nobody notes it.
    pub reads: Option<Arc<dyn AccessLog>>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Of a node in a cluster.
    pub cluster: Option<LifecycleDuty>,
    /// `None`: nobody is told of changes.
    pub teller: Option<LifecycleTeller>,
    /// Pace.
    pub settings: LifecycleSettings,
}

/// A bucket in work.
struct Job {
    bucket: Arc<Bucket>,
    rules: LifecycleRules,
    /// Tiers that the rules name and that are not set up.
    missing: HashSet<TierName>,
    event: Option<EventDraft>,
    fence: Option<Fence>,
    now_ms: u64,
}

impl LifecycleParts {
    /// One pass over all buckets. [`PassEnd::More`]: some had more to do than one pass takes.
    ///
    /// # Errors
    /// When metadata fails. Other buckets than the one that failed were still done.
    pub async fn pass(&self) -> Result<(LifecycleStats, PassEnd), LifecycleError> {
        let mut stats = LifecycleStats::default();
        let (mut end, mut failed) = (PassEnd::Done, None);
        let mut after: Option<String> = None;
        // Buckets whose notes of reads are still good for something.
        let mut asking = HashSet::new();
        let clocks = Clocks::read(&*self.clock);
        if self.on_duty().is_none() {
            return Ok((stats, end));
        }
        loop {
            let page = self.metadata.list_buckets(None, after.as_deref(), self.settings.buckets);
            let page = self.timed("list buckets", page).await?;
            for bucket in &page {
                let Some(text) = bucket.config(BucketConfigKind::Lifecycle) else { continue };
                if serde_json::from_str::<LifecycleRules>(text).map_or(true, |rules| rules.asks_for_reads()) {
                    asking.insert(bucket.id);
                }
                let Some(fence) = self.on_duty() else { return Ok((stats, PassEnd::Done)) };
                match self.run_bucket(bucket, fence, &clocks, &mut stats).await {
                    Ok(false) => {}
                    Ok(true) => end = PassEnd::More,
                    // It was deleted meanwhile.
                    Err(LifecycleError::Metadata(MetadataError::NoSuchBucket)) => {}
                    Err(error) => {
                        tracing::warn!(bucket = bucket.name, %error, "lifecycle rules of a bucket could not be carried out");
                        failed = Some(error);
                    }
                }
            }
            match page.last() {
                Some(last) if page.len() >= self.settings.buckets as usize => after = Some(last.name.clone()),
                _ => break,
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if self.sweep_reads(&asking).await? {
            end = PassEnd::More;
        }
        Ok((stats, end))
    }

    /// Under what fence this is the node's business; `None`: it is not, now.
    fn on_duty(&self) -> Option<Option<Fence>> {
        let Some(cluster) = &self.cluster else { return Some(None) };
        let fence = cluster.duty.fence().filter(|_| cluster.ownership.is_proven())?;
        Some(Some(fence))
    }

    /// Whether there is more to do.
    async fn run_bucket(
        &self,
        listed: &Bucket,
        fence: Option<Fence>,
        clocks: &Clocks,
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        let Some(job) = self.job(listed, fence).await? else { return Ok(false) };
        if clocks.have_leapt(job.now_ms, self.settings.hold) {
            // The loop finds that out too before the next pass, and holds still.
            return Ok(true);
        }
        let (mut more, mut damage) = (false, None);
        let streams = job.rules.streams(job.now_ms, self.settings.day);
        let cursors = self.metadata.lifecycle_cursors(job.bucket.id, job.rules.generation);
        let cursors = self.timed("read lifecycle cursors", cursors).await?;
        for stream in streams.iter().filter(|stream| self.can_walk(&job, stream)) {
            // Rules may have been changed, the duty lost, the node fenced: a batch is the most that is done then.
            if !self.still_holds(&job).await? {
                return Ok(true);
            }
            let cursor = cursors.iter().find(|(name, _)| *name == stream.name);
            let mut at = cursor.map(|(_, at)| at.clone()).unwrap_or_default();
            match self.walk(&job, stream, &mut at, stats).await {
                Ok(left) => more |= left,
                // One damaged row must not keep the other walks from their work.
                Err(error @ LifecycleError::Metadata(MetadataError::Corrupt(_))) => damage = Some(error),
                Err(error) => return Err(error),
            }
        }
        // Last, for what the walks have done may have left something to be looked at: a marker that hides nothing any
        // more.
        let left = self.run_rechecks(&job, stats).await?;
        damage.map_or(Ok(left || more), Err)
    }

    /// Batches of one stream. Moves `at`; whether there is more.
    async fn walk(
        &self,
        job: &Job,
        stream: &Stream,
        at: &mut AgePosition,
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        for _ in 0..self.settings.batches_max {
            if at.at_ms > stream.until_ms || !self.step(job, stream, at, stats).await? {
                return Ok(false);
            }
            if !self.still_holds(job).await? {
                break;
            }
        }
        Ok(true)
    }

    /// The bucket as it is now, with its rules; `None`: it has none that are understood.
    async fn job(&self, listed: &Bucket, fence: Option<Fence>) -> Result<Option<Job>, LifecycleError> {
        let bucket = self.timed("read a bucket", self.metadata.bucket(&listed.name)).await?;
        let Some(text) = bucket.config(BucketConfigKind::Lifecycle) else { return Ok(None) };
        let rules: LifecycleRules = match serde_json::from_str(text) {
            Ok(rules) => rules,
            Err(error) => {
                tracing::error!(bucket = bucket.name, %error, "stored lifecycle rules are not understood");
                return Ok(None);
            }
        };
        let event = self.teller.as_ref().map(|teller| act::draft(teller, &bucket));
        let missing = self.missing_tiers(&bucket, &rules).await;
        Ok(Some(Job { bucket, rules, missing, event, fence, now_ms: self.clock.now_ms() }))
    }

    async fn still_holds(&self, job: &Job) -> Result<bool, LifecycleError> {
        if self.on_duty().is_none_or(|fence| fence != job.fence) {
            return Ok(false);
        }
        let bucket = self.timed("read a bucket", self.metadata.bucket(&job.bucket.name)).await?;
        Ok(bucket.id == job.bucket.id && bucket.revision == job.bucket.revision)
    }

    /// Whether there is more to recheck.
    async fn run_rechecks(&self, job: &Job, stats: &mut LifecycleStats) -> Result<bool, LifecycleError> {
        let batch = self.settings.batch;
        let rechecks = self.timed("list rechecks", self.metadata.rechecks(job.bucket.id, batch)).await?;
        if rechecks.is_empty() {
            return Ok(false);
        }
        // After they were listed: what is noted under later rules is for those to judge.
        if !self.still_holds(job).await? {
            return Ok(true);
        }
        // A key may have been noted more than once.
        let mut seen = HashSet::new();
        let mut versions: Vec<&AgedVersion> = rechecks.iter().flat_map(|recheck| &recheck.versions).collect();
        versions.retain(|version| seen.insert((version.key.as_str(), version.version)));
        let refused = self.judge_all(job, &versions, stats).await?;
        // What was refused was changed since, by something that is not noted, perhaps: it is judged again.
        let is_open = |version: &AgedVersion| refused.iter().any(|place| *versions[*place] == *version);
        let done: Vec<u64> =
            rechecks.iter().filter(|recheck| !recheck.versions.iter().any(is_open)).map(|recheck| recheck.id).collect();
        let finish = self.metadata.finish_rechecks(&done, job.fence.as_ref());
        self.guarded("finish rechecks", finish).await?;
        Ok(!refused.is_empty() || rechecks.len() >= batch as usize)
    }

    /// One batch of a stream. Moves `at`; whether there is more.
    async fn step(
        &self,
        job: &Job,
        stream: &Stream,
        at: &mut AgePosition,
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        let kind = match stream.kind {
            StreamKind::Uploads => return self.step_uploads(job, stream, at, stats).await,
            StreamKind::Read => return self.step_reads(job, stream, at, stats).await,
            StreamKind::Current => AgedKind::Current,
            StreamKind::Noncurrent => AgedKind::Noncurrent,
            StreamKind::Markers => AgedKind::Markers,
        };
        let batch = self.settings.batch;
        let page = self.metadata.aged_versions(job.bucket.id, kind, at, stream.until_ms, batch);
        let page = self.timed("list versions by age", page).await?;
        let versions: Vec<&AgedVersion> = page.iter().collect();
        let refused = self.judge_all(job, &versions, stats).await?;
        let passed = refused.first().map_or(page.len(), |place| *place);
        if let Some(last) = page[..passed].last() {
            *at = last.position();
            self.save(job, stream, at).await?;
        }
        Ok(!refused.is_empty() || page.len() >= batch as usize)
    }

    async fn step_uploads(
        &self,
        job: &Job,
        stream: &Stream,
        at: &mut AgePosition,
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        let batch = self.settings.batch;
        let page = self.metadata.aged_uploads(job.bucket.id, at, stream.until_ms, batch);
        let page = self.timed("list uploads by age", page).await?;
        for upload in &page {
            stats.examined += 1;
            let new = &upload.new;
            let Some(due) = job.rules.judge_upload(&new.key, new.now_ms, job.now_ms, self.settings.day) else {
                continue;
            };
            // An abort cannot be held against the rules in its transaction.
            if !self.still_holds(job).await? {
                return Ok(true);
            }
            let abort = self.metadata.abort_upload(new.bucket, &new.key, new.id, self.clock.now_ms());
            match self.timed("abort upload", abort).await {
                Ok(()) => stats.count(&due, job.now_ms),
                // Completed or aborted by its owner in between.
                Err(LifecycleError::Metadata(MetadataError::NoSuchUpload)) => tell(due.action, "changed"),
                Err(error) => {
                    tell(due.action, "failed");
                    return Err(error);
                }
            }
        }
        if let Some(last) = page.last() {
            *at = last.position();
            self.save(job, stream, at).await?;
        }
        Ok(page.len() >= batch as usize)
    }

    async fn save(&self, job: &Job, stream: &Stream, at: &AgePosition) -> Result<(), LifecycleError> {
        let fence = job.fence.as_ref();
        let save = self.metadata.save_lifecycle_cursor(job.bucket.id, job.rules.generation, &stream.name, at, fence);
        self.guarded("save a lifecycle cursor", save).await
    }

    /// A write that carries the duty's fence.
    async fn guarded<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MetadataError>>,
    ) -> Result<T, LifecycleError> {
        let result = self.timed(what, call).await;
        if let (Err(LifecycleError::Metadata(MetadataError::Fenced { current, .. })), Some(cluster)) =
            (&result, &self.cluster)
        {
            cluster.duty.on_fenced(*current);
        }
        result
    }

    async fn timed<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MetadataError>>,
    ) -> Result<T, LifecycleError> {
        match tokio::time::timeout(self.settings.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(LifecycleError::Timeout(what)),
        }
    }
}
