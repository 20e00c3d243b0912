//! Peers that stall or answer late.

use std::collections::BTreeMap;

use futures::StreamExt as _;

use super::*;
use crate::ports::PeerError;
use crate::ports::chunks::ChunkInfo;
use crate::ports::peers::in_process::InProcessPeers;
use crate::ports::peers::{Fence, PeerHealth, PeerSink, ReplicaWrite, ShardDigest, ShardReport};

/// Where a peer stops to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    Create,
    /// After so many bytes.
    Send(usize),
    Finish,
    /// The first bytes of a read come so late.
    Read(Duration),
}

/// Peers of which some stall.
#[derive(Clone)]
pub struct Stalling {
    inner: InProcessPeers,
    stalls: Arc<Mutex<BTreeMap<NodeId, Stall>>>,
}

impl Stalling {
    pub fn new(inner: InProcessPeers) -> Self {
        Self { inner, stalls: Arc::default() }
    }

    pub fn set(&self, node: NodeId, stall: Option<Stall>) {
        match stall {
            Some(stall) => self.stalls.lock().insert(node, stall),
            None => self.stalls.lock().remove(&node),
        };
    }

    fn stall(&self, node: NodeId) -> Option<Stall> {
        self.stalls.lock().get(&node).copied()
    }
}

struct Sink {
    inner: Box<dyn PeerSink>,
    peers: Stalling,
    node: NodeId,
    sent: usize,
}

#[async_trait]
impl PeerSink for Sink {
    async fn send(&mut self, piece: Bytes) -> Result<(), PeerError> {
        if let Some(Stall::Send(after)) = self.peers.stall(self.node)
            && self.sent >= after
        {
            std::future::pending::<()>().await;
        }
        self.sent += piece.len();
        self.inner.send(piece).await
    }

    async fn finish(self: Box<Self>) -> Result<(), PeerError> {
        if self.peers.stall(self.node) == Some(Stall::Finish) {
            std::future::pending::<()>().await;
        }
        self.inner.finish().await
    }
}

#[async_trait]
impl Peers for Stalling {
    async fn create(&self, node: NodeId, write: ReplicaWrite) -> Result<Box<dyn PeerSink>, PeerError> {
        if self.stall(node) == Some(Stall::Create) {
            std::future::pending::<()>().await;
        }
        let inner = self.inner.create(node, write).await?;
        Ok(Box::new(Sink { inner, peers: self.clone(), node, sent: 0 }))
    }

    fn read(&self, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody {
        let body = self.inner.read(node, chunk, range);
        match self.stall(node) {
            Some(Stall::Read(delay)) => {
                let late = async move {
                    tokio::time::sleep(delay).await;
                    body
                };
                Box::pin(futures::stream::once(late).flatten())
            }
            _ => body,
        }
    }

    async fn probe(&self, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        self.inner.probe(node, chunks).await
    }

    async fn label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        self.inner.label(node, chunk).await
    }

    async fn list(
        &self,
        node: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        self.inner.list(node, fence, after, limit).await
    }

    async fn digest(&self, node: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        self.inner.digest(node, fence).await
    }

    async fn delete(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        self.inner.delete(node, chunks).await
    }

    async fn report(&self, controller: NodeId, report: ShardReport) -> Result<(), PeerError> {
        self.inner.report(controller, report).await
    }

    async fn health(&self, node: NodeId) -> Result<PeerHealth, PeerError> {
        self.inner.health(node).await
    }
}
