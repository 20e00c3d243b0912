//! What is done with versions that were listed: judged, and deleted if they are still what was judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_protocol::{EventName, VersionId};

use super::{Job, LifecycleError, LifecycleParts, LifecycleStats, LifecycleTeller, tell};
use crate::domain::events::{EventContext, EventDraft, HOLDFAST_PRINCIPAL, NotificationRules};
use crate::domain::lifecycle::{Due, LifecycleAction};
use crate::ports::MetadataError;
use crate::ports::metadata::{
    AgedVersion, Bucket, BucketConfigKind, DeleteRequest, OnlyIf, OnlyNoncurrent, Standing, WritePrecondition,
};

/// A version that is to go, and why.
struct Doomed<'a> {
    version: &'a AgedVersion,
    due: Due,
    /// How many noncurrent versions of its key were newer, at least.
    newer: u32,
}

impl LifecycleParts {
    /// Judges versions and deletes those that are due, and of their keys what rules do not keep any longer. Returns the places
    /// of those whose deletion was refused.
    pub(super) async fn judge_all(
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
                doomed.push(Doomed { version, due, newer: 0 });
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
            // One key may have any number of versions.
            while self.still_holds(job).await? {
                let batch = self.settings.batch;
                let page = self.metadata.surplus_versions(job.bucket.id, key, keep, after, batch);
                let page = self.timed("list surplus versions", page).await?;
                stats.examined += page.len() as u64;
                let judged = page.iter().filter_map(|version| {
                    let due = job.rules.judge(version, keep, job.now_ms, self.settings.day)?;
                    Some(Doomed { version, due, newer: keep })
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
        only_if: Some(OnlyIf {
            sequence: one.version.sequence,
            is_alone,
            revision: Some(job.bucket.revision),
            noncurrent: (one.due.action == LifecycleAction::RemoveNoncurrent)
                .then(|| OnlyNoncurrent { tags: one.version.tags.clone(), newer: one.newer }),
        }),
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
