//! Group commit: one `fdatasync` for all writers that wait.
//!
//! A waiter may share a sync only if the sync starts after the waiter's writes completed. So there are at most two
//! batches of a file: the one whose sync runs, which nobody joins any more, and the one that collects. The collecting
//! batch starts when the running one ends; the longer a sync takes, the more writers the next one serves.
//!
//! A batch is a shared future that each of its waiters polls: there is no leader whose cancellation would strand the
//! others. A batch that all waiters left is driven to its end by the next one, so that no failure is lost. After a
//! failed sync every later one fails with the same error, without asking the kernel again: what the first failure
//! dropped from the page cache would be reported as written by a second try.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::io::BlockFile;

/// The shared result of a sync.
pub(crate) type SyncResult = Result<(), Arc<io::Error>>;

/// Group commit of one file.
#[derive(Default)]
pub(crate) struct GroupCommit {
    /// The newest batch: collecting if not started.
    tail: Mutex<Option<Batch>>,
}

#[derive(Clone)]
struct Batch {
    started: Arc<AtomicBool>,
    done: Shared<BoxFuture<'static, SyncResult>>,
}

impl GroupCommit {
    /// Makes all writes to `file` that completed before this call durable. `count` runs once for each real sync.
    ///
    /// Cancel safe: the sync that was joined goes on for the others.
    ///
    /// # Errors
    /// Those of `fdatasync`, now or of any earlier sync of this file.
    pub(crate) async fn sync(&self, file: &Arc<dyn BlockFile>, on_sync: impl FnOnce() + Send + 'static) -> SyncResult {
        let batch = self.join(file, on_sync);
        batch.done.await
    }

    fn join(&self, file: &Arc<dyn BlockFile>, on_sync: impl FnOnce() + Send + 'static) -> Batch {
        let mut tail = self.tail.lock();
        // `started` is set outside this lock, but before the sync is submitted: who reads `false` here has completed
        // its writes before the sync starts.
        if let Some(batch) = tail.as_ref().filter(|batch| !batch.started.load(Ordering::SeqCst)) {
            return batch.clone();
        }
        let before = tail.take();
        let started = Arc::new(AtomicBool::new(false));
        let (file, start) = (Arc::clone(file), Arc::clone(&started));
        let run = async move {
            if let Some(before) = before {
                before.done.await?;
            }
            start.store(true, Ordering::SeqCst);
            on_sync();
            file.sync_data().await.map_err(Arc::new)
        };
        let batch = Batch { started, done: run.boxed().shared() };
        *tail = Some(batch.clone());
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::AtomicUsize;

    use futures::channel::oneshot;

    use super::*;
    use crate::buf::{IoBuf, SharedBuf};
    use crate::io::IoFuture;

    /// A file whose syncs end when the test says so.
    #[derive(Default)]
    struct Gated {
        syncs: Mutex<Vec<oneshot::Sender<io::Result<()>>>>,
    }

    impl BlockFile for Gated {
        fn write_at(&self, _: u64, _: SharedBuf, _: Range<usize>) -> IoFuture<io::Result<()>> {
            unreachable!("only syncs are tested")
        }
        fn read_at(&self, _: u64, _: IoBuf, _: usize) -> IoFuture<(io::Result<usize>, IoBuf)> {
            unreachable!("only syncs are tested")
        }
        fn sync_data(&self) -> IoFuture<io::Result<()>> {
            let (end, ended) = oneshot::channel();
            self.syncs.lock().push(end);
            Box::pin(async { ended.await.expect("the test ends each sync") })
        }
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            None
        }
    }

    struct Harness {
        gated: Arc<Gated>,
        file: Arc<dyn BlockFile>,
        commit: Arc<GroupCommit>,
        syncs: Arc<AtomicUsize>,
    }

    impl Harness {
        fn new() -> Self {
            let gated = Arc::new(Gated::default());
            Self { file: gated.clone(), gated, commit: Arc::default(), syncs: Arc::default() }
        }

        fn wait(&self) -> BoxFuture<'static, SyncResult> {
            let (commit, file, syncs) = (self.commit.clone(), self.file.clone(), self.syncs.clone());
            async move {
                let counted = move || {
                    syncs.fetch_add(1, Ordering::SeqCst);
                };
                commit.sync(&file, counted).await
            }
            .boxed()
        }

        fn end(&self, nth: usize, result: io::Result<()>) {
            let end = std::mem::replace(&mut self.gated.syncs.lock()[nth], oneshot::channel().0);
            end.send(result).expect("the sync is awaited");
        }
    }

    #[test]
    fn waiters_that_come_during_a_sync_share_the_next() {
        let harness = Harness::new();
        let mut first = harness.wait();
        assert!((&mut first).now_or_never().is_none());
        let mut later: Vec<_> = (0..10).map(|_| harness.wait()).collect();
        for waiter in &mut later {
            assert!(waiter.now_or_never().is_none());
        }
        assert_eq!(harness.gated.syncs.lock().len(), 1, "the next sync waits for the first");
        harness.end(0, Ok(()));
        assert!(first.now_or_never().expect("its sync ended").is_ok());
        assert!(later.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        harness.end(1, Ok(()));
        assert!(later.into_iter().all(|waiter| waiter.now_or_never().expect("its sync ended").is_ok()));
        assert_eq!(harness.syncs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_cancelled_waiter_strands_nobody() {
        let harness = Harness::new();
        let mut first = harness.wait();
        assert!((&mut first).now_or_never().is_none());
        let mut second = harness.wait();
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        harness.end(0, Ok(()));
        assert!((&mut second).now_or_never().is_none());
        harness.end(1, Ok(()));
        assert!(second.now_or_never().expect("its sync ended").is_ok());
    }

    #[test]
    fn a_failed_sync_is_never_retried_even_if_nobody_saw_it_fail() {
        let harness = Harness::new();
        let mut first = harness.wait();
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        harness.end(0, Err(io::Error::other("gone")));
        assert!(harness.wait().now_or_never().expect("fails at once").is_err());
        assert!(harness.wait().now_or_never().expect("fails at once").is_err());
        assert_eq!(harness.syncs.load(Ordering::SeqCst), 1);
    }
}
