//! What makes a node one of a cluster: what it agrees on with the others, the way to them, and the actors between.
//!
//! The parts are the same whatever stands behind the ports: ZooKeeper, MySQL and QUIC ([`super::zookeeper`]), or what
//! the nodes of one process share ([`super::dev`]).
//!
//! Here a node takes its place; `registration` lets the others know of it, `writers` asks them what they are writing.

use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use holdfast_actors::domain::admission::DiskHealth;
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::flow::key_locks::ChunkLocks;
use holdfast_actors::flow::lifecycle::LifecycleDuty;
use holdfast_actors::flow::reclaim::ClusterDuty;
use holdfast_actors::flow::replica_service::{LocalReplicas, ReplicaLimits};
use holdfast_actors::flow::replicate::{MetadataRepairs, ReplicateOptions, ReplicateParts, ReplicatedChunks};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::self_report::SelfReport;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheFollower, ClusterIdentity, Coordination, NodeAddresses, NodeAnnouncement, NodeState,
};
use holdfast_actors::ports::locks::{LockName, Locks};
use holdfast_actors::ports::peers::{Peers, ReplicaService};
use holdfast_actors::ports::{ChunkStore, Clock, Disk};
use holdfast_actors::service::cluster::{ClusterHandle, Findings, ReportInbox};
use holdfast_protocol::NodeId;
use holdfast_storage::finding::FindingSink;

use super::data_dir::DataDir;
use super::storage::Metadata;
use super::transport::{Served, Transport};
use crate::admin::ClusterAdmin;
use crate::config::Config;
use crate::tiers::Counts;

mod registration;
mod writers;

pub(super) use registration::Registration;
use writers::LiveWriters;

/// The lock of the node that ends unfinished uploads and reclaims contents.
const CLEANUP_LOCK: &str = "cleanup";

/// The lock of the node that carries lifecycle rules out.
const LIFECYCLE_LOCK: &str = "lifecycle";

/// What the nodes of a cluster have in common, opened for one of them.
pub(super) struct ClusterPorts {
    pub(super) identity: ClusterIdentity,
    pub(super) coordination: Arc<dyn Coordination>,
    pub(super) locks: Arc<dyn Locks>,
    pub(super) metadata: Metadata,
    /// Of the cache before the metadata, if there is one.
    pub(super) cache: Option<Arc<dyn CacheFollower>>,
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
    let ClusterPorts { identity, coordination, locks, metadata, cache, transport } = ports;
    // Peers may ask from here on, and clean-up begins: a predecessor's registration, which is there still, is not this
    // process's.
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
        repairs: Arc::new(MetadataRepairs { metadata: metadata.store, clock }),
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
