//! Which of the repairs that wait may need this node, for `/health/maintenance`.
//!
//! A repair takes its chunk from whoever the shard map names for it. Among hundreds of nodes some repair waits nearly
//! always, and one of a shard that this node has no part in must not keep it from being stopped.

use std::time::{Duration, Instant};

use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::metadata::MetadataResult;
use holdfast_protocol::ChunkId;
use tokio::time::timeout;

use super::ClusterAdmin;

/// Time for metadata to tell what repairs wait.
const WAITING_TIMEOUT: Duration = Duration::from_secs(3);

/// How old an answer may be. A write that misses a replica after that misses one that is not here, and then the shard
/// map says that this node is needed.
const WAITING_KEPT: Duration = Duration::from_secs(2);

/// How many times as long as it took to find out an answer is kept by which this node is needed. After a node was lost
/// there may be millions of repairs, and whoever watches hundreds of nodes asks each of them.
const WAITING_REST: u32 = 10;

/// Repairs that are looked at one by one. Of a node with more than are left of these, each may need this node.
const LOOKED_MAX: u64 = 20_000;

/// Repairs that are asked for at once.
const PAGE: u32 = 1_000;

/// How many repairs waited that may need this node, and until when that is good for; `None`: metadata did not answer.
pub type KnownWaiting = tokio::sync::Mutex<Option<(Instant, Option<u64>)>>;

impl ClusterAdmin {
    /// How many repairs of other nodes wait that may need this one; `None` while metadata does not answer. Whoever asks
    /// within [`kept_for`] gets the answer before: `/health/maintenance` needs no token.
    pub(in crate::admin) async fn repairs_that_need_me(&self, metadata: &dyn MetadataStore) -> Option<u64> {
        let mut kept = self.waiting.lock().await;
        if let Some((until, waiting)) = &*kept
            && Instant::now() < *until
        {
            return *waiting;
        }
        let begun = Instant::now();
        let waiting = timeout(WAITING_TIMEOUT, self.count_those_that_need_me(metadata)).await;
        let waiting = waiting.ok().and_then(Result::ok);
        // From the answer on: who waited for it while the database was slow must not ask again, one after the other.
        *kept = Some((Instant::now() + kept_for(waiting, begun.elapsed()), waiting));
        waiting
    }

    async fn count_those_that_need_me(&self, metadata: &dyn MetadataStore) -> MetadataResult<u64> {
        let backlog = metadata.repair_backlog().await?;
        let (mut waiting, mut looks_left) = (0, LOOKED_MAX);
        for (node, count) in backlog.into_iter().filter(|(node, _)| *node != self.me()) {
            if count > looks_left {
                waiting += count;
                continue;
            }
            looks_left -= count;
            let mut after = 0;
            loop {
                let page = metadata.repairs(node, after, PAGE).await?;
                waiting += page.iter().filter(|repair| self.has_part_in(&repair.chunk)).count() as u64;
                match page.last() {
                    Some(last) if page.len() == PAGE as usize => after = last.id,
                    _ => break,
                }
            }
        }
        Ok(waiting)
    }

    /// Whether the shard map names this node for a chunk, or is not known to.
    fn has_part_in(&self, chunk: &ChunkId) -> bool {
        let (map, me) = (self.view.shards(), self.me());
        let map = map.borrow();
        let state = map.shards.get(&self.view.shard_of(chunk)).map(|state| &state.value);
        state.is_none_or(|state| state.is_member(me) || state.is_joining(me) || state.is_leaving(me))
    }
}

/// How long an answer is kept that took so long. That this node may be stopped is never told by an old one.
fn kept_for(waiting: Option<u64>, took: Duration) -> Duration {
    if waiting == Some(0) { WAITING_KEPT } else { WAITING_KEPT.max(took * WAITING_REST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expensive_to_find_out_is_kept_and_that_a_node_is_needless_is_not() {
        let long = Duration::from_secs(3);
        for needed in [None, Some(1)] {
            assert_eq!(kept_for(needed, Duration::ZERO), WAITING_KEPT);
            assert_eq!(kept_for(needed, long), long * WAITING_REST);
        }
        assert_eq!(kept_for(Some(0), long), WAITING_KEPT);
    }
}
