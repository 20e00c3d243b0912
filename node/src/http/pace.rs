//! The least progress that a peer must make while we wait for it.
//!
//! Time is divided into windows; a peer that has us wait at the end of a window in which it moved fewer bytes than the
//! least is cut off. A limit on idleness alone would let a client hold a connection for ever with a byte a minute. Time
//! in which we do not wait for the peer (the disk is slow, nothing is asked for) does not count.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How slow a peer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Length of a window.
    pub window: Duration,
    /// Bytes that a peer must move in a window, if it has us wait at its end.
    pub min_bytes: u64,
}

impl Default for Pace {
    /// About 500 bytes a second: below any link that is of use, above what a client that wants to hold on to us sends.
    fn default() -> Self {
        Pace { window: Duration::from_secs(30), min_bytes: 16 << 10 }
    }
}

/// Measures one direction of one connection.
pub(super) struct PaceGuard {
    pace: Pace,
    /// The end of the window; made when the peer first has us wait.
    timer: Option<Pin<Box<Sleep>>>,
    moved_bytes: u64,
    waiting: bool,
}

impl PaceGuard {
    pub(super) fn new(pace: Pace) -> PaceGuard {
        PaceGuard { pace, timer: None, moved_bytes: 0, waiting: false }
    }

    /// The peer moved bytes.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved_bytes = self.moved_bytes.saturating_add(bytes as u64);
        self.waiting = false;
    }

    /// The peer has us wait. Ready when it was too slow; else the task is woken at the end of the window.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.pace.window)));
        if !self.waiting && timer.deadline() <= Instant::now() {
            // The window ended while nobody waited: it says nothing about the peer.
            timer.as_mut().reset(Instant::now() + self.pace.window);
            self.moved_bytes = 0;
        }
        self.waiting = true;
        while timer.as_mut().poll(cx).is_ready() {
            if self.moved_bytes < self.pace.min_bytes {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + self.pace.window);
            self.moved_bytes = 0;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const PACE: Pace = Pace { window: Duration::from_secs(10), min_bytes: 100 };

    async fn too_slow_within(guard: &mut PaceGuard, time: Duration) -> bool {
        tokio::time::timeout(time, poll_fn(|cx| guard.poll_too_slow(cx))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_is_cut_off_after_one_window() {
        let mut guard = PaceGuard::new(PACE);
        assert!(!too_slow_within(&mut guard, Duration::from_millis(9_900)).await);
        assert!(too_slow_within(&mut guard, Duration::from_millis(200)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn dripping_peer_is_cut_off() {
        let mut guard = PaceGuard::new(PACE);
        for _ in 0..9 {
            assert!(!too_slow_within(&mut guard, Duration::from_secs(1)).await);
            guard.moved(1);
        }
        assert!(too_slow_within(&mut guard, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_but_steady_peer_is_kept() {
        let mut guard = PaceGuard::new(PACE);
        for _ in 0..100 {
            assert!(!too_slow_within(&mut guard, Duration::from_secs(4)).await);
            guard.moved(60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_we_did_not_wait_does_not_count() {
        let mut guard = PaceGuard::new(PACE);
        assert!(!too_slow_within(&mut guard, Duration::from_secs(1)).await);
        guard.moved(1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!too_slow_within(&mut guard, Duration::from_secs(9)).await);
    }
}
