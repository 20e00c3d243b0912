//! Planning a write, and its sink.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, join_all};
use holdfast_protocol::{ChunkId, Epoch, NodeId, ShardId};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::feed::Feed;
use super::tally::{Doom, Quorums, Tally};
use crate::flow::cluster_view::Placement;
use crate::ports::chunks::ChunkReceipt;
use crate::ports::peers::{Fence, PeerError, ReplicaWrite};
use crate::ports::{ChunkError, ChunkSink, ChunkSpec};

/// Size of the pieces that bytes are copied into where there is no local replica.
const PIECE_SIZE_BYTES: usize = 1 << 20;

/// A peer that stalled lately is waited for this part of the time of stragglers.
const STALLED_PART: u32 = 10;

/// Why a write did not begin.
enum NotBegun {
    /// The epoch is over; no byte was sent.
    Moved(Epoch),
    Failed(ChunkError),
}

/// Begins a write under the present epoch of its shard; plans it anew, a few times, while that moves.
pub(super) async fn create(shared: &Arc<Shared>, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
    let shard = shared.view.shard_of(&spec.id);
    for _ in 0..=shared.options.replans_max {
        let Some(placement) = shared.view.placement(&spec.id) else {
            return Err(ChunkError::Unavailable(format!("shard {shard} is not placed yet")));
        };
        let nodes = placement.state.write_set().collect();
        let mut guard = Abandon { shared: Arc::clone(shared), id: spec.id, nodes, tasks: vec![], finishing: false };
        match begin(shared, &placement, &spec, &mut guard).await {
            Ok(Begun { local, feeds, tally }) => {
                let (fence, size_bytes) = (placement.fence, spec.size_bytes as usize);
                let copied = BytesMut::new();
                let sink = ReplicatedSink { local, feeds, tally, fence, size_bytes, received: 0, copied, guard };
                return Ok(Box::new(sink));
            }
            Err(NotBegun::Failed(error)) => return Err(error),
            Err(NotBegun::Moved(current)) => {
                metrics::counter!("holdfast_replica_replans_total").increment(1);
                guard.end().await;
                catch_up(shared, shard, current).await;
            }
        }
    }
    Err(ChunkError::Unavailable(format!("shard {shard} is moving, the map here is behind: retry the write")))
}

/// Waits a while for the shard map to show the epoch that a replica told of.
async fn catch_up(shared: &Shared, shard: ShardId, current: Epoch) {
    shared.view.hear(Fence { shard, epoch: current });
    let mut map = shared.view.shards();
    let shown = map.wait_for(|map| map.shards.get(&shard).is_some_and(|state| state.value.epoch >= current));
    // Late or not: the next attempt finds out.
    let _ = tokio::time::timeout(shared.options.replan_wait, shown).await;
}

/// A write that its replicas have taken on.
struct Begun {
    local: Option<(usize, Box<dyn ChunkSink>)>,
    feeds: Vec<Feed>,
    tally: Arc<Tally>,
}

async fn begin(
    shared: &Arc<Shared>,
    placement: &Placement,
    spec: &ChunkSpec,
    guard: &mut Abandon,
) -> Result<Begun, NotBegun> {
    let Placement { fence, state } = placement;
    let fence = *fence;
    let unavailable =
        |detail: String| NotBegun::Failed(ChunkError::Unavailable(format!("shard {}: {detail}", fence.shard)));
    match shared.view.admit(fence) {
        Ok(()) => {}
        Err(PeerError::Stale { current, .. }) => return Err(NotBegun::Moved(current)),
        Err(error) => return Err(unavailable(error.to_string())),
    }
    let quorums = Quorums::of(state);
    let alive = state.members.iter().filter(|node| shared.view.is_alive(**node)).count();
    if alive < quorums.members {
        let (members, needed) = (state.members.len(), quorums.members);
        return Err(unavailable(format!("{alive} of {members} members are alive, {needed} are needed")));
    }
    let nodes: Vec<NodeId> = state.write_set().collect();
    let alive = nodes.iter().filter(|node| shared.view.is_alive(**node)).count();
    if alive < quorums.all {
        let (replicas, needed) = (state.target.len(), quorums.all);
        return Err(unavailable(format!("{alive} of {replicas} wanted replicas are alive, {needed} are needed")));
    }
    let tally = Arc::new(Tally::new(quorums, nodes.iter().map(|node| (*node, state.is_member(*node)))));
    let mut feeds = Vec::with_capacity(nodes.len());
    let mut here = None;
    for (index, node) in nodes.into_iter().enumerate() {
        if node == shared.view.me() {
            here = Some(index);
        } else if shared.view.is_alive(node) {
            let write = ReplicaWrite { fence, spec: spec.clone() };
            let (feed, task) = Feed::start(shared, &tally, index, node, write);
            feeds.push(feed);
            guard.tasks.push(task);
        } else {
            tally.missed(index, PeerError::Unreachable { node, detail: "not alive".into() });
        }
    }
    let doomed = |doom: Doom| match doom {
        Doom::Moved(current) => NotBegun::Moved(current),
        doom => NotBegun::Failed(doom.error(fence)),
    };
    let mut local = None;
    if let Some(index) = here {
        match tally.unless_doomed(shared.local.create(spec.clone())).await.map_err(doomed)? {
            Ok(sink) => {
                tally.begun(index);
                local = Some((index, sink));
            }
            Err(error @ (ChunkError::Exists(_) | ChunkError::Invalid(_))) => return Err(NotBegun::Failed(error)),
            // As any replica that fails: the others may be enough.
            Err(error) => tally.missed(index, error.into()),
        }
    }
    let deadline = Instant::now() + shared.options.create_patience;
    loop {
        if let Some(doom) = tally.doom() {
            return Err(doomed(doom));
        }
        if tally.all_begun(|node| shared.book.is_stalled(node)) {
            break;
        }
        tokio::select! {
            () = tally.changed() => {}
            () = sleep_until(deadline) => break,
        }
    }
    Ok(Begun { local, feeds, tally })
}

