//! Steps of this node's own disks in repairs and joins, which are waited for with an end.
//!
//! A disk may hang without a word: the kernel waits for it, and nothing says that it will ever end. A step that takes
//! longer than [`PATIENCE`] is given up as an error, so that the work on other chunks goes on. It cannot be called off:
//! what the kernel was asked for holds its buffer until there is an answer. So it runs on by itself, with the lock of
//! its chunk, and while [`LATE_MAX`] of them do no further one of the kind is begun: trying again and again would take
//! all buffers of the node. Looks and changes are of different kinds: what is missing here can be written to a disk
//! that works while looks at another hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::transfer::TransferError;
use crate::ports::ChunkError;

/// How long a disk that works may take for one chunk, read and written, beside everything else that it does.
const PATIENCE: Duration = Duration::from_secs(120);
/// Steps that are waited for no more and have not ended, with which others are still begun.
const LATE_MAX: usize = 4;

/// Those of one kind; see the module's page.
#[derive(Debug, Default)]
pub struct DiskSteps {
    /// Those that are waited for no more and have not ended.
    late: Arc<AtomicUsize>,
}

impl DiskSteps {
    /// Does `step`. Dropped while it waits, it drops the step.
    ///
    /// # Errors
    /// Those of the step; [`TransferError::Local`] when it is late, or too many others are.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        step: impl Future<Output = Result<T, TransferError>> + Send + 'static,
    ) -> Result<T, TransferError> {
        let late = self.late.load(Ordering::Relaxed);
        if late >= LATE_MAX {
            return Err(hung(format!("{late} earlier steps have not ended")));
        }
        let mut steps = JoinSet::new();
        steps.spawn(step);
        match timeout(PATIENCE, steps.join_next()).await {
            Ok(Some(Ok(result))) => result,
            Ok(Some(Err(error))) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(_) => Err(TransferError::Local(ChunkError::Unavailable("the node is stopping".into()))),
            Err(_) => {
                metrics::counter!("holdfast_disk_steps_late_total").increment(1);
                self.late.fetch_add(1, Ordering::Relaxed);
                let late = Arc::clone(&self.late);
                tokio::spawn(async move {
                    drop(steps.join_next().await);
                    late.fetch_sub(1, Ordering::Relaxed);
                });
                Err(hung(format!("a disk did not answer within {} s", PATIENCE.as_secs())))
            }
        }
    }
}

/// No reason to give up a join, as a full disk is: the disk may only be slow.
fn hung(detail: String) -> TransferError {
    let source = std::io::Error::new(std::io::ErrorKind::TimedOut, detail);
    TransferError::Local(ChunkError::Io { context: "wait for a disk".into(), source })
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures::FutureExt as _;
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;

    fn is_timed_out(result: &Result<u32, TransferError>) -> bool {
        matches!(result, Err(TransferError::Local(ChunkError::Io { source, .. }))
            if source.kind() == std::io::ErrorKind::TimedOut)
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_is_given_up_and_only_a_few_of_them_are_begun() {
        let steps = DiskSteps::default();
        let (answers, answered) = watch::channel(false);
        for _ in 0..LATE_MAX {
            let mut answered = answered.clone();
            let hangs = async move {
                drop(answered.wait_for(|answered| *answered).await);
                Ok(1)
            };
            let outcome = timeout(PATIENCE * 10, steps.run(hangs)).await.expect("it is given up");
            assert!(is_timed_out(&outcome), "{outcome:?}");
        }
        let begun = Instant::now();
        let refused = steps.run(async { Ok(2) }).await;
        assert!(is_timed_out(&refused) && begun.elapsed().is_zero(), "{refused:?}");
        // The disk answers after all.
        answers.send_replace(true);
        while steps.late.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(steps.run(async { Ok(3) }).await, Ok(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_may_be_slow_and_ends_with_who_waits_for_it() {
        let steps = DiskSteps::default();
        let slow = async {
            tokio::time::sleep(PATIENCE / 2).await;
            Ok(1)
        };
        assert!(matches!(steps.run(slow).await, Ok(1)));
        let (alive, ended) = watch::channel(());
        let mut waiting = Box::pin(steps.run(async move {
            let _alive = alive;
            std::future::pending::<Result<u32, TransferError>>().await
        }));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(waiting);
        while ended.has_changed().is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(steps.late.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_panic_of_a_step_is_one_of_who_waits_for_it() {
        let steps = DiskSteps::default();
        let panics = steps.run::<u32>(async { panic!("a bug") });
        assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    }
}
