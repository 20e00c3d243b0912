//! Compaction: moves what is alive out of segments that holes cannot shrink any further, and removes them.
//!
//! Punching gives the blocks of dead records back at once, so compaction has little to do: segments of which little is
//! alive (files, descriptors and mappings are not free), and, where the file system has no holes, segments that are
//! half dead.
//!
//! A chunk is copied with its sequence number, read back from the disk with all its checksums, and only then does the
//! index name the copy and is the original dead (promise D5). Until its original is settled, each tombstone outlives
//! the old segment too. A deletion that runs at the same time wins: the copy is erased. A record that cannot be
//! verified stays where it is, and its segment with it, until it is deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use super::record_io::{Verdict, verify_record};
use super::space::{KILLS_MAX, Purpose, Reservation, start};
use crate::buf::LARGE_BYTES;
use crate::error::WriteError;
use crate::finding::{Finding, FindingSource};
use crate::format::index_file::{IndexEntry, pack_extent};
use crate::format::record::{ChecksumTable, FLAG_MOVED, Kill, RecordHeader, RecordMeta, encode_head};
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES};
use crate::index::Location;
use crate::jobs::Job;
use crate::read::clear_verified;
use crate::segment::{Pin, Segment};

/// What one call of [`crate::Engine::compact`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// Chunks moved.
    pub chunks_moved: u64,
    /// Bytes of their records.
    pub bytes_moved: u64,
    /// Segments that were emptied.
    pub segments_emptied: u64,
    /// Whether nothing is left to do.
    pub finished: bool,
}

/// Why a chunk was not moved.
enum NotMoved {
    /// It is deleted, or being deleted.
    Deleted,
    /// It cannot be verified.
    Damaged(String),
    /// The disk takes no writes.
    Failed(WriteError),
}

impl From<WriteError> for NotMoved {
    fn from(error: WriteError) -> Self {
        Self::Failed(error)
    }
}

/// Keeps a segment from being removed while records of it are copied; ends after what was queued before.
struct Compacting {
    inner: Arc<Inner>,
    segment: Arc<Segment>,
}

impl Drop for Compacting {
    fn drop(&mut self) {
        self.inner.jobs.push(Job::EndCompaction(Arc::clone(&self.segment)));
    }
}

impl Inner {
    pub(super) async fn compact(self: &Arc<Self>, budget_bytes: u64) -> Result<CompactionReport, WriteError> {
        let _one_at_a_time = self.compacting.lock().await;
        let mut report = CompactionReport::default();
        while report.bytes_moved < budget_bytes {
            self.check_writable()?;
            let Some(segment) = self.compaction_candidate() else {
                report.finished = true;
                break;
            };
            self.compact_segment(&segment, budget_bytes, &mut report).await?;
            // A cancelled call must not take a job with it: where there is a thread for them, they are left to it.
            if !self.config.background {
                self.run_jobs().await;
            }
        }
        Ok(report)
    }

    /// The segment with the least alive of those that are worth it.
    fn compaction_candidate(&self) -> Option<Arc<Segment>> {
        let no_holes = self.no_holes.load(Ordering::Relaxed);
        let worth = |segment: &Arc<Segment>| {
            let state = segment.state.lock();
            if !state.indexed || state.writers > 0 || state.unmovable || state.compacting || segment.is_removed() {
                return None;
            }
            let len = segment.header.len_bytes;
            let sparse = state.live_bytes < len / 8;
            let half_dead = no_holes && state.cursor.saturating_sub(state.live_bytes) > len / 2;
            // Only tombstones that are needed: moving them gains something only if a whole segment comes free.
            let worth = (sparse || half_dead) && (state.live_count > 0 || state.cursor > len / 2);
            let candidate = worth.then_some((state.live_bytes, segment.number()));
            let full_of_kills = state.kill_count >= KILLS_MAX;
            drop(state);
            // Moved while they are needed, they would fill another segment, which then would be as sparse, without end.
            candidate.filter(|(_, number)| !(full_of_kills && self.retention.lock().is_needed(*number)))
        };
        let segments = self.segments_sorted();
        let (_, number) = segments.iter().filter(|segment| !self.is_active(segment)).filter_map(worth).min()?;
        self.segment(number)
    }

