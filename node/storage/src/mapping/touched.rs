//! Which parts of a mapping may be in the process's page tables: one bit for what one fault maps. What is read again
//! and again is mapped once, and counted once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::verified::words_of;

/// A fault maps up to this much around it (the kernel's `fault_around_bytes`).
const WINDOW_BYTES: u64 = 64 << 10;

pub(super) struct TouchedWindows {
    words: Box<[AtomicU64]>,
}

impl TouchedWindows {
    pub(super) fn new(len_bytes: u64) -> Self {
        let words = len_bytes.div_ceil(WINDOW_BYTES).div_ceil(u64::BITS.into());
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes that a range is read; gives how many bytes that may map which were not noted.
    pub(super) fn insert(&self, range: Range<u64>) -> u64 {
        let windows = range.start / WINDOW_BYTES..range.end.div_ceil(WINDOW_BYTES);
        let mut new = 0;
        for (word, mask) in words_of(windows) {
            // Most often all is there: a look does not take the line from other threads.
            if self.words[word].load(Ordering::Relaxed) & mask != mask {
                let before = self.words[word].fetch_or(mask, Ordering::Relaxed);
                new += u64::from((mask & !before).count_ones());
            }
        }
        new * WINDOW_BYTES
    }

    pub(super) fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_again_is_counted_once() {
        let windows = TouchedWindows::new(200 * WINDOW_BYTES + 1);
        assert_eq!(windows.insert(10..20), WINDOW_BYTES);
        assert_eq!(windows.insert(0..WINDOW_BYTES), 0);
        assert_eq!(windows.insert(WINDOW_BYTES - 1..WINDOW_BYTES + 1), WINDOW_BYTES);
        assert_eq!(windows.insert(0..200 * WINDOW_BYTES + 1), 199 * WINDOW_BYTES);
        windows.clear();
        assert_eq!(windows.insert(70 * WINDOW_BYTES..71 * WINDOW_BYTES), WINDOW_BYTES);
    }
}
