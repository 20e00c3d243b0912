//! Filling the index from what was found, segment by segment in the order of the log.
//!
//! A tombstone kills the records before it; of two copies the later one stands; dead records that are still listed get
//! their holes, and decide which tombstones are needed ([`super::super::retention`]).

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use holdfast_protocol::ChunkId;

use super::super::retention::Retention;
use super::super::scan::{Suspect, scan};
use super::super::small_files::read_file;
use super::{Found, Opener, failed, finding};
use crate::error::{OpenError, is_unreadable};
use crate::finding::Finding;
use crate::format::index_file::{IndexEntry, IndexFile};
use crate::format::record::RecordKind;
use crate::index::{Index, Location};
use crate::jobs::Job;
use crate::segment::Segment;

impl Opener {
    /// Fills the index, in the order of the log.
    pub(super) async fn fill(&mut self, found: &mut [Found]) -> Result<(Index, Retention), OpenError> {
        let mut kills: HashMap<ChunkId, (u64, u32)> = HashMap::new();
        for Found { segment, kills: list, .. } in found.iter() {
            for kill in list {
                self.sequence_max = self.sequence_max.max(kill.sequence);
                let strongest = kills.entry(kill.id).or_insert((kill.sequence, segment.number()));
                *strongest = (*strongest).max((kill.sequence, segment.number()));
            }
        }
        let by_number: HashMap<u32, Arc<Segment>> =
            found.iter().map(|found| (found.segment.number(), Arc::clone(&found.segment))).collect();
        let mut copies = vec![];
        let mut filling = Filling { index: Index::default(), retention: Retention::default(), kills, by_number };
        for Found { segment, scan, kills } in found.iter_mut() {
            let (entries, damaged) = match scan.take() {
                Some(scan) => {
                    let damaged: HashSet<u32> = scan.suspects.iter().map(Suspect::block).collect();
                    let entries = scan.entries();
                    let doubtful = scan.suspects.into_iter().filter(Suspect::is_doubtful_copy);
                    copies.extend(doubtful.map(|suspect| (segment.number(), suspect)));
                    (entries, damaged)
                }
                None => (self.indexed_entries(segment).await?, HashSet::new()),
            };
            filling.index.reserve(entries.len());
            for entry in &entries {
                filling.add(segment, entry, damaged.contains(&entry.block));
            }
            let mut state = segment.state.lock();
            if !state.indexed {
                state.entries = entries;
                state.kills = std::mem::take(kills);
                drop(state);
                self.jobs.push(Job::Seal(Arc::clone(segment)));
            }
        }
        self.judge_copies(&filling.index, copies);
        Ok((filling.index, filling.retention))
    }

    /// A copy made by compaction that does not match: torn where its original stands, or a deletion; else it was the
    /// chunk.
    fn judge_copies(&mut self, index: &Index, copies: Vec<(u32, Suspect)>) {
        for (segment, suspect) in copies {
            let entry = suspect.entry();
            let here = Location { segment, block: entry.block, extent: entry.extent };
            if index.get(&entry.id) == Some(here) {
                self.report.damaged.push(entry.id);
                let chunk = Some(entry.id);
                self.findings.push(Finding { chunk, ..finding(segment, suspect.offset, suspect.detail) });
            } else {
                self.report.torn.push(entry.id);
            }
        }
    }

    /// The records that a segment's index file lists; by a scan if the file turns out to be damaged behind its head.
    async fn indexed_entries(&mut self, segment: &Arc<Segment>) -> Result<Vec<IndexEntry>, OpenError> {
        let decoded = match read_file(&self.io, &self.pool, &segment.index_path).await {
            Ok(bytes) => IndexFile::decode(&bytes).map_err(|error| error.to_string()),
            Err(error) if is_unreadable(&error) => Err(error.to_string()),
            Err(error) => return Err(failed("read index file", &segment.index_path)(error)),
        };
        match decoded {
            Ok(file) => Ok(file.entries),
            Err(error) => {
                tracing::warn!(segment = segment.number(), error, "index file damaged: scanning the segment");
                self.report.segments_indexed -= 1;
                self.report.segments_scanned += 1;
                let context = failed("scan segment", &segment.path);
                let scan = scan(&self.pool, &segment.file, &segment.header).await.map_err(context)?;
                self.note_unread(segment.number(), &scan.unread);
                // The segment was whole when its index file was written: what does not match is damaged, not torn.
                for suspect in scan.suspects.iter().filter(|suspect| suspect.header.kind == RecordKind::Chunk) {
                    self.report.damaged.push(suspect.header.id);
                    let chunk = Some(suspect.header.id);
                    let detail = suspect.detail.clone();
                    self.findings.push(Finding { chunk, ..finding(segment.number(), suspect.offset, detail) });
                }
                let mut state = segment.state.lock();
                state.indexed = false;
                state.sequence_max = state.sequence_max.max(scan.sequence_max);
                self.sequence_max = self.sequence_max.max(scan.sequence_max);
                Ok(scan.entries())
            }
        }
    }
}

/// The index while it is filled.
struct Filling {
    index: Index,
    retention: Retention,
    kills: HashMap<ChunkId, (u64, u32)>,
    by_number: HashMap<u32, Arc<Segment>>,
}

impl Filling {
    fn add(&mut self, segment: &Arc<Segment>, entry: &IndexEntry, damaged: bool) {
        let location = Location { segment: segment.number(), block: entry.block, extent: entry.extent };
        let record_len = u64::from(location.record_len());
        if let Some((sequence, tombstone)) = self.kills.get(&entry.id)
            && entry.sequence <= *sequence
        {
            self.retention.note_death(*tombstone, segment.number());
            segment.release(entry.block, record_len);
            return;
        }
        // A damaged copy gives way to any other one.
        if damaged && self.index.get(&entry.id).is_some() {
            self.retention.note_stale_copy(segment.number());
            segment.release(entry.block, record_len);
            return;
        }
        {
            let mut state = segment.state.lock();
            state.live_count += 1;
            state.live_bytes += record_len;
            state.payload_bytes += u64::from(location.payload_len());
        }
        let Some(old) = self.index.insert(entry.id, location) else { return };
        let elsewhere = self.by_number.get(&old.segment).expect("an indexed chunk's segment is known");
        self.retention.note_stale_copy(old.segment);
        elsewhere.bury(old.block, u64::from(old.record_len()), u64::from(old.payload_len()));
    }
}
