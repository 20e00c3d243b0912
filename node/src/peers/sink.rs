//! A chunk on its way to a peer.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::ports::ChunkError;
use holdfast_actors::ports::peers::{PeerError, PeerSink, ReplicaWrite};
use holdfast_protocol::label::LABEL_SIZE_MAX;
use holdfast_protocol::peer::{Answer, Request};
use holdfast_protocol::{CHUNK_SIZE_MAX, NodeId};
use quinn::WriteError;
use tokio::time::timeout;

use super::client::{Opened, Outcome, QuicPeers, unexpected, within};
use super::convert;
use super::stream::{StreamError, read_frame};

/// What is passed to QUIC at a time: the peer has to take some of this within the deadline for progress.
const SLICE_BYTES: usize = 256 << 10;

struct Sink {
    peers: QuicPeers,
    node: NodeId,
    opened: Opened,
    left_bytes: usize,
    outcome: Outcome,
}

/// Begins a write: returns when the peer waits for the payload.
pub(super) async fn create(
    peers: QuicPeers,
    node: NodeId,
    write: ReplicaWrite,
) -> Result<Box<dyn PeerSink>, PeerError> {
    let mut outcome = Outcome::new("write");
    let result = begin(&peers, node, &write).await;
    match result {
        Ok(opened) => {
            let left_bytes = write.spec.size_bytes as usize;
            Ok(Box::new(Sink { peers, node, opened, left_bytes, outcome }))
        }
        Err(error) => {
            let result: Result<(), _> = Err(error);
            outcome.is(&result);
            result.map(|()| unreachable!("an error"))
        }
    }
}

async fn begin(peers: &QuicPeers, node: NodeId, write: &ReplicaWrite) -> Result<Opened, PeerError> {
    let (size_bytes, label_bytes) = (write.spec.size_bytes, write.spec.label.len());
    if size_bytes == 0 || u64::from(size_bytes) > CHUNK_SIZE_MAX || label_bytes > LABEL_SIZE_MAX {
        let what = format!("a chunk of {size_bytes} bytes with a label of {label_bytes}");
        return Err(ChunkError::Invalid(what).into());
    }
    let request = Request::Write {
        shard: write.fence.shard,
        epoch: write.fence.epoch,
        chunk: write.spec.id,
        size_bytes,
        label_bytes: label_bytes as u32,
    };
    let mut opened = peers.open(node, &request).await?;
    let label = write.spec.label.clone();
    if !label.is_empty() {
        let sent = peers.in_time(node, async { Ok(opened.call.send.write_chunk(label).await?) }).await;
        // A refusal that came while the label was sent says more than the stream's end.
        if let Err(error) = sent {
            return Err(refusal(peers, node, &mut opened).await.unwrap_or(error));
        }
    }
    match peers.in_time(node, read_frame(&mut opened.call.recv)).await? {
        Answer::Ready => {
            opened.link.distrusts(None);
            Ok(opened)
        }
        Answer::Error(error) => Err(convert::error_from_wire(node, error)),
        _ => Err(unexpected(node)),
    }
}

/// The answer of a peer that does not take any more.
async fn refusal(peers: &QuicPeers, node: NodeId, opened: &mut Opened) -> Option<PeerError> {
    match peers.in_time(node, read_frame(&mut opened.call.recv)).await {
        Ok(Answer::Error(error)) => Some(convert::error_from_wire(node, error)),
        _ => None,
    }
}

impl Sink {
    async fn pass_on(&mut self, piece: Bytes) -> Result<(), PeerError> {
        let (node, progress) = (self.node, self.peers.options().progress_timeout);
        if piece.len() > self.left_bytes {
            return Err(ChunkError::Invalid("more bytes than announced".into()).into());
        }
        self.left_bytes -= piece.len();
        let (of_peer, of_all) = (Arc::clone(&self.opened.link.waiting), Arc::clone(self.peers.waiting()));
        let mut rest = piece;
        while !rest.is_empty() {
            let slice = rest.split_to(rest.len().min(SLICE_BYTES));
            let size = slice.len() as u32;
            let waiting = async {
                // That of the peer first: what waits for one peer's share takes nothing from the others.
                let permits = of_peer.acquire_many(size).await;
                (permits, of_all.acquire_many(size).await)
            };
            let Ok(_permits) = timeout(progress, waiting).await else {
                return Err(PeerError::Timeout { node });
            };
            let send = &mut self.opened.call.send;
            let sent = timeout(progress, send.write_chunk(slice)).await;
            match sent {
                Ok(Ok(())) => {
                    metrics::counter!("holdfast_peer_sent_bytes_total", "op" => "write").increment(u64::from(size));
                }
                Ok(Err(error @ WriteError::Stopped(_))) => {
                    let answered = refusal(&self.peers, node, &mut self.opened).await;
                    return Err(answered.unwrap_or_else(|| convert::stream_error(node, StreamError::Write(error))));
                }
                Ok(Err(error)) => return Err(convert::stream_error(node, StreamError::Write(error))),
                Err(_) => return Err(PeerError::Timeout { node }),
            }
        }
        Ok(())
    }

    async fn acknowledged(&mut self) -> Result<(), PeerError> {
        let (node, durable) = (self.node, self.peers.options().durable_timeout);
        // Fails only when the peer has stopped the stream, and then it has answered.
        self.opened.call.send.finish().ok();
        match within(node, durable, read_frame(&mut self.opened.call.recv)).await? {
            Answer::Done => {
                self.opened.call.done();
                Ok(())
            }
            Answer::Error(error) => Err(convert::error_from_wire(node, error)),
            _ => Err(unexpected(node)),
        }
    }
}

#[async_trait]
impl PeerSink for Sink {
    async fn send(&mut self, piece: Bytes) -> Result<(), PeerError> {
        let result = self.pass_on(piece).await;
        if result.is_err() {
            self.outcome.is(&result);
        }
        result
    }

    async fn finish(mut self: Box<Self>) -> Result<(), PeerError> {
        let result = self.acknowledged().await;
        self.outcome.is(&result);
        result
    }
}
