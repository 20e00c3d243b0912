//! Reading a chunk.
//!
//! What is in the page cache and was verified by this process is handed out as a slice of the segment's mapping: a hash
//! lookup, a bit test, a residency check; no await and no copy. Everything else is read through the page cache into a
//! buffer of the pool, whole checksum blocks at a time, and compared; that also brings the pages in, so that what is
//! handed out is again a slice of the mapping. If the pages are gone by then, or there is no mapping, the
//! verified buffer itself is handed out.
//!
//! A page counts as verified from the moment its block matched until somebody reads it from the disk again, or punches
//! it. The bits are cleared *before* such a read, and once more when its bytes turn out not to match; residency is
//! asked *before* the bits: a page that came back from the disk unverified is never taken for the one that was
//! verified. This binds everybody who reads a segment through the page cache, compaction and scans too. A reader that
//! had to wait for a buffer looks again before it reads: what another one has brought in meanwhile is not put in
//! question again.
//!
//! The record is pinned while the reader or any slice of the mapping lives.
//!
//! Where another disk of the node has the chunk too, a reader whose disk fails goes on there
//! ([`ChunkReader::or_elsewhere`]).
//!
//! **Who looks at the bytes** does not get slices of the mapping ([`Pieces::Copied`]). Pages may go at any time, and
//! whoever touches such a slice later brings them back unverified, while its thread stands still; a disk that cannot
//! read them ends the process by SIGBUS. Only the connection writer asks again before it sends.

use std::io;
use std::ops::Range;
use std::pin::Pin as Pinned;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use holdfast_protocol::ChunkId;

use crate::buf::{IoBuf, LARGE_BYTES, SMALL_BYTES, SharedBuf};
use crate::engine::{Engine, Inner};
use crate::error::ReadError;
use crate::finding::{Finding, FindingSource};
use crate::format::record::{ChecksumTable, RecordHeader, RecordKind};
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES};
use crate::index::Location;
use crate::mapping::Mapping;
use crate::scratch::SCRATCH_BYTES;
use crate::segment::Pin;

mod refresh;

use refresh::mark_verified;
pub(crate) use refresh::{clear_verified, refresh};

/// The most that one piece holds: what the connection writer sends in a few turns.
const PIECE_BYTES_MAX: u32 = 4 << 20;

/// The most that one piece holds which is copied because its reader looks at the bytes.
const COPIED_PIECE_BYTES_MAX: u32 = SCRATCH_BYTES as u32;

/// What a reader does with its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Sends them, and asks right before whether they are still what was verified: they may be slices of the mapping.
    Lent,
    /// Looks at them, now or later: they are memory of the process.
    Copied,
}

/// A verified range of a chunk, as a stream of pieces. An error ends it.
pub struct ChunkReader {
    chunk: Arc<Chunk>,
    /// What is still to be handed out.
    range: Range<u32>,
    table: Option<Arc<ChecksumTable>>,
    pending: Option<BoxFuture<'static, Result<Fetched, ReadError>>>,
    /// Who else may have the chunk.
    others: Option<Others>,
    done: bool,
}

/// Gives the engines that have a chunk too, one after another: asked only when a disk failed.
pub(crate) type Others = Box<dyn Iterator<Item = Engine> + Send + Sync>;

/// The record that is read.
struct Chunk {
    inner: Arc<Inner>,
    id: ChunkId,
    location: Location,
    pin: Arc<Pin>,
    pieces: Pieces,
}

/// How the start of a range was come by.
enum Fetched {
    /// Somebody else brought it into memory, verified.
    Mapped(Bytes),
    /// It was read.
    Read(Verified),
}

/// Blocks that were read and compared.
struct Verified {
    table: Arc<ChecksumTable>,
    buf: SharedBuf,
    /// Where in `buf` the payload byte `blocks.start` lies.
    buf_start: usize,
    /// Payload range.
    blocks: Range<u32>,
}

