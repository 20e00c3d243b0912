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

use async_trait::async_trait;
use holdfast_actors::domain::placement::shard;
use holdfast_actors::ports::coordination::{
    CacheSeen, CacheState, ClusterIdentity, Coordination, CoordinationError, CoordinationResult, FencingToken, Lease,
    LeaseHolder, LeaseName, LeaseTable, LiveNode, Membership, NodeAnnouncement, Ownership, Pauses, Registration,
    SessionState, ShardMap, Version, Versioned,
};
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

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

    fn enqueue(&self, lease: &LeaseName, node: NodeId, only_if_free: bool) -> CoordinationResult<Option<Waiting>> {
        let session = self.inner.reach()?;
        let shared = &self.inner.shared;
        let mut state = shared.state.lock();
        state.check_session(session)?;
        if state.identity.is_none() {
            return Err(no_cluster());
        }
        let taken = state.queues.get(lease.as_str()).is_some_and(|q| !q.is_empty());
        if taken && only_if_free {
            return Ok(None);
        }
        let token = FencingToken(state.next());
        let (held, granted) = watch::channel(false);
        let candidate = Candidate { session, node, token, held };
        state.queues.entry(lease.as_str().to_owned()).or_default().push_back(candidate);
        shared.publish_leases(&mut state);
        Ok(Some(Waiting { shared: shared.clone(), name: lease.clone(), token, granted, taken: false }))
    }
}

/// A place in a queue; dropped, it is given up.
struct Waiting {
    shared: Arc<Shared>,
    name: LeaseName,
    token: FencingToken,
    granted: watch::Receiver<bool>,
    taken: bool,
}

impl Waiting {
    async fn wait(mut self, ownership: Ownership) -> CoordinationResult<Lease> {
        // The sender goes away without a grant when the session ends.
        if self.granted.wait_for(|granted| *granted).await.is_err() {
            return Err(CoordinationError::SessionExpired);
        }
        self.taken = true;
        let (shared, name, token) = (self.shared.clone(), self.name.clone(), self.token);
        let release = Box::new(move || -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move { shared.leave_queue(name.as_str(), token) })
        });
        let key = self.token.to_string();
        Ok(Lease::new(self.name.clone(), self.token, key, self.granted.clone(), ownership, release))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.leave_queue(self.name.as_str(), self.token);
        }
    }
}

fn no_cluster() -> CoordinationError {
    CoordinationError::NotFound("cluster".into())
}

fn not_registered() -> CoordinationError {
    CoordinationError::NotFound("registration of this node".into())
}

#[async_trait]
impl Coordination for InProcessCoordination {
    fn ownership(&self) -> Ownership {
        self.inner.ownership.clone()
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.inner.state.subscribe()
    }

    async fn renew_session(&self) -> CoordinationResult<()> {
        let cut = self.inner.cut.lock();
        if cut.closed {
            return Err(CoordinationError::SessionExpired);
        }
        if cut.timer.is_some() {
            return Err(CoordinationError::Unavailable("cut off".into()));
        }
        if *self.inner.state.borrow() == SessionState::Expired {
            let session = self.inner.shared.state.lock().open_session();
            self.inner.session.store(session, Ordering::Release);
            self.inner.ownership.extend(Instant::now(), FOREVER);
            self.inner.state.send_replace(SessionState::Connected);
        }
        Ok(())
    }

    async fn close(&self) {
        let mut cut = self.inner.cut.lock();
        cut.closed = true;
        if let Some(timer) = cut.timer.take() {
            timer.abort();
        }
        self.inner.expire();
    }

    async fn create_cluster(&self, identity: &ClusterIdentity, layout: &LayoutDocument) -> CoordinationResult<()> {
        super::check_new_cluster(identity)?;
        self.inner.reach()?;
        let mut state = self.inner.shared.state.lock();
        if let Some(existing) = &state.identity {
            return Err(CoordinationError::ClusterExists(existing.id));
        }
        state.identity = Some(identity.clone());
        self.inner.shared.show_cache(Version(0), CacheState::initial());
        let first = Versioned { version: Version(0), value: layout.clone() };
        self.inner.shared.layout.send_replace(Some(Arc::new(first)));
        Ok(())
    }

    async fn cluster(&self) -> CoordinationResult<ClusterIdentity> {
        self.inner.reach()?;
        self.inner.shared.state.lock().identity.clone().ok_or_else(no_cluster)
    }