/// Ends a write that did not succeed: the tasks at once, and what may be durable already in the background.
struct Abandon {
    shared: Arc<Shared>,
    id: ChunkId,
    nodes: Vec<NodeId>,
    tasks: Vec<JoinHandle<()>>,
    /// Replicas may have the chunk whole.
    finishing: bool,
}

impl Abandon {
    /// The write succeeded: stragglers go on.
    fn disarm(mut self) {
        self.tasks.clear();
        self.finishing = false;
    }

    /// Ends the tasks of a write of which nothing was sent yet, and waits until they have ended: the next attempt
    /// writes the same chunk.
    async fn end(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        for task in &tasks {
            task.abort();
        }
        join_all(tasks).await;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if !self.finishing {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        metrics::counter!("holdfast_replica_abandoned_total").increment(1);
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        let (nodes, tasks) = (std::mem::take(&mut self.nodes), std::mem::take(&mut self.tasks));
        runtime.spawn(async move {
            // First they must have ended, or the chunk might come after its deletion.
            join_all(tasks).await;
            let me = shared.view.me();
            let remote = nodes.iter().filter(|node| **node != me);
            let remote = join_all(remote.map(|node| shared.delete_on(*node, std::slice::from_ref(&id))));
            let ids = [id];
            let (local, _) = tokio::join!(shared.local.delete(&ids), remote);
            if let Err(error) = local {
                tracing::debug!(chunk = %id, %error, "cannot delete an abandoned chunk, left as an orphan");
            }
        });
    }
}

/// A chunk on its way to its replicas.
struct ReplicatedSink {
    /// With its index in the tally.
    local: Option<(usize, Box<dyn ChunkSink>)>,
    feeds: Vec<Feed>,
    tally: Arc<Tally>,
    fence: Fence,
    size_bytes: usize,
    received: usize,
    /// The piece that is being filled, where there is no local replica.
    copied: BytesMut,
    /// Last, so that it is dropped when the sinks are.
    guard: Abandon,
}

impl ReplicatedSink {
    fn copy(&mut self, mut data: &[u8]) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        while !data.is_empty() {
            if self.copied.capacity() == 0 {
                let left = self.size_bytes - self.received;
                self.copied = BytesMut::with_capacity(left.min(PIECE_SIZE_BYTES));
            }
            let take = data.len().min(self.copied.capacity() - self.copied.len());
            self.copied.extend_from_slice(&data[..take]);
            self.received += take;
            data = &data[take..];
            if self.copied.len() == self.copied.capacity() {
                pieces.push(std::mem::take(&mut self.copied).freeze());
            }
        }
        pieces
    }
}

