//! Peers in one process: calls go straight to the [`ReplicaService`] of the node named. For `holdfast dev --nodes` and
//! for tests, which can cut nodes off.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_protocol::{ChunkId, NodeId};
use parking_lot::RwLock;

use super::{Fence, PeerError, PeerHealth, PeerSink, Peers, ReplicaService, ReplicaWrite, ShardDigest, ShardReport};
use crate::ports::chunks::{ChunkBody, ChunkError, ChunkInfo, ChunkSink};

#[derive(Default)]
struct Wiring {
    nodes: BTreeMap<NodeId, Weak<dyn ReplicaService>>,
    /// Pairs that cannot reach each other, in this direction.
    cut: BTreeSet<(NodeId, NodeId)>,
}

/// The nodes of one process. Cheap to clone; all clones are the same network.
#[derive(Clone, Default)]
pub struct InProcessNetwork {
    wiring: Arc<RwLock<Wiring>>,
}

impl InProcessNetwork {
    /// Connects a node, or replaces it.
    pub fn join(&self, node: NodeId, service: &Arc<dyn ReplicaService>) {
        self.wiring.write().nodes.insert(node, Arc::downgrade(service));
    }

    /// Disconnects a node.
    pub fn leave(&self, node: NodeId) {
        self.wiring.write().nodes.remove(&node);
    }

    /// Cuts or heals the way from one node to another; the way back is a way of its own.
    pub fn set_cut(&self, from: NodeId, to: NodeId, cut: bool) {
        let mut wiring = self.wiring.write();
        if cut {
            wiring.cut.insert((from, to));
        } else {
            wiring.cut.remove(&(from, to));
        }
    }

    /// The peers of `node`.
    pub fn peers_of(&self, node: NodeId) -> InProcessPeers {
        InProcessPeers { network: self.clone(), me: node }
    }
}

/// One node's way to the others.
#[derive(Clone)]
pub struct InProcessPeers {
    network: InProcessNetwork,
    me: NodeId,
}

impl InProcessPeers {
    fn reach(&self, node: NodeId) -> Result<Arc<dyn ReplicaService>, PeerError> {
        let unreachable = |detail: &str| PeerError::Unreachable { node, detail: detail.to_owned() };
        let wiring = self.network.wiring.read();
        if wiring.cut.contains(&(self.me, node)) {
            return Err(unreachable("cut off"));
        }
        wiring.nodes.get(&node).and_then(Weak::upgrade).ok_or_else(|| unreachable("not running"))
    }
}

struct Sink {
    peers: InProcessPeers,
    node: NodeId,
    sink: Box<dyn ChunkSink>,
}

#[async_trait]
impl PeerSink for Sink {
    async fn send(&mut self, piece: Bytes) -> Result<(), PeerError> {
        self.peers.reach(self.node)?;
        self.sink.write(&piece).await?;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), PeerError> {
        self.peers.reach(self.node)?;
        self.sink.finish_input()?;
        self.sink.finish().await?;
        // The acknowledgement is lost when the way was cut meanwhile.
        self.peers.reach(self.node).map(drop)
    }
}

#[async_trait]
impl Peers for InProcessPeers {
    async fn create(&self, node: NodeId, write: ReplicaWrite) -> Result<Box<dyn PeerSink>, PeerError> {
        let sink = self.reach(node)?.create(self.me, write).await?;
        Ok(Box::new(Sink { peers: self.clone(), node, sink }))
    }

    fn read(&self, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody {
        let body = self.reach(node).and_then(|service| service.read(self.me, chunk, range));
        match body {
            Ok(body) => {
                let peers = self.clone();
                Box::pin(body.map(move |piece| {
                    peers.reach(node).map_err(as_chunk_error)?;
                    piece
                }))
            }
            Err(error) => Box::pin(stream::iter([Err(as_chunk_error(error))])),
        }
    }

    async fn probe(&self, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        self.reach(node)?.probe(self.me, chunks).await
    }

    async fn label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        self.reach(node)?.label(self.me, chunk).await
    }

    async fn list(
        &self,
        node: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        self.reach(node)?.list(self.me, fence, after, limit).await
    }

    async fn digest(&self, node: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        self.reach(node)?.digest(self.me, fence).await
    }

    async fn delete(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        self.reach(node)?.delete(self.me, chunks).await
    }

    async fn report(&self, controller: NodeId, report: ShardReport) -> Result<(), PeerError> {
        self.reach(controller)?.report(self.me, report).await
    }

    async fn health(&self, node: NodeId) -> Result<PeerHealth, PeerError> {
        self.reach(node)?.health(self.me).await
    }
}

/// How a failure to reach a peer shows in a body.
pub fn as_chunk_error(error: PeerError) -> ChunkError {
    match error {
        PeerError::Chunk(error) => error,
        PeerError::Stale { shard, current } => ChunkError::Stale { shard, current },
        other => ChunkError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Pair, SHARD_COUNT};
    use super::super::memory::MemoryReplica;
    use super::*;
    use crate::ports::chunks::memory::MemoryChunkStore;

    #[tokio::test]
    async fn in_process_peers_keep_the_contract() {
        conformance::all(|| async {
            let (network, me, node) = (InProcessNetwork::default(), NodeId::from(1), NodeId::from(2));
            let store = Arc::new(MemoryChunkStore::new());
            let service = Arc::new(MemoryReplica::new(node, store, SHARD_COUNT));
            let served: Arc<dyn ReplicaService> = service.clone();
            network.join(node, &served);
            Pair { peers: Arc::new(network.peers_of(me)), me, node, service, keep: Box::new(served) }
        })
        .await;
    }
}
