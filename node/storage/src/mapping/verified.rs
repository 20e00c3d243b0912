//! Which pages of a segment were compared with their checksums since they came into the page cache: one bit a page,
//! 32 KiB for a segment of 1 GiB.
//!
//! A page and not a checksum block is the unit, since payloads begin at any page. The bits order nothing by themselves:
//! whoever sets them has read the bytes from the page cache before, and whoever sees them reads the same page cache.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PAGE_BYTES;

const WORD_BITS: u64 = 64;

pub(super) struct VerifiedPages {
    words: Box<[AtomicU64]>,
}

impl VerifiedPages {
    pub(super) fn new(len_bytes: u64) -> VerifiedPages {
        let words = len_bytes.div_ceil(PAGE_BYTES).div_ceil(WORD_BITS);
        VerifiedPages { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether every page that the range touches is marked.
    pub(super) fn contains(&self, range: Range<u64>) -> bool {
        words_of(touched(range)).all(|(word, mask)| self.words[word].load(Ordering::Acquire) & mask == mask)
    }

    /// Marks the pages that lie in the range whole.
    pub(super) fn insert(&self, range: Range<u64>) {
        for (word, mask) in words_of(range.start.div_ceil(PAGE_BYTES)..range.end / PAGE_BYTES) {
            self.words[word].fetch_or(mask, Ordering::Release);
        }
    }

    /// Unmarks every page that the range touches.
    pub(super) fn remove(&self, range: Range<u64>) {
        for (word, mask) in words_of(touched(range)) {
            self.words[word].fetch_and(!mask, Ordering::Release);
        }
    }
}

/// Pages that a range of bytes touches.
fn touched(range: Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) }
}

/// The words that hold a range of pages (or other things with a bit each), each with the mask of those pages.
pub(super) fn words_of(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = pages.start;
    std::iter::from_fn(move || {
        if at >= pages.end {
            return None;
        }
        let (word, bit) = (at / WORD_BITS, at % WORD_BITS);
        let count = (WORD_BITS - bit).min(pages.end - at);
        at += count;
        let mask = if count == WORD_BITS { u64::MAX } else { ((1 << count) - 1) << bit };
        Some((word as usize, mask))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 300;

    proptest! {
        #[test]
        fn bits_agree_with_a_plain_set(operations in prop::collection::vec((any::<bool>(), 0..PAGES * PAGE_BYTES, 0..PAGES * PAGE_BYTES), 1..40), asked in (0..PAGES * PAGE_BYTES, 0..PAGES * PAGE_BYTES)) {
            let pages = VerifiedPages::new(PAGES * PAGE_BYTES);
            let mut model = vec![false; PAGES as usize];
            for (insert, a, b) in operations {
                let range = a.min(b)..a.max(b);
                for page in 0..PAGES {
                    let bytes = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                    if insert && range.start <= bytes.start && bytes.end <= range.end {
                        model[page as usize] = true;
                    }
                    if !insert && !range.is_empty() && range.start < bytes.end && bytes.start < range.end {
                        model[page as usize] = false;
                    }
                }
                if insert { pages.insert(range) } else { pages.remove(range) }
            }
            let asked = asked.0.min(asked.1)..asked.0.max(asked.1);
            let expected = (0..PAGES).all(|page| {
                let touches = !asked.is_empty() && asked.start < (page + 1) * PAGE_BYTES && page * PAGE_BYTES < asked.end;
                !touches || model[page as usize]
            });
            prop_assert_eq!(pages.contains(asked), expected);
        }
    }
}
