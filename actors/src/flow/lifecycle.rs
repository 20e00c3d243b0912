//! Lifecycle rules carried out: versions and uploads that are due by the rules of their bucket are deleted.
//!
//! A pass goes over the buckets that have rules. In each it does two things, both in bounded batches:
//!
//! * **Rechecks** first: keys of which something changed that a walk may have passed (see
//!   [`MetadataStore::rechecks`]) are judged by all rules.
//! * **Streams**: for every age that rules name, a walk in order of age goes on from where it stood to what is old enough now
//!   ([`LifecycleRules::streams`]). Its place is saved after each batch, so that a restart goes on there. What a walk has
//!   passed is not looked at again: the cost follows what becomes due, not what is stored.
//!
//! Nothing is deleted but the very version that was judged: each deletion names its sequence number, and the transaction
//! compares ([`OnlyIf`]). When it is refused, the walk stops before that version and judges what is there now.
//!
//! **In a cluster** this is the business of one node, the holder of a lock ([`crate::flow::duty`]), whose token the database checks
//! where places are saved. A former holder that does not know yet deletes at most what is due anyway.
//!
//! A pass that fails is repeated after a pause that grows; what it did stays done. Each call of the store has a time limit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::{EventName, VersionId};

use super::duty::Duty;
use crate::domain::cleanup::PassEnd;
use crate::domain::events::{EventContext, EventDraft, HOLDFAST_PRINCIPAL, NotificationRules};
use crate::domain::lifecycle::{Day, Due, LifecycleAction, LifecycleRules, Stream, StreamKind};
use crate::ports::coordination::{Fence, Ownership};
use crate::ports::metadata::{
    AgePosition, AgedKind, AgedVersion, Bucket, BucketConfigKind, DeleteRequest, OnlyIf, Standing, WritePrecondition,
};
use crate::ports::{Clock, MetadataError, MetadataStore};

mod run;

pub use run::run;

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

/// How the work is paced.
#[derive(Debug, Clone)]
pub struct LifecycleSettings {
    /// How long a day of age is.
    pub day: Day,
    /// Time between passes.
    pub interval: Duration,
    /// Versions, uploads or rechecks of a batch.
    pub batch: u32,
    /// Batches of one stream in a pass: then others have their turn.
    pub batches_max: u32,
    /// Buckets of a page.
    pub buckets: u32,
    /// Time for one call of the store.
    pub call_timeout: Duration,
}

impl Default for LifecycleSettings {
    /// A batch is a few hundred rows, so that a transaction is short; a pass ends within seconds.
    fn default() -> Self {
        Self {
            day: Day::REAL,
            interval: Duration::from_secs(300),
            batch: 256,
            batches_max: 16,
            buckets: 100,
            call_timeout: Duration::from_secs(30),
        }
    }
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
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Of a node in a cluster.
    pub cluster: Option<LifecycleDuty>,
    /// `None`: nobody is told of changes.
    pub teller: Option<LifecycleTeller>,
    /// Pace.
    pub settings: LifecycleSettings,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LifecycleStats {
    /// Versions and uploads looked at.
    pub examined: u64,
    /// Latest versions expired.
    pub expired: u64,
    /// Noncurrent versions removed.
    pub noncurrent: u64,
    /// Delete markers removed.
    pub markers: u64,
    /// Uploads aborted.
    pub uploads: u64,
    /// Deletions that were refused, since the version was changed after it was judged.
    pub changed: u64,
    /// For how long the longest due of what was done had been due.
    pub lag_ms: u64,
}

impl LifecycleStats {
    fn count(&mut self, due: Due, now_ms: u64) {
        let count = match due.action {
            LifecycleAction::ExpireCurrent => &mut self.expired,
            LifecycleAction::RemoveNoncurrent => &mut self.noncurrent,
            LifecycleAction::RemoveMarker => &mut self.markers,
            LifecycleAction::AbortUpload => &mut self.uploads,
        };
        *count += 1;
        self.lag_ms = self.lag_ms.max(now_ms.saturating_sub(due.since_ms));
        tell(due.action, "done");
    }

