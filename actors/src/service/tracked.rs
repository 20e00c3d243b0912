//! Tracked tasks that tell their actor of their end, whatever it is.
//!
//! An actor notes that a task of a kind runs, and starts no other one before it was told of the end. A task that
//! panicked would tell nothing, and what it does would never be done again. To end the actor with it is no help either:
//! what makes one pass panic makes the next one, and the node would stop for a fault of its housekeeping.

use crate::flow::panics::caught;

/// What `work` ends with. If it panics that is an error like any other, to be tried again after a pause.
pub(super) async fn to_its_end<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    caught(work).await.unwrap_or_else(|_| Err("it panicked, see the log".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_has_an_end() {
        assert_eq!(to_its_end(async { Ok(7) }).await, Ok(7));
        assert_eq!(to_its_end(async { Err::<(), _>("no".to_owned()) }).await, Err("no".to_owned()));
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a bug")
        };
        assert!(to_its_end::<()>(panics).await.is_err_and(|error| error.contains("panicked")));
    }
}
