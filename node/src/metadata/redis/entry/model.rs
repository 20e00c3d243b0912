//! The script again, in Rust: held equal to the real one on a real Redis, and explored in all interleavings of writers,
//! readers, crashes and loss.

use std::collections::{BTreeMap, HashSet};

use super::Finish;

/// One entry. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::metadata::redis) struct Model<N, V> {
    pub(in crate::metadata::redis) value: Option<V>,
    nonce: Option<N>,
    /// Until when each counts.
    pub(in crate::metadata::redis) marks: BTreeMap<N, u64>,
    overlapped: bool,
}

impl<N, V> Default for Model<N, V> {
    fn default() -> Self {
        Self { value: None, nonce: None, marks: BTreeMap::new(), overlapped: false }
    }
}

/// What `get` finds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::metadata::redis) enum Got<N, V> {
    Value(V),
    Marked,
    Nothing(N),
}

impl<N: Clone + Ord, V: Clone> Model<N, V> {
    fn sweep(&mut self, now: u64) -> usize {
        self.marks.retain(|_, until| *until > now);
        self.marks.len()
    }

    pub(in crate::metadata::redis) fn get(&mut self, now: u64, nonce: N) -> Got<N, V> {
        if let Some(value) = &self.value {
            return Got::Value(value.clone());
        }
        if self.sweep(now) > 0 {
            return Got::Marked;
        }
        if let Some(nonce) = &self.nonce {
            return Got::Nothing(nonce.clone());
        }
        *self = Self { nonce: Some(nonce.clone()), ..Self::default() };
        Got::Nothing(nonce)
    }

    pub(in crate::metadata::redis) fn fill(&mut self, nonce: &N, value: V) -> bool {
        if self.nonce.as_ref() != Some(nonce) {
            return false;
        }
        *self = Self { value: Some(value), ..Self::default() };
        true
    }

    pub(in crate::metadata::redis) fn mark(&mut self, now: u64, token: N, until: u64) {
        (self.value, self.nonce) = (None, None);
        self.marks.remove(&token);
        self.overlapped |= self.sweep(now) > 0;
        self.marks.insert(token, until);
    }

    pub(in crate::metadata::redis) fn finish(&mut self, now: u64, token: &N, value: Option<V>) -> Finish {
        let own = self.marks.remove(token).is_some();
        let others = self.sweep(now) > 0;
        match (own, others) {
            (false, true) => {
                (self.value, self.nonce, self.overlapped) = (None, None, true);
                Finish::Lost
            }
            (false, false) => {
                *self = Self::default();
                Finish::Lost
            }
            (true, true) => Finish::Empty,
            (true, false) => {
                let value = value.filter(|_| !self.overlapped);
                let written = value.is_some();
                *self = Self { value, ..Self::default() };
                if written { Finish::Written } else { Finish::Empty }
            }
        }
    }
}

/// Names of tokens and nonces: who, and which of its tries.
type Id = (u8, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    Marked,
    /// The database has this version by it.
    Committed(u8),
    /// Its process is gone; the mark stays until it no longer counts.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    /// Was told that there is nothing, and loads.
    Loading(Id),
    /// Has read this version.
    Filling(Id, u8),
}

/// A key in the database, its entry, and who works on them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    entry: Model<Id, u8>,
    stored: u8,
    /// The newest version that a writer was told of.
    acknowledged: u8,
    /// The newest version that any reader was given.
    seen: u8,
    writers: Vec<(Writer, u8)>,
    readers: Vec<(Reader, u8)>,
    /// How often the entry may vanish, and a writer may die.
    losses: u8,
    deaths: u8,
}

const NOW: u64 = 1;
const LATER: u64 = 2;

impl World {
    fn new(writers: usize, readers: usize, tries: u8, losses: u8, deaths: u8) -> Self {
        Self {
            entry: Model::default(),
            stored: 0,
            acknowledged: 0,
            seen: 0,
            writers: vec![(Writer::Idle, tries); writers],
            readers: vec![(Reader::Idle, tries); readers],
            losses,
            deaths,
        }
    }

    /// A reader is given a version: never one older than what was acknowledged when it asked. If no mark is lost, never
    /// one older than what any other reader was given before.
    fn give(&mut self, version: u8, floor: u8, is_strict: bool) -> Result<(), String> {
        if version < floor {
            return Err(format!("version {version} was read after {floor} was acknowledged"));
        }
        if is_strict && version < self.seen {
            return Err(format!("version {version} was read after {} was", self.seen));
        }
        self.seen = self.seen.max(version);
        Ok(())
    }

