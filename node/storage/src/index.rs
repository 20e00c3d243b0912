//! The index in memory: chunk id → place on this disk.
//!
//! 1,024 shards by the top bits of a hash, each a table under its own lock. A table is one array **sorted by hash with
//! gaps**: an entry stands at or after the slot that its hash points to, so that lookups walk a few neighbours, growing
//! is a merge into an array a quarter longer (not twice as long, which is what keeps an entry below 48 bytes with all
//! overhead), and walking it visits chunks in an order that depends on the ids alone: stable across inserts, growth and
//! restarts, and the same on all disks. [`Index::page`] is therefore a cursor without state.
//!
//! An entry is 28 bytes; tables are between 64 % and 80 % full.

use std::cmp::Ordering;

use holdfast_protocol::ChunkId;
use holdfast_protocol::chunk_order::place as hash;
use parking_lot::RwLock;

use crate::format::BLOCK_BYTES;
use crate::format::index_file::unpack_extent;

mod table;

use table::{Slot, Table};

const SHARDS: usize = 1024;

/// Where a chunk's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Segment number.
    pub segment: u32,
    /// Start of the record in the segment, in blocks.
    pub block: u32,
    /// Payload length and place in the record, packed by [`crate::format::index_file::pack_extent`].
    pub extent: u32,
}

impl Location {
    /// Payload length in bytes.
    pub fn payload_len(&self) -> u32 {
        self.extent_parts().0
    }

    /// Offset of the record in its segment, in bytes.
    pub fn record_offset(&self) -> u64 {
        u64::from(self.block) * BLOCK_BYTES as u64
    }

    /// Offset of the payload in the record, in bytes.
    pub fn payload_offset(&self) -> u32 {
        self.extent_parts().1
    }

    /// Length of the record in bytes.
    pub fn record_len(&self) -> u32 {
        let (len, offset) = self.extent_parts();
        (len + offset).next_multiple_of(BLOCK_BYTES as u32)
    }

    fn extent_parts(&self) -> (u32, u32) {
        unpack_extent(self.extent).expect("only extents that were packed or checked enter the index")
    }
}

/// Compares by the order in which [`Index::page`] lists.
pub fn list_order(a: &ChunkId, b: &ChunkId) -> Ordering {
    (hash(a), a).cmp(&(hash(b), b))
}

/// The index of one disk.
pub struct Index {
    shards: Box<[RwLock<Table>]>,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::new(Table::default())).collect() }
    }
}

impl Index {
    fn shard(&self, hash: u64) -> &RwLock<Table> {
        &self.shards[(hash >> 54) as usize]
    }

    /// Where a chunk is.
    pub fn get(&self, id: &ChunkId) -> Option<Location> {
        self.get_with(id, |location| location)
    }

    /// Looks a chunk up and runs `then` before anybody can remove or move it: a reader pins the chunk in there.
    pub fn get_with<T>(&self, id: &ChunkId, then: impl FnOnce(Location) -> T) -> Option<T> {
        let hash = hash(id);
        let table = self.shard(hash).read();
        table.get(hash, id).map(then)
    }

    /// Adds a chunk, or moves it; the place that it had is given back.
    pub fn insert(&self, id: ChunkId, location: Location) -> Option<Location> {
        let hash = hash(&id);
        self.shard(hash).write().insert(hash, Slot::new(id, location))
    }

    /// Moves a chunk from `from` to `to`, unless it is not at `from` any more or `allowed`, asked while nobody else can
    /// look it up, says no.
    pub fn replace_if(&self, id: &ChunkId, from: Location, to: Location, allowed: impl FnOnce() -> bool) -> bool {
        let hash = hash(id);
        let mut table = self.shard(hash).write();
        let stands = table.get(hash, id) == Some(from) && allowed();
        if stands {
            table.insert(hash, Slot::new(*id, to));
        }
        stands
    }

    /// Removes a chunk, unless it is not at `from` any more.
    pub fn remove_if(&self, id: &ChunkId, from: Location) -> bool {
        let hash = hash(id);
        let mut table = self.shard(hash).write();
        let stands = table.get(hash, id) == Some(from);
        if stands {
            table.remove(hash, id);
        }
        stands
    }

    /// Runs `then` on a chunk's place while nobody else can look it up or change it.
    pub fn exclusively<T>(&self, id: &ChunkId, then: impl FnOnce(Location) -> T) -> Option<T> {
        let hash = hash(id);
        let table = self.shard(hash).write();
        table.get(hash, id).map(then)
    }

