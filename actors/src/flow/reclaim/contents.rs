//! Deleting the chunks of contents that were claimed, and forgetting them.

use std::time::Instant;

use holdfast_protocol::{ChunkId, Extent, ReclaimItem, STUB_INDEX};

use super::{PassStats, ReclaimError, Reclaimer};
use crate::ports::coordination::Fence;
use crate::ports::metadata::Reclaim;

/// How far some work came.
#[derive(Debug, Default)]
pub(in crate::flow) struct Progress {
    /// What was done; it stays done.
    pub(in crate::flow) stats: PassStats,
    /// Things that could not be done.
    pub(in crate::flow) failed: u64,
    /// Why not the first of them.
    pub(in crate::flow) error: Option<ReclaimError>,
    /// Things that were not tried, for want of time.
    pub(in crate::flow) left: u64,
}

impl Progress {
    pub(super) fn fail(&mut self, things: usize, error: ReclaimError) {
        self.failed += things as u64;
        self.error.get_or_insert(error);
    }
}

impl PassStats {
    /// Adds what another pass did.
    pub fn add(&mut self, other: Self) {
        self.items += other.items;
        self.examined += other.examined;
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }
}

fn extents(reclaim: &Reclaim) -> &[Extent] {
    // No chunks stand behind the manifest of a content that lay in a tier, but a stub.
    if reclaim.stub.is_some() { &[] } else { &reclaim.manifest.extents }
}

fn chunks(reclaim: &Reclaim) -> impl Iterator<Item = ChunkId> + '_ {
    let stub = reclaim.stub.map(|content| content.chunk(STUB_INDEX));
    extents(reclaim).iter().flat_map(Extent::chunks).chain(stub)
}

fn chunk_count(reclaim: &Reclaim) -> usize {
    let chunks: usize = extents(reclaim).iter().map(|extent| extent.chunk_count() as usize).sum();
    chunks + usize::from(reclaim.stub.is_some())
}

impl Reclaimer {
    /// Deletes the chunks of claimed contents, then forgets them, some at a time. One that cannot be deleted does not
    /// hold up the others. After `until`, and after `term`, in which they were claimed, nothing more is begun.
    pub(super) async fn delete_contents(
        &self,
        due: &[Reclaim],
        fence: Option<&Fence>,
        term: Option<u64>,
        until: Option<Instant>,
    ) -> Progress {
        let mut done = Progress::default();
        let mut rest = due;
        while !rest.is_empty() {
            if until.is_some_and(|until| Instant::now() >= until) {
                done.left = rest.len() as u64;
                break;
            }
            let (group, after) = rest.split_at(self.group_len(rest));
            match self.delete_group(group, fence, term).await {
                Ok(stats) => done.stats.add(stats),
                Err(ReclaimError::Chunks(_)) if group.len() > 1 => {
                    for one in group.chunks(1) {
                        match self.delete_group(one, fence, term).await {
                            Ok(stats) => done.stats.add(stats),
                            Err(error) => done.fail(1, error),
                        }
                    }
                }
                Err(error @ ReclaimError::Chunks(_)) => done.fail(group.len(), error),
                // Without metadata, or while disks do not answer, nothing else could be done either.
                Err(error) => {
                    done.fail(rest.len(), error);
                    break;
                }
            }
            rest = after;
        }
        done
    }

    /// How many contents, one at least, make up a delete.
    fn group_len(&self, due: &[Reclaim]) -> usize {
        let mut chunks = 0;
        let fit = due.iter().take_while(|reclaim| {
            chunks += chunk_count(reclaim);
            chunks <= self.limits.delete_batch
        });
        fit.count().max(1)
    }

    async fn delete_group(
        &self,
        group: &[Reclaim],
        fence: Option<&Fence>,
        term: Option<u64>,
    ) -> Result<PassStats, ReclaimError> {
        let mut stats = PassStats { items: group.len() as u64, ..PassStats::default() };
        let mut batch = Vec::new();
        // A 5 TiB object has hundreds of thousands of chunks: they pass through in batches.
        for reclaim in group {
            for chunk in chunks(reclaim) {
                let here = self.chunks.stat(chunk);
                if let Some(info) = here {
                    stats.chunks += 1;
                    stats.bytes += u64::from(info.size_bytes);
                }
                // Other nodes may have what this one has not.
                if here.is_some() || self.cluster.is_some() {
                    batch.push(chunk);
                }
                stats.examined += 1;
                if batch.len() >= self.limits.delete_batch {
                    self.delete(&mut batch, term).await?;
                }
            }
        }
        self.delete(&mut batch, term).await?;
        let items: Vec<ReclaimItem> = group.iter().map(|reclaim| reclaim.item).collect();
        self.guarded("finish reclaims", self.metadata.finish_reclaims(&items, fence)).await?;
        Ok(stats)
    }
}
