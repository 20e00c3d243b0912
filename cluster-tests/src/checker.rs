//! Checks histories: each key must have behaved like one register in one place (linearizability).
//!
//! There must be an order of a key's operations in which each takes effect at one moment between its beginning and its
//! end, and in which each answer is what the register held: read-after-write, no lost update, no two winners of a
//! condition, nothing deleted that comes back, and listings that show what exists. Keys are independent of each other,
//! so each is searched alone.
//!
//! The search is Wing and Gong's with Lowe's memory of configurations (what was ordered already, and the state after
//! it). Operations of unknown outcome may be left out, and are ordered only directly before one that cannot be without
//! them (known, or itself of unknown outcome): elsewhere they would change nothing that anybody saw.

use std::collections::HashSet;
use std::time::Duration;

use crate::history::{Condition, Event, History, Op, Write};

/// Configurations looked at before a key is given up as too hard; none of the workload's comes near it.
const CONFIGURATIONS_MAX: usize = 4_000_000;

type State = Option<Write>;

/// The state after an operation, or nothing if it cannot have happened in this one.
fn apply(op: &Op, state: State) -> Option<State> {
    match *op {
        Op::Put(write, condition) => holds(condition, state).then_some(Some(write)),
        Op::Refused(condition) => (!holds(condition, state)).then_some(state),
        Op::Delete => Some(None),
        Op::Get(seen) => (seen == state.map(|write| write.number)).then_some(state),
        Op::Listed(seen) => (seen == state.map(|write| write.tag)).then_some(state),
    }
}

fn holds(condition: Condition, state: State) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => state.is_none(),
        Condition::Tag(tag) => state.is_some_and(|write| write.tag == tag),
    }
}

/// Checks the events of one key.
///
/// # Errors
/// Says how far an order could be found, and which operations fit nowhere.
pub fn check_key(events: &[Event]) -> Result<(), String> {
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event.begin);
    let mut search = Search {
        known: events.iter().filter(|event| event.end.is_some()).count(),
        events: &events,
        seen: HashSet::new(),
        best: Vec::new(),
    };
    let mut order = Vec::new();
    let mut done = vec![0_u64; events.len().div_ceil(64)];
    match search.run(&mut done, &mut order, 0, None) {
        Found::Order => Ok(()),
        Found::TooHard => Err("nobody knows, the search was given up".into()),
        Found::Nothing => {
            let best = search.best;
            let fits: Vec<String> = best.iter().map(|&at| format!("  {}", events[at])).collect();
            let limit = earliest_end(&events, |at| best.contains(&at));
            let stuck = (0..events.len()).filter(|at| {
                !best.contains(at) && events[*at].end.is_some() && limit.is_none_or(|limit| events[*at].begin <= limit)
            });
            let stuck: Vec<String> = stuck.map(|at| format!("  {}", events[at])).collect();
            let last = fits.len().saturating_sub(6);
            Err(format!("no: after\n{}\nnone of these can come next:\n{}", fits[last..].join("\n"), stuck.join("\n")))
        }
    }
}

/// The earliest end of what is not done yet: whatever begins later cannot come first.
fn earliest_end(events: &[&Event], done: impl Fn(usize) -> bool) -> Option<Duration> {
    events.iter().enumerate().filter(|(at, _)| !done(*at)).filter_map(|(_, event)| event.end).min()
}

enum Found {
    Order,
    Nothing,
    TooHard,
}

struct Search<'a> {
    events: &'a [&'a Event],
    /// Events whose end is known: all of them have to find a place.
    known: usize,
    seen: HashSet<(Vec<u64>, Option<u64>)>,
    best: Vec<usize>,
}

