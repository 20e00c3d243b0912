//! A disk and its segments in numbers, for operators and metrics.

use std::sync::atomic::Ordering;

use super::Inner;
use crate::segment::Segment;

/// A disk in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes of the file system in all.
    pub capacity_bytes: u64,
    /// Bytes that are free on it.
    pub free_bytes: u64,
    /// Chunks that can be read.
    pub chunks: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Bytes of their records, with heads and padding.
    pub live_bytes: u64,
    /// Bytes of tombstone records.
    pub tombstone_bytes: u64,
    /// Bytes of dead records that are not given back yet.
    pub dead_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Segments that still take records, or whose index file is not written yet.
    pub segments_open: u64,
    /// Memory of the index in bytes.
    pub index_memory_bytes: u64,
    /// Jobs that wait for the background thread.
    pub jobs_waiting: u64,
    /// Syncs asked of the kernel since the start.
    pub syncs: u64,
    /// Writers that waited for a sync since the start.
    pub sync_waiters: u64,
    /// Why the disk takes no writes.
    pub fenced: Option<String>,
    /// Whether the disk does not answer.
    pub unresponsive: bool,
    /// For how long the oldest operation has been in flight, in milliseconds of the watch's own time.
    pub oldest_operation_ms: u64,
    /// Whether the last chunk was refused for want of space.
    pub full: bool,
}

/// A segment in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStats {
    /// Its number.
    pub number: u32,
    /// Length of the file.
    pub len_bytes: u64,
    /// Where its last record ends.
    pub tail_bytes: u64,
    /// Live chunks and the bytes of their records.
    pub chunks: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Dead bytes that are not given back yet.
    pub dead_bytes: u64,
    /// Whether it takes no more records.
    pub sealed: bool,
    /// Whether its index file is written.
    pub indexed: bool,
    /// Whether dead records may still be listed or found: see the `retention` module.
    pub unsettled: bool,
    /// Whether tombstones in it are still needed.
    pub tombstones_needed: bool,
}

impl Inner {
    pub(super) fn stats(&self) -> EngineStats {
        let (capacity_bytes, free_bytes) = self.known_space();
        if self.full.load(Ordering::SeqCst) && self.takes_segment(free_bytes) {
            self.set_full(false);
        }
        let mut stats = EngineStats {
            capacity_bytes,
            free_bytes,
            index_memory_bytes: self.index.memory_bytes() as u64,
            jobs_waiting: self.jobs.len() as u64,
            syncs: self.syncs.load(Ordering::Relaxed),
            sync_waiters: self.sync_waiters.load(Ordering::Relaxed),
            fenced: self.fence.lock().as_deref().map(str::to_owned),
            unresponsive: self.watch.is_unresponsive(),
            oldest_operation_ms: self.watch.oldest().as_millis() as u64,
            full: self.full.load(Ordering::SeqCst),
            ..EngineStats::default()
        };
        for segment in self.segments.read().values() {
            let state = segment.state.lock();
            stats.segments += 1;
            stats.segments_open += u64::from(!state.indexed);
            stats.chunks += state.live_count;
            stats.live_bytes += state.live_bytes;
            stats.payload_bytes += state.payload_bytes;
            stats.tombstone_bytes += state.tombstone_bytes;
            stats.dead_bytes += state.unpunched.values().sum::<u64>();
        }
        stats
    }

    pub(super) fn segment_stats(&self, segment: &Segment) -> SegmentStats {
        let tombstones_needed = self.retention.lock().is_needed(segment.number());
        let state = segment.state.lock();
        SegmentStats {
            number: segment.number(),
            len_bytes: segment.header.len_bytes,
            tail_bytes: state.cursor,
            chunks: state.live_count,
            live_bytes: state.live_bytes,
            dead_bytes: state.unpunched.values().sum(),
            sealed: state.sealed,
            indexed: state.indexed,
            unsettled: state.unsettled,
            tombstones_needed,
        }
    }

    /// Publishes [`EngineStats`] as gauges.
    pub(crate) fn publish_gauges(&self) {
        let stats = self.stats();
        let disk = self.config.dir.display().to_string();
        let set = |name: &'static str, value: u64| metrics::gauge!(name, "disk" => disk.clone()).set(value as f64);
        set("holdfast_storage_capacity_bytes", stats.capacity_bytes);
        set("holdfast_storage_free_bytes", stats.free_bytes);
        set("holdfast_storage_chunks", stats.chunks);
        set("holdfast_storage_payload_bytes", stats.payload_bytes);
        set("holdfast_storage_live_bytes", stats.live_bytes);
        set("holdfast_storage_dead_bytes", stats.dead_bytes);
        set("holdfast_storage_tombstone_bytes", stats.tombstone_bytes);
        set("holdfast_storage_segments", stats.segments);
        set("holdfast_storage_index_memory_bytes", stats.index_memory_bytes);
        set("holdfast_storage_jobs_waiting", stats.jobs_waiting);
        set("holdfast_storage_fenced", u64::from(stats.fenced.is_some()));
        set("holdfast_storage_full", u64::from(stats.full));
    }
}