#[async_trait]
impl ChunkSink for ReplicatedSink {
    /// An error of the local replica in the middle ends the write: the bytes that it had taken and not handed back are
    /// gone, so the other replicas cannot be completed.
    async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        if data.len() > self.size_bytes - self.received {
            return Err(ChunkError::Invalid("more bytes than announced".into()));
        }
        let pieces = match &mut self.local {
            Some((_, sink)) => {
                let written = self.tally.unless_doomed(sink.write(data)).await;
                self.received += data.len();
                written.map_err(|doom| doom.error(self.fence))??
            }
            None => self.copy(data),
        };
        for piece in &pieces {
            // To all at the same time: who waits for one keeps feeding the others.
            let pushes = join_all(self.feeds.iter().map(|feed| feed.push(piece.clone())));
            self.tally.unless_doomed(pushes).await.map_err(|doom| doom.error(self.fence))?;
        }
        Ok(pieces)
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        if self.received < self.size_bytes {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        let last = match &mut self.local {
            Some((_, sink)) => sink.finish_input()?,
            None => Some(std::mem::take(&mut self.copied).freeze()).filter(|piece| !piece.is_empty()),
        };
        if let Some(last) = &last {
            // Under way while the caller still looks at its digests.
            for feed in &mut self.feeds {
                feed.push_last(last.clone());
            }
        }
        Ok(last)
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        // In this order: the guard is dropped last.
        let Self { mut guard, tally, fence, mut feeds, local, received, size_bytes, .. } = *self;
        if received < size_bytes {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        guard.finishing = true;
        let shared = Arc::clone(&guard.shared);
        let local = local.map(|(index, sink)| (index, sink.finish()));
        let begun = Instant::now();
        let local = quorum(&shared, &tally, fence, &mut feeds, local).await?;
        // Last, so that nothing waits between the look at the clock and the answer.
        shared.view.admit(fence).map_err(|error| refused(fence, &error))?;
        if let Some((_, finishing)) = local {
            // Late, but it goes on: repair finds the chunk there.
            tokio::spawn(finishing);
        }
        for node in tally.pending() {
            shared.book.stalled(node);
        }
        let missed = tally.not_acknowledged();
        metrics::histogram!("holdfast_replica_write_seconds").record(begun.elapsed());
        metrics::counter!("holdfast_replica_missed_total").increment(missed.len() as u64);
        shared.report_missed(&missed);
        guard.disarm();
        Ok(ChunkReceipt { fence: Some((fence.shard, fence.epoch)), missed })
    }
}

fn refused(fence: Fence, error: &PeerError) -> ChunkError {
    let shard = fence.shard;
    match error {
        PeerError::Stale { current, .. } => Doom::Moved(*current).error(fence),
        error => ChunkError::Unavailable(format!("shard {shard}: {error}")),
    }
}

/// The local replica's flush, with its index in the tally.
type Local = Option<(usize, BoxFuture<'static, Result<ChunkReceipt, ChunkError>>)>;

/// Waits for the quorum, and a little for the rest. Gives the local flush back if that has not ended.
async fn quorum(
    shared: &Shared,
    tally: &Tally,
    fence: Fence,
    feeds: &mut [Feed],
    mut local: Local,
) -> Result<Local, ChunkError> {
    let options = &shared.options;
    let begun = Instant::now();
    let mut pushing = std::pin::pin!(join_all(feeds.iter_mut().map(Feed::finish)));
    let mut pushed = false;
    let mut deadline = begun + options.ack_timeout;
    let mut met = false;
    loop {
        if let Some(doom) = tally.doom() {
            return Err(doom.error(fence));
        }
        let standing = tally.standing();
        if standing.met && !met {
            met = true;
            let took = begun.elapsed();
            metrics::histogram!("holdfast_replica_quorum_seconds").record(took);
            let mut patience = options.straggler_patience.max(took).min(options.patience);
            if tally.pending().into_iter().all(|node| shared.book.is_stalled(node)) {
                patience = options.straggler_patience / STALLED_PART;
            }
            deadline = Instant::now() + patience;
        }
        if met && standing.settled {
            return Ok(local);
        }
        let flushed = async {
            match &mut local {
                Some((_, finishing)) => finishing.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = flushed => {
                let Some((index, _)) = local.take() else { continue };
                match result {
                    // The local replica is a replica as any: its fence is checked behind its flush.
                    Ok(_) => match shared.view.admit(fence) {
                        Ok(()) => tally.acknowledged(index),
                        Err(error) => return Err(refused(fence, &error)),
                    },
                    Err(error) => tally.missed(index, error.into()),
                }
            }
            _ = &mut pushing, if !pushed => pushed = true,
            () = tally.changed() => {}
            () = sleep_until(deadline) => {
                if met {
                    return Ok(local);
                }
                return Err(ChunkError::Unavailable(format!(
                    "shard {}: no quorum acknowledged within {} s",
                    fence.shard,
                    options.ack_timeout.as_secs()
                )));
            }
        }
    }
}
