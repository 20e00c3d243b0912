//! What scans found becomes durable and nothing else stays: torn records are told from damaged ones, what is no record
//! is punched, what no sync is known to have covered is written again.

use std::io;

use super::super::scan::{Scanned, zero_headers};
use super::{Found, Opener, failed, finding};
use crate::buf::LARGE_BYTES;
use crate::error::{OpenError, is_full};
use crate::finding::Finding;
use crate::format::record::RecordKind;
use crate::io::OpenMode;
use crate::segment::Segment;

impl Opener {
    /// Tells torn records from damaged ones, gives the space of what is no record back, and makes durable what was
    /// found. Where something could not be read, only the first: what says that a record was written whole may be
    /// there, too.
    pub(super) async fn settle_scans(&mut self, found: &mut [Found]) -> Result<(), OpenError> {
        let stable = found.iter().filter_map(|found| found.scan.as_ref()).map(|scan| scan.stable_sequence).max();
        let stable_unknown = self.report.unread_bytes > 0;
        for Found { segment, scan, .. } in found.iter_mut() {
            let Some(scan) = scan else { continue };
            let mut keep = vec![];
            for mut suspect in std::mem::take(&mut scan.suspects) {
                let header = suspect.header;
                let was_durable = stable_unknown || Some(header.sequence) <= stable;
                let was_whole = suspect.unreadable || (was_durable && !header.is_moved());
                if was_whole {
                    let chunk = (header.kind == RecordKind::Chunk).then_some(header.id);
                    let detail = std::mem::take(&mut suspect.detail);
                    self.findings.push(Finding { chunk, ..finding(segment.number(), suspect.offset, detail) });
                }
                match (was_whole, header.kind) {
                    (true, RecordKind::Chunk) => {
                        self.report.damaged.push(header.id);
                        keep.push(suspect);
                    }
                    // Torn if its original is there, which is seen later.
                    (false, RecordKind::Chunk) if header.is_moved() => keep.push(suspect),
                    (false, RecordKind::Chunk) => self.report.torn.push(header.id),
                    (_, RecordKind::Tombstones) => {}
                }
            }
            scan.suspects = keep;
            if self.must_not_write() {
                continue;
            }
            let context = || failed("give torn records back of", &segment.path);
            for (offset, len) in scan.gaps(segment.header.len_bytes) {
                match segment.file.punch_hole(offset, len) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported || is_full(&error) => {
                        zero_headers(&self.pool, &segment.file, segment, offset, len).await.map_err(context())?;
                    }
                    other => other.map_err(context())?,
                }
            }
            let unproven = |record: &&Scanned| Some(record.sequence) > stable || record.moved;
            self.write_again(segment, scan.records.iter().filter(unproven)).await.map_err(context())?;
            segment.file.sync_data().await.map_err(failed("sync", &segment.path))?;
        }
        Ok(())
    }

    /// Writes records again as they are, past the page cache.
    async fn write_again(&self, segment: &Segment, records: impl Iterator<Item = &Scanned>) -> io::Result<()> {
        let mut records = records.peekable();
        if records.peek().is_none() {
            return Ok(());
        }
        let direct = self.io.open(&segment.path, OpenMode::Direct)?;
        for record in records {
            let mut done = 0;
            while done < record.len {
                let len = (record.len - done).min(LARGE_BYTES as u64) as usize;
                let at = record.offset + done;
                let (read, buf) = segment.file.read_at(at, self.pool.acquire(len).await, len).await;
                if read? != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                direct.write_at(at, buf.freeze(), 0..len).await?;
                done += len as u64;
            }
        }
        direct.sync_data().await
    }
}
