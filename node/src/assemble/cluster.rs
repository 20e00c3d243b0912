//! What makes a node one of a cluster: what it agrees on with the others, the way to them, and the actors between.
//!
//! The parts are the same whatever stands behind the ports: ZooKeeper, MySQL and QUIC ([`super::zookeeper`]), or what the
//! nodes of one process share ([`super::dev`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::domain::admission::DiskHealth;
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::key_locks::ChunkLocks;
use holdfast_actors::flow::lifecycle::LifecycleDuty;
use holdfast_actors::flow::reclaim::{ClusterDuty, Writers};
use holdfast_actors::flow::replica_service::{LocalReplicas, ReplicaLimits};
use holdfast_actors::flow::replicate::{MetadataRepairs, ReplicateOptions, ReplicateParts, ReplicatedChunks};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::self_report::SelfReport;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheFollower, ClusterIdentity, Coordination, NodeAddresses, NodeAnnouncement, NodeState, filler,
    filler_before,
};
use holdfast_actors::ports::locks::{LockName, Locks};
use holdfast_actors::ports::peers::{Peers, ReplicaService};
use holdfast_actors::ports::{AccessLog, ChunkStore, Clock, Disk, Journal, MetadataStore, Outbox, TierLedger};
use holdfast_actors::service::cluster::{self, ClusterHandle, ClusterParts, ClusterSettings, Findings, ReportInbox};
use holdfast_protocol::NodeId;
use holdfast_storage::finding::FindingSink;

use super::STOP_STEP_MAX;
use super::data_dir::DataDir;
use super::parts::{RESTART_WINDOW, RESTARTS_MAX};
use super::transport::{Served, Transport};
use crate::admin::ClusterAdmin;
use crate::config::Config;
use crate::tiers::Counts;

/// How long a node waits at its start to be registered: some sessions, since a predecessor's may have to end first.
const REGISTRATION_SESSIONS: u32 = 6;

/// The lock of the node that ends unfinished uploads and reclaims contents.
const CLEANUP_LOCK: &str = "cleanup";

/// The lock of the node that carries lifecycle rules out.
const LIFECYCLE_LOCK: &str = "lifecycle";

/// What the nodes of a cluster have in common, opened for one of them.
pub(super) struct ClusterPorts {
    pub(super) identity: ClusterIdentity,
    pub(super) coordination: Arc<dyn Coordination>,
    pub(super) locks: Arc<dyn Locks>,
    pub(super) metadata: Arc<dyn MetadataStore>,
    /// Of the cache before the metadata, if there is one.
    pub(super) cache: Option<Arc<dyn CacheFollower>>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) tiers: Arc<dyn TierLedger>,
    pub(super) reads: Arc<dyn AccessLog>,
    /// Whether a bucket was ever made in it.
    pub(super) had_buckets: bool,
    pub(super) transport: Transport,
}

/// A node's place in its cluster, before its actors run.
pub(super) struct Joint {
    pub(super) identity: ClusterIdentity,
    pub(super) coordination: Arc<dyn Coordination>,
    pub(super) locks: Arc<dyn Locks>,
    pub(super) view: Arc<ClusterView>,
    pub(super) peers: Arc<dyn Peers>,
    /// All replicas: what S3 reads and writes.
    pub(super) chunks: Arc<dyn ChunkStore>,
    pub(super) local: Arc<dyn ReplicaStore>,
    pub(super) cache: Option<Arc<dyn CacheFollower>>,
    reports: Arc<ReportInbox>,
    chunk_locks: Arc<ChunkLocks>,
    self_report: Arc<SelfReport>,
    findings: Arc<Findings>,
    /// Kept: the transport only borrows it.
    pub(super) service: Arc<dyn ReplicaService>,
    pub(super) served: Served,
}

/// Refuses a data directory that is not of the cluster that the configuration names.
pub(super) fn check_identity(data_dir: &DataDir, identity: &ClusterIdentity, place: &str) -> anyhow::Result<()> {
    match data_dir.cluster_id()? {
        Some(found) if found == identity.id => Ok(()),
        Some(found) => bail!(
            "this node belongs to cluster {found}, but {place} is that of cluster {}: correct cluster.zookeeper or node.data_dir",
            identity.id
        ),
        None => bail!(
            "this node is not one of cluster {} yet: run `holdfast cluster join` with a token from a node that is",
            identity.id
        ),
    }
}

/// Where damage that disks find goes: the list of what is to be repaired.
pub(super) fn finding_sink(findings: &Arc<Findings>) -> FindingSink {
    let findings = findings.clone();
    Arc::new(move |finding| {
        if let Some(chunk) = finding.chunk {
            findings.push(chunk);
        }
    })
}

