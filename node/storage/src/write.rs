//! Writing a chunk.
//!
//! Bytes are copied once, from the caller into buffers of the pool. A record of up to 1 MiB is one buffer and one
//! write. A longer one streams: a buffer is checksummed when it is full, handed to the caller for hashing and
//! replication, and written with at most four writes in flight, or one where the disk has many already; the head
//! follows with the last of them. Then one sync, shared with other writers, and the index insert: from that moment the
//! chunk exists.
//!
//! Dropped before that, a writer leaves nothing: its reservation is punched once the writes in flight have ended.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use holdfast_protocol::ChunkId;

use crate::buf::{IoBuf, LARGE_BYTES, SharedBuf};
use crate::engine::{Inner, Purpose, Reservation, start};
use crate::error::WriteError;
use crate::format::index_file::{IndexEntry, pack_extent};
use crate::format::record::{RecordKind, RecordLayout, RecordMeta, encode_head};
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES};

/// Writes of one chunk that run at a time: measured, deeper queues gain nothing with 1 MiB writes.
const WRITES_MAX: usize = 4;

/// Of a disk that shares the buffers with others, a chunk has one write at a time while operations in flight there
/// could hold this part of the large ones: a disk that hangs would have them all at once otherwise, and no other disk
/// could be written.
const CROWDED_PART: usize = 4;

/// A chunk that is being written. Belongs to one task at a time.
pub struct ChunkWriter {
    reservation: Reservation,
    layout: RecordLayout,
    label: Box<[u8]>,
    /// The whole record goes into one buffer, behind the head.
    single: bool,
    buf: Option<IoBuf>,
    /// Payload bytes in `buf`.
    filled: usize,
    /// Payload bytes that came.
    received: usize,
    table: Vec<u32>,
    input_finished: bool,
    /// A call was cancelled in its middle, or failed: what came is not known.
    broken: bool,
    mark: CreateMark,
    /// What an owner wants to live as long as the writer.
    kept: Option<Box<dyn Send + Sync>>,
    inner: Arc<Inner>,
}

/// Keeps the id from being created twice.
struct CreateMark {
    inner: Arc<Inner>,
    id: ChunkId,
}

impl Drop for CreateMark {
    fn drop(&mut self) {
        self.inner.end_create(&self.id);
    }
}

impl ChunkWriter {
    pub(crate) async fn start(
        inner: &Arc<Inner>,
        id: ChunkId,
        size_bytes: u32,
        label: &[u8],
    ) -> Result<Self, WriteError> {
        let layout = RecordLayout::new(size_bytes as usize, label.len()).ok_or_else(|| {
            WriteError::Invalid(format!("payload of {size_bytes} bytes with a label of {}", label.len()))
        })?;
        inner.check_writable()?;
        inner.begin_create(id)?;
        let mark = CreateMark { inner: Arc::clone(inner), id };
        let reservation = inner.reserve(u64::from(layout.record_len), Purpose::Chunk).await?;
        Ok(Self {
            reservation,
            layout,
            label: label.into(),
            single: layout.record_len as usize <= LARGE_BYTES,
            buf: None,
            filled: 0,
            received: 0,
            table: Vec::with_capacity(layout.block_count()),
            input_finished: false,
            broken: false,
            mark,
            kept: None,
            inner: Arc::clone(inner),
        })
    }

    /// Drops `guard` when the chunk is finished or given up.
    pub(crate) fn keep(&mut self, guard: Box<dyn Send + Sync>) {
        self.kept = Some(guard);
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.mark.id
    }

    /// Copies `data` into the chunk's buffers. Returns the buffers that became full, in order: with that of
    /// [`ChunkWriter::finish_input`] they are the payload.
    ///
    /// Waits for free buffers and for the oldest of four writes, which is the back pressure. After a cancelled call the
    /// writer can only be dropped.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] when more comes than was announced; failures of earlier writes;
    /// [`WriteError::Unresponsive`], also while it waits.
    pub async fn write(&mut self, data: &[u8]) -> Result<Vec<Bytes>, WriteError> {
        let inner = Arc::clone(&self.inner);
        inner.watch.while_responsive(self.take_in(data)).await
    }

    async fn take_in(&mut self, mut data: &[u8]) -> Result<Vec<Bytes>, WriteError> {
        if self.broken || self.input_finished {
            return Err(WriteError::Invalid("the writer takes no more bytes".to_owned()));
        }
        if data.len() > self.layout.payload_len as usize - self.received {
            return Err(WriteError::Invalid(format!("more than the {} bytes announced", self.layout.payload_len)));
        }
        self.broken = true;
        let mut full = vec![];
        while !data.is_empty() {
            let (base, capacity) = self.window();
            let buf = match &mut self.buf {
                Some(buf) => buf,
                None => self.buf.insert(self.inner.pool.acquire_for_upload(base + capacity).await),
            };
            let count = data.len().min(capacity - self.filled);
            let (head, rest) = data.split_at(count);
            buf[base + self.filled..][..count].copy_from_slice(head);
            self.filled += count;
            self.received += count;
            data = rest;
            if self.filled == capacity && !self.single && self.received < self.layout.payload_len as usize {
                full.push(self.submit_payload()?);
                while self.reservation.writes.len() >= self.writes_max() {
                    self.await_one_write().await?;
                }
            }
        }
        self.broken = false;
        Ok(full)
    }

