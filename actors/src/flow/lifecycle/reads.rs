//! Rules that go by the last read: the walk over notes of reads, and what becomes of notes that say nothing any more.

use std::collections::{HashMap, HashSet};

use super::{Job, LifecycleError, LifecycleParts, LifecycleStats};
use crate::domain::lifecycle::{Known, Stream};
use crate::ports::accesses::{ReadKey, ReadNote};
use crate::ports::metadata::{AgePosition, AgedVersion, BucketId, Standing};

/// Batches of notes of a bucket without such rules that a pass forgets.
const SWEEPS_MAX: u32 = 16;

impl LifecycleParts {
    /// When the keys of latest versions were last read, as far as a rule asks and it is noted.
    pub(super) async fn last_reads(
        &self,
        job: &Job,
        versions: &[&AgedVersion],
    ) -> Result<HashMap<String, u64>, LifecycleError> {
        let Some(log) = self.reads.as_ref().filter(|_| job.rules.asks_for_reads()) else { return Ok(HashMap::new()) };
        let current = versions.iter().filter(|version| version.standing == Standing::Current);
        let keys: Vec<&str> = current.map(|version| version.key.as_str()).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let reads = self.timed("look up reads", log.last_reads(job.bucket.id, &keys)).await?;
        Ok(reads.into_iter().collect())
    }

    /// One batch of a walk over notes of reads. Moves `at`; whether there is more.
    pub(super) async fn step_reads(
        &self,
        job: &Job,
        stream: &Stream,
        at: &mut AgePosition,
        stats: &mut LifecycleStats,
    ) -> Result<bool, LifecycleError> {
        let Some(log) = &self.reads else { return Ok(false) };
        let batch = self.settings.batch;
        let page = log.read_keys(job.bucket.id, at, stream.until_ms, batch);
        let page = self.timed("list reads by day", page).await?;
        let (places, versions): (Vec<usize>, Vec<&AgedVersion>) =
            page.iter().enumerate().filter_map(|(place, read)| Some((place, read.version.as_ref()?))).unzip();
        let refused = self.judge_all(job, &versions, stats).await?;
        let passed = refused.first().map_or(page.len(), |place| places[*place]);
        let spent = page[..passed].iter().filter(|read| self.is_spent(job, read));
        let spent: Vec<ReadNote> =
            spent.map(|read| ReadNote { bucket: job.bucket.id, key: read.key.clone(), day_ms: read.day_ms }).collect();
        if !spent.is_empty() {
            self.timed("forget reads", log.forget_reads(&spent)).await?;
        }
        if let Some(last) = page[..passed].last() {
            *at = last.position();
            self.save(job, stream, at).await?;
        }
        Ok(!refused.is_empty() || page.len() >= batch as usize)
    }

    /// Whether nothing is different without a note: the object is gone, or the read is so long ago that all rules are
    /// through with it and come to the same end.
    fn is_spent(&self, job: &Job, read: &ReadKey) -> bool {
        let Some(version) = &read.version else { return true };
        let (day, now_ms) = (self.settings.day, job.now_ms);
        if job.rules.idle_days_max().is_none_or(|days| day.due_ms(read.day_ms, days) > now_ms) {
            return false;
        }
        let target = |read_ms| {
            let target = job.rules.target(version, Known { newer: 0, read_ms }, now_ms, day);
            target.map(|(_, to)| to)
        };
        target(Some(read.day_ms)) == target(None)
    }

    /// Forgets notes of buckets that no rule asks for them any more, or that are gone. Whether there is more.
    pub(super) async fn sweep_reads(&self, asking: &HashSet<BucketId>) -> Result<bool, LifecycleError> {
        let Some(log) = &self.reads else { return Ok(false) };
        let mut after = None;
        while let Some(bucket) = self.timed("look for reads", log.next_read_bucket(after)).await? {
            after = Some(bucket);
            if asking.contains(&bucket) {
                continue;
            }
            for sweep in 1..=SWEEPS_MAX {
                let batch = self.settings.batch;
                let forgotten = self.timed("forget reads", log.forget_bucket_reads(bucket, batch)).await?;
                if forgotten < u64::from(batch) {
                    break;
                }
                if sweep == SWEEPS_MAX {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
