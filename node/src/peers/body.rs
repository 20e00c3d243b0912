//! A range of a chunk on its way from a peer, verified block by block before it is handed out (promise D3).

use std::ops::Range;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use futures::stream;
use holdfast_actors::ports::ChunkError;
use holdfast_actors::ports::chunks::ChunkBody;
use holdfast_actors::ports::peers::PeerError;
use holdfast_actors::ports::peers::in_process::as_chunk_error;
use holdfast_protocol::peer::block::{BlockHead, HEAD_BYTES};
use holdfast_protocol::peer::{Answer, Request};
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, NodeId};

use super::client::{Opened, Outcome, QuicPeers, unexpected, within};
use super::convert;
use super::stream::{StreamError, read_bytes, read_frame};

/// The checksum of a block.
pub(super) fn crc32c(block: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, block) as u32
}

struct Reading {
    peers: QuicPeers,
    node: NodeId,
    chunk: ChunkId,
    range: Range<u32>,
    opened: Option<Opened>,
    left_bytes: u32,
    outcome: Outcome,
}

/// The body. Nothing happens before it is polled; dropping it stops the peer.
pub(super) fn read(peers: QuicPeers, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody {
    let left_bytes = range.end.saturating_sub(range.start);
    let outcome = Outcome::new("read");
    let reading = Reading { peers, node, chunk, range, opened: None, left_bytes, outcome };
    // An error ends the stream.
    Box::pin(stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        let result = reading.next().await;
        match result {
            Ok(Some(block)) => Some((Ok(block), Some(reading))),
            Ok(None) => {
                reading.outcome.is(&Ok(()));
                None
            }
            Err(error) => {
                let result: Result<(), _> = Err(error);
                reading.outcome.is(&result);
                Some((result.map(|()| Bytes::new()).map_err(as_chunk_error), None))
            }
        }
    }))
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        if self.opened.is_none() {
            self.opened = Some(self.open().await?);
        }
        let Some(opened) = &mut self.opened else { return Ok(None) };
        if self.left_bytes == 0 {
            opened.call.done();
            return Ok(None);
        }
        let (node, progress) = (self.node, self.peers.options().request_timeout);
        let mut bytes = [0; HEAD_BYTES];
        let recv = &mut opened.call.recv;
        within(node, progress, async { Ok(recv.read_exact(&mut bytes).await?) }).await?;
        let head = BlockHead::decode(bytes).map_err(|error| convert::stream_error(node, StreamError::Frame(error)))?;
        if head.size_bytes == 0 {
            return match within(node, progress, read_frame(recv)).await? {
                Answer::Error(error) => Err(convert::error_from_wire(node, error)),
                _ => Err(unexpected(node)),
            };
        }
        if head.size_bytes > self.left_bytes {
            return Err(PeerError::Protocol(format!("node {node} sends more than was asked for")));
        }
        let block = within(node, progress, read_bytes(recv, head.size_bytes as usize)).await?;
        if crc32c(&block) != head.crc32c {
            metrics::counter!("holdfast_peer_corrupt_blocks_total").increment(1);
            let detail = format!("it changed on the way from node {node}");
            return Err(ChunkError::Corrupt { chunk: self.chunk, detail }.into());
        }
        metrics::counter!("holdfast_peer_received_bytes_total", "op" => "read").increment(u64::from(head.size_bytes));
        self.left_bytes -= head.size_bytes;
        Ok(Some(block))
    }

    async fn open(&mut self) -> Result<Opened, PeerError> {
        let node = self.node;
        let Range { start, end } = self.range;
        if start > end || u64::from(end) > CHUNK_SIZE_MAX {
            return Err(ChunkError::Invalid(format!("range {start}..{end}")).into());
        }
        let request = Request::Read { chunk: self.chunk, start, end };
        let mut opened = self.peers.open(node, &request).await?;
        // Fails only when the peer has answered already.
        opened.call.send.finish().ok();
        match self.peers.in_time(node, read_frame(&mut opened.call.recv)).await? {
            Answer::Data { size_bytes } if size_bytes == self.left_bytes => Ok(opened),
            Answer::Error(error) => Err(convert::error_from_wire(node, error)),
            _ => Err(unexpected(node)),
        }
    }
}
