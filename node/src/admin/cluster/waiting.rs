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

/// Repairs that are looked at one by one. Of a node with more than are left of these, each may need this node.
const LOOKED_MAX: u64 = 20_000;

/// Repairs that are asked for at once.
const PAGE: u32 = 1_000;

/// How many repairs waited that may need this node, and when; `None`: metadata did not answer.
pub type KnownWaiting = tokio::sync::Mutex<Option<(Instant, Option<u64>)>>;

impl ClusterAdmin {
    /// How many repairs of other nodes wait that may need this one; `None` while metadata does not answer. Asked for at
    /// most once in [`WAITING_KEPT`], whoever asks: `/health/maintenance` needs no token.
    pub(in crate::admin) async fn repairs_that_need_me(&self, metadata: &dyn MetadataStore) -> Option<u64> {
        let mut kept = self.waiting.lock().await;
        if let Some((asked, waiting)) = &*kept
            && asked.elapsed() < WAITING_KEPT
        {
            return *waiting;
        }
        let waiting = timeout(WAITING_TIMEOUT, self.count_those_that_need_me(metadata)).await;
        let waiting = waiting.ok().and_then(Result::ok);
        // From the answer on: who waited for it while the database was slow must not ask again, one after the other.
        *kept = Some((Instant::now(), waiting));
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