impl Search<'_> {
    fn run(&mut self, done: &mut Vec<u64>, order: &mut Vec<usize>, placed: usize, state: State) -> Found {
        if placed == self.known {
            return Found::Order;
        }
        if self.seen.len() > CONFIGURATIONS_MAX {
            return Found::TooHard;
        }
        if !self.seen.insert((done.clone(), state.map(|write| write.number))) {
            return Found::Nothing;
        }
        if order.len() > self.best.len() {
            self.best.clone_from(order);
        }
        let is_done = |at: usize| done[at / 64] & (1 << (at % 64)) != 0;
        let limit = earliest_end(self.events, is_done);
        let next: Vec<usize> = (0..self.events.len())
            .take_while(|at| limit.is_none_or(|limit| self.events[*at].begin <= limit))
            .filter(|at| !is_done(*at))
            .collect();
        let (known, unknown): (Vec<usize>, Vec<usize>) =
            next.into_iter().partition(|at| self.events[*at].end.is_some());
        let mut needs_unknown = false;
        for &at in &known {
            let Some(after) = apply(&self.events[at].op, state) else {
                needs_unknown = true;
                continue;
            };
            match self.step(done, order, at, placed + 1, after) {
                Found::Nothing => {}
                found => return found,
            }
        }
        if needs_unknown {
            // One that makes nothing possible which is not possible now is not needed here: else an outage that leaves
            // twenty writes unknown has a million orders that nobody could tell from each other.
            let fails = |at: &&usize| apply(&self.events[**at].op, state).is_none();
            let failing: Vec<usize> = known.iter().chain(&unknown).filter(fails).copied().collect();
            for at in unknown {
                let Some(after) = apply(&self.events[at].op, state) else { continue };
                if !failing.iter().any(|&at| apply(&self.events[at].op, after).is_some()) {
                    continue;
                }
                match self.step(done, order, at, placed, after) {
                    Found::Nothing => {}
                    found => return found,
                }
            }
        }
        Found::Nothing
    }

    fn step(&mut self, done: &mut Vec<u64>, order: &mut Vec<usize>, at: usize, placed: usize, state: State) -> Found {
        done[at / 64] |= 1 << (at % 64);
        order.push(at);
        let found = self.run(done, order, placed, state);
        order.pop();
        done[at / 64] &= !(1 << (at % 64));
        found
    }
}

