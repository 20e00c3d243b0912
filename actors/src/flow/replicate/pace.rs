//! What is remembered about peers: how fast they answered lately, whether they stalled, and how much may wait for them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{ReplicateOptions, feed};

/// First-byte latencies of all peers that the percentile is taken over: some seconds of reads.
const RECENT_MAX: usize = 64;
/// With fewer samples than this nothing is known.
const RECENT_MIN: usize = 8;
/// The delay of a hedge while nothing is known.
const HEDGE_DELAY_UNKNOWN: Duration = Duration::from_millis(100);
/// The weight of a new sample in a moving average.
const WEIGHT: f64 = 0.2;

#[derive(Debug)]
struct Peer {
    /// Moving average of first-byte latencies, in seconds.
    first_byte: Option<f64>,
    stalled: Option<Instant>,
    /// How much may wait for it.
    budget: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Recent {
    latencies: Vec<Duration>,
    next: usize,
}

/// See the module's page. Holds one small entry for each node that was ever a peer.
#[derive(Debug)]
pub(super) struct PeerBook {
    peers: Mutex<HashMap<NodeId, Peer>>,
    recent: Mutex<Recent>,
    stall_memory: Duration,
    hedge_delay: Range<Duration>,
    budget_units: usize,
}

impl PeerBook {
    pub(super) fn new(options: &ReplicateOptions) -> Self {
        Self {
            peers: Mutex::default(),
            recent: Mutex::default(),
            stall_memory: options.stall_memory,
            hedge_delay: options.hedge_delay.clone(),
            // So that one peer that stands still leaves room for the others.
            budget_units: feed::units(options.queued_bytes_max / 2).max(1),
        }
    }

    fn with<T>(&self, node: NodeId, then: impl FnOnce(&mut Peer) -> T) -> T {
        let mut peers = self.peers.lock();
        let new = || Peer { first_byte: None, stalled: None, budget: Arc::new(Semaphore::new(self.budget_units)) };
        then(peers.entry(node).or_insert_with(new))
    }

    /// What may wait for a peer, and how many units of it there are.
    pub(super) fn budget(&self, node: NodeId) -> (Arc<Semaphore>, usize) {
        (self.with(node, |peer| Arc::clone(&peer.budget)), self.budget_units)
    }

    /// A peer made no progress, or could not be reached.
    pub(super) fn stalled(&self, node: NodeId) {
        self.with(node, |peer| peer.stalled = Some(Instant::now()));
    }

    /// A peer did what it was asked.
    pub(super) fn answered(&self, node: NodeId) {
        self.with(node, |peer| peer.stalled = None);
    }

    /// Whether a peer stalled lately and has not answered since.
    pub(super) fn is_stalled(&self, node: NodeId) -> bool {
        self.with(node, |peer| peer.stalled.is_some_and(|at| at.elapsed() < self.stall_memory))
    }

    /// The first bytes of a read came after `latency`.
    pub(super) fn first_byte(&self, node: NodeId, latency: Duration) {
        let seconds = latency.as_secs_f64();
        self.with(node, |peer| {
            peer.stalled = None;
            peer.first_byte = Some(peer.first_byte.map_or(seconds, |mean| mean + WEIGHT * (seconds - mean)));
        });
        let mut recent = self.recent.lock();
        if recent.latencies.len() < RECENT_MAX {
            recent.latencies.push(latency);
        } else {
            let next = recent.next;
            recent.latencies[next] = latency;
        }
        recent.next = (recent.next + 1) % RECENT_MAX;
    }

    /// Sorts peers, the fastest first; those that stalled lately last. One that is not known yet goes first: it will
    /// be.
    pub(super) fn sort(&self, nodes: &mut [NodeId]) {
        let mut keyed: Vec<_> = nodes
            .iter()
            .map(|node| (self.is_stalled(*node), self.with(*node, |peer| peer.first_byte.unwrap_or(0.0)), *node))
            .collect();
        keyed.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for (node, (_, _, sorted)) in nodes.iter_mut().zip(keyed) {
            *node = sorted;
        }
    }

    /// How many peers are remembered.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.peers.lock().len()
    }

    /// After how long a second replica is asked: when 19 of 20 reads had their first bytes.
    pub(super) fn hedge_delay(&self) -> Duration {
        let recent = self.recent.lock();
        if recent.latencies.len() < RECENT_MIN {
            return HEDGE_DELAY_UNKNOWN.clamp(self.hedge_delay.start, self.hedge_delay.end);
        }
        let mut sorted = recent.latencies.clone();
        drop(recent);
        let at = sorted.len() * 95 / 100;
        let (_, percentile, _) = sorted.select_nth_unstable(at);
        (*percentile).clamp(self.hedge_delay.start, self.hedge_delay.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u64) -> NodeId {
        NodeId::from(n)
    }

    #[tokio::test(start_paused = true)]
    async fn fastest_peer_comes_first_and_a_stalled_one_last_until_it_answers() {
        let book = PeerBook::new(&ReplicateOptions::default());
        for (n, millis) in [(1, 30), (2, 10), (3, 20)] {
            book.first_byte(node(n), Duration::from_millis(millis));
        }
        let sorted = || {
            let mut nodes = [node(1), node(2), node(3)];
            book.sort(&mut nodes);
            nodes
        };
        assert_eq!(sorted(), [node(2), node(3), node(1)]);
        book.stalled(node(2));
        assert_eq!(sorted(), [node(3), node(1), node(2)]);
        tokio::time::advance(ReplicateOptions::default().stall_memory).await;
        assert_eq!(sorted(), [node(2), node(3), node(1)], "forgotten");
        book.stalled(node(2));
        book.answered(node(2));
        assert_eq!(sorted(), [node(2), node(3), node(1)]);
    }

    #[test]
    fn hedge_waits_for_the_95th_percentile_within_its_bounds() {
        let book = PeerBook::new(&ReplicateOptions::default());
        assert_eq!(book.hedge_delay(), HEDGE_DELAY_UNKNOWN);
        for n in 1..=64 {
            book.first_byte(node(1), Duration::from_millis(n));
        }
        assert_eq!(book.hedge_delay(), Duration::from_millis(61));
        for _ in 0..64 {
            book.first_byte(node(1), Duration::from_millis(1));
        }
        assert_eq!(book.hedge_delay(), Duration::from_millis(20));
        for _ in 0..64 {
            book.first_byte(node(1), Duration::from_secs(9));
        }
        assert_eq!(book.hedge_delay(), Duration::from_secs(1));
    }
}