    async fn compact_segment(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        budget_bytes: u64,
        report: &mut CompactionReport,
    ) -> Result<(), WriteError> {
        segment.state.lock().compacting = true;
        let _compacting = Compacting { inner: Arc::clone(self), segment: Arc::clone(segment) };
        let listed = self.listed(segment).await.map_err(|error| self.write_failed("read index file", error))?;
        let (entries, kills) = listed;
        for entry in entries {
            let from = Location { segment: segment.number(), block: entry.block, extent: entry.extent };
            // Pinned as it is looked up: a hole beneath the copying would look like damage.
            let Some((_, pin)) = self.pin(&entry.id).filter(|(found, _)| *found == from) else { continue };
            if report.bytes_moved >= budget_bytes {
                return Ok(());
            }
            match self.move_chunk(segment, &entry, from, pin).await {
                Ok(()) => {
                    report.chunks_moved += 1;
                    report.bytes_moved += u64::from(from.record_len());
                    metrics::counter!("holdfast_storage_compacted_bytes_total").increment(u64::from(from.record_len()));
                }
                Err(NotMoved::Deleted) => {}
                Err(NotMoved::Failed(error)) => return Err(error),
                Err(NotMoved::Damaged(detail)) => {
                    segment.state.lock().unmovable = true;
                    let offset = from.record_offset();
                    let (chunk, segment) = (Some(entry.id), segment.number());
                    self.found(Finding { chunk, segment, offset, detail, source: FindingSource::Compaction });
                    return Ok(());
                }
            }
        }
        if self.retention.lock().is_needed(segment.number()) {
            self.move_kills(segment, &kills).await?;
        }
        report.segments_emptied += 1;
        Ok(())
    }

    /// Copies a segment's tombstones, and their duty.
    async fn move_kills(self: &Arc<Self>, segment: &Segment, kills: &[Kill]) -> Result<(), WriteError> {
        for kills in kills.chunks(Kill::PER_RECORD_MAX) {
            self.write_kills(kills, |to| self.retention.lock().copy(segment.number(), to.number())).await?;
        }
        self.retention.lock().relieve(segment.number());
        Ok(())
    }

    async fn move_chunk(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        entry: &IndexEntry,
        from: Location,
        _pin: Pin,
    ) -> Result<(), NotMoved> {
        let mut reservation = self.reserve(u64::from(from.record_len()), Purpose::Chunk).await?;
        let header = self.copy_record(segment, entry, &mut reservation).await?;
        self.writes_done(&mut reservation).await?;
        self.sync_segment(&reservation.segment).await?;
        self.read_back(&reservation.segment, reservation.offset, &header).await?;
        let moved = IndexEntry { block: reservation.block(), ..*entry };
        if !self.exchange(segment, from, &reservation.segment, moved, || !self.deleting.lock().contains_key(&entry.id))
        {
            self.give_back(reservation.abandon()).await;
            return Err(NotMoved::Deleted);
        }
        reservation.settle();
        Ok(())
    }

    /// Has the index name the copy `moved` in `target` instead of the original at `from`, if `allowed`, asked while
    /// nobody else can look the chunk up, says so.
    fn exchange(
        &self,
        segment: &Arc<Segment>,
        from: Location,
        target: &Segment,
        moved: IndexEntry,
        allowed: impl FnOnce() -> bool,
    ) -> bool {
        let to = Location { segment: target.number(), block: moved.block, extent: moved.extent };
        self.account(target, moved);
        let exchanged = self.index.replace_if(&moved.id, from, to, || {
            let allowed = allowed();
            if allowed {
                // At once with the exchange: a tombstone of the copy must outlive the old segment, too, and a settling
                // that took the original for alive must see that it has died since.
                self.retention.lock().note_stale_copy(segment.number());
            }
            allowed
        });
        if !exchanged {
            self.unaccount(target, &moved);
            return false;
        }
        segment.bury(from.block, u64::from(from.record_len()), u64::from(from.payload_len()));
        true
    }