    /// How many writes of this chunk may run when another buffer is filled.
    fn writes_max(&self) -> usize {
        let Inner { config, pool, watch, .. } = &*self.inner;
        let is_crowded = || watch.flights().count() >= (pool.large_count() / CROWDED_PART) as u64;
        if config.shares_buffers && is_crowded() { 1 } else { WRITES_MAX }
    }

    /// Where payload starts in the current buffer, and how much of it the buffer takes.
    fn window(&self) -> (usize, usize) {
        if self.single {
            return (self.layout.payload_offset as usize, self.layout.payload_len as usize);
        }
        let before = self.received - self.filled;
        (0, LARGE_BYTES.min(self.layout.payload_len as usize - before))
    }

    /// Says that all bytes have come. Starts the last write and hands the last piece out.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] when fewer bytes came than were announced; failures of the write.
    pub fn finish_input(&mut self) -> Result<Option<Bytes>, WriteError> {
        if self.broken || self.received != self.layout.payload_len as usize {
            return Err(WriteError::Invalid(format!(
                "{} of {} bytes announced have come",
                self.received, self.layout.payload_len
            )));
        }
        if self.input_finished {
            return Ok(None);
        }
        self.broken = true;
        let last = if self.single { self.submit_record()? } else { self.submit_payload()? };
        self.broken = false;
        self.input_finished = true;
        Ok(Some(last))
    }

    /// Starts to write the payload that is in the buffer.
    fn submit_payload(&mut self) -> Result<Bytes, WriteError> {
        let mut buf = self.buf.take().expect("payload was copied into a buffer");
        let len = std::mem::take(&mut self.filled);
        let padded = len.next_multiple_of(BLOCK_BYTES);
        buf[len..padded].fill(0);
        self.table.extend(buf[..len].chunks(CHECKSUM_BLOCK_BYTES).map(crc32c::crc32c));
        let shared = buf.freeze();
        let before = (self.received - len) as u64;
        let offset = self.reservation.offset + u64::from(self.layout.payload_offset) + before;
        self.submit(offset, shared.clone(), padded)?;
        Ok(shared.slice(0..len))
    }

    /// Starts to write a record that is one buffer.
    fn submit_record(&mut self) -> Result<Bytes, WriteError> {
        let mut buf = self.buf.take().expect("payload was copied into a buffer");
        let (start, end) = (self.layout.payload_offset as usize, self.layout.payload_offset as usize + self.filled);
        buf[end..self.layout.record_len as usize].fill(0);
        self.table.extend(buf[start..end].chunks(CHECKSUM_BLOCK_BYTES).map(crc32c::crc32c));
        self.encode_head(&mut buf);
        let shared = buf.freeze();
        self.submit(self.reservation.offset, shared.clone(), self.layout.record_len as usize)?;
        Ok(shared.slice(start..end))
    }

    fn encode_head(&mut self, record: &mut [u8]) {
        let meta = RecordMeta {
            kind: RecordKind::Chunk,
            flags: 0,
            id: self.mark.id,
            sequence: self.reservation.sequence,
            stable_sequence: self.inner.stable_sequence(),
        };
        let place = self.reservation.segment.place(self.reservation.offset);
        self.reservation.head_written = true;
        encode_head(record, &place, self.layout, &meta, &self.label, &self.table);
    }

    fn submit(&mut self, offset: u64, buf: SharedBuf, len: usize) -> Result<(), WriteError> {
        let file = self.reservation.segment.direct().expect("a segment with a writer keeps its file");
        let write = file.write_at(offset, buf, 0..len);
        self.inner.write_meters.written_bytes.increment(len as u64);
        start(&mut self.reservation.writes, write).map_err(|error| self.inner.write_failed("write chunk", error))
    }

    async fn await_one_write(&mut self) -> Result<(), WriteError> {
        match self.reservation.writes.next().await {
            Some(Err(error)) => Err(self.inner.write_failed("write chunk", error)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Makes the chunk durable: on return it is on stable storage and can be read.
    ///
    /// Cancelled, it leaves nothing visible; only if the process dies right then may the next start find the chunk
    /// whole.
    ///
    /// # Errors
    /// [`WriteError`]: the chunk does not exist then.
    pub async fn finish(self) -> Result<(), WriteError> {
        let inner = Arc::clone(&self.inner);
        inner.watch.while_responsive(self.make_durable()).await
    }

    async fn make_durable(mut self) -> Result<(), WriteError> {
        if !self.input_finished {
            return Err(WriteError::Invalid("the chunk's bytes have not all come".to_owned()));
        }
        if !self.single {
            let head_len = self.layout.payload_offset as usize;
            let mut buf = self.inner.pool.acquire(head_len).await;
            self.encode_head(&mut buf[..head_len]);
            self.submit(self.reservation.offset, buf.freeze(), head_len)?;
        }
        while !self.reservation.writes.is_empty() {
            self.await_one_write().await?;
        }
        self.inner.sync_segment(&self.reservation.segment).await?;
        let entry = IndexEntry {
            id: self.mark.id,
            sequence: self.reservation.sequence,
            block: self.reservation.block(),
            extent: pack_extent(&self.layout),
        };
        let Self { inner, reservation, mark, kept, layout, .. } = self;
        inner.publish(&reservation.segment, entry);
        reservation.settle();
        // Only now may the id be looked for elsewhere.
        drop((mark, kept));
        inner.write_meters.chunks.increment(1);
        inner.write_meters.payload_bytes.increment(u64::from(layout.payload_len));
        Ok(())
    }
}
