//! The verbs of the port, each a change of the one state under its lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::domain::placement::shard;
use holdfast_actors::ports::coordination::{
    CacheSeen, CacheState, ClusterIdentity, Coordination, CoordinationError, CoordinationResult, Lease, LeaseName,
    LeaseTable, LiveNode, Membership, NodeAnnouncement, Ownership, Pauses, Registration, SessionState, ShardMap,
    Version, Versioned,
};
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{FOREVER, InProcessCoordination, Registered, no_cluster};

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
        crate::coordination::check_new_cluster(identity)?;
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
                        // As with the real service.
                        if state.nodes.contains_key(&node.id) {
                            self.inner.ownership.registers_anew();
                        }
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
