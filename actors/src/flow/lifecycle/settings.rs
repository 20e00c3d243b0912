//! How the work on lifecycle rules is paced.

use std::time::Duration;

use crate::domain::lifecycle::Day;

/// How the work is paced.
#[derive(Debug, Clone)]
pub struct LifecycleSettings {
    /// How long a day of age is.
    pub day: Day,
    /// Time between passes.
    pub interval: Duration,
    /// Versions, uploads or rechecks of a batch.
    pub batch: u32,
    /// Batches of one stream in a pass: then others have their turn.
    pub batches_max: u32,
    /// Buckets of a page.
    pub buckets: u32,
    /// Time for one call of the store.
    pub call_timeout: Duration,
    /// Time from the start, or from a leap of the clock, to the first pass; none: clocks are not compared either.
    pub hold: Duration,
}

impl Default for LifecycleSettings {
    /// A batch is a few hundred rows, so that a transaction is short; a pass ends within seconds.
    fn default() -> Self {
        Self {
            day: Day::REAL,
            interval: Duration::from_secs(300),
            batch: 256,
            batches_max: 16,
            buckets: 100,
            call_timeout: Duration::from_secs(30),
            hold: Duration::from_secs(900),
        }
    }
}
