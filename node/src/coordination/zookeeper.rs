//! Coordination by a ZooKeeper ensemble (3.6 or newer).
//!
//! * `session`: one task owns the session, proves that it lives, and declares everything lost when it does not.
//! * `calls`: reads and compare-and-set with deadlines; what became of a write whose answer was lost is found out.
//! * `mirror`: one task follows a recursive watch and keeps the channels current.
//! * `nodes`: who is registered, and what each says of the cache.
//! * `queue`: leases and leadership, and the locks of [`crate::locks`].
//! * `stored`: paths and formats.
//! * `config`: how to reach the ensemble.
//! * `claim`: by which name a process registers, and whom it replaces.
//!
//! Dropping the adapter ends its session. A node that is closed or dropped is seen leaving at once; one that is killed,
//! after the session timeout, or when its successor takes its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::domain::placement::shard;
use holdfast_actors::ports::coordination::{
    CacheSeen, CacheState, ClusterIdentity, Coordination, CoordinationError, CoordinationResult, FORMAT, FencingToken,
    Lease, LeaseName, LeaseTable, Membership, NodeAnnouncement, Ownership, Pauses, Registration, SessionState,
    ShardMap, Version, Versioned,
};
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use zookeeper_client as zk;

mod calls;
mod claim;
mod config;
mod mirror;
mod nodes;
mod queue;
mod session;
mod stored;

use calls::Outcome;
pub use claim::Claim;
pub use config::{Digest, ZookeeperConfig};
use session::{Command, Shared, refused};
use stored::{
    CLUSTER, CONTROLLERS, GENERATION, LAYOUT, LEASES, NODES, NodeRecord, PAUSES, SEEN, SHARDS, StoredCache, StoredSeen,
    StoredShard, decode, encode, node_path, seen_path, shard_path,
};

/// How often somebody who waits looks again, in case an event was lost.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long somebody who was woken by what a node said waits for the others to speak, too, for each that is waited for.
/// Where hundreds wait for hundreds, each would ask for all of them each time that one speaks.
const HEAR_OUT: Duration = Duration::from_micros(200);

/// One participant's access to a cluster in ZooKeeper.
pub struct ZookeeperCoordination {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// What this participant last registered.
    registered: Mutex<Option<NodeId>>,
}

impl ZookeeperCoordination {
    /// Connects, and returns once the channels show what is there.
    ///
    /// # Errors
    /// [`CoordinationError::Invalid`] for a configuration that cannot work; [`CoordinationError::Unavailable`],
    /// [`CoordinationError::Denied`].
    pub async fn connect(config: ZookeeperConfig) -> CoordinationResult<Self> {
        Self::connect_as(config, Claim::default()).await
    }

    /// The same under a name that others may have to know.
    ///
    /// # Errors
    /// As [`ZookeeperCoordination::connect`].
    pub async fn connect_as(config: ZookeeperConfig, claim: Claim) -> CoordinationResult<Self> {
        config.check()?;
        let shared = Arc::new(Shared::new(config, claim));
        let client = session::first(&shared).await?;
        let (commands, receiver) = mpsc::channel(16);
        tokio::spawn(session::run(shared.clone(), client, receiver));
        tokio::spawn(mirror::run(shared.clone()));
        let coordination = Self { shared, commands, registered: Mutex::default() };
        coordination.mirrored().await?;
        Ok(coordination)
    }

    /// Waits until the channels show what is there in the present session. Until then they show what was there in an
    /// earlier one.
    async fn mirrored(&self) -> CoordinationResult<()> {
        let session = self.shared.client()?.session_id().0;
        let mut complete = self.shared.views.complete_in.subscribe();
        let shown = complete.wait_for(|of| *of == Some(session));
        if timeout(self.shared.config.session_timeout, shown).await.is_ok_and(|shown| shown.is_ok()) {
            return Ok(());
        }
        Err(CoordinationError::Unavailable("the cluster could not be read in time".into()))
    }

    /// Stands in the queue of a lock; `None` when it was taken and `only_if_free`. For the adapter of that port.
    pub(crate) async fn acquire_lock(
        &self,
        name: &LeaseName,
        node: NodeId,
        only_if_free: bool,
    ) -> CoordinationResult<Option<Lease>> {
        queue::acquire(&self.shared, queue::Kind::Lock, name, node, only_if_free).await
    }

