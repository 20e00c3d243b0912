//! Reading the bytes of an object.
//!
//! [`ObjectReader`] reads them where they are: on the disks of the cluster, or in a cold tier.
//!
//! [`ContentReader`] chains the chunks of a content. It opens a chunk when the one before is used up, so an object of
//! any size holds one open chunk, and passes the store's pieces on untouched: a piece that is a slice of a mapping
//! reaches the connection as that slice.
//!
//! A reader pins only the chunk it is in. Should the object be overwritten meanwhile, its other chunks live on for the
//! grace that reclaiming keeps; a slower reader sees an error and a cut connection, never wrong bytes.
//!
//! A store that gives nothing, and no error either, is given up after a while ([`PATIENCE`]): a disk may hang without a
//! word, and where no other node has the chunk nobody else would ever say so.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use holdfast_protocol::CHUNK_SIZE_MAX;
use tokio::time::{Instant, Sleep};

use super::cold::read::{ColdReadError, ColdReader, ColdReads};
use crate::ports::metadata::{Content, ContentPlace};
use crate::ports::{ChunkBody, ChunkError, ChunkStore};

/// How long the store may give nothing, twice: who did not ask for a while, since the client is slow, is to find what
/// has come meanwhile. A disk under load may be slow, and nothing worse; a client that waits for longer is rare.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Of the disks of the cluster.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// Of the tier that it lies in.
    #[error(transparent)]
    Cold(#[from] ColdReadError),
}

/// A range of an object's bytes, as a stream, from wherever they are. After an error it ends.
pub enum ObjectReader {
    /// From the disks of the cluster.
    Hot(ContentReader),
    /// From a tier.
    Cold(ColdReader),
}

impl ObjectReader {
    /// Reads `range` of `content`; the part of it beyond the end is left out.
    ///
    /// # Errors
    /// [`ColdReadError::Invalid`] when it is not known where the content is.
    pub fn new(
        chunks: &Arc<dyn ChunkStore>,
        cold: &ColdReads,
        content: Arc<Content>,
        range: Range<u64>,
    ) -> Result<Self, ReadError> {
        match &content.place {
            ContentPlace::Cluster => Ok(Self::Hot(ContentReader::new(Arc::clone(chunks), content, range))),
            ContentPlace::Tier(_) => Ok(Self::Cold(cold.open(content, range))),
            ContentPlace::NotLoaded => {
                let unknown = format!("the place of content {} was not loaded", content.id);
                Err(ColdReadError::Invalid(unknown).into())
            }
        }
    }

    /// For who looks at the bytes; see [`ContentReader::copied`].
    pub fn copied(self) -> Self {
        match self {
            Self::Hot(reader) => Self::Hot(reader.copied()),
            cold @ Self::Cold(_) => cold,
        }
    }

    /// Bytes still to come.
    pub fn remaining_bytes(&self) -> u64 {
        match self {
            Self::Hot(reader) => reader.remaining_bytes(),
            Self::Cold(reader) => reader.remaining_bytes(),
        }
    }

    /// Reads the first piece and keeps it, so that what is missing, damaged or out of reach shows before an answer has
    /// begun.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn prefetch(&mut self) -> Result<(), ReadError> {
        match self {
            Self::Hot(reader) => Ok(reader.prefetch().await?),
            Self::Cold(reader) => Ok(reader.prefetch().await?),
        }
    }
}

impl Stream for ObjectReader {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Hot(reader) => Pin::new(reader).poll_next(cx).map_err(ReadError::from),
            Self::Cold(reader) => Pin::new(reader).poll_next(cx).map_err(ReadError::from),
        }
    }
}

/// A range of a content's bytes, as a stream. After an error it ends.
pub struct ContentReader {
    chunks: Arc<dyn ChunkStore>,
    content: Arc<Content>,
    /// The extent that the next chunk is in, and the offset there.
    extent: usize,
    offset: u64,
    /// Bytes not yet asked of the store.
    unopened: u64,
    /// Bytes not yet handed out.
    remaining: u64,
    /// What [`Self::prefetch`] read.
    first: Option<Bytes>,
    current: Option<ChunkBody>,
    /// Bytes that `current` still owes.
    owed: u64,
    /// Whether pieces must be memory of this process.
    copied: bool,
    /// Until when the store is waited for, while it is.
    stall: Option<Stall>,
}

/// A wait for the store.
struct Stall {
    until: Pin<Box<Sleep>>,
    /// Whether it ended once.
    is_second: bool,
}

impl Stall {
    fn begin() -> Self {
        Self { until: Box::pin(tokio::time::sleep(PATIENCE)), is_second: false }
    }