/// What a node's place is made of.
pub(super) struct JointParts {
    pub(super) me: NodeId,
    pub(super) ports: ClusterPorts,
    pub(super) local: Arc<dyn ReplicaStore>,
    pub(super) disks: Vec<Arc<dyn Disk>>,
    pub(super) findings: Arc<Findings>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) reporter: Reporter,
    /// Memory of the disks' buffers.
    pub(super) buffers_bytes: usize,
}

/// Takes a node's place: peers are served from here on.
pub(super) fn join_up(parts: JointParts) -> anyhow::Result<Joint> {
    let JointParts { me, ports, local, disks, findings, clock, reporter, buffers_bytes } = parts;
    let ClusterPorts { identity, coordination, locks, metadata, cache, transport, .. } = ports;
    // Peers may ask from here on, and clean-up begins: a predecessor's registration, which is there still, is not this process's.
    coordination.ownership().require_registration();
    let view = ClusterView::new(
        me,
        identity.shard_count,
        coordination.shards(),
        coordination.membership(),
        coordination.ownership(),
    );
    let reports = Arc::new(ReportInbox::default());
    let chunk_locks = ChunkLocks::new();
    let self_report = SelfReport::new();
    let replicas = LocalReplicas::new(local.clone(), view.clone(), ReplicaLimits::default())
        .with_reports(reports.clone())
        .with_chunk_locks(chunk_locks.clone())
        .with_self_report(self_report.clone())
        .with_writable(move || disks.iter().any(|disk| disk.status().health == DiskHealth::Healthy));
    let service: Arc<dyn ReplicaService> = Arc::new(replicas);
    let served = transport.serve(me, &service, coordination.membership())?;
    let peers = served.peers.clone();
    let chunks = ReplicatedChunks::start(ReplicateParts {
        local: local.clone(),
        peers: peers.clone(),
        view: view.clone(),
        repairs: Arc::new(MetadataRepairs { metadata, clock }),
        self_report: self_report.clone(),
        reporter: Some(reporter),
        // Bytes that wait for peers hold buffers of the disks: a third of them at most.
        options: ReplicateOptions { queued_bytes_max: buffers_bytes / 3, ..ReplicateOptions::default() },
    });
    Ok(Joint {
        identity,
        coordination,
        locks,
        view,
        peers,
        chunks: Arc::new(chunks),
        local,
        cache,
        reports,
        chunk_locks,
        self_report,
        findings,
        service,
        served,
    })
}

impl Joint {
    /// What cleanup has to know.
    pub(super) fn duty(&self, config: &Config, started: Instant) -> ClusterDuty {
        let name = LockName::new(CLEANUP_LOCK).expect("it is a name");
        ClusterDuty {
            local: self.local.clone(),
            duty: Duty::new(self.locks.clone(), name),
            ownership: self.coordination.ownership(),
            sweep_from: started + config.cleanup.orphan_age.duration(),
            writers: Arc::new(LiveWriters {
                view: self.view.clone(),
                peers: self.peers.clone(),
                self_report: self.self_report.clone(),
                coordination: self.coordination.clone(),
            }),
        }
    }

    /// Whether this node is the one that counts for all what lies in tiers: the controller.
    pub(super) fn counts(&self) -> Counts {
        let (leases, view) = (self.coordination.leases(), self.view.clone());
        // Without a connection the leases stay as they were, and another node may have counted for long.
        Arc::new(move || {
            view.is_owner() && leases.borrow().get(CONTROLLER).is_some_and(|holder| holder.node == view.me())
        })
    }

    /// What the loop of lifecycle rules has to know.
    pub(super) fn lifecycle_duty(&self) -> LifecycleDuty {
        let name = LockName::new(LIFECYCLE_LOCK).expect("it is a name");
        LifecycleDuty { duty: Duty::new(self.locks.clone(), name), ownership: self.coordination.ownership() }
    }

    /// What the admin API has to know.
    pub(super) fn admin(&self, actors: ClusterHandle) -> ClusterAdmin {
        ClusterAdmin {
            identity: self.identity.clone(),
            coordination: self.coordination.clone(),
            view: self.view.clone(),
            peers: self.peers.clone(),
            local: self.local.clone(),
            actors,
            enrolment: self.served.enrolment(),
            settled: Default::default(),
            waiting: Default::default(),
            others: Default::default(),
            has_cache: self.cache.is_some(),
        }
    }

