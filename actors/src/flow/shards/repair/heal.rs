//! One chunk that this node is to have, made whole here: who has it, in what size, and where it is fetched from.

use std::collections::BTreeSet;

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{ChunkId, NodeId};

use super::super::Context;
use super::super::transfer::{self, TransferError};
use crate::ports::chunks::ChunkInfo;

/// How a repair ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::flow::shards) enum Outcome {
    /// So many bytes were fetched.
    Healed(u64),
    /// Nothing had to be done.
    Needless,
}

/// Makes sure that this node has a chunk whole, if it is to have it.
pub(in crate::flow::shards) async fn heal(context: &Context, chunk: ChunkId) -> Result<Outcome, TransferError> {
    transfer::guarded(chunk, heal_unguarded(context, chunk)).await
}

async fn heal_unguarded(context: &Context, chunk: ChunkId) -> Result<Outcome, TransferError> {
    let (me, view, chunks) = (context.me(), &context.parts.view, &context.parts.chunks);
    let unreachable = |detail: &str| TransferError::Unreachable { chunk, detail: detail.into() };
    let Some(placement) = view.placement(&chunk) else { return Err(unreachable("its shard is not placed yet")) };
    if !placement.state.write_set().any(|node| node == me) {
        return Ok(Outcome::Needless);
    }
    let is_whole = transfer::is_whole(context, chunk).await?;
    let here = chunks.stat(chunk);
    let copies = Copies::ask(context, chunk, &placement.state, !is_whole).await;
    if let Some(here) = here.filter(|_| is_whole)
        && !copies.outvote(here.size_bytes)
    {
        return Ok(Outcome::Needless);
    }
    // Whole on no disk that works. One that failed may have it, alone or beside a damaged copy.
    let spare = here.filter(|_| !is_whole && chunks.disk_count().fenced > 0);
    let Some(size_bytes) = copies.size().or(spare.map(|info| info.size_bytes)) else {
        return Err(copies.unheard.map_or(TransferError::Gone(chunk), |detail| unreachable(&detail)));
    };
    let info = ChunkInfo { id: chunk, size_bytes };
    let _permit = context.budget.take(u64::from(size_bytes)).await;
    let fetched = match transfer::fetch(context, info, &copies.of_size(size_bytes)).await {
        Ok(fetched) => fetched,
        Err(error) => {
            let strays = strays(context, info, &placement.state).await;
            let mut found = transfer::fetch(context, info, &strays).await.ok();
            if found.is_none()
                && let Some(here) = spare
            {
                found = transfer::fetch_here(&**chunks, here).await.ok();
            }
            match (found, error, copies.unheard) {
                (Some(fetched), ..) => fetched,
                // Who was not heard may have it.
                (None, TransferError::Gone(_), Some(detail)) => return Err(unreachable(&detail)),
                (None, error, _) => return Err(error),
            }
        }
    };
    let label = fetched.label();
    transfer::store(context, fetched).await?;
    let (bucket, key) = label.as_ref().map(|label| (label.bucket.as_str(), label.key.as_str())).unzip();
    tracing::info!(%chunk, size_bytes, bucket, key, "chunk repaired");
    Ok(Outcome::Healed(u64::from(size_bytes)))
}

/// Who has a chunk and need not. Where all that are to have it have it damaged, a node that left may have it whole.
async fn strays(context: &Context, info: ChunkInfo, state: &ShardState) -> Vec<NodeId> {
    let (me, view) = (context.me(), &context.parts.view);
    let is_named =
        |node: NodeId| state.write_set().any(|named| named == node) || state.leaving.iter().any(|l| l.node == node);
    let mut others: Vec<NodeId> = view.membership().borrow().nodes.keys().copied().collect();
    others.retain(|node| *node != me && !is_named(*node) && view.is_alive(*node));
    let mut strays = Vec::new();
    for node in others {
        if let Ok(found) = context.parts.peers.probe(node, &[info.id]).await
            && found.first() == Some(&Some(info))
        {
            strays.push(node);
        }
    }
    strays
}

/// Which other nodes have a chunk, and in what size.
struct Copies {
    found: Vec<(NodeId, u32)>,
    /// Why somebody could not be asked.
    unheard: Option<String>,
}

impl Copies {
    /// Asks whoever should have it; then, as a `last_resort`, anybody, until one has it, since a node that left may
    /// have the last one.
    async fn ask(context: &Context, chunk: ChunkId, state: &ShardState, last_resort: bool) -> Self {
        let (me, view) = (context.me(), &context.parts.view);
        let leaving = state.leaving.iter().map(|leaver| leaver.node);
        let named: Vec<NodeId> = state.write_set().chain(leaving).collect();
        let others = view.membership().borrow().nodes.keys().copied().filter(|_| last_resort).collect::<Vec<_>>();
        let mut asked = BTreeSet::from([me]);
        let mut copies = Self { found: Vec::new(), unheard: None };
        for (at, node) in named.iter().copied().chain(others).enumerate() {
            let is_named = at < named.len();
            if !view.is_alive(node) || (!is_named && !copies.found.is_empty()) || !asked.insert(node) {
                continue;
            }
            match context.parts.peers.probe(node, &[chunk]).await {
                Ok(found) => {
                    if let Some(Some(info)) = found.first() {
                        copies.found.push((node, info.size_bytes));
                    }
                }
                Err(error) => copies.unheard = Some(error.to_string()),
            }
        }
        copies
    }

    fn count(&self, size_bytes: u32) -> usize {
        self.found.iter().filter(|(_, size)| *size == size_bytes).count()
    }

    /// The size that most have; of several the one that was found first.
    fn size(&self) -> Option<u32> {
        self.found.iter().rev().map(|(_, size)| *size).max_by_key(|size| self.count(*size))
    }

    /// Whether most copies, with one of `size_bytes` here, have one other size. Chunks never change: this one is not
    /// what was acknowledged, whole as it is.
    fn outvote(&self, size_bytes: u32) -> bool {
        self.size().is_some_and(|size| size != size_bytes && self.count(size) * 2 > self.found.len() + 1)
    }

    fn of_size(&self, size_bytes: u32) -> Vec<NodeId> {
        self.found.iter().filter(|(_, size)| *size == size_bytes).map(|(node, _)| *node).collect()
    }
}
