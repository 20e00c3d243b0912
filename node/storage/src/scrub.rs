//! Scrub: reads every chunk of a disk past the page cache, compares header, label and payload with their checksums, and
//! reports what does not match.
//!
//! It goes segment by segment, at a pace that reads the whole disk within a configured time, and remembers after each
//! segment how far it has come, so that a restart does not begin anew. A record is pinned while it is read, so a
//! deletion meanwhile is not mistaken for damage. What it finds it reports to the engine's finding callback
//! ([`crate::EngineConfig::on_finding`]); repairing is the business of whoever has another replica.

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
    current: Option<Current>,
}

/// The segment that is being read.
struct Current {
    segment: Arc<Segment>,
    file: Arc<dyn BlockFile>,
    entries: VecDeque<IndexEntry>,
}

impl Scrubber {
    /// Goes on where the last one of this disk ended.
    pub async fn resume(engine: &Engine, config: ScrubConfig) -> Self {
        let inner = Arc::clone(&engine.inner);
        let mark = inner.read_small_file("scrub").await.ok().and_then(|bytes| ScrubMark::decode(&bytes).ok());
        let mark = mark.unwrap_or_else(|| ScrubMark { round_started_ms: crate::unix_ms(), ..ScrubMark::default() });
        Self { inner, config, mark, current: None }
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
    /// # Errors
    /// When a segment cannot be opened or its list not be read, or the mark not be written; the next step goes on with
    /// the next segment, or the rest of the disk would never be read. A record that cannot be read is a finding, not an
    /// error.
    pub async fn step(&mut self) -> io::Result<ScrubStep> {
        let Some(mut current) = self.current.take() else {
            return self.next_segment().await;
        };
        while let Some(entry) = current.entries.pop_front() {
            let location = Location { segment: current.segment.number(), block: entry.block, extent: entry.extent };
            let Some((found, _pin)) = self.inner.pin(&entry.id).filter(|(found, _)| *found == location) else {
                continue;
            };
            let good = self.check(&current, &entry, found).await;
            self.current = Some(current);
            let bytes = u64::from(location.record_len());
            metrics::counter!("holdfast_storage_scrub_bytes_total").increment(bytes);
            metrics::counter!("holdfast_storage_scrub_chunks_total").increment(1);
            return Ok(ScrubStep::Record { bytes, good });
        }
        self.mark.next_segment = current.segment.number() + 1;
        self.write_mark().await?;
        Ok(ScrubStep::SegmentDone)
    }

    async fn next_segment(&mut self) -> io::Result<ScrubStep> {
        let segments = self.inner.segments_sorted();
        let Some(segment) = segments.into_iter().find(|segment| segment.number() >= self.mark.next_segment) else {
            self.mark.rounds += 1;
            self.mark.next_segment = 0;
            self.mark.round_started_ms = crate::unix_ms();
            self.write_mark().await?;
            metrics::counter!("holdfast_storage_scrub_rounds_total").increment(1);
            return Ok(ScrubStep::RoundDone);
        };
        match self.begin(&segment).await {
            Ok((file, entries)) => self.current = Some(Current { segment, file, entries: entries.into() }),
            Err(error) => {
                self.mark.next_segment = segment.number() + 1;
                // Unless it was removed since it was looked up.
                if !segment.is_removed() {
                    return Err(error);
                }
            }
        }
        Ok(ScrubStep::SegmentDone)
    }

    async fn begin(&self, segment: &Segment) -> io::Result<(Arc<dyn BlockFile>, Vec<IndexEntry>)> {
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

    async fn check(&self, current: &Current, entry: &IndexEntry, location: Location) -> bool {
        let offset = u64::from(entry.block) * BLOCK_BYTES as u64;
        let verdict = verify_record(&self.inner.pool, &current.file, &current.segment, offset, |_| {}).await;
        let detail = match verdict {
            Ok(Verdict::Good(header)) if (header.id, header.sequence) == (entry.id, entry.sequence) => return true,
            Ok(Verdict::Good(header)) => format!("the record there is of chunk {}", header.id),
            Ok(Verdict::Damaged(_, detail)) => detail,
            Ok(Verdict::NoRecord(error)) => error.to_string(),
            Err(error) => format!("read failed: {error}"),
        };
        if let Some(mapping) = &current.segment.mapping {
            // Whatever the page cache has of it is compared again before it is served.
            mapping.clear_verified(offset..offset + u64::from(location.record_len()));
        }
        metrics::counter!("holdfast_storage_scrub_findings_total").increment(1);
        let (chunk, segment) = (Some(entry.id), current.segment.number());
        self.inner.found(Finding { chunk, segment, offset, detail, source: FindingSource::Scrub });
        false
    }

    async fn write_mark(&self) -> io::Result<()> {
        if self.inner.check_writable().is_err() {
            return Ok(());
        }
        self.inner.replace_file(&self.inner.config.dir.join("scrub"), &self.mark.encode()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_reads_everything_in_time_within_its_limits() {
        let config =
            ScrubConfig { round: Duration::from_secs(100), bytes_per_second_min: 10, bytes_per_second_max: 1000 };
        assert_eq!(config.pace(0), 10);
        assert_eq!(config.pace(50_000), 500);
        assert_eq!(config.pace(5_000_000), 1000);
    }
}
