//! Reading a whole segment for its records, where no index file says what is in it.
//!
//! Each block that holds a valid record header starts a record, whose label and payload are then compared with their
//! checksums: a header may have become durable before its payload. What a record that does not match means is for the caller
//! to say.

use std::io;
use std::sync::Arc;

use super::record_io::{Verdict, verify_record_at};
use super::small_files::write_block;
use crate::buf::{BufferPool, LARGE_BYTES};
use crate::format::BLOCK_BYTES;
use crate::format::index_file::{IndexEntry, pack_extent};
use crate::format::record::{Kill, RecordHeader, RecordKind, RecordPlace};
use crate::format::segment::SegmentHeader;
use crate::io::BlockFile;
use crate::segment::Segment;

/// What a scan found in a segment.
#[derive(Default)]
pub(super) struct Scan {
    good: Vec<IndexEntry>,
    /// Records whose header is good, and nothing else.
    pub(super) suspects: Vec<Suspect>,
    pub(super) kills: Vec<Kill>,
    /// All good records.
    pub(super) records: Vec<Scanned>,
    /// Where the last record ends.
    pub(super) tail: u64,
    pub(super) sequence_max: u64,
    /// The highest number that a record says to be stable.
    pub(super) stable_sequence: u64,
}

/// A good record.
pub(super) struct Scanned {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) sequence: u64,
    pub(super) moved: bool,
}

/// A record whose header is good, and nothing else.
pub(super) struct Suspect {
    pub(super) header: RecordHeader,
    pub(super) offset: u64,
    pub(super) detail: String,
}

impl Suspect {
    pub(super) fn block(&self) -> u32 {
        (self.offset / BLOCK_BYTES as u64) as u32
    }

    fn entry(&self) -> IndexEntry {
        let Self { header, .. } = self;
        IndexEntry {
            id: header.id,
            sequence: header.sequence,
            block: self.block(),
            extent: pack_extent(&header.layout),
        }
    }
}

impl Scan {
    /// All chunks, good or damaged, by place.
    pub(super) fn entries(&self) -> Vec<IndexEntry> {
        let damaged = self.suspects.iter().filter(|suspect| suspect.header.kind == RecordKind::Chunk);
        let mut entries: Vec<_> = self.good.iter().copied().chain(damaged.map(Suspect::entry)).collect();
        entries.sort_unstable_by_key(|entry| entry.block);
        entries
    }

    /// What is no record, as (offset, length) in bytes.
    pub(super) fn gaps(&self, segment_len: u64) -> Vec<(u64, u64)> {
        let block = BLOCK_BYTES as u64;
        let good = self.records.iter().map(|record| (record.offset, record.len));
        let damaged = self.suspects.iter().map(|s| (s.offset, u64::from(s.header.layout.record_len)));
        let mut used: Vec<_> = good.chain(damaged).collect();
        used.sort_unstable();
        let mut gaps = vec![];
        let mut at = block;
        for (offset, len) in used {
            if offset > at {
                gaps.push((at, offset - at));
            }
            at = at.max(offset + len);
        }
        if at < segment_len {
            gaps.push((at, segment_len - at));
        }
        gaps
    }
}

/// Reads a whole segment for records. Trusts no length before its checksum.
pub(super) async fn scan(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    header: &SegmentHeader,
) -> io::Result<Scan> {
    let block = BLOCK_BYTES as u64;
    let mut scan = Scan { tail: block, ..Scan::default() };
    let mut at = block;
    while at < header.len_bytes {
        let Some(start) = next_header(pool, file, header, at).await? else { break };
        let place = RecordPlace { salt: header.salt, segment: header.number, offset: start };
        let mut payload = vec![];
        let verdict = verify_record_at(pool, file, &place, |bytes| {
            // Tombstones are one piece of at most 64 KiB behind a head of one block.
            if payload.len() < 128 << 10 {
                payload.extend_from_slice(bytes);
            }
        })
        .await?;
        let (found, detail) = match verdict {
            Verdict::Good(found) => (found, None),
            Verdict::Damaged(found, detail) => (found, Some(detail)),
            Verdict::NoRecord(_) => {
                at = start + block;
                continue;
            }
        };
        scan.sequence_max = scan.sequence_max.max(found.sequence);
        scan.stable_sequence = scan.stable_sequence.max(found.stable_sequence);
        let end = start + u64::from(found.layout.record_len);
        if end > header.len_bytes {
            at = start + block;
            continue;
        }
        match detail {
            // A torn record may hold later ones, if its space was given back and used again; it never was, but a
            // damaged length is no reason to pass over anything.
            Some(detail) => {
                scan.suspects.push(Suspect { header: found, offset: start, detail });
                at = start + block;
                scan.tail = scan.tail.max(end);
                continue;
            }
            None if found.kind == RecordKind::Chunk => {
                let entry = Suspect { header: found, offset: start, detail: String::new() }.entry();
                scan.good.push(entry);
            }
            None => {
                let offset = found.layout.payload_offset as usize;
                let list = payload.get(offset..offset + found.layout.payload_len as usize).unwrap_or_default();
                let kills = Kill::decode_list(list).map_err(io::Error::other)?;
                let highest = kills.iter().map(|kill| kill.sequence).max().unwrap_or(0);
                scan.sequence_max = scan.sequence_max.max(highest);
                scan.kills.extend(kills);
            }
        }
        let (sequence, moved) = (found.sequence, found.is_moved());
        scan.records.push(Scanned { offset: start, len: end - start, sequence, moved });
        scan.tail = scan.tail.max(end);
        at = end;
    }
    Ok(scan)
}

/// The next offset at or after `at` where a valid record header stands.
async fn next_header(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    header: &SegmentHeader,
    at: u64,
) -> io::Result<Option<u64>> {
    // Records follow each other closely: look at one block before reading ahead.
    let mut window = BLOCK_BYTES;
    let mut at = at;
    let mut buf = pool.acquire(LARGE_BYTES).await;
    while at < header.len_bytes {
        let len = (window as u64).min(header.len_bytes - at) as usize;
        let (read, again) = file.read_at(at, buf, len).await;
        buf = again;
        let count = read?;
        for (n, block) in buf[..count].chunks_exact(BLOCK_BYTES).enumerate() {
            let offset = at + (n * BLOCK_BYTES) as u64;
            let place = RecordPlace { salt: header.salt, segment: header.number, offset };
            if RecordHeader::decode(block, &place).is_ok() {
                return Ok(Some(offset));
            }
        }
        if count < len {
            return Ok(None);
        }
        at += len as u64;
        window = LARGE_BYTES;
    }
    Ok(None)
}

/// Whether a file holds nothing but zeros from `start` to `end`.
pub(super) async fn only_zeros(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    start: u64,
    end: u64,
) -> io::Result<bool> {
    let mut buf = pool.acquire(LARGE_BYTES).await;
    let mut at = start;
    while at < end {
        let len = (buf.len() as u64).min(end - at) as usize;
        let (read, again) = file.read_at(at, buf, len).await;
        buf = again;
        let count = read?;
        if buf[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if count == 0 {
            break;
        }
        at += count as u64;
    }
    Ok(true)
}

/// Overwrites the record headers in a range with zeros, where the file system has no holes.
pub(super) async fn zero_headers(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    segment: &Segment,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    let mut at = offset;
    while let Some(start) = next_header(pool, file, &segment.header, at).await?.filter(|start| *start < offset + len) {
        write_block(pool, file, start, &[0; BLOCK_BYTES]).await?;
        at = start + BLOCK_BYTES as u64;
    }
    Ok(())
}
