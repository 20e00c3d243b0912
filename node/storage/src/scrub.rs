//! Scrub: reads every chunk of a disk past the page cache, compares header, label and payload with their checksums, and
//! reports what does not match.
//!
//! It goes segment by segment, at a pace that reads the whole disk within a configured time, and remembers after each
//! segment, and now and then inside one, how far it has come, so that a restart does not begin anew. A record is pinned
//! while it is read, so a deletion meanwhile is not mistaken for damage. What it finds it reports to the engine's
//! finding callback ([`crate::EngineConfig::on_finding`]); repairing is the business of whoever has another replica.
//!
//! A step may be cut off at any time, as by the time limit of whoever asked for it. The next one begins with what that
//! one was at. What is cut off again and again is passed over in this round: the rest of the disk is to be read, too.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Inner, Verdict, verify_record};
use crate::finding::{Finding, FindingSource};
use crate::format::BLOCK_BYTES;
use crate::format::index_file::IndexEntry;
use crate::format::scrub_mark::ScrubMark;
use crate::index::Location;
use crate::io::{BlockFile, OpenMode};
use crate::segment::Segment;

/// How long a scrub that has nothing to do, or whose disk fails, waits before it looks again.
const IDLE: Duration = Duration::from_secs(60);

/// After so many bytes it is written down how far it has come inside a segment: of a large segment that is read slowly,
/// each restart would else begin anew, and some would never be read to their end.
const MARK_BYTES: u64 = if cfg!(test) { 100_000 } else { 64 << 20 };

/// How often a record, or the list of a segment, is begun before it is passed over.
const TRIES_MAX: u32 = 2;

/// How fast to scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Within this time everything is to be read once.
    pub round: Duration,
    /// Never slower than this, in bytes a second: a small disk is done sooner.
    pub bytes_per_second_min: u64,
    /// Never faster than this, in bytes a second: clients come first.
    pub bytes_per_second_max: u64,
}

impl Default for ScrubConfig {
    /// Two weeks a round, between 1 and 64 MiB a second.
    fn default() -> Self {
        Self { round: Duration::from_secs(14 * 86_400), bytes_per_second_min: 1 << 20, bytes_per_second_max: 64 << 20 }
    }
}

impl ScrubConfig {
    /// The pace for so many live bytes, in bytes a second.
    fn pace(&self, live_bytes: u64) -> u64 {
        let needed = live_bytes / self.round.as_secs().max(1);
        needed.max(self.bytes_per_second_min).min(self.bytes_per_second_max).max(1)
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubStep {
    /// Read a record of so many bytes.
    Record {
        /// Bytes read.
        bytes: u64,
        /// Whether all its checksums matched.
        good: bool,
    },
    /// Came to the end of a segment, and wrote that down.
    SegmentDone,
    /// Came to the end of the disk; the next step begins a new round.
    RoundDone,
}

/// The scrub of one disk.
pub struct Scrubber {
    inner: Arc<Inner>,
    config: ScrubConfig,
    mark: ScrubMark,
    /// Bytes read since the mark was written.
    unmarked_bytes: u64,
    current: Option<Current>,
    /// What was begun and has not ended, and how often.
    begun: Option<(Begun, u32)>,
}

/// What a step is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// The list of a segment's records.
    List { segment: u32 },
    /// A record.
    Record { segment: u32, block: u32 },
}

/// The segment that is being read.
struct Current {
    segment: Arc<Segment>,
    file: Arc<dyn BlockFile>,
    /// What is left of it, by place.
    entries: VecDeque<IndexEntry>,
}

impl Scrubber {
    /// Goes on where the last one of this disk ended.
    pub async fn resume(engine: &Engine, config: ScrubConfig) -> Self {
        let inner = Arc::clone(&engine.inner);
        let mark = inner.read_small_file("scrub").await.ok().and_then(|bytes| ScrubMark::decode(&bytes).ok());
        let mark = mark.unwrap_or_else(|| ScrubMark { round_started_ms: crate::unix_ms(), ..ScrubMark::default() });
        Self { inner, config, mark, unmarked_bytes: 0, current: None, begun: None }
    }

    /// How far it has come.
    pub fn position(&self) -> ScrubMark {
        self.mark
    }

