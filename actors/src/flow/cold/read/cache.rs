//! Verified blocks of cold contents in memory, bounded by their bytes; the one that was used longest ago goes first.
//!
//! The bound is strict, which is why this is no general cache: those evict some time after the insertion, and a few
//! blocks too many are megabytes. Contents never change and their ids are never used again, so nothing here becomes
//! wrong.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use holdfast_protocol::ContentId;
use parking_lot::Mutex;

/// A block of a content.
pub(super) type BlockKey = (ContentId, usize);

/// See the module's documentation.
pub(super) struct BlockCache {
    bytes_max: u64,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    blocks: HashMap<BlockKey, Entry>,
    /// By the time of their last use, which is a number of its own for each.
    uses: BTreeMap<u64, BlockKey>,
    bytes: u64,
    clock: u64,
}

struct Entry {
    block: Bytes,
    used: u64,
}

impl BlockCache {
    /// Holds at most `bytes_max`; 0: nothing.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, entries: Mutex::default() }
    }

    /// Whether a block of this size is kept.
    pub(super) fn takes(&self, block_bytes: u64) -> bool {
        (1..=self.bytes_max).contains(&block_bytes)
    }

    /// A block, if it is here.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Bytes> {
        let entries = &mut *self.entries.lock();
        let entry = entries.blocks.get_mut(key)?;
        entries.uses.remove(&entry.used);
        entries.clock += 1;
        entry.used = entries.clock;
        entries.uses.insert(entry.used, *key);
        Some(entry.block.clone())
    }

    /// Keeps a block, which must be alone in its buffer: others in it would be held with it, and not counted.
    pub(super) fn put(&self, key: BlockKey, block: Bytes) {
        let bytes = block.len() as u64;
        if !self.takes(bytes) {
            return;
        }
        let entries = &mut *self.entries.lock();
        entries.clock += 1;
        let used = entries.clock;
        entries.bytes += bytes;
        entries.uses.insert(used, key);
        if let Some(before) = entries.blocks.insert(key, Entry { block, used }) {
            entries.bytes -= before.block.len() as u64;
            entries.uses.remove(&before.used);
        }
        while entries.bytes > self.bytes_max {
            let Some((_, oldest)) = entries.uses.pop_first() else { break };
            if let Some(entry) = entries.blocks.remove(&oldest) {
                entries.bytes -= entry.block.len() as u64;
            }
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(content: u8, block: usize) -> BlockKey {
        (ContentId([content; 12]), block)
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let cache = BlockCache::new(3);
        for block in 0..3 {
            cache.put(key(1, block), Bytes::from_static(b"x"));
        }
        assert!(cache.get(&key(1, 0)).is_some());
        cache.put(key(2, 0), Bytes::from_static(b"yy"));
        assert!(cache.get(&key(1, 0)).is_some(), "it was used since");
        assert!(cache.get(&key(1, 1)).is_none() && cache.get(&key(1, 2)).is_none());
        assert_eq!(cache.get(&key(2, 0)).unwrap(), "yy");
    }

    #[test]
    fn blocks_larger_than_all_are_not_kept() {
        let cache = BlockCache::new(3);
        cache.put(key(1, 0), Bytes::from_static(b"abc"));
        cache.put(key(1, 1), Bytes::from_static(b"abcd"));
        assert!(cache.get(&key(1, 0)).is_some());
        assert!(!BlockCache::new(0).takes(1));
    }

    proptest! {
        #[test]
        fn bound_holds_at_all_times(puts in proptest::collection::vec((0u8..3, 0usize..9, 1usize..40), 1..200)) {
            let cache = BlockCache::new(100);
            for (content, block, len) in puts {
                cache.put(key(content, block), Bytes::from(vec![0; len]));
                let entries = cache.entries.lock();
                let held: usize = entries.blocks.values().map(|entry| entry.block.len()).sum();
                prop_assert_eq!(held as u64, entries.bytes);
                prop_assert!(entries.bytes <= 100);
                prop_assert_eq!(entries.uses.len(), entries.blocks.len());
                prop_assert!(entries.blocks.contains_key(&key(content, block)));
            }
        }
    }
}
