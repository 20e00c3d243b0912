//! The least progress that a peer must make while we wait for it.
//!
//! Time is divided into windows; a peer that has us wait at the end of a window in which it moved fewer bytes than the
//! least is cut off. A limit on idleness alone would let a client hold a connection for ever with a byte a minute. Time
//! in which we do not wait for the peer (the disk is slow, nothing is asked for) does not count.
//!
//! What a peer moved is more than what we see. The kernel queues megabytes for a peer, and tells us that there is room
//! again when a third of them are gone: a client that reads twenty kilobytes a second has us wait for minutes between
//! two writes. So a peer that takes enough of what is queued is not too slow, either.

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
    /// What was queued for the peer when the window began, as far as is known.
    queued_bytes: u64,
    waiting: bool,
}

impl PaceGuard {
    pub(super) fn new(pace: Pace) -> PaceGuard {
        PaceGuard { pace, timer: None, moved_bytes: 0, queued_bytes: 0, waiting: false }
    }

    /// The peer moved bytes.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved_bytes = self.moved_bytes.saturating_add(bytes as u64);
        self.waiting = false;
    }

    /// The peer has us wait. Ready when it was too slow; else the task is woken at the end of the window.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_slower_than_queue(cx, || 0)
    }

    /// The same for a peer that we send to. `queued` tells how many bytes it has not taken of what it was sent; it is
    /// asked about once a window.
    pub(super) fn poll_slower_than_queue(&mut self, cx: &mut Context<'_>, queued: impl Fn() -> u64) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.pace.window)));
        if !self.waiting && timer.deadline() <= Instant::now() {
            // The window ended while nobody waited: it says nothing about the peer.
            timer.as_mut().reset(Instant::now() + self.pace.window);
            (self.moved_bytes, self.queued_bytes) = (0, queued());
        }
        self.waiting = true;
        while timer.as_mut().poll(cx).is_ready() {
            let queued_bytes = queued();
            let taken_bytes = self.queued_bytes.saturating_add(self.moved_bytes).saturating_sub(queued_bytes);
            if self.moved_bytes.max(taken_bytes) < self.pace.min_bytes {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + self.pace.window);
            (self.moved_bytes, self.queued_bytes) = (0, queued_bytes);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
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
    async fn peer_that_takes_what_is_queued_for_it_is_kept_until_it_stops() {
        let mut guard = PaceGuard::new(PACE);
        let queued_bytes = Cell::new(1_000_000_u64);
        guard.moved(1_000_000);
        for _ in 0..50 {
            let wait = poll_fn(|cx| guard.poll_slower_than_queue(cx, || queued_bytes.get()));
            assert!(tokio::time::timeout(PACE.window, wait).await.is_err());
            queued_bytes.set(queued_bytes.get() - PACE.min_bytes);
        }
        let wait = poll_fn(|cx| guard.poll_slower_than_queue(cx, || queued_bytes.get()));
        assert!(tokio::time::timeout(3 * PACE.window, wait).await.is_ok());
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
