//! Who takes a copy of resident pages right now.
//!
//! A read that does not wait makes the kernel begin to read what is not there, and to count it as resident, before the reader is
//! told and can clear the marks of what was verified there. So a copy is made under the lock of its part of the mapping, marks and
//! all, and whoever asks whether pages may be sent asks for these locks between residency and marks: pages that a copy brought in
//! are seen either while its lock is held, or after it cleared their marks.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use parking_lot::{Mutex, MutexGuard};

/// Bytes under one lock: a copy is seldom longer.
const REGION_BYTES: u64 = 256 << 10;

/// Locks of a mapping; regions this far apart share one.
const SLOTS: usize = 64;

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
    /// Waits for other copies from the same part, which takes as long as copying some memory. `None`: the range is too long.
    pub(super) fn begin(&self, range: &Range<u64>) -> Option<Turn<'_>> {
        let (first, last) = regions(range);
        if last - first > 1 {
            return None;
        }
        // In one order, or two might wait for each other.
        let (a, b) = (slot(first).min(slot(last)), slot(first).max(slot(last)));
        let lower = self.slots[a].lock();
        let higher = (a != b).then(|| self.slots[b].lock());
        // The kernel is asked behind the lock.
        fence(Ordering::SeqCst);
        Some(Turn { _slots: [Some(lower), higher] })
    }

    /// Whether a copy of something near is being made. To be asked after residency and before the marks.
    pub(super) fn is_under_way(&self, range: &Range<u64>) -> bool {
        let (first, last) = regions(range);
        fence(Ordering::SeqCst);
        let under_way = (first..=last).take(SLOTS).any(|region| self.slots[slot(region)].is_locked());
        fence(Ordering::SeqCst);
        under_way
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
    use super::*;

    const NEXT_TO_SHARING: u64 = SLOTS as u64 * REGION_BYTES;

    #[test]
    fn a_copy_is_seen_where_it_is_made_and_until_it_ends() {
        let copying = Copying::default();
        let copied = REGION_BYTES - 10..REGION_BYTES + 10;
        assert!(!copying.is_under_way(&copied));
        let turn = copying.begin(&copied).expect("it is short");
        for seen in [0..1, REGION_BYTES - 1..REGION_BYTES, REGION_BYTES..REGION_BYTES + 1, 0..NEXT_TO_SHARING] {
            assert!(copying.is_under_way(&seen), "{seen:?}");
        }
        assert!(!copying.is_under_way(&(2 * REGION_BYTES..3 * REGION_BYTES)));
        drop(turn);
        assert!(!copying.is_under_way(&(0..NEXT_TO_SHARING)));
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