    async fn register(&self, cluster: ClusterId, node: NodeAnnouncement) -> CoordinationResult<Registration> {
        let found = self.cluster().await?.id;
        if found != cluster {
            return Err(CoordinationError::WrongCluster { expected: cluster, found });
        }
        let shared = &self.inner.shared;
        let deadline = Instant::now() + shared.session_timeout * 3 / 2;
        let mut changed = shared.seen.subscribe();
        loop {
            let session = self.inner.reach()?;
            let holder = {
                let mut state = shared.state.lock();
                state.check_session(session)?;
                match state.nodes.get(&node.id).filter(|n| n.owner != self.inner.owner) {
                    None => {
                        let live = LiveNode { announcement: node.clone(), incarnation: state.next() };
                        let generation = shared.cache.borrow().value.generation;
                        let registration = Registration { incarnation: live.incarnation, cache_generation: generation };
                        let seen = CacheSeen { generation, ..CacheSeen::default() };
                        let registered = Registered { session, owner: self.inner.owner, live, seen };
                        state.nodes.insert(node.id, registered);
                        shared.publish_members(&state);
                        return Ok(registration);
                    }
                    Some(other) => other.live.announcement.addresses.peer.clone(),
                }
            };
            if timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(CoordinationError::NodeIdTaken { node: node.id, holder });
            }
        }
    }

    async fn announce(&self, node: NodeAnnouncement) -> CoordinationResult<()> {
        let session = self.inner.reach()?;
        let mut state = self.inner.shared.state.lock();
        let own = state.nodes.get_mut(&node.id).filter(|n| n.session == session).ok_or_else(not_registered)?;
        own.live.announcement = node;
        self.inner.shared.publish_members(&state);
        Ok(())
    }

    fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.inner.shared.membership.subscribe()
    }

    async fn layout(&self) -> CoordinationResult<Versioned<LayoutDocument>> {
        self.inner.reach()?;
        let layout = self.inner.shared.layout.borrow();
        layout.as_ref().map(|l| Versioned::clone(l)).ok_or_else(no_cluster)
    }

    async fn store_layout(&self, expected: Version, document: &LayoutDocument) -> CoordinationResult<Version> {
        self.inner.reach()?;
        let _serial = self.inner.shared.state.lock();
        let version = Version(expected.0 + 1);
        let replaced = self.inner.shared.layout.send_if_modified(|layout| {
            let matches = layout.as_ref().is_some_and(|l| l.version == expected);
            if matches {
                *layout = Some(Arc::new(Versioned { version, value: document.clone() }));
            }
            matches
        });
        if replaced { Ok(version) } else { Err(CoordinationError::Conflict("the layout".into())) }
    }

    fn watch_layout(&self) -> watch::Receiver<Option<Arc<Versioned<LayoutDocument>>>> {
        self.inner.shared.layout.subscribe()
    }

    async fn shard(&self, shard: ShardId) -> CoordinationResult<Versioned<ShardState>> {
        self.inner.reach()?;
        let map = self.inner.shared.shards.borrow();
        let found = map.shards.get(&shard).ok_or_else(|| CoordinationError::NotFound(format!("shard {shard}")))?;
        Ok(Versioned::clone(found))
    }

    async fn store_shard(
        &self,
        shard: ShardId,
        expected: Option<Version>,
        value: &ShardState,
        controller: &Lease,
    ) -> CoordinationResult<Version> {
        shard::check(value).map_err(CoordinationError::Invalid)?;
        self.inner.reach()?;
        let state = self.inner.shared.state.lock();
        let first = state.queues.get(controller.name().as_str()).and_then(VecDeque::front);
        if first.is_none_or(|c| c.token != controller.token()) {
            return Err(CoordinationError::LeaseLost(controller.name().clone()));
        }
        let present = self.inner.shared.shards.borrow().shards.get(&shard).map(|s| s.version);
        if present != expected {
            return Err(CoordinationError::Conflict(format!("shard {shard}")));
        }
        let version = expected.map_or(Version(0), |v| Version(v.0 + 1));
        let entry = Arc::new(Versioned { version, value: value.clone() });
        self.inner.shared.shards.send_modify(|map| drop(Arc::make_mut(map).shards.insert(shard, entry)));
        Ok(version)
    }

    fn shards(&self) -> watch::Receiver<Arc<ShardMap>> {
        self.inner.shared.shards.subscribe()
    }

    async fn acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Lease> {
        let waiting = self.enqueue(lease, node, false)?.expect("queueing is always possible");
        waiting.wait(self.inner.ownership.clone()).await
    }

    async fn try_acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Option<Lease>> {
        match self.enqueue(lease, node, true)? {
            // Granted already, as the queue was empty.
            Some(waiting) => waiting.wait(self.inner.ownership.clone()).await.map(Some),
            None => Ok(None),
        }
    }

    fn leases(&self) -> watch::Receiver<Arc<LeaseTable>> {
        self.inner.shared.leases.subscribe()
    }

    async fn pauses(&self) -> CoordinationResult<Option<Versioned<Pauses>>> {
        self.inner.reach()?;
        let state = self.inner.shared.state.lock();
        let value = self.inner.shared.pauses.borrow().clone();
        Ok(state.pauses.map(|version| Versioned { version, value }))
    }

    async fn store_pauses(&self, expected: Option<Version>, pauses: &Pauses) -> CoordinationResult<Version> {
        self.inner.reach()?;
        let mut state = self.inner.shared.state.lock();
        if state.identity.is_none() {
            return Err(no_cluster());
        }
        if state.pauses != expected {
            return Err(CoordinationError::Conflict("what is paused".into()));
        }
        let version = expected.map_or(Version(0), |version| Version(version.0 + 1));
        state.pauses = Some(version);
        self.inner.shared.pauses.send_replace(pauses.clone());
        Ok(version)
    }

    fn watch_pauses(&self) -> watch::Receiver<Pauses> {
        self.inner.shared.pauses.subscribe()
    }

    async fn cache_state(&self) -> CoordinationResult<Versioned<CacheState>> {
        self.inner.reach()?;
        let state = self.inner.shared.state.lock();
        if state.identity.is_none() {
            return Err(no_cluster());
        }
        Ok(self.inner.shared.cache.borrow().clone())
    }

    async fn store_cache_state(&self, expected: Version, value: &CacheState) -> CoordinationResult<Version> {
        self.inner.reach()?;
        let _serial = self.inner.shared.state.lock();
        let present = self.inner.shared.cache.borrow().clone();
        if present.version != expected {
            return Err(CoordinationError::Conflict("the state of the cache".into()));
        }
        if value.generation != present.value.generation + 1 {
            return Err(CoordinationError::Invalid(format!("cache generation {}", value.generation)));
        }
        let version = Version(expected.0 + 1);
        self.inner.shared.show_cache(version, value.clone());
        Ok(version)
    }

    fn watch_cache_state(&self) -> watch::Receiver<CacheState> {
        self.inner.shared.cache_shown.subscribe()
    }

    async fn acknowledge_cache(&self, seen: &CacheSeen) -> CoordinationResult<()> {
        let session = self.inner.reach()?;
        let mut state = self.inner.shared.state.lock();
        let own = state.nodes.values_mut().find(|n| n.session == session).ok_or_else(not_registered)?;
        own.seen = CacheSeen { generation: own.seen.generation.max(seen.generation), ..seen.clone() };
        self.inner.shared.seen.send_replace(());
        Ok(())
    }

    async fn cache_seen(&self) -> CoordinationResult<BTreeMap<NodeId, CacheSeen>> {
        self.inner.reach()?;
        let state = self.inner.shared.state.lock();
        Ok(state.nodes.iter().map(|(id, node)| (*id, node.seen.clone())).collect())
    }

    async fn cache_generation_seen(&self, generation: u64, patience: Duration) -> CoordinationResult<()> {
        let deadline = Instant::now() + patience;
        let mut changed = self.inner.shared.seen.subscribe();
        loop {
            self.inner.reach()?;
            let waiting: BTreeSet<NodeId> = {
                let state = self.inner.shared.state.lock();
                state.nodes.iter().filter(|(_, n)| n.seen.generation < generation).map(|(id, _)| *id).collect()
            };
            if waiting.is_empty() {
                return Ok(());
            }
            if timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(CoordinationError::NotSeen { generation, waiting: waiting.into_iter().collect() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
    }

    mod conformance {
        use super::*;

        holdfast_actors::coordination_conformance!(InProcessCluster::new(Duration::from_millis(300)));
    }
}
