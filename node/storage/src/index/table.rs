//! One shard of the index: an array sorted by (hash, id) with gaps; see the parent module.
//!
//! A hash points to a *home* slot, monotonically. An entry stands at its home or after it, with no gap between, and the
//! array is sorted throughout; some slots past the last home take what is pushed over the end. The home is computed
//! from the hash each time instead of being stored.

use holdfast_protocol::ChunkId;

use super::Location;

/// Slots past the last home. A run that would reach further makes the table grow.
const OVERFLOW_SLOTS: usize = 32;

/// One entry, or a gap (`extent` 0, which no chunk has).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Slot {
    id: ChunkId,
    segment: u32,
    block: u32,
    extent: u32,
}

const _: () = assert!(size_of::<Slot>() == 28);

impl Slot {
    const GAP: Self = Self { id: ChunkId([0; 16]), segment: 0, block: 0, extent: 0 };

    pub(super) fn new(id: ChunkId, location: Location) -> Self {
        debug_assert_ne!(location.extent, 0);
        Self { id, segment: location.segment, block: location.block, extent: location.extent }
    }

    fn is_gap(&self) -> bool {
        self.extent == 0
    }

    fn location(&self) -> Location {
        Location { segment: self.segment, block: self.block, extent: self.extent }
    }
}

/// The hash to sort by; a parameter so that tests can make it collide.
type HashFn = fn(&ChunkId) -> u64;

#[derive(Default)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    homes: u32,
    len: u32,
}

/// The table sorts by the bits below those that chose the shard.
fn home_of(hash: u64, homes: u32) -> usize {
    let bits = (hash << 10) >> 32;
    ((bits * u64::from(homes)) >> 32) as usize
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }

    pub(super) fn get(&self, hash: u64, id: &ChunkId) -> Option<Location> {
        self.get_by(hash, id, super::hash)
    }

    pub(super) fn insert(&mut self, hash: u64, slot: Slot) -> Option<Location> {
        self.insert_by(hash, slot, super::hash)
    }

    pub(super) fn remove(&mut self, hash: u64, id: &ChunkId) -> Option<Location> {
        self.remove_by(hash, id, super::hash)
    }

    pub(super) fn page(&self, after: Option<(u64, &ChunkId)>, limit: usize, page: &mut Vec<(ChunkId, Location)>) {
        self.page_by(after, limit, page, super::hash);
    }

    /// The entries behind `after`, in order.
    pub(super) fn after(&self, after: Option<(u64, &ChunkId)>) -> impl Iterator<Item = (ChunkId, Location)> + '_ {
        self.after_by(after, super::hash)
    }

    /// Where (hash, id) stands, or else where it belongs.
    fn find(&self, hash: u64, id: &ChunkId, hash_of: HashFn) -> Result<usize, usize> {
        if self.slots.is_empty() {
            return Err(0);
        }
        let mut at = home_of(hash, self.homes);
        while let Some(slot) = self.slots.get(at).filter(|slot| !slot.is_gap()) {
            if slot.id == *id {
                return Ok(at);
            }
            if (hash_of(&slot.id), &slot.id) > (hash, id) {
                break;
            }
            at += 1;
        }
        Err(at)
    }

    pub(super) fn get_by(&self, hash: u64, id: &ChunkId, hash_of: HashFn) -> Option<Location> {
        self.find(hash, id, hash_of).ok().map(|at| self.slots[at].location())
    }

    pub(super) fn insert_by(&mut self, hash: u64, slot: Slot, hash_of: HashFn) -> Option<Location> {
        // Full beyond 4 in 5: grow before searching.
        if u64::from(self.len + 1) * 5 > u64::from(self.homes) * 4 {
            self.rebuild(grown(self.homes), hash_of);
        }
        loop {
            let at = match self.find(hash, &slot.id, hash_of) {
                Ok(at) => {
                    let old = self.slots[at].location();
                    self.slots[at] = slot;
                    return Some(old);
                }
                Err(at) => at,
            };
            if let Some(run) = self.slots.get(at..).and_then(|rest| rest.iter().position(Slot::is_gap)) {
                self.slots.copy_within(at..at + run, at + 1);
                self.slots[at] = slot;
                self.len += 1;
                return None;
            }
            self.rebuild(grown(self.homes), hash_of);
        }
    }

    pub(super) fn remove_by(&mut self, hash: u64, id: &ChunkId, hash_of: HashFn) -> Option<Location> {
        let at = self.find(hash, id, hash_of).ok()?;
        let removed = self.slots[at].location();
        // Those behind that do not stand at their home move up.
        let mut end = at + 1;
        while let Some(slot) = self.slots.get(end).filter(|slot| !slot.is_gap()) {
            if home_of(hash_of(&slot.id), self.homes) == end {
                break;
            }
            end += 1;
        }
        self.slots.copy_within(at + 1..end, at);
        self.slots[end - 1] = Slot::GAP;
        self.len -= 1;
        // Less than a quarter full: shrink to half full.
        if self.homes > 64 && u64::from(self.len) * 4 < u64::from(self.homes) {
            self.rebuild((self.len * 2).max(16), hash_of);
        }
        Some(removed)
    }

    pub(super) fn reserve(&mut self, more: usize) {
        let wanted = (self.len() + more) * 10 / 7;
        if wanted > self.homes as usize {
            self.rebuild(u32::try_from(wanted).unwrap_or(u32::MAX), super::hash);
        }
    }

    pub(super) fn page_by(
        &self,
        after: Option<(u64, &ChunkId)>,
        limit: usize,
        page: &mut Vec<(ChunkId, Location)>,
        hash_of: HashFn,
    ) {
        page.extend(self.after_by(after, hash_of).take(limit));
    }

    fn after_by(
        &self,
        after: Option<(u64, &ChunkId)>,
        hash_of: HashFn,
    ) -> impl Iterator<Item = (ChunkId, Location)> + '_ {
        let start = after.map_or(0, |(hash, id)| match self.find(hash, id, hash_of) {
            Ok(at) => at + 1,
            Err(at) => at,
        });
        let rest = self.slots.get(start..).unwrap_or_default();
        rest.iter().filter(|slot| !slot.is_gap()).map(|slot| (slot.id, slot.location()))
    }

    /// Moves everything into an array with `homes` homes (more, if runs get too long for it).
    fn rebuild(&mut self, mut homes: u32, hash_of: HashFn) {
        'again: loop {
            let mut slots = vec![Slot::GAP; homes as usize + OVERFLOW_SLOTS].into_boxed_slice();
            let mut next = 0;
            for slot in self.slots.iter().filter(|slot| !slot.is_gap()) {
                let at = home_of(hash_of(&slot.id), homes).max(next);
                let Some(place) = slots.get_mut(at) else {
                    homes = grown(homes);
                    continue 'again;
                };
                *place = *slot;
                next = at + 1;
            }
            self.slots = slots;
            self.homes = homes;
            return;
        }
    }
}

/// A quarter more.
fn grown(homes: u32) -> u32 {
    (homes + homes / 4).max(16)
}
