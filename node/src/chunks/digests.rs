//! Digests of shards that are asked for at about the same time, made in one walk over the index.
//!
//! A walk visits every chunk of the node, whichever shard it is for: seconds for a hundred million. Several nodes ask,
//! each for several shards at once, and with a walk for each the last one would wait longer than a peer waits for an
//! answer. So whoever asks while a walk is under way waits for the next one, which is for all that wait by then. Not
//! for the one under way: that may have passed what was stored before the question.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use holdfast_actors::ports::peers::ShardDigest;
use holdfast_protocol::ShardId;
use parking_lot::{Condvar, Mutex};

/// See the module's page.
#[derive(Default)]
pub(super) struct Digests {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    is_walking: bool,
    waiting: Vec<Arc<Wanted>>,
}

/// A digest that somebody waits for.
struct Wanted {
    shard: ShardId,
    shard_count: u32,
    digest: OnceLock<ShardDigest>,
}

impl Digests {
    /// The digest of a shard. `walk` is given the digests of some shards, empty, and adds each chunk to that of its
    /// shard if it is there. Blocks the thread.
    pub(super) fn of(
        &self,
        shard: ShardId,
        shard_count: u32,
        walk: impl FnOnce(&mut BTreeMap<ShardId, ShardDigest>),
    ) -> ShardDigest {
        let mine = Arc::new(Wanted { shard, shard_count, digest: OnceLock::new() });
        let mut state = self.state.lock();
        state.waiting.push(Arc::clone(&mine));
        while state.is_walking && mine.digest.get().is_none() {
            self.ended.wait(&mut state);
        }
        if let Some(digest) = mine.digest.get() {
            return digest.clone();
        }
        let waiting = std::mem::take(&mut state.waiting);
        let (all, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|one| one.shard_count == shard_count);
        state.waiting = others;
        state.is_walking = true;
        drop(state);
        let _walk = Walk(self);
        // This thread's too, which a walk that panicked may have taken along.
        let shards = all.iter().map(|one| one.shard).chain([shard]);
        let mut digests: BTreeMap<_, _> = shards.map(|shard| (shard, ShardDigest::default())).collect();
        walk(&mut digests);
        for one in &all {
            if let Some(digest) = digests.get(&one.shard) {
                // Nobody else walks for it.
                one.digest.set(digest.clone()).ok();
            }
        }
        digests.remove(&shard).unwrap_or_default()
    }
}

/// A walk under way. However it ends, those who wait go on.
struct Walk<'a>(&'a Digests);

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_walking = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use holdfast_protocol::{ChunkId, ContentId};

    use super::*;

    const SHARDS: u32 = 8;

    /// A chunk that stands for what is in a shard.
    fn chunk_of(shard: ShardId) -> (ChunkId, u32) {
        (ContentId([7; 12]).chunk(shard.0), 100 + shard.0)
    }

    fn add(digests: &mut BTreeMap<ShardId, ShardDigest>) {
        for (shard, digest) in digests {
            let (id, size_bytes) = chunk_of(*shard);
            digest.add(&id, size_bytes);
        }
    }

    fn expected(shard: ShardId) -> ShardDigest {
        let mut digests = BTreeMap::from([(shard, ShardDigest::default())]);
        add(&mut digests);
        digests.remove(&shard).unwrap()
    }

    fn wait_for_waiting(digests: &Digests, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while digests.state.lock().waiting.len() < count {
            assert!(Instant::now() < deadline, "they never asked");
            thread::yield_now();
        }
    }

    #[test]
    fn those_who_ask_during_a_walk_share_the_next_one() {
        let (digests, walks) = (Digests::default(), AtomicUsize::new(0));
        let (begun, begin) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (digests, walks) = (&digests, &walks);
            scope.spawn(move || {
                let digest = digests.of(ShardId(0), SHARDS, |found| {
                    walks.fetch_add(1, Ordering::Relaxed);
                    begun.send(()).unwrap();
                    ended.recv().unwrap();
                    add(found);
                });
                assert_eq!(digest, expected(ShardId(0)));
            });
            begin.recv().unwrap();
            // Two each, and the shard of the walk under way, too.
            for shard in (0..SHARDS).chain(0..SHARDS).map(ShardId) {
                scope.spawn(move || {
                    let digest = digests.of(shard, SHARDS, |found| {
                        walks.fetch_add(1, Ordering::Relaxed);
                        add(found);
                    });
                    assert_eq!(digest, expected(shard));
                });
            }
            wait_for_waiting(digests, 2 * SHARDS as usize);
            end.send(()).unwrap();
        });
        assert_eq!(walks.into_inner(), 2, "the one under way, and one for all who came meanwhile");
    }

    #[test]
    fn a_walk_that_panics_takes_nobody_along() {
        let digests = Digests::default();
        let (begun, begin) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let digests = &digests;
            scope.spawn(move || {
                let walk = |_: &mut BTreeMap<ShardId, ShardDigest>| {
                    begun.send(()).unwrap();
                    ended.recv().unwrap();
                    panic!("it falls over");
                };
                assert!(catch_unwind(AssertUnwindSafe(|| digests.of(ShardId(0), SHARDS, walk))).is_err());
            });
            begin.recv().unwrap();
            let next = scope.spawn(move || digests.of(ShardId(1), SHARDS, add));
            wait_for_waiting(digests, 1);
            end.send(()).unwrap();
            assert_eq!(next.join().unwrap(), expected(ShardId(1)));
        });
        assert_eq!(digests.of(ShardId(2), SHARDS, add), expected(ShardId(2)));
    }
}
