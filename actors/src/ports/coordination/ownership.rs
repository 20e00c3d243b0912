//! Up to when a node may act as an owner. See the rules of the port.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The state of a node's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The service answers; ownership is proven.
    Connected,
    /// The service does not answer, but ownership is still proven.
    Suspended,
    /// Ownership is no longer proven. The session may still be alive; if it is, this passes.
    Fenced,
    /// The session is over, and with it registration and leases.
    Expired,
}

impl SessionState {
    /// Whether the node must not act as an owner.
    pub fn is_fenced(self) -> bool {
        matches!(self, Self::Fenced | Self::Expired)
    }
}

/// Whoever never asks for registration, such as a tool, is admitted in every term.
const ANY_TERM: u64 = u64::MAX;
/// Registration is asked for, and was not made yet.
const NO_TERM: u64 = u64::MAX - 1;

/// A deadline on the monotonic clock, shared between an adapter, which moves it, and everyone who has to ask.
///
/// That a session lives is not enough for a node of a cluster: until it is registered in that session the others
/// neither see it nor wait for it. Such a node asks for [`Ownership::require_registration`], and nothing is proven
/// before [`Ownership::registered`].
#[derive(Debug, Clone)]
pub struct Ownership {
    base: Instant,
    /// Nanoseconds after `base`; zero: nothing is proven.
    deadline_ns: Arc<AtomicU64>,
    /// How many sessions are over.
    term: Arc<AtomicU64>,
    /// The term in which this node is registered, or one of the two above.
    admitted: Arc<AtomicU64>,
}

impl Default for Ownership {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            deadline_ns: Arc::default(),
            term: Arc::default(),
            admitted: Arc::new(AtomicU64::new(ANY_TERM)),
        }
    }
}

impl Ownership {
    /// Whether this node may act as an owner right now. Ask after the work and before the answer.
    pub fn is_proven(&self) -> bool {
        // In this order: a deadline of a later session comes with a later term.
        self.is_session_proven() && self.is_admitted()
    }

    /// Whether the session lives for certain, registered or not.
    pub fn is_session_proven(&self) -> bool {
        self.now_ns() < self.deadline_ns.load(Ordering::Acquire)
    }

    fn is_admitted(&self) -> bool {
        let admitted = self.admitted.load(Ordering::Acquire);
        admitted == ANY_TERM || admitted == self.term()
    }

    /// From now on nothing is proven in a session before this node was registered in it. Whoever is registered stays
    /// so.
    pub fn require_registration(&self) {
        // Any other value says that it was asked for before.
        self.admitted.compare_exchange(ANY_TERM, NO_TERM, Ordering::AcqRel, Ordering::Acquire).ok();
    }

    /// This node is registered in the session of `term`, and has told the others what they have to know of it.
    pub fn registered(&self, term: u64) {
        self.admitted.store(term, Ordering::Release);
    }

    /// For adapters: the registration of this session is about to be replaced by one that counts as having seen what
    /// the others changed until then. A node has to take that in, and say again that it is [`Ownership::registered`],
    /// before it owns anything. Likewise for a node that finds its registration gone.
    pub fn registers_anew(&self) {
        if self.admitted.load(Ordering::Acquire) != ANY_TERM {
            self.admitted.store(NO_TERM, Ordering::Release);
        }
    }

    /// How long the session lives for certain, from now.
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns.load(Ordering::Acquire).saturating_sub(self.now_ns()))
    }

    /// For adapters: a heartbeat sent at `sent` was answered by a majority, and proves ownership for `validity` from
    /// then. Never shortens what is proven.
    pub fn extend(&self, sent: Instant, validity: Duration) {
        let deadline = (sent + validity).saturating_duration_since(self.base).as_nanos() as u64;
        self.deadline_ns.fetch_max(deadline, Ordering::AcqRel);
    }

    /// For adapters whose proof had no end: it has one now. The session goes on.
    pub fn limit(&self, from: Instant, validity: Duration) {
        let deadline = (from + validity).saturating_duration_since(self.base).as_nanos() as u64;
        self.deadline_ns.store(deadline, Ordering::Release);
    }

    /// Tells sessions apart: it changes before anything can be proven in another one. What was begun in one term and is
    /// proven in another one was not watched over all the time.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// For adapters: the session is over. Not to be called together with [`Ownership::extend`] from another task.
    pub fn revoke(&self) {
        self.term.fetch_add(1, Ordering::AcqRel);
        self.deadline_ns.store(0, Ordering::Release);
    }

    fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn proof_counts_from_when_the_heartbeat_was_sent() {
        let ownership = Ownership::default();
        assert!(!ownership.is_proven(), "nothing is proven before the first heartbeat");
        let sent = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        ownership.extend(sent, Duration::from_secs(5));
        assert_eq!(ownership.remaining(), Duration::from_secs(2));
        ownership.extend(sent, Duration::from_secs(1));
        assert_eq!(ownership.remaining(), Duration::from_secs(2), "an older answer takes nothing away");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!ownership.is_proven(), "no message is needed to be fenced");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_to_be_registered_owns_nothing_in_a_session_in_which_it_is_not() {
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), Duration::from_secs(5));
        assert!(ownership.is_proven(), "a tool registers nowhere");
        ownership.require_registration();
        assert!(ownership.is_session_proven() && !ownership.is_proven());
        ownership.registered(ownership.term());
        ownership.require_registration();
        assert!(ownership.is_proven(), "whoever asks again is registered still");
        let before = ownership.term();
        ownership.revoke();
        ownership.extend(Instant::now(), Duration::from_secs(5));
        assert!(ownership.is_session_proven() && !ownership.is_proven(), "the registration went with its session");
        ownership.registered(before);
        assert!(!ownership.is_proven(), "a registration that is over counts for nothing");
        ownership.registered(ownership.term());
        assert!(ownership.is_proven());
        ownership.registers_anew();
        assert!(
            ownership.is_session_proven() && !ownership.is_proven(),
            "it has to take in what it counts as having seen"
        );
        let tool = Ownership::default();
        tool.extend(Instant::now(), Duration::from_secs(5));
        tool.registers_anew();
        assert!(tool.is_proven(), "nobody asked for its registration");
    }

    #[tokio::test(start_paused = true)]
    async fn revoked_proof_is_gone_at_once() {
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), Duration::from_secs(5));
        let other = ownership.clone();
        assert!(other.is_proven());
        let term = other.term();
        ownership.revoke();
        assert!(!other.is_proven());
        assert_ne!(other.term(), term);
    }
}
