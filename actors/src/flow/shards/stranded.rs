//! Has the chunks rebuilt that lay on a disk of this node which failed while it runs.
//!
//! The disk may still be read, so nothing of it is hidden, but it is expected to be gone with the next restart: what
//! lies there only is *stranded* ([`ReplicaStore`](crate::ports::chunks::ReplicaStore)), and no replica to count on. It
//! becomes repairs of this node, which fetch it from others, or from the disk itself where nobody else has it, and put
//! it on the disks that work. Until nothing that metadata knows is stranded the node says that it is short
//! ([`ClusterShared::rescued`](super::ClusterShared), announced by the membership loop): its shards are not called
//! proven to be equal meanwhile ([`super::compare`]), and its copies do not count where others would be deleted for
//! them ([`super::leftovers`]).
//!
//! A node of which every disk failed has nowhere to put anything. It says so, and the controller takes it for absent:
//! its shards are rebuilt on other nodes after the usual delay.

use holdfast_protocol::{ChunkId, NodeId};
use tokio::time::Instant;

use super::{Context, transfer};
use crate::ports::MetadataError;
use crate::ports::chunks::{ChunkInfo, DiskCount};

/// Chunks in one page of the walk.
const PAGE: usize = 4_096;
/// The pause after a walk is at least so many times as long as the walk.
const REST_FACTOR: u32 = 20;

/// When it was looked, and how the disks were.
struct Look {
    disks: DiskCount,
    again: Instant,
}

/// See the module's page.
#[derive(Default)]
pub(super) struct Stranded {
    last: Option<Look>,
}

impl Stranded {
    /// Queues repairs of what is stranded, at once when a disk failed; later only while no repair of this node waits,
    /// for what was committed or moved here since. Whether it was looked.
    pub(super) async fn look(&mut self, context: &Context) -> Result<bool, MetadataError> {
        let disks = context.parts.chunks.disk_count();
        if disks.fenced == 0 || disks.working == 0 {
            self.last = None;
            return Ok(false);
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.disks == disks) {
            let waiting = context.shared.repair.lock().backlog.get(&context.me()).copied().unwrap_or(0);
            if waiting > 0 || Instant::now() < last.again {
                return Ok(false);
            }
        }
        let begun = Instant::now();
        let left = walk(context).await?;
        let pause = (begun.elapsed() * REST_FACTOR).max(context.parts.settings.retry_max);
        self.last = Some(Look { disks, again: Instant::now() + pause });
        if left > 0 {
            tracing::warn!(chunks = left, "a disk failed: repairs are queued of what is only there");
        }
        let rescued = if left == 0 { disks } else { DiskCount::default() };
        context.shared.rescued.send_if_modified(|known| std::mem::replace(known, rescued) != rescued);
        Ok(true)
    }
}

/// Queues repairs of whatever is stranded and is to be here; returns how many.
async fn walk(context: &Context) -> Result<u64, MetadataError> {
    let (parts, me) = (&context.parts, context.me());
    let (mut left, mut after) = (0, None);
    loop {
        let page = stranded_after(context, after).await;
        after = page.last().map(|info| info.id);
        let mine = |chunk: &ChunkId| {
            let placement = parts.view.placement(chunk);
            placement.is_none_or(|placement| placement.state.write_set().any(|node| node == me))
        };
        let chunks: Vec<ChunkId> = page.iter().map(|info| info.id).filter(mine).collect();
        let known = transfer::known(context, chunks.iter().copied()).await?;
        let rows: Vec<(ChunkId, NodeId)> =
            chunks.into_iter().filter(|chunk| known.contains(&chunk.content())).map(|chunk| (chunk, me)).collect();
        for batch in rows.chunks(transfer::METADATA_BATCH) {
            parts.metadata.queue_repairs(batch, parts.clock.now_ms()).await?;
        }
        left += rows.len() as u64;
        if page.len() < PAGE {
            return Ok(left);
        }
    }
}

/// A page, computed off this thread: it walks over the index.
async fn stranded_after(context: &Context, after: Option<ChunkId>) -> Vec<ChunkInfo> {
    let chunks = context.parts.chunks.clone();
    let page = tokio::task::spawn_blocking(move || chunks.list_stranded(after, PAGE));
    page.await.expect("a walk over the index does not panic")
}
