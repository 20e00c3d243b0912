//! How many streams from tiers there are at a time, and whose they are.
//!
//! Half of them are for whichever tier asks first. The other half is kept in equal parts, one for each tier that is set
//! up, of at least one stream. So one tier of two has three quarters of them at most, and however many tiers stall,
//! each of the others has its part.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use holdfast_protocol::TierName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// See the module's documentation. Those who wait are served in their order, as far as their tiers may have more.
///
/// There are at most as many streams as were asked for, or one for each tier if that is more. When a tier is added
/// while all are in use, its part comes on top, which is half as many again at most for all that are added, until
/// others end.
pub(super) struct Streams {
    max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Tiers that were set up when it was last asked.
    tiers: usize,
    /// Streams of each tier that has some.
    used: HashMap<TierName, usize>,
    /// Who waits no more is passed over, and forgotten with the next change.
    waiting: VecDeque<(TierName, oneshot::Sender<Permit>)>,
}

/// That there may be a stream, until this is dropped.
pub(super) struct Permit {
    streams: Arc<Streams>,
    tier: TierName,
}

impl Streams {
    /// Of so many.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, state: Mutex::default() })
    }

    /// Asks for a stream from `tier`, one of `tiers` that are set up. Dropping what is returned takes that back.
    pub(super) fn ask(self: &Arc<Self>, tier: &TierName, tiers: usize) -> oneshot::Receiver<Permit> {
        let (place, granted) = oneshot::channel();
        let mut state = self.state.lock();
        state.tiers = tiers;
        state.waiting.push_back((tier.clone(), place));
        self.hand_out(state);
        granted
    }

    fn hand_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let granted = state.grant(self.max);
        drop(state);
        for (tier, place) in granted {
            // Of one who went away just now it comes back by being dropped.
            drop(place.send(Permit { streams: Arc::clone(self), tier }));
        }
    }
}

impl State {
    fn may_have(&self, tier: &TierName, max: usize) -> bool {
        let of = self.used.get(tier).copied().unwrap_or_default();
        // One that was removed may still be read.
        let tiers = self.tiers.max(self.used.len() + usize::from(of == 0));
        let part = (max / (2 * tiers)).max(1);
        let common = max.saturating_sub(part * tiers);
        let beyond: usize = self.used.values().map(|of| of.saturating_sub(part)).sum();
        of < part || beyond < common
    }

    /// Who of those that wait has a stream now.
    fn grant(&mut self, max: usize) -> Vec<(TierName, oneshot::Sender<Permit>)> {
        let mut granted = Vec::new();
        for (tier, place) in std::mem::take(&mut self.waiting) {
            if place.is_closed() {
                continue;
            }
            if self.may_have(&tier, max) {
                *self.used.entry(tier.clone()).or_default() += 1;
                granted.push((tier, place));
            } else {
                self.waiting.push_back((tier, place));
            }
        }
        granted
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.streams.state.lock();
        if let Some(of) = state.used.get_mut(&self.tier) {
            *of -= 1;
            if *of == 0 {
                state.used.remove(&self.tier);
            }
        }
        self.streams.hand_out(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &str) -> TierName {
        name.parse().unwrap()
    }

    /// As many as there are to be had.
    fn take(streams: &Arc<Streams>, tier: &TierName, tiers: usize) -> Vec<Permit> {
        std::iter::from_fn(|| streams.ask(tier, tiers).try_recv().ok()).collect()
    }

    #[test]
    fn however_many_tiers_take_all_that_they_can_each_other_one_has_its_part() {
        for max in 1..70 {
            for tiers in 1..9 {
                let streams = Streams::new(max);
                let held: Vec<_> = (0..tiers).map(|n| take(&streams, &tier(&format!("T{n}")), tiers)).collect();
                let counts: Vec<_> = held.iter().map(Vec::len).collect();
                let part = (max / (2 * tiers)).max(1);
                assert!(counts.iter().all(|count| *count >= part), "{max} streams: {counts:?}");
                assert_eq!(counts.iter().sum::<usize>(), max.max(tiers), "{max} streams: {counts:?}");
            }
        }
    }

    #[test]
    fn one_tier_of_two_has_three_quarters_and_one_alone_has_all() {
        let streams = Streams::new(64);
        assert_eq!(take(&streams, &tier("ONE"), 2).len(), 48);
        assert_eq!(take(&streams, &tier("ONE"), 1).len(), 64, "all of them came back");
    }

    #[test]
    fn those_who_wait_are_served_in_their_order_and_none_for_who_went_away() {
        let streams = Streams::new(4);
        let (one, two) = (tier("ONE"), tier("TWO"));
        let mut held = take(&streams, &one, 2);
        assert_eq!(held.len(), 3);
        let mut waiting: Vec<_> = (0..3).map(|_| streams.ask(&one, 2)).collect();
        let other = streams.ask(&two, 2).try_recv();
        assert!(other.is_ok(), "one tier's readers do not wait behind another's");
        drop(waiting.remove(0));
        held.pop();
        let first = waiting[0].try_recv();
        assert!(first.is_ok() && waiting[1].try_recv().is_err());
        // Granted, and never looked at.
        held.pop();
        drop(waiting);
        assert_eq!(take(&streams, &one, 2).len(), 1, "it came back");
    }

    #[test]
    fn tier_that_is_added_has_its_part_while_another_holds_all() {
        let streams = Streams::new(8);
        let held = take(&streams, &tier("ONE"), 1);
        assert_eq!(held.len(), 8);
        assert_eq!(take(&streams, &tier("TWO"), 2).len(), 2);
    }
}
