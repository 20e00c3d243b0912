//! What a dispatcher has under way: which of the things that are due it has given to consumers, and when it does so
//! again.
//!
//! The tables say what is due; this only remembers, in memory, what need not be dispatched now. Whoever forgets all of
//! it dispatches things twice, which is harmless.
//!
//! * A thing that is still there [`DispatchLimits::late_ms`] after it was dispatched is **late**: its message was lost,
//!   or its consumers failed. It is dispatched again, [`BY_BUS_MAX`] times in all, and then tried by the dispatcher
//!   itself, so that nothing depends on the bus. The time that it is left alone doubles with each try, up to
//!   [`DispatchLimits::late_max_ms`].
//! * At most [`DispatchLimits::tasks_max`] tasks are in flight: dispatched, not late, and with something still there.
//!   What is dispatched again gets half of the room at most while there is something new.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// How often a thing is given to consumers before the dispatcher tries it itself.
pub const BY_BUS_MAX: u32 = 2;

/// Bounds of what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchLimits {
    /// Things in a task.
    pub batch: usize,
    /// Tasks in flight.
    pub tasks_max: usize,
    /// Things that are remembered; beyond that those that are not in flight are forgotten.
    pub things_max: usize,
    /// How long consumers have for a task.
    pub late_ms: u64,
    /// The longest time that something is left alone.
    pub late_max_ms: u64,
}

impl Default for DispatchLimits {
    /// Consumers need milliseconds a content; their tries of a task that fails take about ten minutes.
    fn default() -> Self {
        Self { batch: 256, tasks_max: 16, things_max: 16_384, late_ms: 900_000, late_max_ms: 6 * 3_600_000 }
    }
}

/// A try of a thing.
#[derive(Debug, Clone, Copy)]
struct Tried {
    /// The task that it went with; `None`: the dispatcher tried it itself.
    task: Option<u64>,
    at_ms: u64,
    /// With this one.
    tries: u32,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// One task each.
    pub batches: Vec<Vec<T>>,
    /// What the dispatcher has to try itself.
    pub by_hand: Vec<T>,
}

/// What is under way, of one kind of work. Times are of a monotonic clock.
#[derive(Debug)]
pub struct UnderWay<T> {
    limits: DispatchLimits,
    tried: HashMap<T, Tried>,
    tasks: u64,
}

impl<T: Copy + Eq + Hash> UnderWay<T> {
    /// Nothing yet.
    pub fn new(limits: DispatchLimits) -> Self {
        Self { limits, tried: HashMap::new(), tasks: 0 }
    }

    /// How many of the things that are due have to be listed, oldest first, so that none that could be dispatched is
    /// hidden behind those that are under way.
    pub fn window(&self, now_ms: u64) -> usize {
        self.tried.len() + self.room(now_ms) * self.limits.batch
    }

    /// Decides about what is due now, listed as far as [`Self::window`] says.
    pub fn plan(&mut self, due: &[T], now_ms: u64) -> Plan<T> {
        // What is not due any more is done, or was taken up again.
        let here: HashSet<T> = due.iter().copied().collect();
        self.tried.retain(|thing, _| here.contains(thing));
        if self.tried.len() >= self.limits.things_max {
            self.forget_late(now_ms);
        }
        let (mut new, mut again, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
        for thing in due {
            match self.tried.get(thing) {
                None => new.push(*thing),
                Some(tried) if now_ms < tried.next_ms(&self.limits) => {}
                Some(tried) if tried.tries < BY_BUS_MAX => again.push(*thing),
                Some(_) if by_hand.len() < self.limits.batch => by_hand.push(*thing),
                Some(_) => {}
            }
        }
        let room = self.room(now_ms);
        let tasks = |things: &[T]| things.len().div_ceil(self.limits.batch);
        let new_tasks = tasks(&new).min(room - (room / 2).min(tasks(&again)));
        let again_tasks = tasks(&again).min(room - new_tasks);
        let batches = |things: Vec<T>, tasks: usize| -> Vec<Vec<T>> {
            things.chunks(self.limits.batch).take(tasks).map(<[T]>::to_vec).collect()
        };
        let mut planned = batches(again, again_tasks);
        planned.extend(batches(new, new_tasks));
        Plan { batches: planned, by_hand }
    }

    /// Consumers have a batch, or may have it.
    pub fn on_sent(&mut self, batch: &[T], now_ms: u64) {
        self.tasks += 1;
        self.note(batch, Some(self.tasks), now_ms);
    }

    /// The dispatcher tried these itself.
    pub fn on_tried(&mut self, things: &[T], now_ms: u64) {
        self.note(things, None, now_ms);
    }

    fn note(&mut self, things: &[T], task: Option<u64>, now_ms: u64) {
        for thing in things {
            let tries = self.tried.get(thing).map_or(0, |tried| tried.tries) + 1;
            self.tried.insert(*thing, Tried { task, at_ms: now_ms, tries });
        }
    }

    /// Tasks of which something was still there at the last look, and which are not late.
    pub fn in_flight(&self, now_ms: u64) -> usize {
        let in_flight = self.tried.values().filter(|tried| tried.is_in_flight(self.limits.late_ms, now_ms));
        in_flight.map(|tried| tried.task).collect::<HashSet<_>>().len()
    }

    /// Forgets what is not in flight: it is dispatched as if it were new.
    pub fn forget_late(&mut self, now_ms: u64) {
        let late_ms = self.limits.late_ms;
        self.tried.retain(|_, tried| tried.is_in_flight(late_ms, now_ms));
    }

    /// Forgets everything: others may have gone on.
    pub fn clear(&mut self) {
        self.tried.clear();
    }

    fn room(&self, now_ms: u64) -> usize {
        self.limits.tasks_max.saturating_sub(self.in_flight(now_ms))
    }
}

impl Tried {
    fn is_in_flight(&self, late_ms: u64, now_ms: u64) -> bool {
        self.task.is_some() && now_ms < self.at_ms + late_ms
    }

