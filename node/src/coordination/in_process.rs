//! Coordination between nodes of one process.
//!
//! All state is in one [`InProcessCluster`] behind one lock, which is held for the time of a map operation and never
//! across an await. Every change publishes the mirrors that it touches while the lock is held, so channels never go
//! back. Nothing is stored: a node that runs alone makes its cluster anew from its data directory at each start.
//!
//! Nothing can fail by itself here. For tests a participant can be cut off ([`InProcessCoordination::cut`]): it is then
//! suspended, fenced and expired by the same clock and the same rules as with a real service.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_actors::ports::coordination::{
    CacheSeen, CacheState, ClusterIdentity, CoordinationError, CoordinationResult, FencingToken, LeaseHolder,
    LeaseTable, LiveNode, Membership, Ownership, Pauses, SessionState, ShardMap, Version, Versioned,
};
use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::LayoutDocument;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

mod leases;
mod verbs;

/// How long a participant that is cut off keeps its session, unless the cluster is made with another value.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Ownership of a participant that is not cut off has no end; this is as good.
const FOREVER: Duration = Duration::from_secs(3600 * 24 * 365 * 100);

/// What nodes of one process share. Clone it for each.
#[derive(Clone)]
pub struct InProcessCluster {
    shared: Arc<Shared>,
}

struct Shared {
    session_timeout: Duration,
    state: Mutex<State>,
    membership: watch::Sender<Arc<Membership>>,
    layout: watch::Sender<Option<Arc<Versioned<LayoutDocument>>>>,
    shards: watch::Sender<Arc<ShardMap>>,
    leases: watch::Sender<Arc<LeaseTable>>,
    pauses: watch::Sender<Pauses>,
    cache: watch::Sender<Versioned<CacheState>>,
    /// What the channel above shows, without the version.
    cache_shown: watch::Sender<CacheState>,
    /// Woken by every acknowledgement and departure.
    seen: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// Numbers sessions, registrations and grants.
    counter: u64,
    /// Sessions that have not ended. Checked under the lock, so that nothing is left behind by one that just did.
    sessions: BTreeSet<u64>,
    identity: Option<ClusterIdentity>,
    /// Of what the channel shows; `None` if nothing was ever paused.
    pauses: Option<Version>,
    nodes: BTreeMap<NodeId, Registered>,
    queues: BTreeMap<String, VecDeque<Candidate>>,
}

struct Registered {
    session: u64,
    owner: u64,
    live: LiveNode,
    seen: CacheSeen,
}

struct Candidate {
    session: u64,
    node: NodeId,
    token: FencingToken,
    /// Turns true when the lease is granted, false when it is lost; dropped when the candidate leaves.
    held: watch::Sender<bool>,
}

impl State {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn open_session(&mut self) -> u64 {
        let session = self.next();
        self.sessions.insert(session);
        session
    }

    fn check_session(&self, session: u64) -> CoordinationResult<()> {
        if self.sessions.contains(&session) { Ok(()) } else { Err(CoordinationError::SessionExpired) }
    }
}

impl Default for InProcessCluster {
    fn default() -> Self {
        Self::new(SESSION_TIMEOUT)
    }
}

