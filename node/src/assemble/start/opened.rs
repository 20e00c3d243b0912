//! What a start opens: the way to the cluster, metadata and disks.

use std::sync::Arc;

use anyhow::bail;
use holdfast_actors::flow::reclaim::InFlightWrites;
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::Disk;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::service::cluster::Findings;
use holdfast_storage::DiskSet;

use super::super::cluster::{self, ClusterPorts};
use super::super::data_dir::DataDir;
use super::super::storage::{self, Metadata, Storage};
use super::super::{Setting, journal, zookeeper};
use crate::chunks::{DiskChunks, EngineDisk, TrackedChunks};
use crate::config::Config;

/// What a node of a cluster has in common with the others; `None`: it runs alone.
pub(super) async fn cluster_ports(
    setting: Setting,
    config: &Config,
    data_dir: &DataDir,
) -> anyhow::Result<Option<ClusterPorts>> {
    match setting {
        Setting::Alone => match data_dir.cluster_id()? {
            None => Ok(None),
            Some(cluster) => bail!(
                "this node belongs to cluster {cluster}, but no cluster is configured: set cluster.zookeeper and \
                 metadata.url, or use another node.data_dir"
            ),
        },
        Setting::Services => zookeeper::connect(config, data_dir).await.map(Some),
        Setting::Process(shared) => shared.ports(data_dir).await.map(Some),
    }
}

/// Metadata and disks, open.
pub(super) struct Stores {
    pub(super) metadata: Metadata,
    pub(super) storage: Storage,
}

/// Opens both at once, since recovery of the disks takes long. What the disks find damaged is reported, and in a
/// cluster noted in `findings` to be repaired.
///
/// # Errors
/// When one of them cannot be opened, or they do not belong together.
pub(super) async fn open_stores(
    config: &Config,
    data_dir: &DataDir,
    ports: Option<&ClusterPorts>,
    findings: &Arc<Findings>,
    reporter: &Reporter,
) -> anyhow::Result<Stores> {
    // A node that runs alone is its own cluster.
    let cluster_id = ports.map_or(data_dir.id(), |ports| *ports.identity.id.as_bytes());
    let on_finding = ports.map(|_| cluster::finding_sink(findings));
    let on_finding = Some(journal::reporting(reporter.clone(), on_finding));
    let (metadata, storage) = tokio::try_join!(
        open_metadata(data_dir, ports),
        storage::open_disks(config, cluster_id, data_dir, on_finding)
    )?;
    let stores = Stores { metadata, storage };
    if !stores.metadata.had_buckets {
        storage::refuse_lost_metadata(&stores.storage.disks, &metadata_place(config, data_dir))?;
    }
    Ok(stores)
}

async fn open_metadata(data_dir: &DataDir, ports: Option<&ClusterPorts>) -> anyhow::Result<Metadata> {
    match ports {
        None => storage::open_sqlite(&data_dir.file("metadata.sqlite")).await,
        Some(ports) => Ok(ports.metadata.clone()),
    }
}

/// For messages.
fn metadata_place(config: &Config, data_dir: &DataDir) -> String {
    if config.metadata.url.is_empty() {
        data_dir.file("metadata.sqlite").display().to_string()
    } else {
        config.metadata.url.clone()
    }
}

/// This node's own disks, behind their ports.
pub(super) struct LocalDisks {
    pub(super) disks: Vec<Arc<dyn Disk>>,
    pub(super) chunks: Arc<dyn ReplicaStore>,
    pub(super) in_flight: Arc<InFlightWrites>,
}

impl LocalDisks {
    pub(super) fn new(config: &Config, disks: &DiskSet) -> Self {
        let in_flight = InFlightWrites::new(config.cleanup.orphan_age.duration());
        let chunks = TrackedChunks::new(
            DiskChunks::new(disks.clone()),
            in_flight.clone(),
            config.limits.chunk_timeout.duration(),
        );
        let disks = disks.disks().iter().map(|engine| Arc::new(EngineDisk::new(engine.clone())) as Arc<dyn Disk>);
        Self { disks: disks.collect(), chunks: Arc::new(chunks), in_flight }
    }
}
