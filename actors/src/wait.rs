//! Waiting for what others do, in tests: it is looked at again and again, and who waits in vain says for what.
//!
//! Times are those of tokio's clock, so that virtual time passes while somebody waits.

use std::fmt::{Debug, Display};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What has not come by then does not come, on however slow a machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Pause between two looks at this process.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two questions to somebody, who has other things to do.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// Waits until `holds`.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(LOOK_PAUSE).await;
    }
}

/// Asks until the answer is as wanted, and returns it.
///
/// # Panics
/// When it is not within [`PATIENCE`]; it shows the last answer.
pub async fn until<T: Debug>(what: &str, mut ask: impl AsyncFnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}; now {answer:#?}");
        sleep(ASK_PAUSE).await;
    }
}

/// Tries until it succeeds.
///
/// # Panics
/// When it does not within [`PATIENCE`]; it shows the last error.
pub async fn until_ok<T, E: Display>(what: &str, attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_ok_within(PATIENCE, what, attempt).await
}

/// The same, for what may take longer than [`PATIENCE`].
///
/// # Panics
/// When it does not succeed within `patience`; it shows the last error.
pub async fn until_ok_within<T, E: Display>(
    patience: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "not within {patience:?}: {what}: {error:#}"),
        }
        sleep(ASK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the sun rises")]
    async fn what_never_comes_true_is_told() {
        eventually("the sun rises", || false).await;
    }

    #[tokio::test(start_paused = true)]
    async fn answers_and_attempts_are_repeated_until_they_are_as_wanted() {
        let mut asked = 0;
        let counting = async || {
            asked += 1;
            asked
        };
        assert_eq!(until("three", counting, |answer| *answer == 3).await, 3);
        let mut failures = vec!["late", "busy"];
        let result = until_ok("a success", async || failures.pop().map_or(Ok(7), Err)).await;
        assert_eq!(result, 7);
    }
}