    /// Starts the actors and waits until the others see this node.
    ///
    /// # Errors
    /// When it is refused: its id is in use, the cluster is another one, or a tool fills the metadata.
    pub(super) async fn start(
        &self,
        config: &Config,
        announcement: NodeAnnouncement,
        disks: Vec<Arc<dyn Disk>>,
        metadata: Arc<dyn MetadataStore>,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<ClusterHandle> {
        // Twice: for an answer before anything is begun, and for certain when tools can see this node.
        refuse(filler(&*self.coordination))?;
        let parts = ClusterParts {
            cluster: self.identity.id,
            announcement,
            view: self.view.clone(),
            coordination: self.coordination.clone(),
            metadata,
            chunks: self.local.clone(),
            disks,
            peers: self.peers.clone(),
            clock,
            reports: self.reports.clone(),
            chunk_locks: self.chunk_locks.clone(),
            self_report: self.self_report.clone(),
            findings: self.findings.clone(),
            cache: self.cache.clone(),
            settings: settings(config),
            restarts_max: RESTARTS_MAX,
            restart_window: RESTART_WINDOW,
        };
        let actors = cluster::start(parts).await.context("start the actors of the cluster")?;
        let patience = config.cluster.session_timeout.duration() * REGISTRATION_SESSIONS;
        let registered = async {
            tokio::select! {
                done = actors.registered() => done.map_err(|reason| anyhow!(reason))?,
                // It is not registered before that ends, which takes hours.
                refused = filled(&*self.coordination) => return Err(refused),
            }
            let (me, incarnation) = (self.view.me(), actors.membership().incarnation);
            refuse_filled_before(&*self.coordination, me, incarnation).await
        };
        let refused = match tokio::time::timeout(patience, registered).await {
            Ok(Ok(())) => {
                if let Some(cache) = &self.cache
                    && !cache.stands(patience).await
                {
                    tracing::warn!("this node is registered, but does not know yet how the cache stands");
                }
                return Ok(actors);
            }
            Ok(Err(refused)) => refused,
            Err(_) => {
                let error = actors.membership().last_error.unwrap_or_else(|| "no answer".into());
                anyhow!("this node could not be registered within {} s: {error}", patience.as_secs())
            }
        };
        // An attempt may be on its way.
        self.registration(&actors).withdraw().await;
        Err(refused)
    }

    /// What ends the registration of a node whose start fails later.
    pub(super) fn registration(&self, actors: &ClusterHandle) -> Registration {
        Registration { actors: actors.clone(), coordination: self.coordination.clone() }
    }
}

/// Refuses while a tool fills the metadata.
fn refuse(filler: Option<NodeId>) -> anyhow::Result<()> {
    let Some(node) = filler else { return Ok(()) };
    bail!(
        "`holdfast cluster restore-metadata` or `rebuild-metadata` fills the metadata on node {node}, and this node would delete \
         chunks that are not in them yet: start it when that has ended"
    )
}

/// Refuses when a tool took its lease before this node, which is registered, could be seen.
async fn refuse_filled_before(coordination: &dyn Coordination, me: NodeId, incarnation: u64) -> anyhow::Result<()> {
    let filler = filler_before(coordination, me, incarnation).await;
    refuse(filler.context("wait to see this node in the cluster")?)
}

/// Resolves when a tool fills the metadata, as far as is known here.
async fn filled(coordination: &dyn Coordination) -> anyhow::Error {
    let mut leases = coordination.leases();
    loop {
        if let Err(why) = refuse(filler(coordination)) {
            return why;
        }
        if leases.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A node that the others may know of, though it does not serve yet.
pub(super) struct Registration {
    actors: ClusterHandle,
    coordination: Arc<dyn Coordination>,
}

impl Registration {
    /// Takes the node out of the cluster again: the others would see it until its session lapses, and send it what it never
    /// answers.
    pub(super) async fn withdraw(self) {
        self.actors.stop(STOP_STEP_MAX).await;
        if tokio::time::timeout(STOP_STEP_MAX, self.coordination.close()).await.is_err() {
            tracing::warn!("the session of this node could not be ended: the others see it until it lapses");
        }
    }
}

fn settings(config: &Config) -> ClusterSettings {
    let cluster = &config.cluster;
    let defaults = ClusterSettings::default();
    ClusterSettings {
        rebuild_delay: cluster.rebuild_delay.duration(),
        leave_grace: cluster.leave_grace.duration(),
        repair_bandwidth_bytes: cluster.repair_bandwidth.get(),
        announce_interval: cluster.session_timeout.duration().max(Duration::from_secs(5)),
        comparison_settle: cluster.in_proportion(defaults.comparison_settle),
        repair_interval: cluster.in_proportion(defaults.repair_interval),
        retry_max: cluster.in_proportion(defaults.retry_max),
        ..defaults
    }
}

/// Nodes asked at once for what they are writing.
const WRITERS_AT_ONCE: usize = 16;

/// The nodes that are alive, as far as is known here.
struct LiveWriters {
    view: Arc<ClusterView>,
    peers: Arc<dyn Peers>,
    self_report: Arc<SelfReport>,
    coordination: Arc<dyn Coordination>,
}

#[async_trait]
impl Writers for LiveWriters {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        // It took this node for stopped, which was paused.
        if let Some(node) = filler(&*self.coordination) {
            return Err(format!("node {node} fills the metadata, by restore-metadata or rebuild-metadata"));
        }
        let mut nodes: Vec<NodeId> = self.view.membership().borrow().nodes.keys().copied().collect();
        nodes.retain(|node| *node != self.view.me());
        let asked = stream::iter(nodes).map(|node| async move {
            let health = self.peers.health(node).await;
            health.map(|health| health.oldest_write_seconds).map_err(|error| format!("node {node}: {error}"))
        });
        let told: Vec<Option<u64>> = asked.buffer_unordered(WRITERS_AT_ONCE).try_collect().await?;
        Ok(told.into_iter().chain([self.self_report.oldest_write_seconds()]).flatten().min())
    }
}

/// What a node says of itself at first.
pub(super) fn announcement(config: &Config, me: NodeId, addresses: NodeAddresses) -> NodeAnnouncement {
    NodeAnnouncement {
        id: me,
        addresses,
        zone: config.cluster.zone.clone(),
        capacity_bytes: 0,
        free_bytes: 0,
        version: env!("CARGO_PKG_VERSION").into(),
        state: NodeState::Starting,
        publishes: config.events.is_on(),
        disks_working: None,
        disks_unrebuilt: 0,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::coordination::{FILLING, LeaseName};
    use holdfast_actors::ports::peers::in_process::InProcessNetwork;
    use holdfast_protocol::cluster::LayoutDocument;

    use super::*;
    use crate::coordination::InProcessCluster;

    #[tokio::test]
    async fn a_tool_that_began_while_a_node_was_on_its_way_is_noticed_by_the_node() {
        let cluster = InProcessCluster::new(Duration::from_secs(30));
        let (node, tool) = (cluster.participant(), cluster.participant());
        let identity = ClusterIdentity::new(4, 1);
        node.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
        refuse(filler(&node)).expect("nothing is filled when the node begins to start");

        let me = NodeId::from(1);
        let began = async {
            let lease = tool.acquire(&LeaseName::new(FILLING).unwrap(), NodeId::from(9)).await.unwrap();
            assert!(tool.cache_seen().await.unwrap().is_empty(), "it sees no node");
            let addresses = NodeAddresses { peer: "a:1".into(), s3: "a:2".into(), admin: "a:3".into() };
            let said = announcement(&Config::default(), me, addresses);
            node.register(identity.id, said).await.unwrap();
            lease
        };
        let (refused, lease) = tokio::join!(refuse_filled_before(&node, me, 1), began);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("fills the metadata on node 0000000000000009"), "{error}");

        let incarnation = node.membership().borrow().nodes[&me].incarnation;
        lease.release().await;
        refuse_filled_before(&node, me, incarnation).await.expect("it has ended");
    }

    /// It took this node for stopped, which only stood still.
    #[tokio::test]
    async fn no_walk_for_orphans_begins_while_a_tool_fills_the_metadata() {
        let cluster = InProcessCluster::default();
        let (node, tool) = (cluster.participant(), cluster.participant());
        node.create_cluster(&ClusterIdentity::new(4, 1), &LayoutDocument::new(3)).await.unwrap();
        let me = NodeId::from(1);
        let writers = LiveWriters {
            view: ClusterView::new(me, 4, node.shards(), node.membership(), node.ownership()),
            peers: Arc::new(InProcessNetwork::default().peers_of(me)),
            self_report: SelfReport::new(),
            coordination: Arc::new(node),
        };
        assert_eq!(writers.oldest_seconds().await, Ok(None));
        let lease = tool.acquire(&LeaseName::new(FILLING).unwrap(), NodeId::from(9)).await.unwrap();
        let refused = writers.oldest_seconds().await.unwrap_err();
        assert!(refused.contains("fills the metadata"), "{refused}");
        lease.release().await;
        assert_eq!(writers.oldest_seconds().await, Ok(None));
    }
}
