//! What is done with versions that were listed: judged, and deleted or moved if they are still what was judged.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_protocol::{EventName, VersionId};

use super::{Job, LifecycleError, LifecycleParts, LifecycleStats, LifecycleTeller, tell};
use crate::domain::events::{EventContext, EventDraft, HOLDFAST_PRINCIPAL, NotificationRules};
use crate::domain::lifecycle::{Due, Known, LifecycleAction};
use crate::ports::MetadataError;
use crate::ports::metadata::{
    AgedVersion, Bucket, BucketConfigKind, DeleteRequest, OnlyIf, OnlyNoncurrent, Standing, WritePrecondition,
};

/// A version of which something is due.
pub(super) struct Judged<'a> {
    pub(super) version: &'a AgedVersion,
    pub(super) due: Due,
    /// How many noncurrent versions of its key were newer, at least.
    pub(super) newer: u32,
    /// Its place in the list that it came from.
    pub(super) place: usize,
}

/// How far the noncurrent versions of a key were judged by their number.
#[derive(Debug, Clone, Copy, Default)]
struct Trimmed {
    /// Those with a sequence number up to this.
    up_to: u64,
    /// Whether something of it was refused.
    is_refused: bool,
}

impl Judged<'_> {
    /// That it is still what was judged.
    pub(super) fn only_if(&self, job: &Job) -> OnlyIf {
        let is_noncurrent = self.version.standing == Standing::Noncurrent;
        OnlyIf {
            sequence: self.version.sequence,
            is_alone: self.due.action == LifecycleAction::RemoveMarker,
            revision: Some(job.bucket.revision),
            noncurrent: is_noncurrent.then(|| OnlyNoncurrent { tags: self.version.tags.clone(), newer: self.newer }),
        }
    }
}

impl LifecycleParts {
    /// Judges versions and carries out what is due, also of their keys what rules do not keep any longer. Returns the
    /// places of those that were refused, in order.
    pub(super) async fn judge_all(
        &self,
        job: &Job,
        versions: &[&AgedVersion],
        stats: &mut LifecycleStats,
    ) -> Result<Vec<usize>, LifecycleError> {
        stats.examined += versions.len() as u64;
        let reads = self.last_reads(job, versions).await?;
        self.wait_for_tiers(job, versions, &reads).await?;
        // First, for the number of newer versions says more than their age alone.
        let mut trimmed: HashMap<&str, Trimmed> = HashMap::new();
        for version in versions.iter().filter(|version| version.standing == Standing::Noncurrent) {
            if !trimmed.contains_key(version.key.as_str()) {
                trimmed.insert(&version.key, self.trim(job, &version.key, stats).await?);
            }
        }
        let (mut judged, mut refused) = (Vec::new(), Vec::new());
        for (place, version) in versions.iter().enumerate() {
            if version.standing == Standing::Noncurrent
                && let Some(trimmed) = trimmed.get(version.key.as_str())
                && version.sequence <= trimmed.up_to
            {
                if trimmed.is_refused {
                    refused.push(place);
                }
                continue;
            }
            let known = Known { newer: 0, read_ms: reads.get(&version.key).copied() };
            if let Some(due) = judge(self, job, version, known) {
                judged.push(Judged { version, due, newer: 0, place });
            }
        }
        refused.extend(self.carry_out(job, &judged, stats).await?);
        refused.sort_unstable();
        Ok(refused)
    }

    /// Judges noncurrent versions of a key beyond the numbers that rules keep.
    async fn trim(&self, job: &Job, key: &str, stats: &mut LifecycleStats) -> Result<Trimmed, LifecycleError> {
        let mut trimmed = Trimmed::default();
        // From the most that is kept on: those beyond it are the oldest, and judged by all rules then.
        for (keep, days) in job.rules.keeps(key) {
            let Some(old_ms) = self.settings.day.last_due_ms(job.now_ms, days) else { continue };
            // One key may have any number of versions.
            while self.still_holds(job).await? {
                let batch = self.settings.batch;
                let page = self.metadata.surplus_versions(job.bucket.id, key, keep, trimmed.up_to, batch);
                let page = self.timed("list surplus versions", page).await?;
                stats.examined += page.len() as u64;
                let judged = page.iter().enumerate().filter_map(|(place, version)| {
                    let due = judge(self, job, version, Known { newer: keep, read_ms: None })?;
                    Some(Judged { version, due, newer: keep, place })
                });
                let judged: Vec<Judged<'_>> = judged.collect();
                // What is refused has become the latest version, or is gone, or the rules are others now.
                trimmed.is_refused |= !self.carry_out(job, &judged, stats).await?.is_empty();
                let Some(last) = page.last() else { break };
                trimmed.up_to = last.sequence;
                // They are in the order of age: beyond a young one are only younger ones.
                if page.len() < batch as usize || last.since_ms > old_ms {
                    break;
                }
            }
        }
        Ok(trimmed)
    }

    /// Does what is due. Returns the places of those that were refused, as another version was judged.
    async fn carry_out(
        &self,
        job: &Job,
        judged: &[Judged<'_>],
        stats: &mut LifecycleStats,
    ) -> Result<Vec<usize>, LifecycleError> {
        let is_move = |one: &&Judged<'_>| one.due.action == LifecycleAction::Transition;
        let (moves, deletions): (Vec<&Judged<'_>>, Vec<&Judged<'_>>) = judged.iter().partition(is_move);
        let mut refused = self.delete(job, &deletions, stats).await?;
        refused.extend(self.request_moves(job, &moves, stats).await?);
        Ok(refused)
    }

    /// Deletes what was judged, if it is still what it was. Returns the places of those that were refused.
    async fn delete(
        &self,
        job: &Job,
        doomed: &[&Judged<'_>],
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
        for (one, result) in doomed.iter().zip(results) {
            match result {
                Ok(_) => stats.count(&one.due, job.now_ms),
                Err(MetadataError::PreconditionFailed) => {
                    stats.changed += 1;
                    tell(one.due.action, "changed");
                    refused.push(one.place);
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
}

/// What is due for a version, unless it is a move to a tier that is not there.
fn judge(parts: &LifecycleParts, job: &Job, version: &AgedVersion, known: Known) -> Option<Due> {
    let due = job.rules.judge(version, known, job.now_ms, parts.settings.day)?;
    let is_missing = due.to.as_ref().is_some_and(|tier| job.missing.contains(tier));
    (!is_missing).then_some(due)
}

fn request(job: &Job, one: &Judged<'_>, now_ms: u64) -> DeleteRequest {
    DeleteRequest {
        key: one.version.key.clone(),
        version: (one.due.action != LifecycleAction::ExpireCurrent).then_some(one.version.version),
        marker_version: VersionId::generate(now_ms / 1_000),
        owner: job.bucket.owner.clone(),
        precondition: WritePrecondition::default(),
        only_if: Some(one.only_if(job)),
        event: job.event.clone(),
    }
}

/// The event of a deletion in this bucket.
pub(in crate::flow) fn draft(teller: &LifecycleTeller, bucket: &Bucket) -> EventDraft {
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