impl ChunkReader {
    pub(crate) fn new(
        inner: Arc<Inner>,
        id: ChunkId,
        (location, pin): (Location, Pin),
        range: Range<u32>,
        pieces: Pieces,
    ) -> Self {
        let chunk = Arc::new(Chunk { inner, id, location, pin: Arc::new(pin), pieces });
        Self { done: range.is_empty(), chunk, range, table: None, pending: None, others: None }
    }

    /// Goes on with the same byte on one of `others`, should this disk turn out not to have what is right.
    pub(crate) fn or_elsewhere(mut self, others: Others) -> Self {
        self.others = Some(others);
        self
    }

    /// Takes the next disk that has the chunk, if there is one.
    fn turn_elsewhere(&mut self) -> bool {
        let (id, pieces, chunk_len) = (self.chunk.id, self.chunk.pieces, self.chunk_len());
        while let Some(engine) = self.others.as_mut().and_then(|others| others.next()) {
            let found = engine.reader(id, self.range.clone(), pieces);
            if let Ok(found) = found
                && found.chunk_len() == chunk_len
            {
                (self.chunk, self.table) = (found.chunk, None);
                return true;
            }
        }
        false
    }

    /// Payload bytes of the whole chunk.
    pub fn chunk_len(&self) -> u32 {
        self.chunk.location.payload_len()
    }

    /// The next piece; `None` at the end of the range. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`], [`ReadError::Io`]; the reader is at its end then.
    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        std::future::poll_fn(|context| self.poll_piece(context)).await
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReadError>>> {
        loop {
            let failed = match ready!(self.poll_here(context)) {
                Some(Err(error)) => error,
                piece => return Poll::Ready(piece),
            };
            if !self.turn_elsewhere() {
                self.done = true;
                return Poll::Ready(Some(Err(failed)));
            }
        }
    }

    /// The next piece from the disk that is being read.
    fn poll_here(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReadError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.pending.is_none() {
            if let Some(piece) = self.chunk.resident(&self.range) {
                self.hand_out(piece.len());
                self.chunk.inner.read_meters.from_memory.increment(piece.len() as u64);
                return Poll::Ready(Some(Ok(piece)));
            }
            let (chunk, range, table) = (Arc::clone(&self.chunk), self.range.clone(), self.table.clone());
            self.pending = Some(Box::pin(async move { chunk.read_blocks(range, table).await }));
        }
        let Some(pending) = self.pending.as_mut() else { return Poll::Ready(None) };
        let read = ready!(pending.as_mut().poll(context));
        self.pending = None;
        let piece = match read {
            Ok(Fetched::Mapped(piece)) => {
                self.hand_out(piece.len());
                self.chunk.inner.read_meters.from_memory.increment(piece.len() as u64);
                return Poll::Ready(Some(Ok(piece)));
            }
            Ok(Fetched::Read(verified)) => self.take(verified),
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        self.chunk.inner.read_meters.from_disk.increment(piece.len() as u64);
        Poll::Ready(Some(Ok(piece)))
    }

    /// The piece that freshly verified blocks give.
    fn take(&mut self, verified: Verified) -> Bytes {
        let Verified { table, buf, buf_start, blocks } = verified;
        self.table = Some(table);
        let wanted = self.range.start..self.range.end.min(blocks.end);
        let start = buf_start + (wanted.start - blocks.start) as usize;
        let piece = match self.chunk.pieces {
            Pieces::Lent => {
                let resident = self.chunk.resident(&wanted).filter(|piece| piece.len() == wanted.len());
                resident.unwrap_or_else(|| buf.slice(start..start + wanted.len()))
            }
            // Not the buffer: it would be held for as long as the reader takes.
            Pieces::Copied => Bytes::copy_from_slice(&buf[start..start + wanted.len()]),
        };
        self.hand_out(piece.len());
        piece
    }

    fn hand_out(&mut self, len: usize) {
        self.range.start += len as u32;
        self.done = self.range.is_empty();
    }
}

impl Stream for ChunkReader {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pinned<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_piece(context)
    }
}

