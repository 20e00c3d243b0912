//! Bringing bytes onto the disks: the data half of PUT, of a part upload, and of a part copy.
//!
//! [`store`] cuts a body into chunks, writes and hashes them at the same time, and returns a [`StoredContent`] whose
//! chunks are durable, whose length is the announced one and whose digests were verified. Nothing is visible yet: the
//! caller commits metadata by [`StoredContent::settle`].
//!
//! # Who owns the chunks
//! Until it is settled, a `StoredContent` (and, before it exists, the running `store`) owns the chunks: dropped for
//! whatever reason, be it an error, a client that went away or a request that was cancelled, it deletes them in the
//! background. From the moment the commit begins it does not, since a commit that was cut off may have happened;
//! cleanup asks the metadata and decides. What a crash leaves is an orphan for cleanup, too (promise D4).

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _};
use holdfast_protocol::label::LabelError;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChecksumAlgorithm, ChunkId, ChunkLabel, ContentId, Manifest};

use super::chunk_guard::ChunkGuard;
use super::hashing::{INLINE_SIZE_MAX, ObjectHasher};
use crate::domain::objects::checksums::DigestMismatch;
use crate::domain::objects::digests::Digests;
use crate::ports::chunks::ChunkReceipt;
use crate::ports::metadata::{MetadataResult, MoveEnd, ReplicaEvidence};
use crate::ports::{ChunkError, ChunkSink, ChunkSpec, ChunkStore};

/// An error of a body, as the HTTP side has it.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Why bytes could not be stored. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The body broke off or failed its signature.
    #[error("read the body: {0}")]
    Body(#[source] BodyError),
    /// The body ended before the announced length.
    #[error("the body ended after {received} of {announced} bytes")]
    TooShort {
        /// Bytes announced.
        announced: u64,
        /// Bytes that came.
        received: u64,
    },
    /// More bytes came than announced.
    #[error("the body is longer than the {announced} bytes announced")]
    TooLong {
        /// Bytes announced.
        announced: u64,
    },
    /// The bytes are not those that the client meant.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// The chunk store failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The label does not fit.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// What is to be stored.
#[derive(Debug, Clone)]
pub struct StoreRequest {
    /// Names the bytes; fresh.
    pub content: ContentId,
    /// What every chunk's header says. Its `attributes` go to the first chunk only; its size is the announced length.
    pub label: ChunkLabel,
    /// The checksums to compute beside MD5.
    pub algorithms: Vec<ChecksumAlgorithm>,
}

/// Durable, verified bytes that nothing refers to yet.
pub struct StoredContent {
    /// What the bytes are.
    pub digests: Digests,
    /// Under which epochs the replicas took them; for the commit.
    pub evidence: ReplicaEvidence,
    guard: ChunkGuard,
}

impl fmt::Debug for StoredContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredContent").field("content", &self.guard.content).finish_non_exhaustive()
    }
}

impl StoredContent {
    /// The content's name.
    pub fn id(&self) -> ContentId {
        self.guard.content
    }

    /// Where the bytes are.
    pub fn manifest(&self) -> Manifest {
        Manifest::single(self.id(), self.digests.size_bytes)
    }

    /// Runs the commit that makes the content visible. If it is known to have failed, the chunks are deleted in the
    /// background; if it succeeded, is of unknown outcome or was cut off, they stay.
    ///
    /// # Errors
    /// Those of `commit`.
    pub async fn settle<T>(self, commit: impl Future<Output = MetadataResult<T>>) -> MetadataResult<T> {
        self.guard.settle(commit, |_| true).await
    }

    /// As [`Self::settle`], for bytes that a move brought: the chunks are also deleted if the move was overtaken.
    ///
    /// # Errors
    /// Those of `commit`.
    pub(crate) async fn settle_move(
        self,
        commit: impl Future<Output = MetadataResult<MoveEnd>>,
    ) -> MetadataResult<MoveEnd> {
        self.guard.settle_move(commit).await
    }
}

/// A chunk on its way to the disk; done when it is durable.
type Finishing<'a> = Pin<Box<dyn Future<Output = Result<(ChunkId, ChunkReceipt), ChunkError>> + Send + 'a>>;

