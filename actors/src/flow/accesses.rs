//! Reads of objects noted for lifecycle rules that go by them: in memory where they happen, and from there in batches.
//!
//! Noting a read costs a lock of a part of the memory and no waiting. An object is noted at most once a day by a node,
//! as far as the node remembers; what it forgets is noted again, which changes nothing. Everything is bounded: when
//! notes cannot be written away, further ones are dropped and counted. What is in memory when a node dies is lost:
//! about a minute of reads, after which an object may be moved to where its rules have it move for not being read. It
//! can be read there.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::domain::lifecycle::Day;
use crate::ports::AccessLog;
use crate::ports::accesses::{NOTES_MAX, ReadNote};
use crate::ports::metadata::BucketId;

/// Parts of the memory, each with a lock.
const SHARDS: usize = 16;
/// Objects that are remembered as noted today, in all: 16 MB of hashes, with room to grow.
const SEEN_MAX: usize = 1 << 20;
/// Notes that wait to be written, in all.
const WAITING_MAX: usize = 1 << 16;
/// Bytes of their keys, in all.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Time for one call of the store.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Shard {
    day_ms: u64,
    /// Hashes of objects noted today. Two of one hash cost a note, once in a very long time.
    seen: HashSet<u64>,
    waiting: Vec<ReadNote>,
    waiting_bytes: usize,
}

