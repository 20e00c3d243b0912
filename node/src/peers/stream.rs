//! Frames on a stream.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};
use holdfast_protocol::peer::{self, FrameError, Message, PREFIX_BYTES};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use super::quic::CODE_DROPPED;

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// A frame that breaks the rules, or that cannot be made.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended where more was to come.
    #[error("the stream ended early")]
    Ended,
    /// Nothing comes any more.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nothing is taken any more.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Ended,
            ReadExactError::ReadError(error) => Self::Read(error),
        }
    }
}

/// Both directions of an operation. Dropped before it is done, it tells the other side that nobody waits any more.
pub(crate) struct Call {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    done: bool,
}

impl Call {
    pub(crate) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        Self { send, recv, done: false }
    }

    /// All that was to be said and heard has been.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            // Dropped as it is, the stream would end as if all had been sent. Both fail on a stream that is closed already.
            self.send.reset(CODE_DROPPED).ok();
            self.recv.stop(CODE_DROPPED).ok();
        }
    }
}

/// Chunks that one look at a stream takes at most: more than lie ready as a rule.
const CHUNKS_AT_A_TIME: usize = 32;

/// Takes all that has come of a stream at each look, and gives it out in the lengths that are asked for. A look takes the
/// connection's lock, which its driver wants too: with one look for each packet both spend their time waiting for it.
///
/// Holds less than [`CHUNKS_AT_A_TIME`] packets between two calls. Dropped in the middle of a call, it may have lost bytes.
#[derive(Default)]
pub(crate) struct Lookahead {
    chunks: VecDeque<Bytes>,
}

impl Lookahead {
    /// Fills `target` from the stream.
    pub(crate) async fn read_exact(&mut self, recv: &mut RecvStream, target: &mut [u8]) -> Result<(), StreamError> {
        let mut filled = 0;
        while filled < target.len() {
            let chunk = self.peek(recv).await?;
            let take = chunk.len().min(target.len() - filled);
            chunk.copy_to_slice(&mut target[filled..filled + take]);
            filled += take;
        }
        Ok(())
    }

    /// Receives exactly `size_bytes`, in one piece.
    pub(crate) async fn read_bytes(&mut self, recv: &mut RecvStream, size_bytes: usize) -> Result<Bytes, StreamError> {
        let mut bytes = BytesMut::with_capacity(size_bytes);
        while bytes.len() < size_bytes {
            let chunk = self.peek(recv).await?;
            let take = chunk.len().min(size_bytes - bytes.len());
            bytes.extend_from_slice(&chunk[..take]);
            chunk.advance(take);
        }
        Ok(bytes.freeze())
    }

    /// Receives a frame, as [`read_frame`] does.
    pub(crate) async fn read_frame<M: Message>(&mut self, recv: &mut RecvStream) -> Result<M, StreamError> {
        let mut prefix = [0; PREFIX_BYTES];
        self.read_exact(recv, &mut prefix).await?;
        let body = self.read_bytes(recv, peer::body_bytes::<M>(prefix)?).await?;
        Ok(peer::decode_body(&body)?)
    }

    /// The next chunk, which is not empty.
    async fn peek(&mut self, recv: &mut RecvStream) -> Result<&mut Bytes, StreamError> {
        while self.chunks.front().is_none_or(Bytes::is_empty) {
            self.chunks.pop_front();
            if self.chunks.is_empty() {
                let mut chunks: [Bytes; CHUNKS_AT_A_TIME] = Default::default();
                let count = recv.read_chunks(&mut chunks).await?.ok_or(StreamError::Ended)?;
                self.chunks.extend(chunks.into_iter().take(count));
            }
        }
        Ok(self.chunks.front_mut().expect("the loop ends at a chunk"))
    }
}

/// Sends a frame.
pub(crate) async fn write_frame<M: Message>(send: &mut SendStream, message: &M) -> Result<(), StreamError> {
    let frame = peer::encode(message)?;
    Ok(send.write_chunk(frame.into()).await?)
}

/// Receives a frame. No more is reserved than its kind may have.
pub(crate) async fn read_frame<M: Message>(recv: &mut RecvStream) -> Result<M, StreamError> {
    let mut prefix = [0; PREFIX_BYTES];
    recv.read_exact(&mut prefix).await?;
    let body = read_bytes(recv, peer::body_bytes::<M>(prefix)?).await?;
    Ok(peer::decode_body(&body)?)
}

/// Receives exactly `size_bytes`, in one piece.
pub(crate) async fn read_bytes(recv: &mut RecvStream, size_bytes: usize) -> Result<Bytes, StreamError> {
    let mut bytes = BytesMut::with_capacity(size_bytes);
    while bytes.len() < size_bytes {
        let chunk = recv.read_chunk(size_bytes - bytes.len(), true).await?.ok_or(StreamError::Ended)?;
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(bytes.freeze())
}
