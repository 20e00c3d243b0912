//! Replication over stores in memory and a network that can be cut.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_protocol::{ChunkId, Epoch, NodeId};
use parking_lot::Mutex;

use super::*;
use crate::flow::test_cluster::{Node, TestCluster, node_id, spec};
use crate::ports::chunks::ChunkReceipt;
use crate::ports::metadata::MetadataResult;

mod peers;
mod reads;
mod simulation;
mod writes;

/// Repairs that were queued.
#[derive(Default)]
struct Repairs(Mutex<Vec<(ChunkId, NodeId)>>);

#[async_trait]
impl RepairQueue for Repairs {
    async fn queue(&self, repairs: &[(ChunkId, NodeId)]) -> MetadataResult<()> {
        self.0.lock().extend_from_slice(repairs);
        Ok(())
    }
}

/// The replicated store of one node.
fn chunks_on(cluster: &TestCluster, index: usize) -> ReplicatedChunks {
    chunks_with(&cluster.nodes[index], Arc::new(cluster.network.peers_of(node_id(index))), Arc::default())
}

fn chunks_with(node: &Node, peers: Arc<dyn Peers>, repairs: Arc<Repairs>) -> ReplicatedChunks {
    let options = ReplicateOptions::default();
    ReplicatedChunks::start(ReplicateParts {
        local: node.store.clone(),
        peers,
        view: node.view.clone(),
        repairs,
        self_report: SelfReport::new(),
        reporter: None,
        options,
    })
}

async fn put(chunks: &ReplicatedChunks, id: ChunkId, data: &[u8]) -> Result<ChunkReceipt, ChunkError> {
    let mut sink = chunks.create(spec(id, data.len())).await?;
    let mut pieces = vec![];
    for slice in data.chunks(300_000) {
        pieces.extend(sink.write(slice).await?);
    }
    pieces.extend(sink.finish_input()?);
    assert!(pieces.concat() == data, "the pieces handed out are the payload");
    drop(pieces);
    sink.finish().await
}

async fn get(chunks: &ReplicatedChunks, id: ChunkId, range: Range<u32>) -> Result<Vec<u8>, ChunkError> {
    let pieces: Vec<Bytes> = chunks.read(id, range)?.try_collect().await?;
    Ok(pieces.concat())
}

/// Nodes that have the chunk.
fn holders(cluster: &TestCluster, id: ChunkId) -> Vec<usize> {
    (0..cluster.nodes.len()).filter(|index| cluster.nodes[*index].store.payload(id).is_some()).collect()
}

fn nothing_left(cluster: &TestCluster) -> bool {
    cluster.nodes.iter().all(|node| node.store.is_empty() && node.store.sinks_open() == 0)
}

/// So much time that every background task has ended, or never will.
const LONG: Duration = Duration::from_secs(300);

/// The epoch in which clusters begin.
const EPOCH: Epoch = Epoch(1);