/// Where reads are noted.
pub struct ReadRecorder {
    day: Day,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl ReadRecorder {
    /// An empty one.
    pub fn new(day: Day) -> Self {
        Self { day, hasher: RandomState::new(), shards: Default::default() }
    }

    /// Notes that the latest version of a key was read.
    pub fn note(&self, bucket: BucketId, key: &str, now_ms: u64) {
        let hash = self.hasher.hash_one((bucket.0, key));
        let day_ms = self.day.begin_ms(now_ms);
        let mut shard = self.shard(hash).lock();
        if shard.day_ms != day_ms {
            shard.day_ms = day_ms;
            shard.seen.clear();
        }
        if !shard.seen.contains(&hash) && keep(&mut shard, ReadNote { bucket, key: key.to_owned(), day_ms }) {
            if shard.seen.len() >= SEEN_MAX / SHARDS {
                shard.seen.clear();
            }
            shard.seen.insert(hash);
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[hash as usize % SHARDS]
    }

    /// Takes out what waits.
    fn take(&self) -> Vec<ReadNote> {
        let mut notes = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            notes.append(&mut shard.waiting);
            shard.waiting_bytes = 0;
        }
        notes
    }

    /// Puts back what could not be written, as far as there is room.
    fn put_back(&self, notes: impl IntoIterator<Item = ReadNote>) {
        for note in notes {
            let hash = self.hasher.hash_one((note.bucket.0, note.key.as_str()));
            keep(&mut self.shard(hash).lock(), note);
        }
    }

    /// Writes away what waits. Notes of which that fails wait on.
    pub async fn flush(&self, log: &dyn AccessLog) {
        let mut notes = self.take();
        while !notes.is_empty() {
            let batch = notes.split_off(notes.len().saturating_sub(NOTES_MAX));
            let error = match tokio::time::timeout(CALL_TIMEOUT, log.note_reads(&batch)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            };
            tracing::warn!(error, notes = notes.len() + batch.len(), "reads could not be noted, that is tried again");
            self.put_back(batch.into_iter().chain(notes));
            return;
        }
    }
}

/// Whether there was room for it.
fn keep(shard: &mut Shard, note: ReadNote) -> bool {
    let bytes = shard.waiting_bytes + note.key.len();
    if shard.waiting.len() >= WAITING_MAX / SHARDS || bytes > WAITING_BYTES_MAX / SHARDS {
        metrics::counter!("holdfast_reads_not_noted_total").increment(1);
        return false;
    }
    shard.waiting_bytes = bytes;
    shard.waiting.push(note);
    true
}

/// Flushes at an interval, for ever.
pub async fn run(recorder: Arc<ReadRecorder>, log: Arc<dyn AccessLog>, interval: Duration) -> String {
    loop {
        // Nodes that were started together do not write together.
        tokio::time::sleep(interval.mul_f64(rand::random_range(0.75..1.0))).await;
        recorder.flush(&*log).await;
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::ports::MetadataError;
    use crate::ports::accesses::ReadKey;
    use crate::ports::metadata::{AgePosition, MetadataResult};

    const B: BucketId = BucketId(1);
    const DAY_MS: u64 = 86_400_000;

    /// Keeps what it is told, unless it is broken.
    #[derive(Default)]
    struct Told {
        notes: Mutex<Vec<ReadNote>>,
        calls: Mutex<Vec<usize>>,
        is_broken: bool,
    }

    #[async_trait]
    impl AccessLog for Told {
        async fn note_reads(&self, notes: &[ReadNote]) -> MetadataResult<()> {
            self.calls.lock().push(notes.len());
            if self.is_broken {
                return Err(MetadataError::Busy);
            }
            self.notes.lock().extend_from_slice(notes);
            Ok(())
        }

        async fn last_reads(&self, _: BucketId, _: &[&str]) -> MetadataResult<Vec<(String, u64)>> {
            unreachable!("it only writes")
        }

        async fn read_keys(&self, _: BucketId, _: &AgePosition, _: u64, _: u32) -> MetadataResult<Vec<ReadKey>> {
            unreachable!("it only writes")
        }

        async fn forget_reads(&self, _: &[ReadNote]) -> MetadataResult<()> {
            unreachable!("it only writes")
        }

        async fn next_read_bucket(&self, _: Option<BucketId>) -> MetadataResult<Option<BucketId>> {
            unreachable!("it only writes")
        }

        async fn forget_bucket_reads(&self, _: BucketId, _: u32) -> MetadataResult<u64> {
            unreachable!("it only writes")
        }
    }

    fn note(key: &str, day_ms: u64) -> ReadNote {
        ReadNote { bucket: B, key: key.into(), day_ms }
    }

    #[tokio::test]
    async fn an_object_is_noted_once_a_day_by_the_begin_of_it() {
        let (recorder, told) = (ReadRecorder::new(Day::REAL), Told::default());
        for now_ms in [DAY_MS, DAY_MS + 5, 2 * DAY_MS - 1] {
            recorder.note(B, "a", now_ms);
            recorder.flush(&told).await;
        }
        recorder.note(BucketId(2), "a", DAY_MS + 7);
        recorder.note(B, "b", DAY_MS + 7);
        recorder.note(B, "a", 2 * DAY_MS);
        recorder.flush(&told).await;
        recorder.flush(&told).await;
        let mut notes = told.notes.lock().clone();
        notes.sort_by(|a, b| (a.day_ms, a.bucket.0, &a.key).cmp(&(b.day_ms, b.bucket.0, &b.key)));
        let other = ReadNote { bucket: BucketId(2), ..note("a", DAY_MS) };
        assert_eq!(notes, [note("a", DAY_MS), note("b", DAY_MS), other, note("a", 2 * DAY_MS)]);
        assert_eq!(*told.calls.lock(), [1, 3], "nothing is written for nothing");
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_and_what_finds_no_room_is_dropped() {
        let recorder = ReadRecorder::new(Day::REAL);
        let broken = Told { is_broken: true, ..Told::default() };
        for number in 0..2 * WAITING_MAX {
            recorder.note(B, &number.to_string(), 0);
        }
        recorder.flush(&broken).await;
        assert_eq!(*broken.calls.lock(), [NOTES_MAX], "it is not asked again and again");
        let told = Told::default();
        recorder.flush(&told).await;
        assert_eq!(told.notes.lock().len(), WAITING_MAX);
        assert!(told.calls.lock().iter().all(|count| *count <= NOTES_MAX));
        // What was dropped is noted when it is read again; some parts of the room have got more than their share.
        for _ in 0..3 {
            for number in 0..2 * WAITING_MAX {
                recorder.note(B, &number.to_string(), 0);
            }
            recorder.flush(&told).await;
        }
        let notes = told.notes.lock();
        let keys: HashSet<&str> = notes.iter().map(|note| note.key.as_str()).collect();
        assert_eq!((notes.len(), keys.len()), (2 * WAITING_MAX, 2 * WAITING_MAX));
    }

    #[test]
    fn long_keys_fill_the_room_earlier() {
        let recorder = ReadRecorder::new(Day::REAL);
        for number in 0..WAITING_MAX {
            recorder.note(B, &format!("{number:01000}"), 0);
        }
        let bytes: usize = recorder.take().iter().map(|note| note.key.len()).sum();
        assert!(bytes <= WAITING_BYTES_MAX && bytes > WAITING_BYTES_MAX / 2, "{bytes}");
    }
}
