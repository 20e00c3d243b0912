//! Rows whose lane or key was refused: they wait, and leave the pipeline to the others.
//!
//! Of a key that is held nothing later is published, whatever lane it has by now. Only numbers and keys of the rows are
//! kept, so that looks need not read them again and again while a broker is gone. A lane is tried with a few of its
//! lowest rows first; once one of them is taken, all are let go.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::ports::events::Topic;

/// Rows that a lane is tried with.
const TRIED_ROWS: usize = 32;

/// What is refused together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// What the bus sends together.
    Of(Topic, u64),
    /// One key, of a lane that takes others.
    Key(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is begun before.
    Until(Instant),
    /// The next rows that are found of it are begun.
    Free,
    /// They are on their way.
    Trying,
}

/// A lane that was refused.
struct Hold {
    state: State,
    /// How long it is held when it is refused once more.
    next_pause: Duration,
    /// Whether it works again, and all rows are let go.
    works: bool,
    rows: BTreeMap<u64, String>,
}

/// All that was refused.
#[derive(Default)]
pub(super) struct Held {
    lanes: HashMap<Lane, Hold>,
    /// Keys of rows that are held: by which lane, and how many they are.
    keys: HashMap<String, (Lane, usize)>,
    rows: usize,
}

impl Held {
    /// Holds a lane from `now` on, for longer than the last time.
    pub(super) fn hold(&mut self, lane: &Lane, now: Instant, (first, longest): (Duration, Duration)) {
        if !self.lanes.contains_key(lane) {
            let new = Hold { state: State::Free, next_pause: first, works: false, rows: BTreeMap::new() };
            self.lanes.insert(lane.clone(), new);
        }
        let Some(hold) = self.lanes.get_mut(lane) else { return };
        // Several groups of it may have been on their way.
        if hold.works || !matches!(hold.state, State::Until(_)) {
            hold.works = false;
            hold.state = State::Until(now + hold.next_pause);
            hold.next_pause = (hold.next_pause * 2).min(longest);
        }
    }

    /// Whether a lane was refused the last time.
    pub(super) fn has(&self, lane: &Lane) -> bool {
        self.lanes.contains_key(lane)
    }

    /// Whether a row must wait.
    pub(super) fn holds(&self, lane: &Lane, key: &str, sequence: u64) -> bool {
        let is_before_the_key = || {
            let lowest = self.keys.get(key).and_then(|(lane, _)| self.lanes.get(lane)?.rows.first_key_value());
            lowest.is_some_and(|(lowest, _)| *lowest < sequence)
        };
        self.lanes.get(lane).is_some_and(|hold| hold.state != State::Free) || is_before_the_key()
    }

    /// Adds a row of what is held.
    pub(super) fn add(&mut self, lane: &Lane, key: String, sequence: u64) {
        let (lane, count) = self.keys.entry(key.clone()).or_insert_with(|| (lane.clone(), 0));
        if let Some(hold) = self.lanes.get_mut(lane)
            && hold.rows.insert(sequence, key).is_none()
        {
            *count += 1;
            self.rows += 1;
        }
    }

    /// Lets rows go whose time has come: the next look reads them. None must be under way, as it would show later rows
    /// of their keys and not them.
    pub(super) fn release(&mut self, now: Instant) {
        for hold in self.lanes.values_mut().filter(|hold| matches!(hold.state, State::Until(until) if until <= now)) {
            hold.state = State::Free;
            let count = if hold.works { hold.rows.len() } else { hold.rows.len().min(TRIED_ROWS) };
            for (_, key) in (0..count).map_while(|_| hold.rows.pop_first()) {
                self.rows -= 1;
                if let Some((_, left)) = self.keys.get_mut(&key) {
                    *left -= 1;
                    if *left == 0 {
                        self.keys.remove(&key);
                    }
                }
            }
        }
    }

    /// Rows of a lane are on their way.
    pub(super) fn begun(&mut self, lane: &Lane) {
        if let Some(hold) = self.lanes.get_mut(lane) {
            hold.state = State::Trying;
        }
    }

