//! When a supervisor stops restarting: a child that fails again and again is not helped by one more restart.

use std::collections::VecDeque;

/// Restarts allowed within a window.
#[derive(Debug, Clone)]
pub struct RestartBudget {
    max: usize,
    window_ms: u64,
    recent_ms: VecDeque<u64>,
}

/// What to do about a child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartVerdict {
    /// Start it again.
    Restart,
    /// Give up: the node must stop.
    Escalate,
}

impl RestartBudget {
    /// At most `max` restarts within any `window_ms`.
    pub fn new(max: usize, window_ms: u64) -> Self {
        Self { max, window_ms, recent_ms: VecDeque::with_capacity(max + 1) }
    }

    /// Counts a failure at `now_ms` (monotonic) and decides.
    pub fn on_failure(&mut self, now_ms: u64) -> RestartVerdict {
        while self.recent_ms.front().is_some_and(|t| now_ms.saturating_sub(*t) >= self.window_ms) {
            self.recent_ms.pop_front();
        }
        if self.recent_ms.len() >= self.max {
            return RestartVerdict::Escalate;
        }
        self.recent_ms.push_back(now_ms);
        RestartVerdict::Restart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_restarts_in_a_window_escalate_and_old_ones_are_forgotten() {
        let mut budget = RestartBudget::new(2, 1_000);
        assert_eq!(budget.on_failure(0), RestartVerdict::Restart);
        assert_eq!(budget.on_failure(500), RestartVerdict::Restart);
        assert_eq!(budget.on_failure(999), RestartVerdict::Escalate);
        assert_eq!(budget.on_failure(1_000), RestartVerdict::Restart);
        assert_eq!(budget.on_failure(1_001), RestartVerdict::Escalate);
    }
}
