//! Whole records: writing small ones, reading and verifying any.

use std::io;
use std::sync::Arc;

use holdfast_protocol::ChunkId;

use super::Inner;
use super::space::{Reservation, start};
use crate::buf::{BufferPool, IoBuf, LARGE_BYTES};
use crate::error::WriteError;
use crate::format::index_file::IndexEntry;
use crate::format::record::{ChecksumTable, RecordHeader, RecordKind, RecordLayout, RecordMeta, encode_head};
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES, FormatError};
use crate::index::Location;
use crate::io::BlockFile;
use crate::segment::Segment;

/// What reading a record for its own sake (scrub, recovery, compaction) gives.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// All checksums match.
    Good(RecordHeader),
    /// The header is good and something behind it is not.
    Damaged(RecordHeader, String),
    /// There is no record of this place here.
    NoRecord(FormatError),
}

impl Inner {
    /// Enters a durable chunk into its segment and the index: from now on it can be read.
    pub(crate) fn publish(&self, segment: &Segment, entry: IndexEntry) {
        let location = self.account(segment, entry);
        let before = self.index.insert(entry.id, location);
        debug_assert_eq!(before, None, "{:?} was published twice", entry.id);
    }

    /// Counts a durable record as alive. Before the index names it, so that its death is not counted first.
    pub(super) fn account(&self, segment: &Segment, entry: IndexEntry) -> Location {
        let location = Location { segment: segment.number(), block: entry.block, extent: entry.extent };
        let mut state = segment.state.lock();
        state.entries.push(entry);
        state.sequence_max = state.sequence_max.max(entry.sequence);
        state.live_count += 1;
        state.live_bytes += u64::from(location.record_len());
        state.payload_bytes += u64::from(location.payload_len());
        location
    }

    /// Takes [`Inner::account`] back.
    pub(super) fn unaccount(&self, segment: &Segment, entry: &IndexEntry) {
        let location = Location { segment: segment.number(), block: entry.block, extent: entry.extent };
        let mut state = segment.state.lock();
        state.entries.retain(|other| other.block != entry.block);
        state.live_count -= 1;
        state.live_bytes -= u64::from(location.record_len());
        state.payload_bytes -= u64::from(location.payload_len());
    }

    /// Writes a record of at most one buffer into its reservation and makes it durable.
    pub(super) async fn write_record(
        self: &Arc<Self>,
        reservation: &mut Reservation,
        kind: RecordKind,
        layout: RecordLayout,
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let mut buf = self.pool.acquire(layout.record_len as usize).await;
        let record = &mut buf[..layout.record_len as usize];
        record.fill(0);
        record[layout.payload_offset as usize..][..payload.len()].copy_from_slice(payload);
        let table: Vec<_> = payload.chunks(CHECKSUM_BLOCK_BYTES).map(crc32c::crc32c).collect();
        let meta = RecordMeta {
            kind,
            flags: 0,
            id: ChunkId([0; 16]),
            sequence: reservation.sequence,
            stable_sequence: self.stable_sequence(),
        };
        encode_head(record, &reservation.segment.place(reservation.offset), layout, &meta, &[], &table);
        let file = reservation.segment.direct().expect("a segment with a writer keeps its file");
        reservation.head_written = true;
        let write = file.write_at(reservation.offset, buf.freeze(), 0..layout.record_len as usize);
        start(&mut reservation.writes, write).map_err(|error| self.write_failed("write record", error))?;
        self.writes_done(reservation).await?;
        self.sync_segment(&reservation.segment).await
    }

    /// Waits for the writes of a reservation.
    pub(crate) async fn writes_done(&self, reservation: &mut Reservation) -> Result<(), WriteError> {
        use futures::StreamExt;
        while let Some(done) = reservation.writes.next().await {
            done.map_err(|error| self.write_failed("write record", error))?;
        }
        Ok(())
    }
}

/// Reads the record at `offset` from `file` and compares all its checksums. `sink` gets the record's bytes in order, in
/// pieces of whole blocks, as long as they are good up to there.
pub(crate) async fn verify_record(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    segment: &Segment,
    offset: u64,
    sink: impl FnMut(&[u8]) + Send,
) -> io::Result<Verdict> {
    verify_record_at(pool, file, &segment.place(offset), sink).await
}

/// [`verify_record`] where the segment is not open yet.
pub(crate) async fn verify_record_at(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    place: &crate::format::record::RecordPlace,
    mut sink: impl FnMut(&[u8]) + Send,
) -> io::Result<Verdict> {
    let offset = place.offset;
    let (first, mut buf) = read_exact(file, offset, pool.acquire(BLOCK_BYTES).await, BLOCK_BYTES).await;
    let count = first?;
    let header = match RecordHeader::decode(&buf[..count], place) {
        Ok(header) => header,
        Err(error) => return Ok(Verdict::NoRecord(error)),
    };
    let table = match ChecksumTable::decode(&buf[..count], &header) {
        Ok(table) => table,
        Err(error) => return Ok(Verdict::Damaged(header, error.to_string())),
    };
    let layout = header.layout;
    let head_len = layout.label_range().end.next_multiple_of(BLOCK_BYTES);
    if head_len > BLOCK_BYTES {
        let (read, again) = read_exact(file, offset, buf, head_len).await;
        buf = again;
        if read? < head_len {
            return Ok(Verdict::Damaged(header, "the label reaches beyond the file".to_owned()));
        }
    }
    if crc32c::crc32c(&buf[layout.label_range()]) != header.label_crc {
        return Ok(Verdict::Damaged(header, "label checksum mismatch".to_owned()));
    }
    if (layout.payload_offset as usize) < BLOCK_BYTES {
        let payload = &buf[layout.payload_offset as usize..][..layout.payload_len as usize];
        if table.first_mismatch(0, payload).is_some() {
            return Ok(Verdict::Damaged(header, "checksum mismatch in block 0".to_owned()));
        }
        sink(&buf[..BLOCK_BYTES]);
        return Ok(Verdict::Good(header));
    }
    sink(&buf[..layout.payload_offset as usize]);
    drop(buf);
    let len = layout.payload_len as usize;
    let mut buf = pool.acquire(len.min(LARGE_BYTES)).await;
    let step = buf.len();
    let mut done = 0;
    while done < len {
        let count = step.min(len - done);
        let padded = count.next_multiple_of(BLOCK_BYTES);
        let at = offset + u64::from(layout.payload_offset) + done as u64;
        let (read, again) = read_exact(file, at, buf, padded).await;
        buf = again;
        if read? < padded {
            return Ok(Verdict::Damaged(header, "the payload reaches beyond the file".to_owned()));
        }
        if let Some(block) = table.first_mismatch(done / CHECKSUM_BLOCK_BYTES, &buf[..count]) {
            return Ok(Verdict::Damaged(header, format!("checksum mismatch in block {block}")));
        }
        sink(&buf[..padded]);
        done += count;
    }
    Ok(Verdict::Good(header))
}

async fn read_exact(file: &Arc<dyn BlockFile>, offset: u64, buf: IoBuf, len: usize) -> (io::Result<usize>, IoBuf) {
    file.read_at(offset, buf, len).await
}
