//! Who takes a copy of resident pages right now.
//!
//! A read that does not wait makes the kernel begin to read what is not there, and to count it as resident, before the
//! reader is told and can clear the marks of what was verified there. So a copy is made under the lock of its part of
//! the mapping, marks and all, and whoever asks whether pages may be sent waits, between residency and marks, for the
//! copies that are being made there: pages that a copy brought in have lost their marks by then.
//!
//! Who asks waits, and does not take a copy that is under way for a no: a no has the range read and compared anew,
//! which clears its marks meanwhile, so that the next copy is refused and does the same. Senders and peers that share
//! one hot chunk would keep each other busy with reading what is there all the time. But a copy may hang after all,
//! where a full queue of a disk keeps the kernel from beginning to read: then patience ends, and reading anew, which no
//! thread waits for, is the better way.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

/// Bytes under one lock: a copy is seldom longer.
const REGION_BYTES: u64 = 256 << 10;

/// Locks of a mapping; regions this far apart share one.
const SLOTS: usize = 64;

/// How long a copy is waited for. Many times of what one takes; tests may have to wait for a processor.
const PATIENCE: Duration = if cfg!(test) { Duration::from_secs(60) } else { Duration::from_millis(10) };

pub(super) struct Copying {
    slots: [Mutex<()>; SLOTS],
}

impl Default for Copying {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Mutex::new(())) }
    }
}

/// Held while a copy is made.
pub(super) struct Turn<'a> {
    _slots: [Option<MutexGuard<'a, ()>>; 2],
}

impl Copying {
    /// Waits for other copies from the same part, which takes as long as copying some memory. `None`: the range is too
    /// long, or another copy hangs.
    pub(super) fn begin(&self, range: &Range<u64>) -> Option<Turn<'_>> {
        let (first, last) = regions(range);
        if last - first > 1 {
            return None;
        }
        // In one order, or two might wait for each other.
        let (a, b) = (slot(first).min(slot(last)), slot(first).max(slot(last)));
        let lower = self.slots[a].try_lock_for(PATIENCE)?;
        let higher = if a == b { None } else { Some(self.slots[b].try_lock_for(PATIENCE)?) };
        // The kernel is asked behind the lock.
        fence(Ordering::SeqCst);
        Some(Turn { _slots: [Some(lower), higher] })
    }

    /// Waits for the copies that are being made of something near; each takes as long as copying some memory. `false`:
    /// one hangs. To be called after residency was asked and before the marks are.
    pub(super) fn wait(&self, range: &Range<u64>) -> bool {
        self.wait_for(range, PATIENCE)
    }

    fn wait_for(&self, range: &Range<u64>, patience: Duration) -> bool {
        let (first, last) = regions(range);
        fence(Ordering::SeqCst);
        let have_ended = (first..=last).take(SLOTS).all(|region| {
            let slot = &self.slots[slot(region)];
            !slot.is_locked() || slot.try_lock_for(patience).is_some()
        });
        fence(Ordering::SeqCst);
        have_ended
    }
}

/// The first and the last region that a range touches.
fn regions(range: &Range<u64>) -> (u64, u64) {
    let last = range.end.saturating_sub(1).max(range.start);
    (range.start / REGION_BYTES, last / REGION_BYTES)
}

fn slot(region: u64) -> usize {
    (region % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const NEXT_TO_SHARING: u64 = SLOTS as u64 * REGION_BYTES;

    #[test]
    fn a_copy_is_waited_for_where_it_is_made_and_nowhere_else() {
        let copying = Copying::default();
        let copied = REGION_BYTES - 10..REGION_BYTES + 10;
        let everywhere =
            [0..1, REGION_BYTES - 1..REGION_BYTES, REGION_BYTES..REGION_BYTES + 1, 5..5, 0..2 * NEXT_TO_SHARING];
        for near in &everywhere {
            assert!(copying.wait_for(near, Duration::ZERO), "{near:?}");
        }
        let turn = copying.begin(&copied).expect("it is short");
        assert!(copying.wait_for(&(2 * REGION_BYTES..NEXT_TO_SHARING), Duration::ZERO), "nobody copies there");
        for near in &everywhere {
            assert!(!copying.wait_for(near, Duration::ZERO), "{near:?}: patience has an end");
        }
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let (begun, begin) = mpsc::channel();
            for near in &everywhere {
                let (copying, ended, begun) = (&copying, &ended, begun.clone());
                scope.spawn(move || {
                    begun.send(()).expect("it is waited for");
                    assert!(copying.wait(near), "{near:?}: it does not hang");
                    assert!(ended.load(Ordering::SeqCst), "{near:?}: the copy was not waited for");
                });
            }
            for _ in &everywhere {
                begin.recv().expect("each begins");
            }
            // So that who does not wait is seen; who does may come at any time.
            (0..1000).for_each(|_| thread::yield_now());
            ended.store(true, Ordering::SeqCst);
            drop(turn);
        });
    }

    #[test]
    fn regions_that_share_a_lock_do_not_wait_for_themselves() {
        let copying = Copying::default();
        // From the last slot to the first one.
        let around = NEXT_TO_SHARING - 10..NEXT_TO_SHARING + 10;
        drop(copying.begin(&around).expect("it is short"));
        drop(copying.begin(&(5..5)).expect("it is empty"));
        assert!(copying.begin(&(0..3 * REGION_BYTES)).is_none());
    }
}