    /// Writes the record into the reservation, comparing each block on the way.
    async fn copy_record(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        entry: &IndexEntry,
        reservation: &mut Reservation,
    ) -> Result<RecordHeader, NotMoved> {
        let damaged = |error: String| NotMoved::Damaged(error);
        let offset = u64::from(entry.block) * BLOCK_BYTES as u64;
        let place = segment.place(offset);
        let (first, mut head) = self.read_from(segment, offset, BLOCK_BYTES).await?;
        let header = RecordHeader::decode(&head[..first], &place).map_err(|error| damaged(error.to_string()))?;
        let layout = header.layout;
        if header.id != entry.id || pack_extent(&layout) != entry.extent {
            return Err(damaged(format!("the record there is of chunk {}", header.id)));
        }
        let table = ChecksumTable::decode(&head[..first], &header).map_err(|error| damaged(error.to_string()))?;
        let head_len = (layout.payload_offset as usize).next_multiple_of(BLOCK_BYTES);
        if head_len > BLOCK_BYTES {
            drop(head);
            head = self.read_from(segment, offset, head_len).await?.1;
        }
        let label = head[layout.label_range()].to_vec();
        if crc32c::crc32c(&label) != header.label_crc {
            return Err(damaged("label checksum mismatch".to_owned()));
        }
        let shares_block = (layout.payload_offset as usize) < BLOCK_BYTES;
        let payload = layout.payload_offset as usize..(layout.payload_offset + layout.payload_len) as usize;
        if shares_block && !table.matches(0, &head[payload]) {
            return Err(damaged("checksum mismatch in block 0".to_owned()));
        }
        let meta = RecordMeta {
            kind: header.kind,
            flags: FLAG_MOVED,
            id: header.id,
            sequence: header.sequence,
            stable_sequence: self.stable_sequence(),
        };
        let target = reservation.segment.place(reservation.offset);
        encode_head(&mut head[..head_len], &target, layout, &meta, &label, table.as_slice());
        reservation.head_written = true;
        self.write_to(reservation, 0, head, head_len)?;
        let len = if shares_block { 0 } else { layout.payload_len as usize };
        let mut done = 0;
        while done < len {
            let count = LARGE_BYTES.min(len - done);
            let at = u64::from(layout.payload_offset) + done as u64;
            let padded = count.next_multiple_of(BLOCK_BYTES);
            let (read, mut buf) = self.read_from(segment, offset + at, padded).await?;
            if read < count || table.first_mismatch(done / CHECKSUM_BLOCK_BYTES, &buf[..count]).is_some() {
                return Err(damaged(format!("checksum mismatch after byte {done}")));
            }
            buf[count..padded].fill(0);
            self.write_to(reservation, at, buf, padded)?;
            self.writes_done(reservation).await?;
            done += count;
        }
        Ok(header)
    }

    async fn read_from(
        &self,
        segment: &Segment,
        offset: u64,
        len: usize,
    ) -> Result<(usize, crate::buf::IoBuf), NotMoved> {
        let buf = self.pool.acquire(len).await;
        // This goes through the page cache: what it brings in was verified by nobody yet.
        clear_verified(segment, offset..offset + len as u64);
        let (read, buf) = segment.file.read_at(offset, buf, len).await;
        let count = read.map_err(|error| NotMoved::Damaged(format!("read failed: {error}")))?;
        Ok((count, buf))
    }

    fn write_to(
        &self,
        reservation: &mut Reservation,
        at: u64,
        buf: crate::buf::IoBuf,
        len: usize,
    ) -> Result<(), WriteError> {
        let file = reservation.segment.direct().expect("a segment with a writer keeps its file");
        let write = file.write_at(reservation.offset + at, buf.freeze(), 0..len);
        start(&mut reservation.writes, write).map_err(|error| self.write_failed("move chunk", error))
    }

    /// Reads the copy past the page cache and compares all its checksums.
    async fn read_back(&self, segment: &Segment, offset: u64, original: &RecordHeader) -> Result<(), NotMoved> {
        let file = segment.direct().expect("a segment with a writer keeps its file");
        let verdict = verify_record(&self.pool, &file, segment, offset, |_| {}).await;
        let same = |copy: &RecordHeader| {
            (copy.id, copy.sequence, copy.layout) == (original.id, original.sequence, original.layout)
                && (copy.label_crc, copy.table_crc) == (original.label_crc, original.table_crc)
        };
        match verdict {
            Ok(Verdict::Good(copy)) if same(&copy) => Ok(()),
            Err(error) => Err(self.write_failed("read moved chunk back", error).into()),
            // The disk said that it wrote, and did not: the original is not touched.
            Ok(_) => {
                let error = std::io::Error::other("the copy that was read back differs");
                Err(self.write_failed("read moved chunk back", error).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