    /// Whether anything was deleted.
    pub fn did_anything(&self) -> bool {
        self.expired + self.noncurrent + self.markers + self.uploads > 0
    }
}

fn tell(action: LifecycleAction, outcome: &'static str) {
    metrics::counter!("holdfast_lifecycle_actions_total", "action" => action.as_str(), "outcome" => outcome)
        .increment(1);
}

/// A bucket in work.
struct Job {
    bucket: Arc<Bucket>,
    rules: LifecycleRules,
    event: Option<EventDraft>,
    fence: Option<Fence>,
    now_ms: u64,
}

/// A version that is to go, and why.
struct Doomed<'a> {
    version: &'a AgedVersion,
    due: Due,
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
        if self.on_duty().is_none() {
            return Ok((stats, end));
        }
        loop {
            let page = self.metadata.list_buckets(None, after.as_deref(), self.settings.buckets);
            let page = self.timed("list buckets", page).await?;
            for bucket in &page {
                if bucket.config(BucketConfigKind::Lifecycle).is_none() {
                    continue;
                }
                let Some(fence) = self.on_duty() else { return Ok((stats, PassEnd::Done)) };
                match self.run_bucket(bucket, fence, &mut stats).await {
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
        match failed {
            Some(error) => Err(error),
            None => Ok((stats, end)),
        }
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
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        let Some(job) = self.job(listed, fence).await? else { return Ok(false) };
        let mut more = self.run_rechecks(&job, stats).await?;
        let streams = job.rules.streams(job.now_ms, self.settings.day);
        if streams.is_empty() {
            return Ok(more);
        }
        let cursors = self.metadata.lifecycle_cursors(job.bucket.id, job.rules.generation);
        let cursors = self.timed("read lifecycle cursors", cursors).await?;
        for stream in &streams {
            let cursor = cursors.iter().find(|(name, _)| *name == stream.name);
            let mut at = cursor.map(|(_, at)| at.clone()).unwrap_or_default();
            let mut batches = 0;
            while at.at_ms <= stream.until_ms && self.step(&job, stream, &mut at, stats).await? {
                batches += 1;
                // Rules may have been changed, the duty lost, the node fenced: a batch is the most that is done then.
                if batches >= self.settings.batches_max || !self.still_holds(&job).await? {
                    more = true;
                    break;
                }
            }
        }
        Ok(more)
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
        let event = self.teller.as_ref().map(|teller| draft(teller, &bucket));
        Ok(Some(Job { bucket, rules, event, fence, now_ms: self.clock.now_ms() }))
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
        let versions: Vec<&AgedVersion> = rechecks.iter().flat_map(|recheck| &recheck.versions).collect();
        let refused = self.judge_all(job, &versions, stats).await?;
        // What was refused was changed since, by something that is not noted, perhaps: it is judged again.
        let is_open = |version: &AgedVersion| refused.iter().any(|place| *versions[*place] == *version);
        let done: Vec<u64> = rechecks
            .iter()
            .filter(|recheck| !recheck.versions.iter().any(is_open))
            .map(|recheck| recheck.id)
            .collect();
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
            let abort = self.metadata.abort_upload(new.bucket, &new.key, new.id, self.clock.now_ms());
            match self.timed("abort upload", abort).await {
                Ok(()) => stats.count(due, job.now_ms),
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
        let save =
            self.metadata.save_lifecycle_cursor(job.bucket.id, job.rules.generation, &stream.name, at, fence);
        self.guarded("save a lifecycle cursor", save).await
    }

    /// Judges versions and deletes those that are due, and of their keys what rules do not keep any longer. Returns the places
    /// of those whose deletion was refused.
    async fn judge_all(
        &self,
        job: &Job,
        versions: &[&AgedVersion],
        stats: &mut LifecycleStats,
    ) -> Result<Vec<usize>, LifecycleError> {
        stats.examined += versions.len() as u64;
        let (mut places, mut doomed, mut keys) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (place, version) in versions.iter().enumerate() {
            if let Some(due) = job.rules.judge(version, 0, job.now_ms, self.settings.day) {
                places.push(place);
                doomed.push(Doomed { version, due });
            }
            if version.standing == Standing::Noncurrent {
                keys.insert(version.key.as_str());
            }
        }
        let refused = self.delete(job, &doomed, stats).await?;
        for key in keys {
            self.trim(job, key, stats).await?;
        }
        Ok(refused.into_iter().map(|at| places[at]).collect())
    }

    /// Removes noncurrent versions of a key beyond the number that rules keep.
    async fn trim(&self, job: &Job, key: &str, stats: &mut LifecycleStats) -> Result<(), LifecycleError> {
        for (keep, days) in job.rules.keeps(key) {
            let Some(old_ms) = self.settings.day.last_due_ms(job.now_ms, days) else { continue };
            let mut after = 0;
            loop {
                let batch = self.settings.batch;
                let page = self.metadata.surplus_versions(job.bucket.id, key, keep, after, batch);
                let page = self.timed("list surplus versions", page).await?;
                stats.examined += page.len() as u64;
                let judged = page.iter().filter_map(|version| {
                    let due = job.rules.judge(version, keep, job.now_ms, self.settings.day)?;
                    Some(Doomed { version, due })
                });
                let doomed: Vec<Doomed<'_>> = judged.collect();
                // What is refused has become the latest version, or is gone.
                self.delete(job, &doomed, stats).await?;
                match page.last() {
                    // They are in the order of age: beyond a young one are only younger ones.
                    Some(last) if page.len() >= batch as usize && last.since_ms <= old_ms => after = last.sequence,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Deletes what was judged, if it is still what it was. Returns the places of those that were refused.
    async fn delete(
        &self,
        job: &Job,
        doomed: &[Doomed<'_>],
        stats: &mut LifecycleStats,
    ) -> Result<Vec<usize>, LifecycleError> {
        if doomed.is_empty() {
            return Ok(Vec::new());
        }
        let now_ms = self.clock.now_ms();
        let requests: Vec<DeleteRequest> = doomed.iter().map(|one| request(job, one, now_ms)).collect();
        let results = self.metadata.delete_objects(job.bucket.id, requests, now_ms);
        let results = self.timed("delete versions", results).await?;
        let (mut refused, mut failed) = (Vec::new(), None);
        for (place, (one, result)) in doomed.iter().zip(results).enumerate() {
            match result {
                Ok(_) => stats.count(one.due, job.now_ms),
                Err(MetadataError::PreconditionFailed) => {
                    stats.changed += 1;
                    tell(one.due.action, "changed");
                    refused.push(place);
                }
                Err(error) => {
                    tell(one.due.action, "failed");
                    failed = Some(error);
                }
            }
        }
        match failed {
            // The place of the walk is not saved: what did not go is judged again.
            Some(error) => Err(error.into()),
            None => Ok(refused),
        }
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

fn request(job: &Job, one: &Doomed<'_>, now_ms: u64) -> DeleteRequest {
    let (version, is_alone) = match one.due.action {
        LifecycleAction::ExpireCurrent => (None, false),
        LifecycleAction::RemoveMarker => (Some(one.version.version), true),
        LifecycleAction::RemoveNoncurrent | LifecycleAction::AbortUpload => (Some(one.version.version), false),
    };
    DeleteRequest {
        key: one.version.key.clone(),
        version,
        marker_version: VersionId::generate(now_ms / 1_000),
        owner: job.bucket.owner.clone(),
        precondition: WritePrecondition::default(),
        only_if: Some(OnlyIf { sequence: one.version.sequence, is_alone }),
        event: job.event.clone(),
    }
}

/// The event of a deletion in this bucket.
fn draft(teller: &LifecycleTeller, bucket: &Bucket) -> EventDraft {
    let text = bucket.config(BucketConfigKind::Notification);
    // As for requests: telling too much is better than telling nothing.
    let rules = text.and_then(|text| serde_json::from_str::<NotificationRules>(text).ok());
    let context = EventContext {
        bucket: bucket.name.clone(),
        bucket_owner: bucket.owner.clone(),
        rules: rules.map(Arc::new),
        region: teller.region.clone(),
        principal: HOLDFAST_PRINCIPAL.to_owned(),
        source_ip: String::new(),
        request_id: String::new(),
        node: teller.node.clone(),
    };
    EventDraft { context: Arc::new(context), name: EventName::LifecycleExpirationDelete }
}