impl Chunk {
    fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.pin.segment.mapping.as_ref()
    }

    /// Where a range of the payload lies in the segment.
    fn in_segment(&self, payload: &Range<u32>) -> Range<u64> {
        let start = self.location.record_offset() + u64::from(self.location.payload_offset());
        start + u64::from(payload.start)..start + u64::from(payload.end)
    }

    /// As much of the start of `range` as is in memory and verified.
    fn resident(&self, range: &Range<u32>) -> Option<Bytes> {
        let mapping = self.mapping()?;
        let mut len = (range.end - range.start).min(PIECE_BYTES_MAX);
        if self.pieces == Pieces::Copied {
            let part = range.start..range.start + len.min(COPIED_PIECE_BYTES_MAX);
            return mapping.copies_resident().then(|| mapping.copy_resident(self.in_segment(&part))).flatten();
        }
        loop {
            let found = self.in_segment(&(range.start..range.start + len));
            if mapping.is_resident_and_verified(found.clone()) {
                return Some(mapping.bytes(found, Arc::clone(&self.pin) as Arc<dyn std::any::Any + Send + Sync>));
            }
            // Perhaps only the end is missing: whatever a buffered read would bring is worth a look, less is not.
            if len <= LARGE_BYTES as u32 {
                return None;
            }
            len = (len / 2).max(LARGE_BYTES as u32);
        }
    }

    /// Reads and compares the blocks at the start of `range`, at most one large buffer.
    async fn read_blocks(&self, range: Range<u32>, table: Option<Arc<ChecksumTable>>) -> Result<Fetched, ReadError> {
        let payload_len = self.location.payload_len();
        let block = CHECKSUM_BLOCK_BYTES as u32;
        let start = range.start / block * block;
        let record_fits_small_buffer = self.location.record_len() as usize <= SMALL_BYTES;
        if table.is_none() && record_fits_small_buffer {
            return self.read_record(&range).await;
        }
        let table = match table {
            Some(table) => table,
            None => self.read_table().await?,
        };
        let end = range.end.div_ceil(block).saturating_mul(block).min(start + LARGE_BYTES as u32).min(payload_len);
        let blocks = start..end;
        let found = self.in_segment(&blocks);
        let buf = self.buffer(blocks.len()).await?;
        if let Some(piece) = self.resident(&range) {
            return Ok(Fetched::Mapped(piece));
        }
        let buf = self.read(buf, found.clone(), found.clone()).await?;
        if let Some(bad) = table.first_mismatch((start / block) as usize, &buf[..blocks.len()]) {
            clear_verified(&self.pin.segment, found);
            return Err(self.corrupt(format!("checksum mismatch in block {bad}")));
        }
        mark_verified(&self.pin.segment, found);
        Ok(Fetched::Read(Verified { table, buf, buf_start: 0, blocks }))
    }

    /// Reads a small record at once, head and payload.
    async fn read_record(&self, range: &Range<u32>) -> Result<Fetched, ReadError> {
        let blocks = 0..self.location.payload_len();
        let start = self.location.record_offset();
        let payload = self.in_segment(&blocks);
        let buf = self.buffer((payload.end - start) as usize).await?;
        if let Some(piece) = self.resident(range) {
            return Ok(Fetched::Mapped(piece));
        }
        let buf = self.read(buf, start..payload.end, payload.clone()).await?;
        let payload_offset = self.location.payload_offset() as usize;
        let table = self.check_head(&buf[..payload_offset.min(BLOCK_BYTES)])?;
        if !table.matches(0, &buf[payload_offset..payload_offset + blocks.len()]) {
            clear_verified(&self.pin.segment, payload);
            return Err(self.corrupt("checksum mismatch in block 0".to_owned()));
        }
        mark_verified(&self.pin.segment, payload);
        Ok(Fetched::Read(Verified { table: Arc::new(table), buf, buf_start: payload_offset, blocks }))
    }

    /// Reads the checksum table. The label stays where it is.
    async fn read_table(&self) -> Result<Arc<ChecksumTable>, ReadError> {
        let start = self.location.record_offset();
        let buf = self.buffer(BLOCK_BYTES).await?;
        let buf = self.read(buf, start..start + BLOCK_BYTES as u64, 0..0).await?;
        Ok(Arc::new(self.check_head(&buf[..BLOCK_BYTES])?))
    }

    fn check_head(&self, head: &[u8]) -> Result<ChecksumTable, ReadError> {
        let place = self.pin.segment.place(self.location.record_offset());
        let header = RecordHeader::decode(head, &place).map_err(|error| self.corrupt(error.to_string()))?;
        let layout = &header.layout;
        let expected = (self.id, self.location.payload_len(), self.location.payload_offset());
        if header.kind != RecordKind::Chunk || (header.id, layout.payload_len, layout.payload_offset) != expected {
            return Err(self.corrupt(format!("the record there is of chunk {}", header.id)));
        }
        ChecksumTable::decode(head, &header).map_err(|error| self.corrupt(error.to_string()))
    }

    /// A buffer to read into. Not waited for any more once the disk does not answer: its reads may have them all.
    async fn buffer(&self, len: usize) -> Result<IoBuf, ReadError> {
        let inner = &self.inner;
        let acquire = async {
            match &inner.read_share {
                Some(share) => share.acquire(&inner.pool, len).await,
                None => inner.pool.acquire(len).await,
            }
        };
        tokio::select! {
            biased;
            buf = acquire => Ok(buf),
            () = inner.watch.found_unresponsive() => Err(ReadError::Unresponsive(self.id)),
        }
    }

    /// Reads `range` of the segment; `payload` is what of it is payload whose verification this read puts in question.
    async fn read(&self, buf: IoBuf, range: Range<u64>, payload: Range<u64>) -> Result<SharedBuf, ReadError> {
        if self.inner.watch.is_unresponsive() {
            // Each such read would keep its buffer for as long as the disk is silent.
            return Err(ReadError::Unresponsive(self.id));
        }
        let len = (range.end - range.start) as usize;
        clear_verified(&self.pin.segment, payload);
        let (read, buf) = self.pin.segment.file.read_at(range.start, buf, len).await;
        match read {
            Ok(count) if count == len => Ok(buf.freeze()),
            Ok(count) => Err(self.corrupt(format!("{count} of {len} bytes are in the file"))),
            Err(source) => {
                metrics::counter!("holdfast_storage_read_errors_total").increment(1);
                self.report(format!("read failed: {source}"));
                Err(ReadError::Io { chunk: self.id, source: io::Error::new(source.kind(), source) })
            }
        }
    }

    fn corrupt(&self, detail: String) -> ReadError {
        self.report(detail.clone());
        ReadError::Corrupt { chunk: self.id, detail }
    }

    fn report(&self, detail: String) {
        self.inner.found(Finding {
            chunk: Some(self.id),
            segment: self.location.segment,
            offset: self.location.record_offset(),
            detail,
            source: FindingSource::Read,
        });
    }
}

