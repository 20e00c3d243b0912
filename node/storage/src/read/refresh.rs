//! Marks of what was verified in the page cache, and bringing back what was evicted from it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::buf::{BufferPool, LARGE_BYTES};
use crate::format::record::{ChecksumTable, RecordHeader};
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES};
use crate::segment::Segment;

/// Brings a range of a segment that a slice of the mapping covers back into the page cache, verified. The slice pins
/// its record, which tells where the record starts.
///
/// # Errors
/// Those of the read; `InvalidData` when the bytes do not match: the slice must not be sent.
pub(crate) async fn refresh(segment: &Arc<Segment>, pool: &Arc<BufferPool>, range: Range<u64>) -> io::Result<()> {
    let invalid = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    let block =
        segment.pinned_before(range.start).ok_or_else(|| invalid("no record is being read there".to_owned()))?;
    let _pin = segment.pin(block);
    let offset = u64::from(block) * BLOCK_BYTES as u64;
    // The payload may share the head's page.
    clear_verified(segment, offset..offset + BLOCK_BYTES as u64);
    let (read, head) = segment.file.read_at(offset, pool.acquire(BLOCK_BYTES).await, BLOCK_BYTES).await;
    let head_len = read?;
    let header =
        RecordHeader::decode(&head[..head_len], &segment.place(offset)).map_err(|error| invalid(error.to_string()))?;
    let table = ChecksumTable::decode(&head[..head_len], &header).map_err(|error| invalid(error.to_string()))?;
    drop(head);
    let payload = offset + u64::from(header.layout.payload_offset);
    let payload_end = payload + u64::from(header.layout.payload_len);
    if range.start < payload || range.end > payload_end {
        return Err(invalid("the range leaves the payload of its record".to_owned()));
    }
    let unit = CHECKSUM_BLOCK_BYTES as u64;
    let mut at = payload + (range.start - payload) / unit * unit;
    while at < range.end {
        let end =
            (at + LARGE_BYTES as u64).min(payload + (range.end - payload).next_multiple_of(unit)).min(payload_end);
        let len = (end - at) as usize;
        let buf = pool.acquire(len).await;
        if segment.mapping.as_ref().is_some_and(|mapping| mapping.is_sendable(at..end)) {
            at = end;
            continue;
        }
        clear_verified(segment, at..end);
        let (read, buf) = segment.file.read_at(at, buf, len).await;
        if read? != len || table.first_mismatch(((at - payload) / unit) as usize, &buf[..len]).is_some() {
            clear_verified(segment, at..end);
            metrics::counter!("holdfast_storage_corruption_total", "source" => "read").increment(1);
            return Err(invalid(format!("record at {offset} of segment {} is corrupt", segment.number())));
        }
        mark_verified(segment, at..end);
        at = end;
    }
    Ok(())
}

/// Forgets that a range was verified: before it is read through the page cache, which may bring it in anew.
pub(crate) fn clear_verified(segment: &Segment, range: Range<u64>) {
    if let Some(mapping) = segment.mapping.as_ref().filter(|_| !range.is_empty()) {
        mapping.clear_verified(range);
    }
}

/// Marks payload bytes of one record that were compared. All of the pages at their edges belong to the record.
pub(super) fn mark_verified(segment: &Segment, payload: Range<u64>) {
    if let Some(mapping) = &segment.mapping {
        let block = BLOCK_BYTES as u64;
        mapping.set_verified(payload.start / block * block..payload.end.next_multiple_of(block));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_protocol::ContentId;

    use super::*;
    use crate::buf::BufferPoolConfig;
    use crate::engine::{Engine, EngineConfig};
    use crate::io::std::StdIo;

    #[tokio::test]
    async fn nothing_is_brought_back_from_a_disk_that_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = EngineConfig::new(dir.path(), [1; 16], [2; 16]);
        (config.segment_size_bytes, config.reserve_bytes, config.background) = (4 << 20, 1 << 20, false);
        let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
        let (engine, _) = Engine::open(config, Arc::new(StdIo::new().unwrap()), pool.clone()).await.unwrap();
        let id = ContentId([7; 12]).chunk(0);
        let mut writer = engine.create(id, 100_000, b"").await.unwrap();
        drop(writer.write(&[7; 100_000]).await.unwrap());
        drop(writer.finish_input().unwrap());
        writer.finish().await.unwrap();
        let (location, pin) = engine.inner.pin(&id).unwrap();
        let mapping = pin.segment.mapping.as_ref().unwrap();
        let start = location.record_offset() + u64::from(location.payload_offset());
        let flight = engine.inner.watch.flights().begin();
        (0..40).for_each(|_| engine.tick(Duration::from_secs(1)));
        let refused = mapping.refresh(start..start + 100_000).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(flight);
        (0..15).for_each(|_| engine.tick(Duration::from_secs(1)));
        mapping.refresh(start..start + 100_000).await.unwrap();
        assert!(pool.is_idle());
    }
}