impl InProcessCluster {
    /// A service without a cluster in it, where sessions of participants that are cut off end after `session_timeout`.
    pub fn new(session_timeout: Duration) -> Self {
        let shared = Shared {
            session_timeout,
            state: Mutex::default(),
            membership: watch::Sender::default(),
            layout: watch::Sender::default(),
            shards: watch::Sender::default(),
            leases: watch::Sender::default(),
            pauses: watch::Sender::default(),
            cache: watch::Sender::new(Versioned { version: Version(0), value: CacheState::default() }),
            cache_shown: watch::Sender::default(),
            seen: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Another participant.
    pub fn participant(&self) -> InProcessCoordination {
        let number = self.shared.state.lock().open_session();
        let inner = Inner {
            shared: self.shared.clone(),
            owner: number,
            session: AtomicU64::new(number),
            cut: Mutex::default(),
            ownership: Ownership::default(),
            state: watch::Sender::new(SessionState::Connected),
        };
        inner.ownership.extend(Instant::now(), FOREVER);
        InProcessCoordination { inner: Arc::new(inner) }
    }

    /// Takes a node's registration away, though its session lives, and shows it to nobody: mirrors may be late. For
    /// tests.
    pub fn unregister_unseen(&self, node: NodeId) {
        self.shared.state.lock().nodes.remove(&node);
    }
}

impl Shared {
    /// Only with the state locked.
    fn show_cache(&self, version: Version, value: CacheState) {
        self.cache_shown.send_replace(value.clone());
        self.cache.send_replace(Versioned { version, value });
    }

    fn publish_members(&self, state: &State) {
        let nodes = state.nodes.iter().map(|(id, n)| (*id, n.live.clone())).collect();
        self.membership.send_replace(Arc::new(Membership { nodes }));
        self.seen.send_replace(());
    }

    /// Grants what is free and shows who holds what.
    fn publish_leases(&self, state: &mut State) {
        state.queues.retain(|_, queue| !queue.is_empty());
        let mut table = LeaseTable::new();
        for (name, queue) in &state.queues {
            let first = queue.front().expect("empty queues are gone");
            first.held.send_replace(true);
            table.insert(name.clone(), LeaseHolder { node: first.node, token: first.token });
        }
        self.leases.send_replace(Arc::new(table));
    }

    fn leave_queue(&self, name: &str, token: FencingToken) {
        let mut state = self.state.lock();
        if let Some(queue) = state.queues.get_mut(name)
            && let Some(place) = queue.iter().position(|c| c.token == token)
            && let Some(candidate) = queue.remove(place)
        {
            candidate.held.send_replace(false);
            self.publish_leases(&mut state);
        }
    }

    fn end_session(&self, session: u64) {
        let mut state = self.state.lock();
        state.sessions.remove(&session);
        state.nodes.retain(|_, n| n.session != session);
        for queue in state.queues.values_mut() {
            queue.retain(|candidate| {
                let stays = candidate.session != session;
                if !stays {
                    candidate.held.send_replace(false);
                }
                stays
            });
        }
        self.publish_members(&state);
        self.publish_leases(&mut state);
    }
}

/// One participant's access to an [`InProcessCluster`]. Clones are the same participant.
#[derive(Clone)]
pub struct InProcessCoordination {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// This participant, through all its sessions.
    owner: u64,
    session: AtomicU64,
    cut: Mutex<Cut>,
    ownership: Ownership,
    state: watch::Sender<SessionState>,
}

#[derive(Default)]
struct Cut {
    closed: bool,
    /// The task that lets the session expire.
    timer: Option<tokio::task::JoinHandle<()>>,
}

impl Inner {
    fn expire(&self) {
        self.ownership.revoke();
        self.state.send_replace(SessionState::Expired);
        self.shared.end_session(self.session.load(Ordering::Acquire));
    }

    /// Whether a call may go through.
    fn reach(&self) -> CoordinationResult<u64> {
        let cut = self.cut.lock();
        match *self.state.borrow() {
            SessionState::Expired => Err(CoordinationError::SessionExpired),
            _ if cut.timer.is_some() => Err(CoordinationError::Unavailable("cut off".into())),
            _ => Ok(self.session.load(Ordering::Acquire)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(timer) = self.cut.lock().timer.take() {
            timer.abort();
        }
        self.shared.end_session(self.session.load(Ordering::Acquire));
    }
}

impl InProcessCoordination {
    /// Cuts this participant off: calls fail, and after the session timeout its session is over.
    pub fn cut(&self) {
        let mut cut = self.inner.cut.lock();
        if cut.timer.is_some() || *self.inner.state.borrow() == SessionState::Expired {
            return;
        }
        let now = Instant::now();
        let timeout = self.inner.shared.session_timeout;
        let proven = timeout * 2 / 3;
        self.inner.ownership.limit(now, proven);
        self.inner.state.send_replace(SessionState::Suspended);
        let inner = Arc::downgrade(&self.inner);
        cut.timer = Some(tokio::spawn(async move {
            sleep_until(now + proven).await;
            if let Some(inner) = inner.upgrade() {
                inner.state.send_replace(SessionState::Fenced);
            }
            sleep_until(now + timeout).await;
            if let Some(inner) = inner.upgrade() {
                // Under the lock, so that whoever restores the connection finds it either before or after.
                let _cut = inner.cut.lock();
                inner.expire();
            }
        }));
    }

    /// Connects it again.
    pub fn restore(&self) {
        let mut cut = self.inner.cut.lock();
        if let Some(timer) = cut.timer.take() {
            timer.abort();
        }
        if *self.inner.state.borrow() != SessionState::Expired {
            self.inner.ownership.extend(Instant::now(), FOREVER);
            self.inner.state.send_replace(SessionState::Connected);
        }
    }
}

fn no_cluster() -> CoordinationError {
    CoordinationError::NotFound("cluster".into())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use holdfast_actors::ports::coordination::conformance::{Connection, Harness, Participant};

    use super::*;

    #[async_trait]
    impl Connection for InProcessCoordination {
        async fn cut(&self) {
            Self::cut(self);
        }

        async fn restore(&self) {
            Self::restore(self);
        }
    }

    #[async_trait]
    impl Harness for InProcessCluster {
        async fn participant(&self) -> Participant {
            let coordination = Self::participant(self);
            Participant { coordination: Arc::new(coordination.clone()), connection: Arc::new(coordination) }
        }

        fn interruption_max(&self) -> Duration {
            // Until then a participant that is cut off is not even fenced.
            self.shared.session_timeout * 2 / 3
        }
    }

    mod conformance {
        use super::*;

        holdfast_actors::coordination_conformance!(InProcessCluster::new(Duration::from_millis(300)));
    }
}
