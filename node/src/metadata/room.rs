//! Whether a database has room for what is to be written.
//!
//! It is full from the first write on that it refuses for that, until a write that was made to try it succeeds: health
//! checks make one while it is full. So a node refuses what would fail, and takes it again by itself. Reads say nothing
//! about it, nor does a write that happened to change nothing.
//!
//! A write that tries it is small. Where it finds room and the next upload finds none, as in a table that is full on a
//! server that has room for its log, health checks pass ever longer before the next one: a node that was ready every
//! other second would be of no use to whoever spreads requests over nodes.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use holdfast_actors::ports::metadata::MetadataError;
use parking_lot::Mutex;

/// The log is told of it so often at most.
const A_LINE_EVERY: Duration = Duration::from_secs(60);
/// How long a health check waits for the write that tries it: what it asks for is whether reads are answered.
pub(super) const TRY_MAX: Duration = Duration::from_secs(2);
/// Most health checks that pass untried.
const PASSED_MAX: u32 = 30;
/// Health checks in a row that it is not full, after which the next time is the first one again.
const QUIET_CHECKS: u32 = 120;

/// The error of a read. One that sorts much may want room, too; that it finds none is nothing that a client who reads
/// is to be told as the want of a write.
pub(super) fn of_read(error: MetadataError) -> MetadataError {
    match error {
        MetadataError::NoSpace(reason) => MetadataError::Unavailable(reason),
        other => other,
    }
}

/// What is known of the room of a database.
pub(super) struct Room {
    /// What helps where there is none.
    remedy: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the database said, while it is full.
    full: Option<String>,
    /// Writes that it refused.
    refused: u64,
    /// When the log was told.
    told: Option<Instant>,
    /// The write that tries it, while there is one.
    trial: Weak<Trial>,
    /// Health checks to pass before that, while it is full.
    to_pass: u32,
    /// So many the next time.
    to_pass_next: u32,
    /// Health checks since it was full.
    quiet: u32,
}

/// A write that tries whether there is room. There is one at a time: a server that lets writes wait for room would have
/// one of each health check wait, until no connection is left for reads. So the write itself holds it, too, as long as
/// it goes on without the check.
pub(super) struct Trial {
    /// Which refusal it comes after.
    refused: u64,
}

impl Room {
    pub(super) fn new(remedy: String) -> Self {
        Self { remedy, state: Mutex::default() }
    }

    /// A write was refused for want of room, with these words.
    pub(super) fn is_missing(&self, detail: &str) {
        let mut state = self.state.lock();
        if state.full.is_none() {
            state.to_pass = state.to_pass_next;
            state.to_pass_next = (2 * state.to_pass_next + 1).min(PASSED_MAX);
            state.quiet = 0;
        }
        state.full = Some(detail.to_owned());
        state.refused += 1;
        if state.told.is_none_or(|told| told.elapsed() >= A_LINE_EVERY) {
            state.told = Some(Instant::now());
            tracing::error!(
                detail,
                remedy = self.remedy,
                "the metadata database has no room: writes are refused until there is some"
            );
        }
    }

    /// Asked by each health check: while it is full, and no write tries it, what one is to hold that does.
    pub(super) fn to_be_tried(&self) -> Option<Arc<Trial>> {
        let mut state = self.state.lock();
        if state.full.is_none() {
            state.quiet = state.quiet.saturating_add(1);
            if state.quiet >= QUIET_CHECKS {
                state.to_pass_next = 0;
            }
            return None;
        }
        if state.trial.strong_count() > 0 {
            return None;
        }
        if state.to_pass > 0 {
            state.to_pass -= 1;
            return None;
        }
        let trial = Arc::new(Trial { refused: state.refused });
        state.trial = Arc::downgrade(&trial);
        Some(trial)
    }

    /// The write that tried it succeeded. One that was refused meanwhile says more.
    pub(super) fn was_found(&self, trial: &Trial) {
        let mut state = self.state.lock();
        if state.refused == trial.refused {
            state.full = None;
        }
    }

    /// Why it is full, and what helps, if it is.
    pub(super) fn full(&self) -> Option<String> {
        let state = self.state.lock();
        state.full.as_ref().map(|detail| format!("{detail}: {}", self.remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_until_a_write_that_came_after_the_last_refusal_succeeds() {
        let room = Room::new("make room".to_owned());
        assert!(room.full().is_none() && room.to_be_tried().is_none());
        room.is_missing("disk full");
        let trial = room.to_be_tried().unwrap();
        room.is_missing("disk full");
        room.was_found(&trial);
        assert_eq!(room.full().as_deref(), Some("disk full: make room"), "it was refused meanwhile");
        drop(trial);
        room.was_found(&room.to_be_tried().unwrap());
        assert!(room.full().is_none() && room.to_be_tried().is_none());
    }

    #[test]
    fn where_small_writes_find_room_and_others_do_not_it_is_tried_ever_more_seldom() {
        let room = Room::new("make room".to_owned());
        let checks_to_a_trial = || {
            room.is_missing("the table is full");
            let (mut checks, mut trial) = (1, room.to_be_tried());
            while trial.is_none() {
                (checks, trial) = (checks + 1, room.to_be_tried());
            }
            room.was_found(&trial.unwrap());
            checks
        };
        let checks: Vec<u32> = (0..7).map(|_| checks_to_a_trial()).collect();
        assert_eq!(checks, [1, 2, 4, 8, 16, 31, 31]);
        for _ in 0..QUIET_CHECKS {
            assert!(room.to_be_tried().is_none());
        }
        assert_eq!(checks_to_a_trial(), 1, "it was not full for long");
    }

    #[test]
    fn one_write_at_a_time_tries_it() {
        let room = Room::new("make room".to_owned());
        room.is_missing("disk full");
        let of_the_check = room.to_be_tried().unwrap();
        let of_the_write = of_the_check.clone();
        drop(of_the_check);
        assert!(room.to_be_tried().is_none(), "the check has given up, and its write waits");
        drop(of_the_write);
        assert!(room.to_be_tried().is_some());
    }
}
