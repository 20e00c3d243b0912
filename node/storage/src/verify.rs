//! Verifying one chunk on the disk itself.
//!
//! A read that finds its pages in memory tells nothing about the disk below them. Whoever has to know whether a replica
//! is whole (a repair, a join) asks here: the whole record is read past the page cache, as scrub does.

use std::io;
use std::sync::Arc;

use holdfast_protocol::ChunkId;

use crate::engine::{ChunkStat, Inner, Verdict, verify_record};
use crate::error::ReadError;
use crate::finding::{Finding, FindingSource};
use crate::format::record::{RecordHeader, RecordKind};
use crate::index::Location;
use crate::io::{BlockFile, OpenMode};
use crate::segment::Segment;

/// How often a chunk is looked up anew because compaction moved it and removed its segment.
const MOVES_MAX: usize = 8;

/// See [`crate::Engine::verify`].
pub(crate) async fn verify(inner: &Arc<Inner>, id: ChunkId) -> Result<ChunkStat, ReadError> {
    for _ in 0..MOVES_MAX {
        let (location, pin) = inner.pin(&id).ok_or(ReadError::NotFound(id))?;
        if inner.watch.is_unresponsive() {
            return Err(ReadError::Unresponsive(id));
        }
        let Some(file) = open(inner, &pin.segment).await.map_err(|source| ReadError::Io { chunk: id, source })? else {
            continue;
        };
        metrics::counter!("holdfast_storage_verified_bytes_total").increment(u64::from(location.record_len()));
        let offset = location.record_offset();
        let verdict = verify_record(&inner.pool, &file, &pin.segment, offset, |_| {}).await;
        let (detail, failed) = match verdict {
            Ok(Verdict::Good(header)) if is_of(&header, id, location) => {
                return Ok(ChunkStat { id, size_bytes: location.payload_len() });
            }
            Ok(Verdict::Good(header)) => (format!("the record there is of chunk {}", header.id), None),
            Ok(Verdict::Damaged(_, detail)) => (detail, None),
            Ok(Verdict::NoRecord(error)) => (error.to_string(), None),
            Err(error) => (format!("read failed: {error}"), Some(error)),
        };
        if let Some(mapping) = &pin.segment.mapping {
            // Whatever the page cache has of it is compared again before it is served.
            mapping.clear_verified(offset..offset + u64::from(location.record_len()));
        }
        let segment = location.segment;
        inner.found(Finding {
            chunk: Some(id),
            segment,
            offset,
            detail: detail.clone(),
            source: FindingSource::Verify,
        });
        return Err(match failed {
            Some(source) => ReadError::Io { chunk: id, source },
            None => ReadError::Corrupt { chunk: id, detail },
        });
    }
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "compaction moves it again and again");
    Err(ReadError::Io { chunk: id, source })
}

/// The segment's file without the page cache; `None` when it was removed a moment ago.
async fn open(inner: &Inner, segment: &Segment) -> io::Result<Option<Arc<dyn BlockFile>>> {
    if let Some(file) = segment.direct() {
        return Ok(Some(file));
    }
    let (io, path) = (Arc::clone(&inner.io), segment.path.clone());
    match inner.blocking(move || io.open(&path, OpenMode::Direct)).await {
        Ok(file) => Ok(Some(file)),
        Err(_) if segment.is_removed() => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_of(header: &RecordHeader, id: ChunkId, location: Location) -> bool {
    let layout = &header.layout;
    let expected = (RecordKind::Chunk, id, location.payload_len(), location.payload_offset());
    (header.kind, header.id, layout.payload_len, layout.payload_offset) == expected
}
