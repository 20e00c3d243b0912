//! Reading a whole segment for its records, where no index file says what is in it.
//!
//! Each block that holds a valid record header starts a record, whose label and payload are then compared with their
//! checksums: a header may have become durable before its payload. What a record that does not match means is for the
//! caller to say.
//!
//! What the disk cannot read is passed over block by block. Within a chunk whose header is good it damages that chunk
//! and nothing else, since a record's space holds no other record. Anywhere else it is listed as *unread*: there may be
//! chunks, and tombstones of chunks that are found.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::record_io::{Verdict, verify_record_at};
use super::small_files::write_block;
use crate::buf::{BufferPool, LARGE_BYTES};
use crate::error::is_unreadable;
use crate::format::BLOCK_BYTES;
use crate::format::index_file::{IndexEntry, pack_extent};
use crate::format::record::{Kill, RecordHeader, RecordKind, RecordPlace};
use crate::format::segment::SegmentHeader;
use crate::io::BlockFile;
use crate::segment::Segment;

/// Reads of a segment that may fail before the rest of it counts as unread: a disk that tries long to read a block must
/// not hold the start up for hours.
const FAILED_READS_MAX: u32 = 256;

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
    /// What could not be read and belongs to no chunk that was found, in bytes of the segment.
    pub(super) unread: Vec<Range<u64>>,
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
    /// The disk could not read it: no write that was torn.
    pub(super) unreadable: bool,
}

impl Suspect {
    pub(super) fn block(&self) -> u32 {
        (self.offset / BLOCK_BYTES as u64) as u32
    }

    /// Whether this is a copy made by compaction that may have been torn or damaged later.
    pub(super) fn is_doubtful_copy(&self) -> bool {
        self.header.kind == RecordKind::Chunk && self.header.is_moved() && !self.unreadable
    }

    pub(super) fn entry(&self) -> IndexEntry {
        entry_of(&self.header, self.offset)
    }

    /// Whether a range lies in the space of this chunk.
    fn covers(&self, range: &Range<u64>) -> bool {
        let end = self.offset + u64::from(self.header.layout.record_len);
        self.header.kind == RecordKind::Chunk && self.offset <= range.start && range.end <= end
    }
}

fn entry_of(header: &RecordHeader, offset: u64) -> IndexEntry {
    IndexEntry {
        id: header.id,
        sequence: header.sequence,
        block: (offset / BLOCK_BYTES as u64) as u32,
        extent: pack_extent(&header.layout),
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

/// Reads a whole segment for records, as far as it can be read. Trusts no length before its checksum.
///
/// # Errors
/// Those of the disk that do not say that something there is unreadable.
pub(super) async fn scan(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    header: &SegmentHeader,
) -> io::Result<Scan> {
    let block = BLOCK_BYTES as u64;
    let mut scan = Scan { tail: block, ..Scan::default() };
    let mut failures = Failures::default();
    let mut at = block;
    while at < header.len_bytes {
        let Some((start, head)) = next_header(pool, file, header, at, &mut failures).await? else { break };
        let place = RecordPlace { salt: header.salt, segment: header.number, offset: start };
        let mut payload = vec![];
        let verdict = verify_record_at(pool, file, &place, |bytes| {
            // Tombstones are one piece of at most 64 KiB behind a head of one block.
            if payload.len() < 128 << 10 {
                payload.extend_from_slice(bytes);
            }
        })
        .await;
        let (verdict, unreadable) = match verdict {
            Err(error) if is_unreadable(&error) => {
                failures.reads += 1;
                if failures.reads > FAILED_READS_MAX {
                    failures.unread.push(start..header.len_bytes);
                    break;
                }
                (Verdict::Damaged(head, format!("read failed: {error}")), true)
            }
            other => (other?, false),
        };
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
            Some(_) if unreadable && found.kind == RecordKind::Tombstones => {
                failures.unread.push(start..end);
                scan.tail = scan.tail.max(end);
                at = end;
                continue;
            }
            Some(detail) if unreadable => {
                scan.suspects.push(Suspect { header: found, offset: start, detail, unreadable });
                scan.tail = scan.tail.max(end);
                at = end;
                continue;
            }
            // A torn record may hold later ones, if its space was given back and used again; it never was, but a
            // damaged length is no reason to pass over anything.
            Some(detail) => {
                scan.suspects.push(Suspect { header: found, offset: start, detail, unreadable });
                at = start + block;
                scan.tail = scan.tail.max(end);
                continue;
            }
            None if found.kind == RecordKind::Chunk => {
                scan.good.push(entry_of(&found, start));
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
    let unread = failures.unread.into_iter().filter(|range| !scan.suspects.iter().any(|suspect| suspect.covers(range)));
    scan.unread = joined(unread.collect());
    Ok(scan)
}

/// What a scan could not read.
#[derive(Default)]
struct Failures {
    /// Reads that failed.
    reads: u32,
    unread: Vec<Range<u64>>,
}

/// Ranges in order, those that touch made one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = vec![];
    for range in ranges {
        match joined.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => joined.push(range),
        }
    }
    joined
}

/// The next offset at or after `at` where a valid record header stands, and the header.
async fn next_header(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    header: &SegmentHeader,
    at: u64,
    failures: &mut Failures,
) -> io::Result<Option<(u64, RecordHeader)>> {
    // Records follow each other closely: look at one block before reading ahead.
    let mut window = BLOCK_BYTES;
    let mut at = at;
    let mut buf = pool.acquire(LARGE_BYTES).await;
    while at < header.len_bytes {
        let len = (window as u64).min(header.len_bytes - at) as usize;
        let (read, again) = file.read_at(at, buf, len).await;
        buf = again;
        let count = match read {
            Err(error) if is_unreadable(&error) => {
                failures.reads += 1;
                if failures.reads > FAILED_READS_MAX {
                    failures.unread.push(at..header.len_bytes);
                    return Ok(None);
                }
                if len > BLOCK_BYTES {
                    // Closer to the block that is to blame.
                    window = (len / 2).next_multiple_of(BLOCK_BYTES);
                } else {
                    failures.unread.push(at..at + len as u64);
                    at += len as u64;
                }
                continue;
            }
            other => other?,
        };
        for (n, block) in buf[..count].chunks_exact(BLOCK_BYTES).enumerate() {
            let offset = at + (n * BLOCK_BYTES) as u64;
            let place = RecordPlace { salt: header.salt, segment: header.number, offset };
            if let Ok(found) = RecordHeader::decode(block, &place) {
                return Ok(Some((offset, found)));
            }
        }
        if count < len {
            return Ok(None);
        }
        at += len as u64;
        window = if failures.reads == 0 { LARGE_BYTES } else { (len * 2).min(LARGE_BYTES) };
    }
    Ok(None)
}

/// Whether a file holds nothing but zeros from `start` to `end`. What cannot be read is something.
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
        let count = match read {
            Err(error) if is_unreadable(&error) => return Ok(false),
            other => other?,
        };
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
    let (mut at, end) = (offset, offset + len);
    let mut failures = Failures::default();
    while let Some((start, _)) =
        next_header(pool, file, &segment.header, at, &mut failures).await?.filter(|(start, _)| *start < end)
    {
        write_block(pool, file, start, &[0; BLOCK_BYTES]).await?;
        at = start + BLOCK_BYTES as u64;
    }
    // What could not be read is given up, or the next start would stumble over it again.
    for range in failures.unread {
        let mut at = range.start.max(offset);
        while at < range.end.min(end) {
            write_block(pool, file, at, &[0; BLOCK_BYTES]).await?;
            at += BLOCK_BYTES as u64;
        }
    }
    Ok(())
}
