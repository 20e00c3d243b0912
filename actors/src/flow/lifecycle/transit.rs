//! Versions that are due to be moved to another storage class.

use std::collections::{HashMap, HashSet};

use futures::future::join_all;
use holdfast_protocol::TierName;

use super::act::Judged;
use super::{Job, LifecycleError, LifecycleParts, LifecycleStats, tell};
use crate::domain::lifecycle::{Known, LifecycleAction, LifecycleRules, Stream, StreamKind};
use crate::ports::MetadataError;
use crate::ports::metadata::{AgePosition, AgedVersion, Bucket, MoveQueued, MoveReason, MoveRequest, Standing};

/// Moves that are asked for at once: each is a short transaction of its own.
const REQUESTS_AT_ONCE: usize = 8;

impl LifecycleParts {
    /// Tiers that rules name and that are not set up.
    pub(super) async fn missing_tiers(&self, bucket: &Bucket, rules: &LifecycleRules) -> HashSet<TierName> {
        let mut missing = HashSet::new();
        let Some(tiers) = &self.tiers else { return missing };
        for tier in rules.tiers() {
            match tokio::time::timeout(self.settings.call_timeout, tiers.is_set_up(tier)).await {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => tracing::warn!(
                    bucket = bucket.name,
                    %tier,
                    "lifecycle rules name a tier that is not set up: nothing is moved there until it is"
                ),
                Ok(Err(_)) | Err(_) => tracing::warn!(
                    bucket = bucket.name,
                    %tier,
                    "whether a tier that lifecycle rules name is set up cannot be found out: nothing is moved there now"
                ),
            }
            missing.insert(tier.clone());
        }
        missing
    }

    /// Whether what a stream is about can be done now. What it would pass is not looked at again.
    pub(super) fn can_walk(&self, job: &Job, stream: &Stream) -> bool {
        stream.tier.as_ref().is_none_or(|tier| !job.missing.contains(tier))
            && (stream.kind != StreamKind::Read || self.reads.is_some())
    }

    /// What is due to be moved to a tier that is not there is to be judged again when it is. The walk for that tier
    /// stands still, but may have passed it before: what is looked at again, for its tags have changed or a restore is
    /// over, is older than that walk is far. Then the walk goes back to it.
    pub(super) async fn wait_for_tiers(
        &self,
        job: &Job,
        versions: &[&AgedVersion],
        reads: &HashMap<String, u64>,
    ) -> Result<(), LifecycleError> {
        if job.missing.is_empty() {
            return Ok(());
        }
        // From when on the versions of a kind wait for a tier.
        let mut waiting: HashMap<(StreamKind, TierName), u64> = HashMap::new();
        for version in versions {
            let kind = match version.standing {
                Standing::Current => StreamKind::Current,
                Standing::Noncurrent => StreamKind::Noncurrent,
                Standing::Marker { .. } => continue,
            };
            let read_ms = reads.get(&version.key).copied();
            // How many versions are newer is not known here. A walk over what is not due does no harm.
            for newer in [0, u32::MAX] {
                let target = job.rules.target(version, Known { newer, read_ms }, job.now_ms, self.settings.day);
                if let Some((_, Some(tier))) = target
                    && job.missing.contains(tier)
                    && version.class.as_ref() != Some(tier)
                {
                    let from_ms = waiting.entry((kind, tier.clone())).or_insert(version.since_ms);
                    *from_ms = version.since_ms.min(*from_ms);
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let cursors = self.metadata.lifecycle_cursors(job.bucket.id, job.rules.generation);
        let cursors = self.timed("read lifecycle cursors", cursors).await?;
        for stream in job.rules.streams(job.now_ms, self.settings.day) {
            let Some(tier) = stream.tier.clone() else { continue };
            let Some(from_ms) = waiting.get(&(stream.kind, tier)) else { continue };
            let before = AgePosition { at_ms: *from_ms, ..AgePosition::default() };
            if cursors.iter().any(|(name, at)| *name == stream.name && *at > before) {
                self.save(job, &stream, &before).await?;
            }
        }
        Ok(())
    }

    /// Puts what was judged on the queue of moves, if it is still what it was. Returns the places of those that were
    /// refused.
    pub(super) async fn request_moves(
        &self,
        job: &Job,
        judged: &[&Judged<'_>],
        stats: &mut LifecycleStats,
    ) -> Result<Vec<usize>, LifecycleError> {
        let now_ms = self.clock.now_ms();
        let (mut refused, mut failed) = (Vec::new(), None::<LifecycleError>);
        for group in judged.chunks(REQUESTS_AT_ONCE) {
            let mut asked = Vec::with_capacity(group.len());
            for one in group {
                asked.push(self.metadata.request_move(request(job, one, now_ms)));
            }
            let answers = self.timed("ask for moves", async { Ok(join_all(asked).await) }).await?;
            for (one, answer) in group.iter().zip(answers) {
                match answer {
                    Ok(MoveQueued::Queued | MoveQueued::InPlace) => stats.count(&one.due, job.now_ms),
                    // Another walk has come by it, or the rules are new.
                    Ok(MoveQueued::Waiting) => tell(LifecycleAction::Transition, "waiting"),
                    // It is restored for a while. The end of that has it looked at again.
                    Ok(MoveQueued::Ongoing | MoveQueued::Extended) => tell(LifecycleAction::Transition, "restored"),
                    Err(
                        MetadataError::PreconditionFailed | MetadataError::NoSuchKey | MetadataError::NoSuchVersion,
                    ) => {
                        stats.changed += 1;
                        tell(LifecycleAction::Transition, "changed");
                        refused.push(one.place);
                    }
                    Err(error) => {
                        tell(LifecycleAction::Transition, "failed");
                        failed = Some(error.into());
                    }
                }
            }
        }
        // The place of the walk is not saved: what did not go is judged again.
        failed.map_or(Ok(refused), Err)
    }
}

fn request(job: &Job, one: &Judged<'_>, now_ms: u64) -> MoveRequest {
    MoveRequest {
        bucket: job.bucket.id,
        key: one.version.key.clone(),
        version: (one.version.standing == Standing::Noncurrent).then_some(one.version.version),
        to: one.due.to.clone(),
        reason: MoveReason::Lifecycle,
        only_if: Some(one.only_if(job)),
        // The mover tells, when it is done.
        event: None,
        now_ms,
    }
}