    /// Makes the tokens of all locks higher than `above`.
    pub(crate) async fn raise_lock_tokens(&self, above: FencingToken) -> CoordinationResult<()> {
        queue::raise_tokens(&self.shared, above).await
    }

    /// How long one operation may take.
    pub(crate) fn operation_timeout(&self) -> Duration {
        self.shared.config.operation_timeout
    }

    /// The state of the session.
    pub(crate) fn session_state(&self) -> watch::Ref<'_, SessionState> {
        self.shared.state.borrow()
    }

    async fn value<T: DeserializeOwned>(&self, path: &str, what: &str) -> CoordinationResult<Versioned<T>> {
        let found = self.shared.latest(self.shared.deadline(), path).await?;
        let (bytes, stat) = found.ok_or_else(|| CoordinationError::NotFound(what.to_owned()))?;
        Ok(Versioned { version: Version(stat.version), value: decode(path, &bytes)? })
    }
}

#[async_trait]
impl Coordination for ZookeeperCoordination {
    fn ownership(&self) -> Ownership {
        self.shared.ownership.clone()
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.shared.state.subscribe()
    }

    fn is_current(&self) -> bool {
        self.shared.views.is_current.load(Ordering::Acquire)
    }

    async fn renew_session(&self) -> CoordinationResult<()> {
        let (reply, answer) = oneshot::channel();
        let gone = CoordinationError::SessionExpired;
        self.commands.send(Command::Renew(reply)).await.map_err(|_| gone.clone())?;
        answer.await.unwrap_or(Err(gone))?;
        self.mirrored().await
    }

