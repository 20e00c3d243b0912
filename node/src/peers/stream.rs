//! Frames on a stream.

use bytes::Bytes;
use holdfast_protocol::peer::{self, FrameError, Message, PREFIX_BYTES};
use holdfast_storage::Scratch;
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
            // Dropped as it is, the stream would end as if all had been sent. Both fail on a stream that is closed
            // already.
            self.send.reset(CODE_DROPPED).ok();
            self.recv.stop(CODE_DROPPED).ok();
        }
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
    let mut bytes = Scratch::new(size_bytes);
    recv.read_exact(&mut bytes).await?;
    Ok(bytes.freeze())
}
