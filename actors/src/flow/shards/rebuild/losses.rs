//! Looks, once after the start, for replicas of this node whose data is gone.
//!
//! Every shard of which this node is a member is compared in size with another member: a disk that was replaced shows
//! as a replica that lacks more than half. What metadata does not know does not count: the other member may have been
//! away when it was deleted, and a sound replica must not be given up for that. A shard that is lost is reported and
//! joined anew, which is quicker than one repair a chunk and lets the quorum count without it meanwhile. Whatever lacks
//! less is found and healed by [`compare`](super::super::compare).

use futures::{StreamExt as _, stream};
use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{NodeId, ShardId};

use super::super::{Context, transfer};
use super::REPORT_PAUSE_MAX;
use crate::ports::peers::{Fence, LIST_MAX, PeerError, ShardReport};

/// Chunks that another member must have more for a replica to count as lost; fewer may be writes under way.
const LOST_CHUNKS_MIN: u64 = 16;
/// Shards that are looked at at once: digests that are asked for together cost one walk over the index.
const SHARDS_AT_ONCE: usize = 8;
/// How often a loss is reported: a shard whose last replica this is stays as it is.
const REPORTS_MAX: u32 = 10;

/// Looks for them, and tells the controller.
pub(super) async fn report(context: Context) {
    let mut shards = context.parts.view.shards();
    let Ok(map) = shards.wait_for(|map| !map.shards.is_empty()).await.map(|map| map.clone()) else { return };
    let mine = map.shards.iter().filter(|(_, state)| state.value.is_member(context.me()));
    let mine: Vec<(ShardId, ShardState)> = mine.map(|(shard, state)| (*shard, state.value.clone())).collect();
    let looks = stream::iter(mine).map(|(shard, state)| {
        let context = &context;
        async move { look(context, shard, &state).await }
    });
    let found: Vec<Option<Fence>> = looks.buffer_unordered(SHARDS_AT_ONCE).collect().await;
    let mut lost: Vec<Fence> = found.into_iter().flatten().collect();
    for _ in 0..REPORTS_MAX {
        let map = shards.borrow_and_update().clone();
        // A member of a later epoch may be one that has joined anew since. What else changed there is compared then.
        lost.retain(|fence| {
            let state = map.shards.get(&fence.shard);
            state.is_some_and(|state| state.value.epoch == fence.epoch && state.value.is_member(context.me()))
        });
        if lost.is_empty() {
            return;
        }
        for Fence { shard, .. } in &lost {
            if let Err(error) = context.report(ShardReport::DataLost { shard: *shard }).await {
                tracing::debug!(%shard, %error, "the controller does not hear");
            }
        }
        tokio::time::sleep(REPORT_PAUSE_MAX).await;
    }
}

/// The shard, if this node lost most of it.
async fn look(context: &Context, shard: ShardId, state: &ShardState) -> Option<Fence> {
    let fence = Fence { shard, epoch: state.epoch };
    let here = context.digest_here(shard).await.chunks;
    for other in state.members.iter().filter(|m| **m != context.me() && context.parts.view.is_alive(**m)) {
        let Ok(there) = context.parts.peers.digest(*other, fence).await else { continue };
        let looks_lost = there.chunks >= here + LOST_CHUNKS_MIN && there.chunks > 2 * here;
        if looks_lost && matches!(lacks_most(context, *other, fence).await, Ok(true)) {
            tracing::error!(%shard, here, there = there.chunks, "most of a replica is gone, it is joined anew");
            return Some(fence);
        }
    }
    None
}

/// Whether this node lacks more of what another member has and metadata knows than it holds of it.
async fn lacks_most(context: &Context, other: NodeId, fence: Fence) -> Result<bool, PeerError> {
    let (mut here, mut lacking, mut after) = (0_u64, 0_u64, None);
    let mut backoff = context.backoff();
    loop {
        let page = context.parts.peers.list(other, fence, after, LIST_MAX).await?;
        let known = loop {
            match transfer::known(context, page.iter().map(|info| info.id)).await {
                Ok(known) => break known,
                Err(error) => {
                    tracing::debug!(shard = %fence.shard, %error, "metadata is waited for");
                    backoff.wait().await;
                }
            }
        };
        for info in page.iter().filter(|info| known.contains(&info.id.content())) {
            let is_here = context.parts.chunks.stat(info.id).is_some();
            *(if is_here { &mut here } else { &mut lacking }) += 1;
        }
        if page.len() < LIST_MAX {
            return Ok(lacking >= LOST_CHUNKS_MIN && lacking > here);
        }
        after = page.last().map(|info| info.id);
    }
}