    /// Ready when the store was asked for long enough.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.until.as_mut().poll(cx).is_ready() {
            if self.is_second {
                return Poll::Ready(());
            }
            self.is_second = true;
            self.until.as_mut().reset(Instant::now() + PATIENCE);
        }
        Poll::Pending
    }
}

impl ContentReader {
    /// Reads `range` of `content`; the part of it beyond the end is left out.
    pub fn new(chunks: Arc<dyn ChunkStore>, content: Arc<Content>, range: Range<u64>) -> Self {
        let mut offset = range.start;
        let mut extent = 0;
        while let Some(e) = content.manifest.extents.get(extent) {
            if offset < e.size_bytes {
                break;
            }
            offset -= e.size_bytes;
            extent += 1;
        }
        let remaining = range.end.min(content.size_bytes()).saturating_sub(range.start);
        Self {
            chunks,
            content,
            extent,
            offset,
            unopened: remaining,
            remaining,
            first: None,
            current: None,
            owed: 0,
            copied: false,
            stall: None,
        }
    }

    /// For everybody but the connection writer: reads by [`ChunkStore::read_copied`]. To be said before anything is
    /// read.
    pub fn copied(self) -> Self {
        Self { copied: true, ..self }
    }

    /// Bytes still to come.
    pub fn remaining_bytes(&self) -> u64 {
        self.remaining
    }

    /// Reads the first piece and keeps it, so that a missing or damaged chunk shows before an answer has begun.
    ///
    /// # Errors
    /// Those of the chunk store.
    pub async fn prefetch(&mut self) -> Result<(), ChunkError> {
        if self.remaining == 0 || self.first.is_some() {
            return Ok(());
        }
        let piece = std::future::poll_fn(|cx| self.poll_piece(cx)).await;
        match piece {
            Some(Ok(piece)) => {
                self.first = Some(piece);
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Opens the chunk that the next byte is in.
    fn open_next(&mut self) -> Result<(), ChunkError> {
        let Some(extent) = self.content.manifest.extents.get(self.extent) else {
            return Err(ChunkError::Invalid("the manifest is shorter than the range".into()));
        };
        let index = self.offset / CHUNK_SIZE_MAX;
        let chunk_start = index * CHUNK_SIZE_MAX;
        let chunk_end = (chunk_start + CHUNK_SIZE_MAX).min(extent.size_bytes);
        let end = chunk_end.min(self.offset + self.unopened);
        let range = (self.offset - chunk_start) as u32..(end - chunk_start) as u32;
        let chunk = extent.content.chunk(index as u32);
        let body = if self.copied { self.chunks.read_copied(chunk, range) } else { self.chunks.read(chunk, range) };
        self.current = Some(body?);
        self.owed = end - self.offset;
        self.unopened -= self.owed;
        if end == extent.size_bytes {
            self.extent += 1;
            self.offset = 0;
        } else {
            self.offset = end;
        }
        Ok(())
    }

    /// The next piece from the store, not counted as handed out.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ChunkError>>> {
        loop {
            if self.owed == 0 {
                self.current = None;
                if self.unopened == 0 {
                    return Poll::Ready(None);
                }
                if let Err(error) = self.open_next() {
                    return self.fail(error);
                }
            }
            let Some(body) = &mut self.current else {
                return Poll::Ready(None);
            };
            let Poll::Ready(next) = body.as_mut().poll_next(cx) else {
                ready!(self.stall.get_or_insert_with(Stall::begin).poll_over(cx));
                let detail = format!("no byte of a chunk came for {} s", (PATIENCE * 2).as_secs());
                return self.fail(ChunkError::Unavailable(detail));
            };
            self.stall = None;
            match next {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    let Some(owed) = self.owed.checked_sub(piece.len() as u64) else {
                        return self.fail(ChunkError::Invalid("the store gave more bytes than asked for".into()));
                    };
                    self.owed = owed;
                    return Poll::Ready(Some(Ok(piece)));
                }
                Some(Err(error)) => return self.fail(error),
                None => return self.fail(ChunkError::Invalid("the store gave fewer bytes than asked for".into())),
            }
        }
    }

    fn fail(&mut self, error: ChunkError) -> Poll<Option<Result<Bytes, ChunkError>>> {
        (self.current, self.stall) = (None, None);
        self.owed = 0;
        self.unopened = 0;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for ContentReader {
    type Item = Result<Bytes, ChunkError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.poll_piece(cx)),
        };
        if let Some(Ok(piece)) = &piece {
            self.remaining -= piece.len() as u64;
        }
        Poll::Ready(piece)
    }
}

#[cfg(test)]
mod tests;
