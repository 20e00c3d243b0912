//! The verbs of the port, each a request and what answers it.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkInfo};
use holdfast_actors::ports::peers::{
    Fence, IDS_MAX, LIST_MAX, PeerError, PeerHealth, PeerSink, Peers, ReplicaWrite, ShardDigest, ShardReport,
};
use holdfast_protocol::peer::{Answer, Request};
use holdfast_protocol::{ChunkId, NodeId, chunk_order};

use super::outcome::Outcome;
use super::{QuicPeers, unexpected};
use crate::peers::stream::read_bytes;
use crate::peers::{body, convert, sink};

fn check_ids(chunks: &[ChunkId]) -> Result<(), PeerError> {
    if chunks.len() > IDS_MAX {
        return Err(PeerError::Protocol(format!("{} chunk ids in a request, at most {IDS_MAX}", chunks.len())));
    }
    Ok(())
}

/// Refuses a page that does not rise from `after` on: whoever pages on behind its last chunk might never come to an
/// end.
fn check_order(node: NodeId, after: Option<ChunkId>, page: Vec<ChunkInfo>) -> Result<Vec<ChunkInfo>, PeerError> {
    let key = |id: ChunkId| (chunk_order::place(&id), id);
    let mut before = after.map(key);
    for info in &page {
        let this = Some(key(info.id));
        if this <= before {
            return Err(PeerError::Protocol(format!("node {node} lists chunk {} out of order", info.id)));
        }
        before = this;
    }
    Ok(page)
}

#[async_trait]
impl Peers for QuicPeers {
    async fn create(&self, node: NodeId, write: ReplicaWrite) -> Result<Box<dyn PeerSink>, PeerError> {
        sink::create(self.clone(), node, write).await
    }

    fn read(&self, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody {
        body::read(self.clone(), node, chunk, range)
    }

    async fn probe(&self, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        check_ids(chunks)?;
        let request = Request::Probe { chunks: chunks.to_vec() };
        self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Probed { sizes_bytes } if sizes_bytes.len() == chunks.len() => {
                let infos = chunks.iter().zip(sizes_bytes);
                Some(infos.map(|(id, size)| size.map(|size_bytes| ChunkInfo { id: *id, size_bytes })).collect())
            }
            _ => None,
        })
        .await
    }

    async fn label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        let mut outcome = Outcome::new("label");
        let result = self.fetch_label(node, chunk).await;
        outcome.is(&result);
        result
    }

    async fn list(
        &self,
        node: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        let limit = limit.min(LIST_MAX);
        let request = Request::List { shard: fence.shard, epoch: fence.epoch, after, limit: limit as u32 };
        let listed = self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Listed { chunks } if chunks.len() <= limit => Some(chunks),
            _ => None,
        });
        let page = listed.await?.iter().map(convert::info_from_wire).collect();
        check_order(node, after, page)
    }

    async fn digest(&self, node: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        let request = Request::Digest { shard: fence.shard, epoch: fence.epoch };
        self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Digest(digest) => Some(convert::digest_from_wire(digest)),
            _ => None,
        })
        .await
    }

    async fn delete(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        check_ids(chunks)?;
        let request = Request::Delete { chunks: chunks.to_vec() };
        self.call(node, request, self.inner.options.durable_timeout, is_done).await
    }

    async fn report(&self, controller: NodeId, report: ShardReport) -> Result<(), PeerError> {
        let request = Request::Report { report: convert::report_to_wire(report) };
        self.call(controller, request, self.inner.options.request_timeout, is_done).await
    }

    fn refusals(&self) -> Vec<(NodeId, String)> {
        let mut found: Vec<_> = self.inner.links.lock().values().filter_map(|link| link.distrusted()).collect();
        found.sort_unstable();
        found
    }

    async fn health(&self, node: NodeId) -> Result<PeerHealth, PeerError> {
        self.call(node, Request::Health, self.inner.options.request_timeout, |answer| match answer {
            Answer::Health(health) => Some(convert::health_from_wire(health)),
            _ => None,
        })
        .await
    }
}

fn is_done(answer: Answer) -> Option<()> {
    matches!(answer, Answer::Done).then_some(())
}

impl QuicPeers {
    async fn fetch_label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        let deadline = self.inner.options.request_timeout;
        let (answer, mut opened) = self.ask(node, Request::Label { chunk }, deadline).await?;
        let Answer::Label { size_bytes } = answer else {
            return Err(unexpected(node));
        };
        let label = self.in_time(node, read_bytes(&mut opened.call.recv, size_bytes as usize)).await?;
        opened.call.done();
        Ok(label)
    }
}