    async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            // An error says that it was closed already.
            answer.await.ok();
        }
    }

    async fn create_cluster(&self, identity: &ClusterIdentity, layout: &LayoutDocument) -> CoordinationResult<()> {
        super::check_new_cluster(identity)?;
        let shared = &self.shared;
        let options = zk::CreateMode::Persistent.with_acls(shared.config.acls());
        let (identity_bytes, layout) = (encode(identity)?, encode(layout)?);
        let cache = encode(&CacheState::initial())?;
        let until = shared.deadline();
        loop {
            let outcome = shared
                .transact(shared.deadline(), |writer| {
                    writer.add_create(CLUSTER, &identity_bytes.bytes, &options)?;
                    writer.add_create(LAYOUT, &layout.bytes, &options)?;
                    writer.add_create(GENERATION, &cache.bytes, &options)?;
                    for parent in [SHARDS, NODES, SEEN, CONTROLLERS, LEASES] {
                        writer.add_create(parent, b"", &options)?;
                    }
                    Ok(())
                })
                .await?;
            let reason = match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Refused(_, zk::Error::NodeExists) => None,
                Outcome::Refused(_, error) => return Err(refused("create the cluster", &error)),
                Outcome::Open(reason) => Some(reason),
            };
            match (self.cluster().await, reason) {
                // The id is random: that it is there means that this call put it there.
                (Ok(found), Some(_)) if found.id == identity.id => return Ok(()),
                (Ok(found), _) => return Err(CoordinationError::ClusterExists(found.id)),
                // All of it is made at once: what is there without a cluster nobody is about to make.
                (Err(CoordinationError::NotFound(_)), None) if Instant::now() >= until => {
                    let place = &shared.config.chroot;
                    return Err(CoordinationError::Invalid(format!(
                        "{place} has parts of a cluster, and no cluster: remove it there, or use another place"
                    )));
                }
                (Err(CoordinationError::NotFound(_)), _) => sleep(LOOK_AGAIN).await,
                (Err(error), Some(reason)) => {
                    return Err(CoordinationError::Unknown(format!("{reason}, then: {error}")));
                }
                (Err(error), None) => return Err(error),
            }
        }
    }

    async fn cluster(&self) -> CoordinationResult<ClusterIdentity> {
        // The format first: a newer one may have other fields.
        #[derive(serde::Deserialize)]
        struct Format {
            format: u32,
        }
        let found = self.value::<serde_json::Value>(CLUSTER, "cluster").await?.value;
        let corrupt = |e: serde_json::Error| CoordinationError::Corrupt(format!("{CLUSTER}: {e}"));
        let Format { format } = serde_json::from_value(found.clone()).map_err(corrupt)?;
        if format > FORMAT {
            return Err(CoordinationError::Format { found: format, known: FORMAT });
        }
        let identity: ClusterIdentity = serde_json::from_value(found).map_err(corrupt)?;
        // Everything is reckoned by the number of shards: none, or billions, would end the node.
        identity.check().map_err(|e| CoordinationError::Corrupt(format!("{CLUSTER}: {e}")))?;
        Ok(identity)
    }

    async fn register(&self, cluster: ClusterId, node: NodeAnnouncement) -> CoordinationResult<Registration> {
        let found = self.cluster().await?.id;
        if found != cluster {
            return Err(CoordinationError::WrongCluster { expected: cluster, found });
        }
        // The session of a process that was killed ends within the timeout that it had; the ensemble counts in ticks.
        let patience = self.shared.client()?.session_timeout() * 3 / 2;
        let mut deadline = Instant::now() + patience;
        let (mut membership, mut session) = (self.membership(), self.session());
        loop {
            let tried = self.try_register(&node).await?;
            if session.has_changed().unwrap_or(false) {
                // The ensemble was away. One with another leader gives every session its whole time again.
                session.mark_unchanged();
                deadline = Instant::now() + patience;
            }
            match tried {
                Ok(Some(registration)) => {
                    *self.registered.lock() = Some(node.id);
                    return Ok(registration);
                }
                // What it is to be in one step with changes, or is not there.
                Ok(None) if Instant::now() >= deadline => {
                    return Err(CoordinationError::Unavailable("the registration was refused again and again".into()));
                }
                Ok(None) => sleep(LOOK_AGAIN / 10).await,
                Err(holder) if Instant::now() >= deadline => {
                    return Err(CoordinationError::NodeIdTaken { node: node.id, holder });
                }
                Err(_) => drop(timeout(LOOK_AGAIN, membership.changed()).await),
            }
        }
    }

    async fn announce(&self, node: NodeAnnouncement) -> CoordinationResult<()> {
        let path = node_path(node.id);
        let missing = || CoordinationError::NotFound("registration of this node".into());
        loop {
            let session = self.shared.client()?.session_id();
            let (_, stat) = self.shared.latest(self.shared.deadline(), &path).await?.ok_or_else(missing)?;
            if stat.ephemeral_owner != session.0 {
                return Err(missing());
            }
            let record =
                encode(&NodeRecord { owner: self.shared.claim.owner().to_owned(), announcement: node.clone() })?;
            let expected = Some(Version(stat.version));
            match self.shared.compare_and_set(&path, "the registration", expected, &record, None).await {
                // Another call of this process was faster.
                Err(CoordinationError::Conflict(_)) => {}
                result => return result.map(drop),
            }
        }
    }

    fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.shared.views.membership.subscribe()
    }

    async fn layout(&self) -> CoordinationResult<Versioned<LayoutDocument>> {
        self.value(LAYOUT, "cluster").await
    }

    async fn store_layout(&self, expected: Version, document: &LayoutDocument) -> CoordinationResult<Version> {
        let value = encode(document)?;
        let stored = self.shared.compare_and_set(LAYOUT, "the layout", Some(expected), &value, None).await?;
        Ok(stored.expect("there is no guard"))
    }

    fn watch_layout(&self) -> watch::Receiver<Option<Arc<Versioned<LayoutDocument>>>> {
        self.shared.views.layout.subscribe()
    }

    async fn shard(&self, shard: ShardId) -> CoordinationResult<Versioned<ShardState>> {
        let found: Versioned<StoredShard> = self.value(&shard_path(shard), &format!("shard {shard}")).await?;
        Ok(Versioned { version: found.version, value: found.value.into() })
    }

    async fn store_shard(
        &self,
        shard: ShardId,
        expected: Option<Version>,
        state: &ShardState,
        controller: &Lease,
    ) -> CoordinationResult<Version> {
        shard::check(state).map_err(CoordinationError::Invalid)?;
        let value = encode(state)?;
        let (path, what) = (shard_path(shard), format!("shard {shard}"));
        let stored = self.shared.compare_and_set(&path, &what, expected, &value, Some(controller.key())).await?;
        stored.ok_or_else(|| CoordinationError::LeaseLost(controller.name().clone()))
    }

    fn shards(&self) -> watch::Receiver<Arc<ShardMap>> {
        self.shared.views.shards.subscribe()
    }

    async fn acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Lease> {
        let lease = queue::acquire(&self.shared, queue::Kind::Lease, lease, node, false).await?;
        lease.ok_or(CoordinationError::SessionExpired)
    }

    async fn try_acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Option<Lease>> {
        queue::acquire(&self.shared, queue::Kind::Lease, lease, node, true).await
    }

    fn leases(&self) -> watch::Receiver<Arc<LeaseTable>> {
        self.shared.views.leases.subscribe()
    }

    async fn pauses(&self) -> CoordinationResult<Option<Versioned<Pauses>>> {
        match self.value(PAUSES, "pauses").await {
            Ok(found) => Ok(Some(found)),
            Err(CoordinationError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn store_pauses(&self, expected: Option<Version>, pauses: &Pauses) -> CoordinationResult<Version> {
        let value = encode(pauses)?;
        // They came after the first clusters, so their place is made when it is needed: in a cluster, and nowhere else.
        let stored = self.shared.compare_and_set(PAUSES, "what is paused", expected, &value, Some(CLUSTER)).await?;
        stored.ok_or_else(|| CoordinationError::NotFound("cluster".into()))
    }

    fn watch_pauses(&self) -> watch::Receiver<Pauses> {
        self.shared.views.pauses.subscribe()
    }

    async fn cache_state(&self) -> CoordinationResult<Versioned<CacheState>> {
        let Versioned { version, value } = self.value::<StoredCache>(GENERATION, "cluster").await?;
        Ok(Versioned { version, value: value.into() })
    }

    async fn store_cache_state(&self, expected: Version, state: &CacheState) -> CoordinationResult<Version> {
        let (value, what) = (encode(state)?, "the state of the cache");
        let stored = self.shared.compare_and_set(GENERATION, what, Some(expected), &value, None).await?;
        Ok(stored.expect("there is no guard"))
    }

    fn watch_cache_state(&self) -> watch::Receiver<CacheState> {
        self.shared.views.cache.subscribe()
    }

    async fn acknowledge_cache(&self, seen: &CacheSeen) -> CoordinationResult<()> {
        let missing = || CoordinationError::NotFound("registration of this node".into());
        let node = (*self.registered.lock()).ok_or_else(missing)?;
        let path = seen_path(node);
        loop {
            let session = self.shared.client()?.session_id();
            let (bytes, stat) = self.shared.latest(self.shared.deadline(), &path).await?.ok_or_else(missing)?;
            if stat.ephemeral_owner != session.0 {
                return Err(missing());
            }
            let said: CacheSeen = decode::<StoredSeen>(&path, &bytes)?.into();
            let new = CacheSeen { generation: said.generation.max(seen.generation), ..seen.clone() };
            if new == said {
                return Ok(());
            }
            let (value, expected) = (encode(&new)?, Some(Version(stat.version)));
            match self.shared.compare_and_set(&path, "the acknowledgement", expected, &value, None).await {
                Err(CoordinationError::Conflict(_)) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn cache_seen(&self) -> CoordinationResult<BTreeMap<NodeId, CacheSeen>> {
        let alive = self.alive().await?;
        self.said(&alive).await
    }

    async fn cache_generation_seen(&self, generation: u64, patience: Duration) -> CoordinationResult<()> {
        let deadline = Instant::now() + patience;
        let mut changed = self.shared.views.seen.subscribe();
        let mut waiting = self.alive().await?;
        loop {
            changed.borrow_and_update();
            let said = self.said(&waiting).await?;
            waiting = said.into_iter().filter(|(_, seen)| seen.generation < generation).map(|(node, _)| node).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                waiting.sort();
                return Err(CoordinationError::NotSeen { generation, waiting });
            }
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            drop(timeout_at(look_again, changed.changed()).await);
            let pause = HEAR_OUT.saturating_mul(waiting.len() as u32);
            sleep_until(look_again.min(Instant::now() + pause)).await;
        }
    }
}