/// Reads a chunk's label and compares it with its checksum; the payload is not looked at.
pub(crate) async fn label(inner: &Arc<Inner>, id: ChunkId) -> Result<Bytes, ReadError> {
    let (location, pin) = inner.pin(&id).ok_or(ReadError::NotFound(id))?;
    let chunk = Chunk { inner: Arc::clone(inner), id, location, pin: Arc::new(pin), pieces: Pieces::Copied };
    let payload_offset = location.payload_offset() as usize;
    let head_len = payload_offset.next_multiple_of(BLOCK_BYTES);
    // A payload that shares the head's page comes in with it.
    let payload = if payload_offset < BLOCK_BYTES { chunk.in_segment(&(0..location.payload_len())) } else { 0..0 };
    let buf = chunk.buffer(head_len).await?;
    let start = location.record_offset();
    let buf = chunk.read(buf, start..start + head_len as u64, payload).await?;
    let head = &buf[..payload_offset.min(BLOCK_BYTES)];
    chunk.check_head(head)?;
    let header = RecordHeader::decode(head, &chunk.pin.segment.place(start));
    let header = header.map_err(|error| chunk.corrupt(error.to_string()))?;
    let label = &buf[header.layout.label_range()];
    if crc32c::crc32c(label) != header.label_crc {
        return Err(chunk.corrupt("label checksum mismatch".to_owned()));
    }
    Ok(Bytes::copy_from_slice(label))
}
