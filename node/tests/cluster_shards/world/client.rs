//! The client: a quorum write reduced to its rules, and what has to be there of all that it was promised.

use bytes::Bytes;
use holdfast_actors::flow::cluster_view::Placement;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::chunks::{ChunkReceipt, ChunkSpec, ReplicaStore as _};
use holdfast_actors::ports::metadata::{ContentSource, NewObject, ReplicaEvidence, samples};
use holdfast_actors::ports::peers::{Peers, ReplicaService, ReplicaWrite};
use holdfast_actors::ports::{ChunkStore, Clock, MetadataError, SystemClock};
use holdfast_actors::wait::until_ok;
use holdfast_protocol::{ChunkId, ContentId, NodeId};
use rand::Rng;

use super::{TestNode, World};

impl World {
    /// Writes one object until it is acknowledged.
    pub async fn put(&self, size: usize) -> ChunkId {
        until_ok("a write is acknowledged", async || self.try_put(size).await).await
    }

    pub async fn put_many(&self, count: usize, size: usize) {
        for _ in 0..count {
            self.put(size).await;
        }
    }

    /// One attempt at a quorum write, through a node drawn by lot.
    pub async fn try_put(&self, size: usize) -> Result<ChunkId, String> {
        let content = ContentId::generate(SystemClock.now_seconds());
        let chunk = content.chunk(0);
        let mut bytes = vec![0; size];
        rand::rng().fill(&mut bytes[..]);
        let payload = Bytes::from(bytes);
        let at = rand::rng().random_range(0..self.nodes.len());
        let through = self.nodes.values().nth(at).ok_or("no node runs")?;
        let placement = through.view.placement(&chunk).ok_or("its shard is not placed")?;
        let targets: Vec<NodeId> = placement.state.write_set().collect();
        let writes = targets.iter().map(|node| self.write(through, *node, &placement, chunk, &payload));
        let acknowledged = futures::future::join_all(writes).await;
        let missed: Vec<NodeId> =
            targets.iter().zip(&acknowledged).filter(|(_, done)| done.is_err()).map(|(node, _)| *node).collect();
        let members = placement.state.members.iter().filter(|member| !missed.contains(member)).count();
        let all = targets.len() - missed.len();
        let state = &placement.state;
        if members < state.write_quorum() as usize || all < state.target_quorum() as usize {
            return Err(format!("{acknowledged:?}"));
        }
        let mut evidence = ReplicaEvidence::default();
        let fence = Some((placement.fence.shard, placement.fence.epoch));
        evidence.add(chunk, ChunkReceipt { fence, missed });
        let object = NewObject {
            now_ms: SystemClock.now_ms(),
            content: ContentSource::New(samples::content(content, size as u64)),
            evidence,
            ..samples::object(self.bucket, &content.to_string())
        };
        match self.metadata.commit_object(object).await {
            Ok(_) => {
                self.written.lock().insert(chunk, payload);
                Ok(chunk)
            }
            Err(error @ MetadataError::StaleEpoch { .. }) => Err(error.to_string()),
            Err(error) => panic!("commit: {error}"),
        }
    }

    async fn write(
        &self,
        through: &TestNode,
        node: NodeId,
        placement: &Placement,
        chunk: ChunkId,
        payload: &Bytes,
    ) -> Result<(), String> {
        let spec = ChunkSpec { id: chunk, size_bytes: payload.len() as u32, label: Bytes::from_static(b"label") };
        let write = ReplicaWrite { fence: placement.fence, spec };
        if node == through.id {
            let mut sink = through.replicas.create(node, write).await.map_err(|e| e.to_string())?;
            sink.write(payload).await.map_err(|e| e.to_string())?;
            sink.finish_input().map_err(|e| e.to_string())?;
            return sink.finish().await.map(drop).map_err(|e| e.to_string());
        }
        let peers = self.network.peers_of(through.id);
        let mut sink = peers.create(node, write).await.map_err(|e| e.to_string())?;
        sink.send(payload.clone()).await.map_err(|e| e.to_string())?;
        sink.finish().await.map_err(|e| e.to_string())
    }

    /// On how many disks, of running nodes or not, a chunk lies whole.
    pub async fn copies(&self, chunk: ChunkId, payload: &Bytes) -> Vec<u64> {
        let mut holders = Vec::new();
        for (number, store) in &self.stores {
            if holds(store, chunk, payload).await {
                holders.push(*number);
            }
        }
        holders
    }

    /// The promise that holds at every moment: whatever was acknowledged lies whole on a write quorum of disks.
    pub async fn check_nothing_is_lost(&self) {
        let written = self.written.lock().clone();
        for (chunk, payload) in &written {
            let copies = self.copies(*chunk, payload).await;
            assert!(copies.len() >= 2, "chunk {chunk} lies on {copies:?} only");
        }
    }
}

async fn holds(store: &MemoryChunkStore, chunk: ChunkId, payload: &Bytes) -> bool {
    let Ok(mut body) = store.read(chunk, 0..payload.len() as u32) else { return false };
    let mut read = Vec::new();
    while let Some(piece) = futures::StreamExt::next(&mut body).await {
        let Ok(piece) = piece else { return false };
        read.extend_from_slice(&piece);
    }
    read == *payload && store.verify(chunk).await.is_ok()
}