    /// Scrubs at the configured pace until it is cancelled. Needs a tokio runtime with time.
    pub async fn run(&mut self, cancel: &CancellationToken) {
        loop {
            let pause = match self.step().await {
                Ok(ScrubStep::Record { bytes, .. }) => {
                    let pace = self.config.pace(self.inner.live_bytes());
                    Duration::from_secs_f64(bytes as f64 / pace as f64)
                }
                Ok(ScrubStep::SegmentDone) => Duration::ZERO,
                Ok(ScrubStep::RoundDone) => IDLE,
                Err(error) => {
                    tracing::warn!(disk = %self.inner.config.dir.display(), %error, "scrub failed; it will try again");
                    self.current = None;
                    IDLE
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Reads the next record.
    ///
    /// Cancel safe: the next step begins with the record that this one was at.
    ///
    /// # Errors
    /// When a segment cannot be opened or its list not be read, or the mark not be written; the next step goes on with
    /// the next segment, or the rest of the disk would never be read. A record that cannot be read is a finding, not an
    /// error.
    pub async fn step(&mut self) -> io::Result<ScrubStep> {
        let Some(current) = &self.current else {
            return self.next_segment().await;
        };
        let (segment, file) = (Arc::clone(&current.segment), Arc::clone(&current.file));
        while let Some(entry) = self.next_entry() {
            let location = Location { segment: segment.number(), block: entry.block, extent: entry.extent };
            let Some((found, _pin)) = self.inner.pin(&entry.id).filter(|(found, _)| *found == location) else {
                self.is_done_with(&entry);
                continue;
            };
            if !self.begin(Begun::Record { segment: segment.number(), block: entry.block }) {
                tracing::warn!(
                    disk = %self.inner.config.dir.display(), chunk = %entry.id,
                    "a chunk was not read by scrub within its time, again and again, and is passed over"
                );
                self.is_done_with(&entry);
                continue;
            }
            // It may be cut off here.
            let good = self.check(&segment, &file, &entry, found).await;
            self.is_done_with(&entry);
            let bytes = u64::from(location.record_len());
            metrics::counter!("holdfast_storage_scrub_bytes_total").increment(bytes);
            metrics::counter!("holdfast_storage_scrub_chunks_total").increment(1);
            self.mark_on_the_way(bytes).await;
            return Ok(ScrubStep::Record { bytes, good });
        }
        self.current = None;
        self.go_to(segment.number() + 1);
        self.write_mark().await?;
        Ok(ScrubStep::SegmentDone)
    }

    fn next_entry(&self) -> Option<IndexEntry> {
        self.current.as_ref()?.entries.front().copied()
    }

    /// The entry at hand was read, or is not to be.
    fn is_done_with(&mut self, entry: &IndexEntry) {
        self.begun = None;
        self.mark.next_block = entry.block + 1;
        if let Some(current) = &mut self.current {
            current.entries.pop_front();
        }
    }

    /// Whether to begin with this: not if it was cut off too often.
    fn begin(&mut self, what: Begun) -> bool {
        let tries = match self.begun {
            Some((begun, tries)) if begun == what => tries + 1,
            _ => 1,
        };
        self.begun = Some((what, tries));
        tries <= TRIES_MAX
    }

    /// Everything before this segment is done.
    fn go_to(&mut self, segment: u32) {
        self.begun = None;
        (self.mark.next_segment, self.mark.next_block) = (segment, 0);
    }

    async fn next_segment(&mut self) -> io::Result<ScrubStep> {
        let segments = self.inner.segments_sorted();
        let Some(segment) = segments.into_iter().find(|segment| segment.number() >= self.mark.next_segment) else {
            self.mark.rounds += 1;
            self.go_to(0);
            self.mark.round_started_ms = crate::unix_ms();
            self.write_mark().await?;
            metrics::counter!("holdfast_storage_scrub_rounds_total").increment(1);
            return Ok(ScrubStep::RoundDone);
        };
        if segment.number() != self.mark.next_segment {
            self.go_to(segment.number());
        }
        if !self.begin(Begun::List { segment: segment.number() }) {
            tracing::warn!(
                disk = %self.inner.config.dir.display(), segment = segment.number(),
                "the list of a segment was not read by scrub within its time, again and again: the segment is passed over"
            );
            self.go_to(segment.number() + 1);
            return Ok(ScrubStep::SegmentDone);
        }
        // It may be cut off here.
        match self.open(&segment).await {
            Ok((file, mut entries)) => {
                self.begun = None;
                entries.retain(|entry| entry.block >= self.mark.next_block);
                entries.sort_unstable_by_key(|entry| entry.block);
                self.current = Some(Current { segment, file, entries: entries.into() });
            }
            Err(error) => {
                self.go_to(segment.number() + 1);
                // Unless it was removed since it was looked up.
                if !segment.is_removed() {
                    return Err(error);
                }
            }
        }
        Ok(ScrubStep::SegmentDone)
    }

    async fn open(&self, segment: &Segment) -> io::Result<(Arc<dyn BlockFile>, Vec<IndexEntry>)> {
        let open_entries = {
            let state = segment.state.lock();
            (!state.indexed).then(|| state.entries.clone())
        };
        let entries = match open_entries {
            Some(entries) => entries,
            None => self.inner.listed(segment).await?.0,
        };
        Ok((self.inner.io.open(&segment.path, OpenMode::Direct)?, entries))
    }

    async fn check(
        &self,
        segment: &Segment,
        file: &Arc<dyn BlockFile>,
        entry: &IndexEntry,
        location: Location,
    ) -> bool {
        let offset = u64::from(entry.block) * BLOCK_BYTES as u64;
        let verdict = verify_record(&self.inner.pool, file, segment, offset, |_| {}).await;
        let detail = match verdict {
            Ok(Verdict::Good(header)) if (header.id, header.sequence) == (entry.id, entry.sequence) => return true,
            Ok(Verdict::Good(header)) => format!("the record there is of chunk {}", header.id),
            Ok(Verdict::Damaged(_, detail)) => detail,
            Ok(Verdict::NoRecord(error)) => error.to_string(),
            Err(error) => format!("read failed: {error}"),
        };
        if let Some(mapping) = &segment.mapping {
            // Whatever the page cache has of it is compared again before it is served.
            mapping.clear_verified(offset..offset + u64::from(location.record_len()));
        }
        metrics::counter!("holdfast_storage_scrub_findings_total").increment(1);
        let (chunk, segment) = (Some(entry.id), segment.number());
        self.inner.found(Finding { chunk, segment, offset, detail, source: FindingSource::Scrub });
        false
    }

    /// Writes down now and then how far it has come inside a segment. Where that fails the next mark tells more.
    async fn mark_on_the_way(&mut self, bytes: u64) {
        self.unmarked_bytes += bytes;
        if self.unmarked_bytes >= MARK_BYTES
            && let Err(error) = self.write_mark().await
        {
            tracing::debug!(disk = %self.inner.config.dir.display(), %error, "the mark of scrub was not written");
        }
    }

    async fn write_mark(&mut self) -> io::Result<()> {
        self.unmarked_bytes = 0;
        if self.inner.check_writable().is_err() {
            return Ok(());
        }
        self.inner.replace_file(&self.inner.config.dir.join("scrub"), &self.mark.encode()).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use holdfast_protocol::ContentId;

    use super::*;
    use crate::buf::{BufferPool, BufferPoolConfig};
    use crate::engine::EngineConfig;
    use crate::io::sim::SimIo;

    /// All of the disk is one segment.
    #[tokio::test]
    async fn a_restart_goes_on_inside_a_segment() {
        const CHUNKS: u32 = 12;
        let mut config = EngineConfig::new(Path::new("/disk"), [1; 16], [2; 16]);
        (config.segment_size_bytes, config.reserve_bytes, config.background) = (512 << 10, 512 << 10, false);
        let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 16 }).unwrap();
        let (engine, _) = Engine::open(config, Arc::new(SimIo::new(1)), pool).await.unwrap();
        for n in 0..CHUNKS {
            let mut writer = engine.create(ContentId([7; 12]).chunk(n), 30_000, b"").await.unwrap();
            writer.write(&[n as u8; 30_000]).await.unwrap();
            writer.finish_input().unwrap();
            writer.finish().await.unwrap();
        }
        engine.run_jobs().await;
        assert_eq!(engine.stats().segments, 1);
        let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
        let (mut read, mut bytes_read) = (0, 0);
        while bytes_read < MARK_BYTES {
            if let ScrubStep::Record { bytes, good } = scrubber.step().await.unwrap() {
                assert!(good);
                (read, bytes_read) = (read + 1, bytes_read + bytes);
            }
        }
        assert!(read < CHUNKS);
        drop(scrubber);
        let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
        assert!(scrubber.position().next_block > 0);
        loop {
            match scrubber.step().await.unwrap() {
                ScrubStep::Record { good, .. } => {
                    assert!(good);
                    read += 1;
                }
                ScrubStep::SegmentDone => {}
                ScrubStep::RoundDone => break,
            }
        }
        assert_eq!(read, CHUNKS);
        assert_eq!((scrubber.position().next_segment, scrubber.position().next_block), (0, 0));
    }

    #[test]
    fn pace_reads_everything_in_time_within_its_limits() {
        let config =
            ScrubConfig { round: Duration::from_secs(100), bytes_per_second_min: 10, bytes_per_second_max: 1000 };
        assert_eq!(config.pace(0), 10);
        assert_eq!(config.pace(50_000), 500);
        assert_eq!(config.pace(5_000_000), 1000);
    }
}