/// Checks all keys.
///
/// # Panics
/// When one of them was no register; its whole history is printed.
pub fn check(history: &History) {
    let keys = history.by_key();
    let (mut operations, mut unknown, mut wrong) = (0, 0, 0);
    for (key, events) in &keys {
        operations += events.len();
        unknown += events.iter().filter(|event| event.end.is_none()).count();
        if let Err(reason) = check_key(events) {
            wrong += 1;
            println!("--- was `{key}` one register? {reason}\n--- its history:");
            events.iter().for_each(|event| println!("{event}"));
        }
    }
    println!("checked {operations} operations on {} keys, {unknown} of unknown outcome", keys.len());
    assert!(wrong == 0, "{wrong} of {} keys were not linearizable; their histories are above", keys.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Random;

    fn write(number: u64) -> Write {
        Write { number, len: 1, tag: number + 100 }
    }

    fn put(number: u64) -> Op {
        Op::Put(write(number), Condition::Always)
    }

    fn create(number: u64) -> Op {
        Op::Put(write(number), Condition::Absent)
    }

    fn replace(number: u64, old: u64) -> Op {
        Op::Put(write(number), Condition::Tag(write(old).tag))
    }

    fn listed(number: u64) -> Op {
        Op::Listed(Some(write(number).tag))
    }

    /// Begin and end in milliseconds; an end of 0 is not known.
    fn history(events: &[(u64, u64, Op)]) -> Result<(), String> {
        let event = |&(begin, end, op): &(u64, u64, Op)| Event {
            op,
            client: "test".into(),
            begin: Duration::from_millis(begin),
            end: (end > 0).then(|| Duration::from_millis(end)),
            note: String::new(),
        };
        check_key(&events.iter().map(event).collect::<Vec<_>>())
    }

    fn good(events: &[(u64, u64, Op)]) {
        history(events).unwrap();
    }

    fn bad(events: &[(u64, u64, Op)]) {
        assert!(history(events).is_err(), "not found: {events:?}");
    }

    #[test]
    fn a_read_sees_the_last_acknowledged_write() {
        good(&[(1, 2, Op::Get(None)), (3, 4, put(1)), (5, 6, Op::Get(Some(1)))]);
        bad(&[(1, 2, put(1)), (3, 4, put(2)), (5, 6, Op::Get(Some(1)))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Get(None))]);
        bad(&[(1, 2, Op::Get(Some(7)))]);
    }

    #[test]
    fn a_read_beside_a_write_sees_the_old_or_the_new_but_never_goes_back() {
        good(&[(1, 2, put(1)), (3, 9, put(2)), (4, 5, Op::Get(Some(1))), (6, 7, Op::Get(Some(2)))]);
        bad(&[(1, 2, put(1)), (3, 9, put(2)), (4, 5, Op::Get(Some(2))), (6, 7, Op::Get(Some(1)))]);
    }

    #[test]
    fn a_lost_write_is_found_whoever_reads() {
        bad(&[(1, 2, put(1)), (3, 8, put(2)), (3, 4, put(3)), (9, 10, Op::Get(Some(1)))]);
        good(&[(1, 2, put(1)), (3, 8, put(2)), (3, 4, put(3)), (9, 10, Op::Get(Some(3)))]);
        good(&[(1, 2, put(1)), (3, 8, put(2)), (3, 4, put(3)), (9, 10, Op::Get(Some(2)))]);
    }

    #[test]
    fn what_was_deleted_does_not_come_back() {
        good(&[(1, 2, put(1)), (3, 4, Op::Delete), (5, 6, Op::Get(None))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Delete), (5, 6, Op::Get(Some(1)))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Delete), (5, 6, Op::Get(None)), (7, 8, Op::Get(Some(1)))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Delete), (5, 6, listed(1))]);
    }

    #[test]
    fn one_of_two_creators_wins() {
        good(&[(1, 5, create(1)), (2, 6, Op::Refused(Condition::Absent)), (7, 8, Op::Get(Some(1)))]);
        bad(&[(1, 5, create(1)), (2, 6, create(2))]);
        bad(&[(1, 2, Op::Refused(Condition::Absent))]);
        good(&[(1, 5, create(1)), (2, 6, create(2)), (2, 3, Op::Delete)]);
    }

    #[test]
    fn one_of_two_replacements_of_one_version_wins() {
        let held = Condition::Tag(write(1).tag);
        good(&[(1, 2, put(1)), (3, 6, replace(2, 1)), (4, 7, Op::Refused(held)), (8, 9, Op::Get(Some(2)))]);
        bad(&[(1, 2, put(1)), (3, 6, replace(2, 1)), (4, 7, replace(3, 1))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Refused(held))]);
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_only_once() {
        good(&[(1, 0, put(1)), (3, 4, Op::Get(None)), (5, 6, Op::Get(Some(1)))]);
        good(&[(1, 0, put(1)), (3, 4, Op::Get(None)), (5, 6, put(2)), (7, 8, Op::Get(Some(2)))]);
        bad(&[(5, 0, put(1)), (3, 4, Op::Get(Some(1)))]);
        bad(&[(1, 0, put(1)), (2, 3, Op::Get(Some(1))), (4, 5, put(2)), (6, 7, Op::Get(Some(1)))]);
        bad(&[(1, 2, put(1)), (3, 0, Op::Delete), (4, 5, Op::Get(None)), (6, 7, Op::Get(Some(1)))]);
    }

    #[test]
    fn many_unknown_writes_that_nobody_saw_do_not_make_a_history_too_hard() {
        let mut events: Vec<_> = (1..=40).map(|number| (number, 0, put(number))).collect();
        events.extend((41..=60).map(|begin| (begin, 0, Op::Delete)));
        events.extend([(100, 110, put(100)), (101, 111, put(101)), (102, 112, put(102))]);
        events.extend([(103, 104, listed(100)), (120, 121, Op::Get(Some(102)))]);
        good(&events);
        events.push((130, 131, Op::Get(Some(101))));
        bad(&events);
        let refused = (62, 63, Op::Refused(Condition::Absent));
        good(&[(1, 0, put(1)), (2, 0, put(2)), (3, 0, Op::Delete), refused, (64, 65, Op::Get(None))]);
    }

    #[test]
    fn unknown_writes_may_build_on_each_other() {
        good(&[(1, 0, put(1)), (2, 0, replace(2, 1)), (3, 0, replace(3, 2)), (4, 5, Op::Get(Some(3)))]);
        bad(&[(1, 0, replace(2, 1)), (4, 5, Op::Get(Some(2)))]);
        good(&[(1, 0, put(1)), (2, 3, Op::Refused(Condition::Absent)), (4, 5, Op::Get(Some(1)))]);
    }

    #[test]
    fn an_outage_that_leaves_many_writes_unknown_is_not_too_hard() {
        let mut events: Vec<_> = (1..40).map(|number| (number, 0, put(number))).collect();
        events.extend((40..50).map(|number| (number, 0, create(number))));
        events.extend((50..60).map(|at| (at, 0, Op::Delete)));
        // What is tried first here, in order of the beginnings, fits nowhere.
        events.extend([(60, 61, put(60)), (62, 70, put(61)), (63, 64, listed(60)), (63, 71, put(62))]);
        good(&events);
        events.push((72, 73, Op::Get(Some(60))));
        bad(&events);
        let reason = history(&events).unwrap_err();
        assert!(reason.contains("none of these can come next"), "{reason}");
    }

    #[test]
    fn a_listing_has_what_exists_and_nothing_else() {
        good(&[(1, 2, put(1)), (3, 4, listed(1)), (5, 9, Op::Delete), (6, 7, Op::Listed(None))]);
        bad(&[(1, 2, put(1)), (3, 4, Op::Listed(None))]);
        bad(&[(1, 2, put(1)), (3, 4, put(2)), (5, 6, listed(1))]);
    }

    /// A register with random clients gives good histories; with one answer changed to an older one, bad ones are
    /// found.
    #[test]
    fn random_histories_of_a_register_pass_and_stale_reads_in_them_are_found() {
        let seed = crate::seed("checker");
        for round in 0..50 {
            let mut random = Random::new(seed ^ round);
            let (mut state, mut now, mut events): (State, _, _) = (None, 1, Vec::new());
            for number in 1..50 {
                let begin = now + random.below(3);
                let at = begin + 1 + random.below(3);
                let end = at + 1 + random.below(20);
                // The next one takes effect later, but may begin before this one ends.
                now = at;
                let op = match random.below(10) {
                    0..=3 => put(number),
                    4 => create(number),
                    5 => Op::Delete,
                    _ => Op::Get(state.map(|write| write.number)),
                };
                let lost = random.chance(10) && !matches!(op, Op::Get(_));
                if lost && random.chance(50) {
                    events.push((begin, 0, op));
                    continue;
                }
                let op = match apply(&op, state) {
                    Some(after) => {
                        state = after;
                        op
                    }
                    None => Op::Refused(Condition::Absent),
                };
                events.push((begin, if lost { 0 } else { end }, op));
            }
            good(&events);
            let last = events.iter().map(|event| event.1).max().unwrap();
            events.push((last + 1, last + 2, put(1000)));
            events.push((last + 3, last + 4, put(1001)));
            good(&events);
            events.push((last + 5, last + 6, Op::Get(Some(1000))));
            bad(&events);
        }
    }
}
