//! What the log is told of failures: each reason now and then, however often it comes and whatever comes between.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// When a reason that lasts is told again.
const AGAIN: Duration = Duration::from_secs(600);
/// The same, where all was well meanwhile.
const AGAIN_AFTER_RECOVERY: Duration = Duration::from_secs(60);
/// Reasons that are told in that time: some have figures in them, and are always new.
const REASONS_MAX: usize = 16;

/// When each reason was told.
#[derive(Default)]
pub(crate) struct Told(HashMap<String, Instant>);

impl Told {
    /// Whether a reason is to be told, which it is then.
    pub(crate) fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < AGAIN);
        if self.0.len() >= REASONS_MAX || self.0.contains_key(reason) {
            return false;
        }
        self.0.insert(reason.to_owned(), now);
        true
    }

    /// All is well: what comes now is news, unless that changes all the time.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.0.retain(|_, at| now.duration_since(*at) < AGAIN_AFTER_RECOVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_take_turns_are_told_once_and_again_after_a_while() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let lines = |told: &mut Told, from_s: u64, to_s: u64| {
            (from_s..to_s)
                .filter(|s| {
                    let reason = ["a is not there", "b is not there"][*s as usize % 2];
                    told.is_news(reason, begin + Duration::from_secs(*s))
                })
                .count()
        };
        assert_eq!(lines(&mut told, 0, 500), 2);
        assert_eq!(lines(&mut told, 500, 1_000), 2, "it lasts, and nobody hears of it any more");
    }

    #[test]
    fn what_comes_after_a_recovery_is_news_but_not_many_times_a_minute() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!(told.is_news("gone", now));
        told.settle(now + AGAIN_AFTER_RECOVERY / 2);
        assert!(!told.is_news("gone", now + AGAIN_AFTER_RECOVERY / 2));
        told.settle(now + AGAIN_AFTER_RECOVERY);
        assert!(told.is_news("gone", now + AGAIN_AFTER_RECOVERY));
    }

    #[test]
    fn reasons_with_figures_in_them_fill_neither_log_nor_memory() {
        let (mut told, now) = (Told::default(), Instant::now());
        let lines = (0..1_000).filter(|n| told.is_news(&format!("waited {n} ms"), now)).count();
        assert_eq!((lines, told.0.len()), (REASONS_MAX, REASONS_MAX));
        assert!(told.is_news("another one", now + AGAIN));
    }
}
