//! Which tombstones are still needed.
//!
//! A tombstone in segment T kills a record in segment X. If T disappeared while the record's header could still be read
//! in X, by a scan or in X's index file, the next start would bring the chunk back. So **T outlives X**: T is removed,
//! by death or by compaction, only after X was removed, or *settled*: all its dead records were punched, the holes are
//! durable, and its index file was rewritten without them. (Compaction may also copy T's tombstones; the copy's segment
//! then outlives X.)
//!
//! A chunk may have more records than the one that the index names: compaction copied it, and the original is dead but
//! not yet settled. Such segments are marked (`stale_copies`), and every tombstone outlives them too.
//!
//! This state is rebuilt at each start from the dead records that are really found. So the disk names no
//! dependencies, and a crash between any two steps is healed by looking.

use std::collections::BTreeSet;

use hashbrown::HashMap;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    /// T → the X's that it must outlive.
    outlives: HashMap<u32, BTreeSet<u32>>,
    /// Deaths in X so far, so that a settling that ran meanwhile knows that it missed one.
    deaths: HashMap<u32, u64>,
    /// Segments with dead copies of chunks that live elsewhere.
    stale_copies: BTreeSet<u32>,
}

impl Retention {
    /// A tombstone in `tombstone` killed a record in `dead`, and perhaps stale copies of it.
    pub(crate) fn note_death(&mut self, tombstone: u32, dead: u32) {
        *self.deaths.entry(dead).or_default() += 1;
        let others = self.outlives.entry(tombstone).or_default();
        others.extend(self.stale_copies.iter().copied());
        others.insert(dead);
        others.remove(&tombstone);
    }

    /// A record in `segment` is dead though no tombstone says so: its chunk lives elsewhere.
    pub(crate) fn note_stale_copy(&mut self, segment: u32) {
        *self.deaths.entry(segment).or_default() += 1;
        self.stale_copies.insert(segment);
    }

    /// Tombstones of `from` were copied to `to`.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let Some(mut dead) = self.outlives.get(&from).cloned() else { return };
        dead.remove(&to);
        self.outlives.entry(to).or_default().extend(dead);
    }

    /// The segment's tombstones were copied: others do its duty.
    pub(crate) fn relieve(&mut self, tombstone: u32) {
        self.outlives.remove(&tombstone);
    }

    /// Whether the tombstones of a segment are still needed.
    pub(crate) fn is_needed(&self, tombstone: u32) -> bool {
        self.outlives.get(&tombstone).is_some_and(|dead| !dead.is_empty())
    }

    /// Deaths in a segment so far; to be given to [`Retention::settled`].
    pub(crate) fn deaths(&self, dead: u32) -> u64 {
        self.deaths.get(&dead).copied().unwrap_or(0)
    }

    /// Nothing dead is left in `dead`, as of when it had `deaths` deaths. Returns the segments whose tombstones are not
    /// needed any more, or `None` when there were more deaths since.
    pub(crate) fn settled(&mut self, dead: u32, deaths: u64) -> Option<Vec<u32>> {
        (self.deaths(dead) == deaths).then(|| self.forget(dead))
    }

    /// The segment's file is gone for good.
    pub(crate) fn removed(&mut self, segment: u32) -> Vec<u32> {
        self.outlives.remove(&segment);
        self.deaths.remove(&segment);
        self.forget(segment)
    }

    fn forget(&mut self, dead: u32) -> Vec<u32> {
        self.stale_copies.remove(&dead);
        let mut released = vec![];
        for (tombstone, others) in &mut self.outlives {
            if others.remove(&dead) && others.is_empty() {
                released.push(*tombstone);
            }
        }
        released.sort_unstable();
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_outlive_what_they_killed() {
        let mut retention = Retention::default();
        retention.note_death(9, 1);
        retention.note_death(9, 2);
        assert!(retention.is_needed(9));
        assert!(retention.removed(1).is_empty());
        assert_eq!(retention.removed(2), [9]);
        assert!(!retention.is_needed(9));
    }

    #[test]
    fn settling_that_missed_a_death_releases_nothing() {
        let mut retention = Retention::default();
        retention.note_death(9, 1);
        let deaths = retention.deaths(1);
        retention.note_death(8, 1);
        assert_eq!(retention.settled(1, deaths), None);
        assert_eq!(retention.settled(1, retention.deaths(1)), Some(vec![8, 9]));
    }

    #[test]
    fn tombstones_outlive_segments_with_stale_copies() {
        let mut retention = Retention::default();
        retention.note_stale_copy(1);
        retention.note_death(9, 4);
        assert!(retention.removed(4).is_empty());
        assert_eq!(retention.removed(1), [9]);
    }

    #[test]
    fn a_copy_of_tombstones_takes_over_their_duty() {
        let mut retention = Retention::default();
        retention.note_death(5, 1);
        retention.note_death(5, 6);
        retention.copy(5, 6);
        assert!(retention.removed(5).is_empty());
        assert!(retention.is_needed(6));
        assert_eq!(retention.removed(1), [6]);
    }

    #[test]
    fn a_tombstone_in_the_segment_that_it_concerns_needs_nobody() {
        let mut retention = Retention::default();
        retention.note_death(3, 3);
        assert!(!retention.is_needed(3));
    }
}