    /// A lane took something: what is held of it is let go from `now` on. Says of one that was not held nothing.
    pub(super) fn works(&mut self, lane: &Lane, now: Instant, (first, _): (Duration, Duration)) {
        let Some(hold) = self.lanes.get_mut(lane) else { return };
        // An answer to what was sent before it was held says nothing.
        if matches!(hold.state, State::Until(_)) {
            return;
        }
        if hold.rows.is_empty() {
            self.lanes.remove(lane);
        } else {
            (hold.state, hold.next_pause, hold.works) = (State::Until(now), first, true);
        }
    }

    /// Forgets lanes that were let go and have no rows any more: another owner published them, or they are of another
    /// lane by now.
    pub(super) fn settle(&mut self) {
        self.lanes.retain(|_, hold| hold.state != State::Free || !hold.rows.is_empty());
        // What was let go and is not there leaves the others waiting for nothing.
        for hold in self.lanes.values_mut().filter(|hold| hold.state == State::Free) {
            (hold.state, hold.works) = (State::Until(Instant::now()), true);
        }
    }

    /// When something is to be tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let until = |hold: &Hold| if let State::Until(until) = hold.state { Some(until) } else { None };
        self.lanes.values().filter_map(until).min()
    }

    /// Numbers of the rows.
    pub(super) fn sequences(&self) -> impl Iterator<Item = u64> {
        self.lanes.values().flat_map(|hold| hold.rows.keys().copied())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));

    #[tokio::test(start_paused = true)]
    async fn key_stays_held_when_its_lane_changes() {
        let (old, new) = (Lane::Of(Topic::Objects, 1), Lane::Of(Topic::Objects, 2));
        let (mut held, now) = (Held::default(), Instant::now());
        held.hold(&old, now, PAUSES);
        held.add(&old, "key".into(), 5);
        assert!(held.holds(&new, "key", 9) && held.holds(&old, "other", 9) && !held.holds(&new, "other", 9));
        // A later row of the key, by its new lane, waits with the earlier one.
        held.add(&new, "key".into(), 9);
        assert_eq!(held.rows(), 2);
        held.release(now + PAUSES.0);
        assert!(!held.holds(&old, "key", 5) && held.rows() == 0 && held.next_due().is_none());
        held.begun(&old);
        held.works(&old, now, PAUSES);
        assert!(held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn lane_is_tried_with_a_few_rows_and_then_let_go() {
        let (lane, mut held, now) = (Lane::Of(Topic::Objects, 1), Held::default(), Instant::now());
        held.hold(&lane, now, PAUSES);
        for sequence in 0..100 {
            held.add(&lane, format!("key {}", sequence % 3), sequence);
        }
        let later = now + PAUSES.0;
        held.release(later);
        assert_eq!(held.rows(), 100 - TRIED_ROWS);
        // The first ones may go, and nothing of their keys that comes after what still waits.
        assert!(!held.holds(&lane, "key 1", 1) && held.holds(&lane, "key 1", 100) && !held.holds(&lane, "new", 100));
        held.begun(&lane);
        assert!(held.holds(&lane, "new", 100), "one attempt at a time");
        held.works(&lane, later, PAUSES);
        assert!(held.holds(&lane, "new", 100), "nothing passes what is let go");
        held.release(later);
        assert!(held.rows() == 0 && !held.holds(&lane, "key 1", 100));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_a_lane_works() {
        let (lane, mut held, mut now) = (Lane::Of(Topic::Objects, 1), Held::default(), Instant::now());
        for pause_s in [1, 2, 3, 3] {
            held.hold(&lane, now, PAUSES);
            held.add(&lane, "key".into(), 1);
            let due = now + Duration::from_secs(pause_s);
            assert_eq!(held.next_due(), Some(due));
            held.works(&lane, now, PAUSES);
            assert!(!held.is_empty(), "an answer to what was sent before it was held changes nothing");
            now = due;
            held.release(now);
        }
        held.begun(&lane);
        held.settle();
        assert!(!held.is_empty());
        held.works(&lane, now, PAUSES);
        assert!(held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn rows_that_another_owner_published_hold_nothing_up() {
        let (lane, mut held, now) = (Lane::Of(Topic::Objects, 1), Held::default(), Instant::now());
        held.hold(&lane, now, PAUSES);
        for sequence in 0..100 {
            held.add(&lane, "key".into(), sequence);
        }
        for left in [100 - TRIED_ROWS, 0] {
            held.release(now + PAUSES.0);
            assert_eq!(held.rows(), left);
            held.settle();
        }
        assert!(held.is_empty());
    }
}