    /// Every world that can come next.
    fn next(&self, is_strict: bool) -> Result<Vec<Self>, String> {
        let mut worlds = Vec::new();
        for at in 0..self.writers.len() {
            let (writer, left) = self.writers[at];
            let token = (at as u8, left);
            let mut next = self.clone();
            match writer {
                Writer::Idle if left > 0 => {
                    next.entry.mark(NOW, token, LATER);
                    next.writers[at].0 = Writer::Marked;
                    worlds.push(next);
                }
                Writer::Idle => {}
                Writer::Marked => {
                    next.stored += 1;
                    next.writers[at].0 = Writer::Committed(next.stored);
                    worlds.push(next);
                    // The transaction was refused.
                    let mut refused = self.clone();
                    refused.entry.finish(NOW, &token, None);
                    refused.writers[at] = (Writer::Idle, left - 1);
                    worlds.push(refused);
                }
                Writer::Committed(version) => {
                    next.entry.finish(NOW, &token, Some(version));
                    next.acknowledged = next.acknowledged.max(version);
                    next.writers[at] = (Writer::Idle, left - 1);
                    worlds.push(next);
                }
                Writer::Dead => {
                    if let Some(until) = next.entry.marks.get_mut(&token)
                        && *until > NOW
                    {
                        *until = NOW;
                        worlds.push(next);
                    }
                }
            }
            if self.deaths > 0 && matches!(writer, Writer::Marked | Writer::Committed(_)) {
                let mut died = self.clone();
                died.deaths -= 1;
                died.writers[at].0 = Writer::Dead;
                worlds.push(died);
            }
        }
        for at in 0..self.readers.len() {
            let (reader, left) = self.readers[at];
            let mut next = self.clone();
            match reader {
                Reader::Idle if left > 0 => match next.entry.get(NOW, (100 + at as u8, left)) {
                    Got::Value(version) => {
                        next.give(version, self.acknowledged, is_strict)?;
                        next.readers[at].1 -= 1;
                    }
                    Got::Marked => {
                        next.give(self.stored, self.acknowledged, is_strict)?;
                        next.readers[at].1 -= 1;
                    }
                    Got::Nothing(nonce) => {
                        // Whoever loaded under the same nonce shares what it has.
                        let flight = self.readers.iter().find_map(|(other, _)| match other {
                            Reader::Filling(of, version) if *of == nonce => Some(*version),
                            _ => None,
                        });
                        match flight {
                            Some(version) => {
                                next.give(version, self.acknowledged, is_strict)?;
                                next.readers[at].1 -= 1;
                            }
                            None => next.readers[at].0 = Reader::Loading(nonce),
                        }
                    }
                },
                Reader::Idle => continue,
                Reader::Loading(nonce) => {
                    next.give(self.stored, 0, is_strict)?;
                    next.readers[at].0 = Reader::Filling(nonce, self.stored);
                }
                Reader::Filling(nonce, version) => {
                    next.entry.fill(&nonce, version);
                    next.readers[at] = (Reader::Idle, left - 1);
                }
            }
            worlds.push(next);
        }
        if self.losses > 0 && self.entry != Model::default() {
            let mut lost = self.clone();
            lost.losses -= 1;
            lost.entry = Model::default();
            worlds.push(lost);
        }
        Ok(worlds)
    }
}

/// Visits every world that can be reached; gives back how many there are.
fn explore(first: World, is_strict: bool) -> usize {
    let mut seen = HashSet::new();
    let mut waiting = vec![first];
    while let Some(world) = waiting.pop() {
        if seen.contains(&world) {
            continue;
        }
        match world.next(is_strict) {
            Ok(worlds) => waiting.extend(worlds),
            Err(wrong) => panic!("{wrong}, in {world:#?}"),
        }
        seen.insert(world);
    }
    seen.len()
}

#[test]
fn without_loss_every_order_of_steps_is_one_register() {
    let worlds = explore(World::new(2, 2, 2, 0, 0), true);
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn writers_that_die_at_any_step_leave_one_register() {
    let worlds = explore(World::new(2, 2, 1, 0, 2), true) + explore(World::new(2, 1, 2, 0, 1), true);
    assert!(worlds > 1_000, "{worlds}");
}

#[test]
fn entries_that_vanish_at_any_step_are_never_older_than_an_acknowledged_write() {
    let worlds = explore(World::new(2, 2, 2, 2, 0), false) + explore(World::new(3, 1, 1, 2, 1), false);
    assert!(worlds > 10_000, "{worlds}");
}

/// The exploration finds what it is there to find: without the check of the mark at the end of a write, a lost mark is
/// a stale value.
#[test]
fn the_exploration_notices_an_entry_that_keeps_an_old_value() {
    let mut world = World::new(1, 1, 1, 0, 0);
    (world.stored, world.acknowledged, world.entry.value) = (1, 1, Some(0));
    assert!(world.next(false).is_err());
}