/// Runs `work` while the chunk before becomes durable.
async fn alongside<T>(
    finishing: &mut Option<Finishing<'static>>,
    evidence: &mut ReplicaEvidence,
    work: impl Future<Output = T>,
) -> Result<T, ChunkError> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Some(future) = finishing
            && let Poll::Ready(result) = future.as_mut().poll(cx)
        {
            *finishing = None;
            match result {
                Ok((chunk, receipt)) => evidence.add(chunk, receipt),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        work.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// The chunk being filled.
struct OpenChunk {
    id: ChunkId,
    sink: Box<dyn ChunkSink>,
    left: u64,
}

fn finish(id: ChunkId, sink: Box<dyn ChunkSink>) -> Finishing<'static> {
    Box::pin(async move { Ok((id, sink.finish().await?)) })
}

/// Writes `body`, whose announced length is `request.label.content_size_bytes`, and returns once every chunk is
/// durable. `verify` sees the digests after the body has ended cleanly (so trailers are there) and before success is
/// possible.
///
/// One chunk becomes durable while the next is filled. An object that is hashed in place is verified before its one
/// flush, so a wrong digest costs no disk time.
///
/// Cancel safe: a dropped future deletes what it wrote.
///
/// # Errors
/// [`StoreError`]; chunks already written are deleted in the background.
pub async fn store(
    chunks: &Arc<dyn ChunkStore>,
    request: StoreRequest,
    body: impl Stream<Item = Result<Bytes, BodyError>>,
    verify: impl FnOnce(&Digests) -> Result<(), DigestMismatch>,
) -> Result<StoredContent, StoreError> {
    let StoreRequest { content, mut label, algorithms } = request;
    let announced = label.content_size_bytes;
    // Declared before sinks and flushes, hence dropped after them: deletion finds them ended.
    let mut guard = ChunkGuard::begin(chunks, content);
    let mut hasher = ObjectHasher::new(announced, &algorithms);
    let mut body = pin!(body);
    let mut finishing: Option<Finishing<'static>> = None;
    let mut open: Option<OpenChunk> = None;
    let mut full: Option<Finishing<'static>> = None;
    let mut evidence = ReplicaEvidence::default();
    let mut received = 0u64;

    while let Some(frame) = alongside(&mut finishing, &mut evidence, body.next()).await? {
        let mut data = frame.map_err(StoreError::Body)?;
        if data.len() as u64 > announced - received {
            return Err(StoreError::TooLong { announced });
        }
        while data.has_remaining() {
            let chunk = match &mut open {
                Some(chunk) => chunk,
                None => {
                    let size_bytes = (announced - received).min(CHUNK_SIZE_MAX);
                    let id = content.chunk(guard.begun.chunks);
                    let spec = ChunkSpec { id, size_bytes: size_bytes as u32, label: label.encode()?.into() };
                    let sink = alongside(&mut finishing, &mut evidence, chunks.create(spec)).await??;
                    guard.begun.chunks += 1;
                    label.attributes = None;
                    open.insert(OpenChunk { id, sink, left: size_bytes })
                }
            };
            let take = chunk.left.min(data.len() as u64) as usize;
            let pieces = alongside(&mut finishing, &mut evidence, chunk.sink.write(&data[..take])).await??;
            alongside(&mut finishing, &mut evidence, hasher.update(pieces)).await?;
            data.advance(take);
            received += take as u64;
            chunk.left -= take as u64;
            if chunk.left == 0
                && let Some(mut done) = open.take()
            {
                let last = done.sink.finish_input()?;
                alongside(&mut finishing, &mut evidence, hasher.update(last)).await?;
                let flush = finish(done.id, done.sink);
                if announced <= INLINE_SIZE_MAX {
                    // Not polled yet: nothing is flushed before the digests are verified.
                    full = Some(flush);
                } else {
                    if let Some(before) = finishing.take() {
                        let (chunk, receipt) = before.await?;
                        evidence.add(chunk, receipt);
                    }
                    finishing = Some(flush);
                }
            }
        }
    }
    if received < announced {
        return Err(StoreError::TooShort { announced, received });
    }
    let digests = alongside(&mut finishing, &mut evidence, hasher.finish()).await?;
    verify(&digests)?;
    if let Some(last) = full.or(finishing) {
        let (chunk, receipt) = last.await?;
        evidence.add(chunk, receipt);
    }
    Ok(StoredContent { digests, evidence, guard })
}

#[cfg(test)]
mod tests;