    /// Makes room for `count` more chunks, so that filling does not grow step by step.
    pub fn reserve(&self, count: usize) {
        let each = count.div_ceil(SHARDS);
        for shard in &self.shards {
            shard.write().reserve(each);
        }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `limit` chunks that follow `after` in [`list_order`].
    pub fn page(&self, after: Option<&ChunkId>, limit: usize) -> Vec<(ChunkId, Location)> {
        let mut page = Vec::with_capacity(limit.min(4096));
        let start = after.map(|id| (hash(id), id));
        let first = start.map_or(0, |(hash, _)| (hash >> 54) as usize);
        for (n, shard) in self.shards.iter().enumerate().skip(first) {
            if page.len() >= limit {
                break;
            }
            let after = start.filter(|_| n == first);
            shard.read().page(after, limit - page.len(), &mut page);
        }
        page
    }

    /// At most `limit` chunks that follow `after` in [`list_order`] and that `wanted` takes. Each table's lock is held
    /// while that table is walked; nothing is allocated for what is passed over.
    pub fn page_of(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
        wanted: impl Fn(&ChunkId) -> bool,
    ) -> Vec<(ChunkId, Location)> {
        let mut page = Vec::new();
        let start = after.map(|id| (hash(id), id));
        let first = start.map_or(0, |(hash, _)| (hash >> 54) as usize);
        for (n, shard) in self.shards.iter().enumerate().skip(first) {
            if page.len() >= limit {
                break;
            }
            let table = shard.read();
            let left = limit - page.len();
            page.extend(table.after(start.filter(|_| n == first)).filter(|(id, _)| wanted(id)).take(left));
        }
        page
    }

    /// Runs `visit` on every chunk, in [`list_order`], each under its table's lock.
    pub fn for_each(&self, mut visit: impl FnMut(&ChunkId, Location)) {
        for shard in &self.shards {
            for (id, location) in shard.read().after(None) {
                visit(&id, location);
            }
        }
    }

    /// Bytes of memory that the index occupies.
    pub fn memory_bytes(&self) -> usize {
        let tables: usize = self.shards.iter().map(|shard| shard.read().memory_bytes()).sum();
        tables + SHARDS * size_of::<RwLock<Table>>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_protocol::ContentId;
    use proptest::prelude::*;

    use super::*;
    use crate::format::index_file::pack_extent;
    use crate::format::record::RecordLayout;

    fn location(n: u32) -> Location {
        let layout = RecordLayout::new(1 + n as usize % 5000, 0).unwrap();
        Location { segment: n, block: n & 0xfffff, extent: pack_extent(&layout) }
    }

    #[test]
    fn a_chunk_costs_at_most_48_bytes_at_every_size() {
        let index = Index::default();
        let mut checked = 0;
        for n in 0..1_000_000u32 {
            // As ids come: many chunks of contents that were begun in the same few seconds.
            let content = ContentId([0x68, 0, 0, (n >> 16) as u8, 1, 2, 3, 4, 5, (n >> 8) as u8, n as u8, 0]);
            index.insert(content.chunk(n >> 4), location(n));
            if n > 100_000 && n % 50_000 == 0 {
                let each = index.memory_bytes() as f64 / index.len() as f64;
                assert!(each <= 48.0, "{each} bytes a chunk at {n}");
                checked += 1;
            }
        }
        assert!(checked > 10);
        assert_eq!(index.len(), 1_000_000);
    }

    #[test]
    fn pages_visit_every_chunk_once_in_an_order_of_ids_alone() {
        let ids: Vec<_> = (0..5000u32).map(|n| ContentId([9; 12]).chunk(n)).collect();
        let (forward, backward) = (Index::default(), Index::default());
        for (id, other) in ids.iter().zip(ids.iter().rev()) {
            forward.insert(*id, location(1));
            backward.insert(*other, location(1));
        }
        let walk = |index: &Index, limit| {
            let (mut seen, mut after) = (vec![], None);
            loop {
                let page = index.page(after.as_ref(), limit);
                let Some((last, _)) = page.last() else { return seen };
                after = Some(*last);
                seen.extend(page.into_iter().map(|(id, _)| id));
            }
        };
        let all = walk(&forward, 7);
        assert_eq!(all, walk(&backward, 1000));
        assert!(all.is_sorted_by(|a, b| list_order(a, b) == Ordering::Less));
        assert_eq!(all.len(), ids.len());
    }

    #[test]
    fn filtered_pages_are_the_pages_without_the_rest() {
        let index = Index::default();
        for n in 0..3000u32 {
            index.insert(ContentId([9; 12]).chunk(n), location(1));
        }
        let wanted = |id: &ChunkId| id.index().is_multiple_of(7);
        let all: Vec<_> = index.page(None, usize::MAX).into_iter().filter(|(id, _)| wanted(id)).collect();
        let (mut seen, mut after) = (vec![], None);
        loop {
            let page = index.page_of(after.as_ref(), 10, wanted);
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            seen.extend(page);
        }
        assert_eq!(seen, all);
        let mut visited = vec![];
        index.for_each(|id, location| visited.push((*id, location)));
        assert_eq!(visited, index.page(None, usize::MAX));
    }

    #[test]
    fn conditional_changes_see_the_place_they_expect() {
        let (index, id) = (Index::default(), ContentId([1; 12]).chunk(0));
        index.insert(id, location(1));
        assert!(!index.replace_if(&id, location(2), location(3), || true));
        assert!(!index.replace_if(&id, location(1), location(2), || false));
        assert!(index.replace_if(&id, location(1), location(2), || true));
        assert!(!index.remove_if(&id, location(1)));
        assert!(index.remove_if(&id, location(2)));
        assert!(index.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(ops in proptest::collection::vec((any::<bool>(), 0..200u32), 0..600)) {
            // One shard's table, so that it grows and shrinks through many states.
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            for (n, (add, key)) in ops.into_iter().enumerate() {
                // Few distinct hashes: runs of equal ones must work too.
                let id = ContentId([0; 12]).chunk(key);
                let hash = u64::from(key / 3).wrapping_mul(0x0123_4567_89ab_cdef) >> 10;
                if add {
                    let place = location(n as u32);
                    prop_assert_eq!(table.insert_by(hash, Slot::new(id, place), test_hash), model.insert((hash, id), place));
                } else {
                    prop_assert_eq!(table.remove_by(hash, &id, test_hash), model.remove(&(hash, id)));
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for ((hash, id), place) in &model {
                prop_assert_eq!(table.get_by(*hash, id, test_hash), Some(*place));
            }
            let mut all = vec![];
            table.page_by(None, usize::MAX, &mut all, test_hash);
            let expected: Vec<_> = model.iter().map(|((_, id), place)| (*id, *place)).collect();
            prop_assert_eq!(all, expected);
        }
    }

    fn test_hash(id: &ChunkId) -> u64 {
        u64::from(id.index() / 3).wrapping_mul(0x0123_4567_89ab_cdef) >> 10
    }
}