    /// When it is tried again.
    fn next_ms(&self, limits: &DispatchLimits) -> u64 {
        let doublings = self.tries.saturating_sub(1).min(20);
        let pause_ms = limits.late_ms.saturating_mul(1 << doublings).min(limits.late_max_ms.max(limits.late_ms));
        self.at_ms.saturating_add(pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: DispatchLimits =
        DispatchLimits { batch: 2, tasks_max: 4, things_max: 100, late_ms: 1_000, late_max_ms: 5_000 };

    fn under_way() -> UnderWay<u64> {
        UnderWay::new(LIMITS)
    }

    /// Sends all that is planned.
    fn send(under_way: &mut UnderWay<u64>, due: &[u64], now_ms: u64) -> Vec<Vec<u64>> {
        let plan = under_way.plan(due, now_ms);
        plan.batches.iter().for_each(|batch| under_way.on_sent(batch, now_ms));
        under_way.on_tried(&plan.by_hand, now_ms);
        plan.batches
    }

    #[test]
    fn what_is_under_way_is_not_dispatched_again_and_tasks_are_bounded() {
        let mut under_way = under_way();
        let due: Vec<u64> = (0..20).collect();
        assert_eq!(under_way.window(0), 8);
        assert_eq!(send(&mut under_way, &due[..8], 0), [[0, 1], [2, 3], [4, 5], [6, 7]]);
        assert_eq!((under_way.in_flight(1), under_way.window(1)), (4, 8));
        assert!(send(&mut under_way, &due, 1).is_empty(), "there is no room");
        // One task is done, of another one half.
        assert_eq!(send(&mut under_way, &due[3..], 2), [[8, 9]]);
        assert_eq!(under_way.in_flight(2), 4);
        assert!(send(&mut under_way, &[], 3).is_empty());
        assert_eq!(under_way.in_flight(3), 0);
    }

    #[test]
    fn what_is_late_is_dispatched_once_more_and_then_tried_by_hand_with_growing_pauses() {
        let mut under_way = under_way();
        assert_eq!(send(&mut under_way, &[7], 0), [[7]]);
        assert!(send(&mut under_way, &[7], 999).is_empty());
        assert_eq!(send(&mut under_way, &[7], 1_000), [[7]], "its message was lost");
        let mut by_hand = Vec::new();
        for now_ms in (1_000..30_000).step_by(100) {
            let plan = under_way.plan(&[7], now_ms);
            assert!(plan.batches.is_empty(), "it is no work for consumers any more");
            if !plan.by_hand.is_empty() {
                under_way.on_tried(&plan.by_hand, now_ms);
                by_hand.push(now_ms);
            }
        }
        assert_eq!(by_hand, [3_000, 7_000, 12_000, 17_000, 22_000, 27_000]);
        assert_eq!(under_way.in_flight(30_000), 0, "what is tried by hand takes no room");
    }

    #[test]
    fn what_fails_for_ever_leaves_half_of_the_room_to_what_is_new() {
        let mut under_way = under_way();
        let dead: Vec<u64> = (0..8).collect();
        send(&mut under_way, &dead, 0);
        let due: Vec<u64> = (0..100).collect();
        let window = under_way.window(1_000);
        let sent = send(&mut under_way, &due[..window], 1_000);
        assert_eq!(sent, [[0, 1], [2, 3], [8, 9], [10, 11]]);
        let mut under_way = self::under_way();
        send(&mut under_way, &dead, 0);
        assert_eq!(send(&mut under_way, &dead, 1_000).len(), 4, "there is nothing new");
    }

    #[test]
    fn what_was_taken_up_and_dropped_again_begins_anew() {
        let mut under_way = under_way();
        send(&mut under_way, &[1], 0);
        send(&mut under_way, &[], 10);
        assert_eq!(send(&mut under_way, &[1], 20), [[1]]);
    }

    #[test]
    fn memory_is_bounded_whatever_fails() {
        let mut under_way = UnderWay::new(DispatchLimits { things_max: 10, ..LIMITS });
        let due: Vec<u64> = (0..1_000).collect();
        for now_ms in (0..200_000).step_by(1_000) {
            let window = under_way.window(now_ms);
            assert!(window <= 10 + 2 * 8, "{window}");
            send(&mut under_way, &due[..window], now_ms);
        }
    }

    proptest! {
        /// Whatever is done and whatever is lost, everything is dispatched at last, and the bounds hold.
        #[test]
        fn everything_gets_its_turn(things in 1_u64..60, lost in prop::collection::vec(any::<bool>(), 400)) {
            let mut under_way = under_way();
            let mut left: Vec<u64> = (0..things).collect();
            let mut lost = lost.into_iter();
            let mut now_ms = 0;
            while !left.is_empty() {
                prop_assert!(now_ms < 400_000, "{left:?} are never done");
                let due: Vec<u64> = left.iter().copied().take(under_way.window(now_ms)).collect();
                let plan = under_way.plan(&due, now_ms);
                prop_assert!(plan.batches.iter().all(|batch| !batch.is_empty() && batch.len() <= 2));
                for batch in &plan.batches {
                    under_way.on_sent(batch, now_ms);
                    if !lost.next().unwrap_or(false) {
                        left.retain(|thing| !batch.contains(thing));
                    }
                }
                prop_assert!(under_way.in_flight(now_ms) <= 4);
                under_way.on_tried(&plan.by_hand, now_ms);
                left.retain(|thing| !plan.by_hand.contains(thing));
                now_ms += 250;
            }
        }
    }
}
