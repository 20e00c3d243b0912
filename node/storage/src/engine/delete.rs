//! Deleting: a tombstone record, durable before anything else happens, then the hole.
//!
//! The number in a tombstone's entry is drawn under the lock of the index shard while the chunk stands there. So it is
//! above the number of the record that it kills, and below that of any record that is written under the same id later,
//! because such a record is reserved only after the chunk has left the index. While a deletion runs, compaction does
//! not move the chunk.

use std::sync::Arc;

use holdfast_protocol::ChunkId;

use super::Inner;
use super::space::Purpose;
use crate::error::WriteError;
use crate::format::record::{Kill, RecordKind, RecordLayout};
use crate::index::Location;
use crate::segment::Segment;

impl Inner {
    pub(super) async fn delete(self: &Arc<Self>, ids: &[ChunkId]) -> Result<(), WriteError> {
        for ids in ids.chunks(Kill::PER_RECORD_MAX) {
            self.check_writable()?;
            let doomed = Doomed::mark(self, ids);
            if doomed.chunks.is_empty() {
                continue;
            }
            let kills: Vec<_> = doomed.chunks.iter().map(|(kill, _)| *kill).collect();
            self.write_kills(&kills, |tombstones| doomed.carry_out(tombstones)).await?;
            metrics::counter!("holdfast_storage_chunks_deleted_total").increment(kills.len() as u64);
        }
        Ok(())
    }

    /// Makes tombstones durable; `then` runs before their segment can be taken for dead.
    pub(crate) async fn write_kills(
        self: &Arc<Self>,
        kills: &[Kill],
        then: impl FnOnce(&Arc<Segment>),
    ) -> Result<(), WriteError> {
        let mut payload = Vec::with_capacity(kills.len() * Kill::BYTES);
        kills.iter().for_each(|kill| kill.encode_into(&mut payload));
        let layout = RecordLayout::new(payload.len(), 0).expect("a list of bounded length has a layout");
        let mut reservation = self.reserve(u64::from(layout.record_len), Purpose::Tombstones).await?;
        self.write_record(&mut reservation, RecordKind::Tombstones, layout, &payload).await?;
        {
            let mut state = reservation.segment.state.lock();
            state.kills.extend_from_slice(kills);
            state.tombstone_bytes += u64::from(layout.record_len);
            state.kill_count += kills.len();
            let highest = kills.iter().map(|kill| kill.sequence).max().unwrap_or(0);
            state.sequence_max = state.sequence_max.max(reservation.sequence).max(highest);
        }
        then(&reservation.segment);
        reservation.settle();
        Ok(())
    }
}

/// Chunks whose deletion runs.
struct Doomed {
    inner: Arc<Inner>,
    chunks: Vec<(Kill, Location)>,
}

impl Doomed {
    fn mark(inner: &Arc<Inner>, ids: &[ChunkId]) -> Self {
        let mut chunks = Vec::with_capacity(ids.len());
        for id in ids {
            let marked = inner.index.exclusively(id, |location| {
                *inner.deleting.lock().entry(*id).or_default() += 1;
                (Kill { id: *id, sequence: inner.draw_sequence() }, location)
            });
            chunks.extend(marked);
        }
        Self { inner: Arc::clone(inner), chunks }
    }

    /// The tombstones are durable in `tombstones`: the chunks leave the index, and their space is given back.
    fn carry_out(&self, tombstones: &Segment) {
        let inner = &self.inner;
        for (kill, location) in &self.chunks {
            // Another deletion of the same chunk may have come first; its tombstone does what ours would.
            let removed = inner.index.remove_if(&kill.id, *location);
            {
                let mut retention = inner.retention.lock();
                // Looked up under the lock: a removal leaves the map first and reports to `retention` then.
                if inner.segments.read().contains_key(&location.segment) {
                    retention.note_death(tombstones.number(), location.segment);
                }
            }
            if removed && let Some(segment) = inner.segment(location.segment) {
                let (record, payload) = (location.record_len(), location.payload_len());
                segment.bury(location.block, u64::from(record), u64::from(payload));
            }
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let mut deleting = self.inner.deleting.lock();
        for (kill, _) in &self.chunks {
            if let Some(count) = deleting.get_mut(&kill.id) {
                *count -= 1;
                if *count == 0 {
                    deleting.remove(&kill.id);
                }
            }
        }
    }
}
