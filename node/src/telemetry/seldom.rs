//! Lines of the log that could come many times a second, as long as something lasts or as often as a stranger likes.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets one line through in so long a time, and counts the others.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    untold: u64,
}

impl Seldom {
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(State { last: None, untold: 0 }) }
    }

    /// How many lines were kept back since the last one; `None` where this one is kept back, too.
    pub(crate) fn untold(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.last.is_some_and(|last| last.elapsed() < self.every) {
            state.untold += 1;
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_between_are_kept_back_and_counted() {
        let hourly = Seldom::new(Duration::from_secs(3_600));
        assert_eq!(hourly.untold(), Some(0));
        assert_eq!((hourly.untold(), hourly.untold()), (None, None));
        hourly.state.lock().last = None;
        assert_eq!(hourly.untold(), Some(2));
        assert_eq!(hourly.untold(), None);
    }
}
